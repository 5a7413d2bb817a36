"""The command line: help, listings, and one plain sentence for each mistake."""

import dataclasses
import json
import re
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import potstill
import potstill.cli as cli
from potstill.augment import text_of
from potstill.cli.doctor import EXTRAS
from potstill.core.errors import InputError, WorkError
from potstill.experts import ExpertPlan
from potstill.methods.mtt import MTT
from potstill.nets import NetSpec, describe
from potstill.recipes import RECIPES
from potstill.run import Where, read_run, resume
from potstill.verdict import verdict

SMALL = ["--scale", "smoke", "--threads", "1", "--net.name", "convnet1", "--net.width", "4"]
DIGITS = ["--method", "mtt", "--data", "digits", "--ipc", "1", *SMALL]
COUNTS = MTT(
    iterations=2,
    steps=2,
    expert_epochs=1,
    max_start_epoch=1,
    lr_init=0.05,
    evaluation_epochs=2,
    experts=ExpertPlan(count=1, epochs=1, batch=16),
)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("POTSTILL_DEBUG", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def refused(capsys):
    """Return a function that runs a command that must fail in one line; returns the line."""

    def check(*arguments: str, code: int = 2) -> str:
        capsys.readouterr()
        assert cli.run([str(part) for part in arguments]) == code
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("potstill: ")
        assert err.endswith("\n")
        assert err.count("\n") == 1, err
        return err

    return check


def pictures(folder, *, classes=("cats", "dogs"), count=10, size=8):
    """Write small colour PNGs, darker for the first class."""
    chance = np.random.default_rng(0)
    for k, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = chance.integers(100 * k, 100 + 100 * k, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return the folder of a finished run and the cache that it left."""
    base = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POTSTILL_CACHE", str(base / "cache"))
        assert cli.run(["distill", *DIGITS, "--out", str(base / "run"), "--no-evaluate"]) == 0
    assert not (base / "run" / "eval.jsonl").exists()
    return base


# ---- help and listings ------------------------------------------------------------------------


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_of_every_command(name, capsys):
    for arguments in ([name, "--help"], [name, "-h"]):
        assert cli.run(arguments) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert out.startswith(f"usage: potstill {name}")
        assert len(out.splitlines()) >= 3


def test_help_of_distill_explains_every_flag(capsys):
    assert cli.run(["distill", "--help"]) == 0
    text = capsys.readouterr().out
    said = " ".join(text.replace("│", " ").split())
    for flag in (
        *("--engine STR", "--workers INT", "--store {None}|PATH", "--device {auto,cpu,cuda}"),
        *("--precision {auto,float32,bfloat16}", "--compile {auto,on,off}"),
        "--memory {None}|FLOAT|STR",
    ):
        assert flag in said
    assert "--evaluate, --no-evaluate Score the set" in said
    assert "--ipc INT Distilled images per class. (required)" in said
    assert "--method.augment none|dsa|rat|idc|OPERATIONS Augmentation of the distilled" in said
    assert "work." not in said
    assert "--recipe" not in said
    body = said.split("net options")[0]
    assert not re.search(r"--[a-z.-]+ [A-Za-z{}|,]+ \((default|required)", body)  # text comes first


@pytest.mark.parametrize(
    "arguments", [["distill", "mtt_tiny_ipc1"], ["reproduce", "mtt_tiny_ipc1"]]
)
def test_help_of_a_recipe_shows_its_settings(arguments, capsys):
    assert cli.run([*arguments, "--help"]) == 0
    out = capsys.readouterr().out
    assert "The recipe mtt_tiny_ipc1 at scale full" in " ".join(out.split())
    assert "10000.0" in out


def test_help_and_version_of_the_whole(capsys):
    for arguments in ([], ["--help"], ["help"]):
        assert cli.run(arguments) == 0
        out = capsys.readouterr().out
        assert all(f"\n  {name} " in out for name in cli.COMMANDS)
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"potstill {potstill.__version__}\n"


def test_listings(capsys):
    names = {
        "recipes": RECIPES.names(),
        "methods": ["mtt", "random", "herding", "k-center", "k-medoids", "forgetting", "el2n"],
        "datasets": ["digits", "folder", "parquet", "hf", "torchvision", "npz", "imagenette@mtt"],
        "nets": [*(f"convnet{k}" for k in range(1, 9)), "vgg11", "resnet18-bn", "timm:NAME"],
        "protocols": ["strict", "mtt", "dc", "dc-bench", "staged-idc", "tiny-kd", "rded"],
    }
    for listing, wanted in names.items():
        assert cli.run([listing]) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if line]
        assert {line.split()[0] for line in lines} >= set(wanted)
        assert all(len(line.split()) > 2 for line in lines)
    assert cli.run(["recipes"]) == 0
    assert "46.2 ± 0.8 %" in capsys.readouterr().out


def test_doctor_fits_on_one_screen(capsys, tmp_path):
    (tmp_path / "cache" / "experts").mkdir(parents=True)
    (tmp_path / "cache" / "experts" / "file").write_bytes(bytes(3 * 2**20))
    assert cli.run(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    said = {line[:14].strip(): line[14:].strip() for line in lines}
    assert said["potstill"] == potstill.__version__
    assert said["torch"] == torch.__version__
    assert said["GPU"] == "none: there is no GPU that torch can use"
    assert said["cache"] == f"{tmp_path / 'cache'}, 3.00 MiB"
    assert {"cores", "fast bfloat16", "torch.compile", "free there"} <= said.keys()
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    groups = project["optional-dependencies"]
    extras = {k: v for k, v in groups.items() if k not in ("dev", "oracle")}  # for users
    wanted = {line.split(">")[0]: extra for extra, lines in extras.items() for line in lines}
    assert wanted == EXTRAS
    assert wanted.keys() <= said.keys()


# ---- mistakes ---------------------------------------------------------------------------------

MISTAKES = {
    "distil": ("Unknown command 'distil': did you mean 'distill'?",),
    "distill": ("--method M --data D --ipc N",),
    "distill --method mt --data digits --ipc 1": ("Unknown method 'mt': did you mean 'mtt'?",),
    "distill --method mtt --ipc 1": ("--data",),
    "distill --method mtt --data digits": ("--ipc N",),
    "distill --method mtt --data digits --ipc": ("--ipc needs a value",),
    "distill --method mtt --data digits --ipc abc": ("'abc'",),
    "distill --method mtt --data digits --ipc 0": ("at least 1, not 0",),
    "distill --method mtt --data digits --ipc -3": ("at least 1, not -3",),
    "distill --method mtt --data digits --ipc 500 --scale smoke": ("ipc 500", "class"),
    "distill --method mtt --data digit --ipc 1": ("data source 'digit'", "'digits'"),
    "distill --method mtt --data digits:x --ipc 1": ("'x'",),
    "distill --method mtt --data digits --ipc 1 --scale tiny": ("scale 'tiny'", "smoke"),
    "distill --method mtt --data digits --ipc 1 --iterations 3": ("--iterations",),
    "distill --method mtt --data digits --ipc 1 --method.iteration 3": (
        "did you mean --method.iterations?",
    ),
    "distill --method mtt --data digits --ipc 1 --method.iterations 0": ("at least 1",),
    "distill --method mtt --data digits --ipc 1 --method.augment colour": ("'color'",),
    "distill --method mtt --data digits --ipc 1 --strategy x": ("'x'", "'graph', 'adjoint'"),
    "distill --method mtt --data digits --ipc 1 --memory nan": ("not nan",),
    "distill --method mtt --data digits --ipc 1 --threads 0": ("not 0",),
    "distill --method mtt --data digits --ipc 1 --workers 0": ("workers", "not 0"),
    "distill --method mtt --data digits --ipc 1 --workers 2": ("processes",),
    "distill --method mtt --data digits --ipc 1 --engine process": ("'processes'",),
    "distill --method mtt --data digits --ipc 1 --device cuda": ("'cuda'", "no GPU"),
    "distill --method mtt --data digits --ipc 1 --device tpu": ("tpu", "'cuda'"),
    "distill --method mtt --data digits --ipc 1 --precision float16": ("float16", "'bfloat16'"),
    "distill --method mtt --data digits --ipc 1 --compile yes": ("yes", "'auto', 'on', 'off'"),
    "distill --method mtt --data digits --ipc 1 --compile on --strategy graph": (
        "'graph'",
        "'adjoint'",
    ),
    "distill --method mtt --data digits --ipc 1 --memory 8GX": ("8GiB, 512MiB", "'8GX'"),
    "distill --method mtt --data digits --ipc 1 --memory 0MiB": ("above 0", "'0MiB'"),
    "plan --method mtt --data digits --ipc 1 --device cuda": ("'cuda'", "no GPU"),
    "resume . --device cpu": ("--device",),
    "evaluate nothing --device tpu": ("tpu", "'cuda'"),
    "evaluate nothing --threads 0": ("threads", "not 0"),
    "doctor all": ("'all'",),
    "distill --method mtt --data digits --ipc 1 --net.name convnett3": ("'convnet3'",),
    "distill --method mtt --data digits --ipc 1 --net.name convnet8": ("convnet8",),
    "distill --method mtt --data digits --ipc 1 --net convnet8": ("convnet8",),
    "distill --method mtt --data digits --ipc 1 --normaliser cifar@mtt": (
        "'cifar@mtt'",
        "'cifar10@mtt'",
    ),
    "distill --method mtt --data digits --ipc 1 --validation 0.7": ("0.7",),
    "distill --method mtt --data digits --ipc 1 --limit 0": ("not 0",),
    "distill --method mtt --data digits --ipc 1 --method.experts.epochs 1": ("epochs",),
    "distill --method mtt --data digits --ipc 1 stray": ("stray",),
    "distill mtt_cifar10_ipc2": ("recipe 'mtt_cifar10_ipc2'", "'mtt_cifar10_ipc"),
    "distill mtt_cifar10_ipc1": ("CIFAR-10", "--data", "--scale smoke"),
    "distill mtt_cifar10_ipc1 --scale cpu": ("CIFAR-10", "--data"),
    "distill mtt_cifar10_ipc1 --scale cpux": ("'cpu'",),
    "distill mtt_cifar10_ipc1 --method mtt": ("not both",),
    "reproduce": ("RECIPE",),
    "reproduce mtt_cifar10_ipc1": ("CIFAR-10", "--data"),
    "reproduce mtt_cifar10_ipc1 --no-evaluate": ("--data",),
    "reproduce mtt_cifar10_ipc1 --scale smoke --no-evaluate": ("--no-evaluate",),
    "plan mtt_cifar10_ipc1 --scale smoke --out x": ("--out",),
    "plan mtt_cifar10_ipc50 --data digits": ("3 channels", "digits have 1"),
    "resume": ("RUN",),
    "resume nothing": ("nothing is not a run",),
    "resume . --workers 0": ("workers",),
    "evaluate": ("SET_OR_RUN",),
    "evaluate nothing": ("no distilled set at nothing",),
    "evaluate nothing --protocol": ("--protocol",),
    "evaluate nothing --regimes kept": ("'hard', 'soft', 'online'",),
    "distill --method herding --data digits --ipc 1 --select-every 5": ("herding does not",),
    "distill --method random --data digits --ipc 1 --strategy graph": ("random has none",),
    "distill --method random --data digits --ipc 500": ("--replacement",),
    "distill --method mtt --data digits --ipc 1 --fit squash": ("--resize N",),
    "distill --method mtt --data digits --ipc 1 --classes 1,zebra": ("'zebra'",),
    "distill --method mtt --data digits --ipc 1 --classes 3": ("one class only ('3')",),
    "distill --method mtt --data digits --ipc 1 --unknown x": ("--unknown", "--help lists"),
    "methods mtt": ("'mtt'",),
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_sentence_and_leaves_nothing(line, refused, tmp_path):
    said = refused(*line.split())
    assert all(part in said for part in MISTAKES[line]), said
    assert {item.name for item in tmp_path.iterdir()} <= {"cache"}


def test_bad_images(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    good = pictures(tmp_path / "good")
    corrupt = shutil.copytree(good, tmp_path / "corrupt")
    (corrupt / "cats" / "3.png").write_bytes(b"\x89PNG no picture")
    lonely = shutil.copytree(good, tmp_path / "lonely")
    pictures(tmp_path / "lonely", classes=("birds",), count=1)
    mixed = shutil.copytree(good, tmp_path / "mixed")
    pictures(mixed, classes=("large",), size=12)
    (tmp_path / "file").write_text("no folder")
    cases = {
        f"folder:{tmp_path / 'missing'}": ("missing",),
        f"folder:{tmp_path / 'empty'}": ("is empty",),
        f"folder:{corrupt}": ("Cannot read the image", "3.png"),
        f"folder:{lonely}": ("'birds' has 1 image",),
        f"folder:{mixed}": ("differ in size", "--resize"),
        f"folder:{tmp_path / 'file'}": ("file",),
        f"parquet:{tmp_path / 'empty'}": ("is empty",),
        str(good): (f"folder:{good}",),
    }
    out = tmp_path / "run"
    for source, parts in cases.items():
        said = refused("distill", *DIGITS, "--data", source, "--out", out)
        assert all(part in said for part in parts), said
        assert not out.exists()
    said = refused("distill", *DIGITS, "--data", f"folder:{good}", "--ipc", "9", "--out", out)
    assert "ipc 9 is larger than class" in said
    assert cli.run(["distill", *DIGITS, "--data", f"folder:{good}", "--out", str(out)]) == 0


def test_bad_arrays():
    images, labels = np.zeros((20, 8, 8)), np.arange(20) % 2
    images[3, 2, 1] = np.nan
    with pytest.raises(InputError, match="NaN"):
        potstill.from_arrays(images, labels)
    images[3, 2, 1] = np.inf
    with pytest.raises(InputError):
        potstill.from_arrays(images, labels)
    with pytest.raises(InputError, match="labels"):
        potstill.from_arrays(np.zeros((20, 8, 8)), labels[:-1])
    data = potstill.from_arrays(np.zeros((20, 8, 8)), labels)
    with pytest.raises(InputError, match="Unknown method 'mttt'"):
        potstill.distill(data, ipc=1, method="mttt", out="x")
    with pytest.raises(InputError, match="scale"):
        potstill.distill(data, ipc=1, scale="small", out="x")


def test_spoilt_artefacts(refused, finished, tmp_path, monkeypatch):
    monkeypatch.setenv("POTSTILL_CACHE", str(finished / "cache"))
    out = shutil.copytree(finished / "run", tmp_path / "run")
    tensors, facts = out / "distilled" / "set.safetensors", out / "distilled" / "set.json"
    sound = tensors.read_bytes()
    tensors.write_bytes(sound[:-3])
    assert "set.safetensors was truncated or altered" in refused("evaluate", out)
    said = refused("resume", out)
    assert "set.safetensors was truncated or altered" in said
    assert f"Remove {out / 'distilled'} to have it made again" in said
    tensors.write_bytes(sound)
    text = facts.read_text()
    facts.write_text(text.replace('"lr": 0.0', '"lr": 0.1'))
    assert facts.read_text() != text
    assert "altered" in refused("evaluate", out)
    facts.write_text(text)
    assert "Unknown protocol 'strickt': did you mean 'strict'?" in refused(
        "evaluate", out, "--protocol", "strickt"
    )
    assert "did you mean 'convnet3'?" in refused("evaluate", out, "--nets", "convnnet3")
    assert "seeds" in refused("evaluate", out, "--seeds", "0")
    assert "digits" in refused("evaluate", out, "--data", "digit")
    assert "not the data set" in refused("evaluate", out, "--data", "standin:1x8x2")
    shutil.rmtree(out / "distilled")
    assert "no distilled set" in refused("evaluate", out)
    resume(out)
    assert tensors.read_bytes() == sound


def test_failed_work_is_exit_code_1(refused, monkeypatch):
    for error, part in (
        (WorkError("The disk is full."), "The disk is full."),
        (MemoryError(), "Out of memory"),
        (ValueError("odd\nthing"), "ValueError: odd thing (set POTSTILL_DEBUG=1"),
    ):

        def fails(arguments, error=error):
            raise error

        monkeypatch.setitem(cli.COMMANDS, "plan", fails)
        assert part in refused("plan", code=1)
    monkeypatch.setenv("POTSTILL_DEBUG", "1")
    with pytest.raises(ValueError, match="odd"):
        cli.run(["plan"])


def test_a_diverging_run_is_exit_code_1(capsys, tmp_path):
    wild = ["--method.experts.lr", "1e30", "--out", str(tmp_path / "run")]
    assert cli.run(["distill", *DIGITS, *wild]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("potstill: ")
    assert "diverged; lower its step size" in last


# ---- work -------------------------------------------------------------------------------------


def test_reproduce_smoke_needs_no_data(capsys, tmp_path):
    arguments = ["mtt_cifar10_ipc1", "--scale", "smoke", "--threads", "1", "--out", "r"]
    assert cli.run(["reproduce", *arguments]) == 0
    out, err = capsys.readouterr()
    assert "smoke: not a result" in err
    assert "distilled" in out
    source = "(MTT, arXiv 2203.11932, as PAD re-lists it)"
    assert out.splitlines()[-1].startswith(f"published 46.2 ± 0.8 % {source}, here ")
    assert "not comparable (scale smoke" in out.splitlines()[-1]
    assert potstill.load(tmp_path / "r").origin.recipe == "mtt_cifar10_ipc1"


def test_a_verdict_needs_the_recipes_settings_and_images(finished):
    recipe = RECIPES.get("mtt_cifar10_ipc50")
    out = Path(shutil.copytree(finished / "run", "run"))
    row = {"name": "distilled", "regime": "hard", "mean": 0.99, "std": 0.01, "ci95": 0.01, "n": 5}
    strict = {**row, "net": describe(potstill.load(out).net), "protocol": "strict"}
    others = [{**strict, "protocol": "mtt", "mean": 0.1}, {**strict, "net": "vgg", "mean": 0.1}]
    others.append({**strict, "regime": "soft", "n": 9, "mean": 0.1})
    lines = [json.dumps(line) + "\n" for line in (*others, strict, {**strict, "n": 2, "mean": 0.1})]
    (out / "eval.jsonl").write_text("".join(lines))
    exact = recipe.make("digits")
    assert "10 classes of images (1, 8, 8) are not CIFAR-10" in verdict(recipe, exact, out)
    other = dataclasses.replace(exact, ipc=60)
    assert "not comparable (ipc: 50 -> 60;" in verdict(recipe, other, out)
    small = dataclasses.replace(recipe, shape=(1, 8, 8))
    how = {"threads": 1, "device": "cpu", "compile": "on", "memory": 1.0, "precision": "float32"}
    own = dataclasses.replace(exact, seed=3, **how)
    assert ": met. Always different" in verdict(small, own, out)
    assert "bfloat16" not in verdict(small, own, out)
    for mean in (0.0, 1.0):
        number = dataclasses.replace(small.published, accuracy=100 * mean, verified=False)
        unsure = verdict(dataclasses.replace(small, published=number), own, out)
        assert f"({number.source}), here" in unsure
        assert ": not comparable (the published number is not verified). Always" in unsure
    assert ": met. Always" in verdict(dataclasses.replace(small, notes=("a detail",)), own, out)
    plain = dataclasses.replace(small.published, accuracy=99.5, std=None, kind="a mean of twenty")
    noted = dataclasses.replace(small, published=plain, notes=("a detail", "another"))
    said = verdict(noted, own, out)
    assert said.startswith(f"published 99.5 % ({plain.source}), here 99.00 ± 1.00 % (n = 5): below")
    assert ": below (the published number is a mean of twenty). Always" in said
    assert said.endswith("Of less weight: a detail; another.")
    real = verdict(dataclasses.replace(noted, differs=("another rule",)), own, out)
    assert ": not comparable (another rule). Always" in real
    low = dataclasses.replace(exact, precision="bfloat16")
    assert 'not comparable (precision: "auto" -> "bfloat16")' in verdict(small, low, out)
    config = out / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"float32"', '"bfloat16"'))
    assert config.read_text() != text
    assert verdict(small, own, out).endswith(
        "Experts were trained in bfloat16 (autocast), published ones in float32."
    )


def test_resume_command_of_a_finished_run_scores_it(finished, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("POTSTILL_CACHE", str(finished / "cache"))
    out = shutil.copytree(finished / "run", tmp_path / "run")
    assert cli.run(["resume", str(out), "--no-evaluate"]) == 0
    assert not (out / "eval.jsonl").exists()
    assert cli.run(["resume", str(out), "--no-evaluate"]) == 0
    assert "k-means" not in capsys.readouterr().out
    assert cli.run(["resume", str(out)]) == 0
    assert "k-means" in capsys.readouterr().out
    assert len((out / "eval.jsonl").read_text().splitlines()) >= 3
    accuracy = potstill.load(out).origin.measured
    assert accuracy["n"] == 5
    taught = ["--regimes", "soft", "--no-baselines"]  # a teacher's labels are not the set's number
    assert cli.run(["evaluate", str(out), *taught]) == 0
    assert potstill.load(out).origin.measured == accuracy
    before = (out / "eval.jsonl").read_text().splitlines()
    flags = ["--nets", "convnet1", "--no-baselines", "--seeds", "1"]
    assert cli.run(["evaluate", str(out / "distilled"), *flags]) == 0
    after = (out / "eval.jsonl").read_text().splitlines()
    assert after[:-1] == before
    assert potstill.load(out).origin.measured == accuracy


def test_a_run_outlives_what_its_experts_need(refused, tmp_path, capsys, monkeypatch):
    """k-means looks at pixels where the network has no features or the imported pool is gone."""
    (tmp_path / "headless.py").write_text(
        "from torch import nn\n"
        "def net(*, channels, size, classes):\n"
        "    return nn.Sequential(nn.Conv2d(channels, classes, size), nn.Flatten())\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    flags = ["--net", "module:headless.net", "--no-evaluate", "--out", "a"]
    assert cli.run(["distill", *DIGITS[:-4], *flags]) == 0
    assert cli.run(["evaluate", "a", "--seeds", "1"]) == 0
    assert "k-means on normalised pixels" in (tmp_path / "a" / "eval.jsonl").read_text()

    config = tmp_path / "a" / "config.json"
    config.write_text(config.read_text().replace('"imported": null', '"imported": "gone"'))
    assert cli.run(["evaluate", "a", "--seeds", "1"]) == 0
    (tmp_path / "a" / "eval.jsonl").write_text("{}\n[")
    assert "eval.jsonl is damaged; mend or remove it" in refused("evaluate", "a", "--seeds", "1")


def test_augmentation_flag(tmp_path, capsys):
    for text in ("none", "flip", "rat:M"):
        out = tmp_path / text[:4]
        flags = ["--method.augment", text, "--no-evaluate", "--out", str(out)]
        assert cli.run(["distill", *DIGITS, *flags]) == 0
        assert text_of(read_run(out).method.augment) == text
        assert read_run(out).method.experts.augment.strategy.startswith("color")


def test_python_on_a_folder_of_pictures(tmp_path):
    source = f"folder:{pictures(tmp_path / 'pictures')}"
    net = NetSpec(name="convnet1", width=4)
    potstill.distill(source, ipc=1, method=COUNTS, net=net, out=tmp_path / "run")
    s = potstill.load(tmp_path / "run")
    assert s.classes == ("cats", "dogs")
    assert tuple(s.images.shape) == (2, 3, 8, 8)
    batches = list(s.loader(batch_size=1))
    assert [tuple(x.shape) for x, _ in batches] == [(1, 3, 8, 8)] * 2
    model = s.train("convnet1")
    with torch.no_grad():
        logits = model(torch.zeros(4, 3, 8, 8, dtype=torch.uint8))
    assert tuple(logits.shape) == (4, 2)
    result = potstill.evaluate(s, seeds=2)
    row = result.row("distilled")
    assert row is not None
    assert row.n == 2


def test_python_on_arrays(tmp_path):
    chance = np.random.default_rng(0)
    data = potstill.from_arrays(chance.random((40, 8, 8)), np.arange(40) % 2, classes=["a", "b"])
    net = NetSpec(name="convnet1", width=4)
    out = tmp_path / "run"
    s = potstill.distill(data, ipc=2, method=COUNTS, net=net, out=out, where=Where())
    again = potstill.distill(data, ipc=2, method=COUNTS, net=net, out=out)
    assert torch.equal(resume(out).images, s.images)
    assert torch.equal(again.images, s.images)
    with pytest.raises(InputError, match="ipc: 2 -> 1"):
        potstill.distill(data, ipc=1, method=COUNTS, net=net, out=out)
    other = potstill.from_arrays(chance.random((40, 8, 8)), np.arange(40) % 2)
    with pytest.raises(InputError, match="another configuration"):
        potstill.distill(other, ipc=2, method=COUNTS, net=net, out=out)
