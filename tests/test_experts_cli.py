"""`potstill experts`: train, list, verify, rm, import; mistakes are one plain sentence."""

import json
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import potstill.cli as cli
from potstill.core.files import holding, write_json
from potstill.core.spec import canonical, spec_hash, to_json
from potstill.core.store import Store
from potstill.data import open_data
from potstill.experts import KIND, ExpertSpec, Trajectory, find_pool, pools, write_trajectory
from potstill.nets import FlatNet, NetSpec, build
from potstill.report.pools import HEAD, pool_cells
from potstill.run import read_run

COUNTS = ["--scale", "smoke", "--threads", "1", "--limit", "20"]
EAGER = "1 thread, eager float32"
RUN = ["--data", "digits", *COUNTS, "--net", "convnet1", "--net.width", "4"]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("POTSTILL_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)


@pytest.fixture
def store():
    return Store(Path("s"))


@pytest.fixture
def say(capsys):
    """Return a function that runs `potstill experts ...` and returns what it prints."""

    def run(line: str, *more: str, code: int = 0) -> str:
        capsys.readouterr()
        assert cli.run(["experts", *line.split(), *more]) == code
        out, err = capsys.readouterr()
        return out if code == 0 else out + err

    return run


def flat(text: str) -> str:
    return " ".join(text.split())


def test_help(say):
    text = say("--help")
    assert text == say("")
    for name in ("train", "list", "verify", "rm", "import"):
        assert f"\n  {name} " in text
        assert say(f"{name} --help").startswith(f"usage: potstill experts {name}")
    assert "--method.experts.gsam.rho FLOAT" in flat(say("train --help").replace("│", " "))
    assert "(required)" not in say("train --help").split("--data")[0]


def test_what_is_trained_is_what_a_run_uses(say, store, capsys):
    said = say("train --store s", *RUN)
    assert "2 experts are in the pool" in said
    (pool,) = pools(store)
    assert pool.name in said
    assert "validation accuracy " in said
    before = {e.folder: (e.folder / "done.json").stat().st_mtime_ns for e in pool.entries}
    assert f"the pool {pool.name}" in say("train --store s", *RUN, "--ipc", "2")
    run = [a for a in RUN if a != "--net"]
    run[run.index("convnet1") : run.index("convnet1")] = ["--net.name"]
    out = ["--store", "s", "--no-evaluate", "--out", "r"]
    assert cli.run(["distill", "--method", "mtt", "--ipc", "1", *run, *out]) == 0
    assert "experts: 2/2" not in capsys.readouterr().err  # nothing was left to train
    (after,) = pools(store)
    assert {e.folder: (e.folder / "done.json").stat().st_mtime_ns for e in after.entries} == before
    assert cli.run(["evaluate", "r", "--store", "s", "--seeds", "1", "--no-baselines"]) == 0


def test_training_by_recipe_in_processes_with_gsam(say, store):
    gsam = ["--method.experts.gsam.rho", "0.01", "--method.experts.gsam.alpha", "0.3"]
    smoke = ["mtt_cifar10_ipc50", "--scale", "smoke", "--threads", "1", "--store", "s"]
    plain = say("train", *smoke, "--engine", "processes", "--workers", "2")
    assert say("train", *smoke) == plain
    assert say("train", *smoke, *gsam) != plain
    found = {pool.name: pool for pool in pools(store)}
    assert len(found) == 2
    sharp = [pool.spec.train.sharpness for pool in found.values()]
    assert sorted(map(str, sharp))[0].startswith("GSAM(rho=0.01, alpha=0.3, adaptive=True")
    assert None in sharp
    rows = [torch.stack([Trajectory(p.entries[0].folder).row(2)]) for p in found.values()]
    assert not torch.equal(*rows)
    trained = {pool_cells(pool)[5] for pool in found.values()}
    both = ("2 epochs, SGD lr 0.01, ", f"batch 256, {EAGER}")
    assert trained == {"".join(both), "GSAM 0.01 / 0.3, ".join(both)}
    assert "4 experts in 2 pools" in say("list --store s")


def old_and_foreign(store):
    """Add entries that this version cannot read or does not use."""
    (pool,) = pools(store)
    raw = to_json(pool.spec)
    for name, spec in {
        "gone": {**raw, "type": "ExpertOfYore"},
        "old": {k: v for k, v in raw.items() if k != "revision"} | {"seed": 7},
        "odd": {**raw, "data": 3},
        "other": {"type": "SGD", "index": 0, "momentum": 0.5},
    }.items():
        folder = store.root / KIND / (name if name == "odd" else spec_hash(spec))
        folder.mkdir()
        write_trajectory(folder, torch.zeros(2, 3), {"note": name})
        write_json(folder / "done.json", {"spec": spec, "files": {}})
    for name, text in {"empty": None, "text": "no json", "list": "[1]"}.items():
        (store.root / KIND / f"{name}-x").mkdir()
        if text:
            (store.root / KIND / f"{name}-x" / "done.json").write_text(text)
    return pool


def test_list(say, store):
    assert "There is no store s." in say("list --store s", code=2)
    Path("s").mkdir()
    assert "There are no experts in" in say("list --store s")
    say("train --store s", *RUN)
    text = flat(say("list --store s"))
    assert all(flat(head) in text for head in HEAD)
    assert "2 experts in 1 pool," in text
    (pool,) = pools(store)
    cells = dict(zip(HEAD, pool_cells(pool), strict=True))
    facts = [Trajectory(entry.folder).facts for entry in pool.entries]
    mean = 50 * sum(fact["validation_accuracy"] for fact in facts)
    assert cells["pool"] == pool.name[:12]
    assert cells["experts"] == "0-1"
    assert cells["data"] == f"{open_data('digits').ref.identity[:8]} digits"
    assert cells["network"] == "convnet1 width 4"
    assert cells["normaliser"] == "0.308 / 0.376"
    assert cells["training"] == f"2 epochs, SGD lr 0.01, batch 256, {EAGER}"
    assert cells["seed"] == "0"
    assert cells["validation %"].startswith(f"{mean:.1f} ± ")
    assert cells["age"].endswith(" s")
    say("train --store s", *RUN, "--normaliser", "zca-mtt", "--method.experts.momentum", "0.5")
    other = next(p for p in pools(store) if p.name != pool.name)
    training = f"2 epochs, SGD lr 0.01, momentum 0.5, batch 256, {EAGER}"
    assert pool_cells(other)[4:6] == ("zca-mtt", training)
    say("train --store s", *RUN, "--precision", "bfloat16", "--compile", "off")
    trainings = [pool_cells(each)[5] for each in pools(store)]
    assert cells["training"].replace("float32", "bfloat16") in trainings


def test_what_nobody_can_read_is_listed_and_removed(say, store):
    say("train --store s", *RUN)
    pool = old_and_foreign(store)
    text = flat(say("list --store s"))
    assert "Unknown record 'ExpertOfYore'" in text
    assert "made by another version" in text
    assert text.count("no readable done.json") == 3
    assert "9 experts in 8 pools" in text
    assert "is missing, truncated or altered" in say("verify --store s", code=1)
    assert "2 experts checked, none of them bad" in say(f"verify --store s {pool.name}")
    for name in [p.name for p in pools(store) if p.name != pool.name]:
        assert f"{name}: 1 experts removed" in say(f"rm --store s {name}")
    assert [p.name for p in pools(store)] == [pool.name]


def test_verify(say, store):
    say("train --store s", *RUN)
    (pool,) = pools(store)
    assert "2 experts checked, none of them bad" in say("verify --store s")
    file = pool.entries[1].folder / "trajectory.safetensors"
    whole = file.read_bytes()
    for damage in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), None):
        file.unlink() if damage is None else file.write_bytes(damage)
        text = say(f"verify --store s {pool.name[:6]}", code=1)
        assert f"{file} is missing, truncated or altered" in text
        assert "2 experts checked, 1 of them bad" in text
    assert "experts list shows them" in say("verify --store s zzz", code=2)
    assert say("list --store s")


def test_remove(say, store):
    for lr in ("0.01", "0.02"):
        say("train --store s", *RUN, "--experts.lr", lr)
    one, two = pools(store)
    assert "give --all" in say("rm --store s", code=2)
    assert "give --all" in say(f"rm --store s --all {one.name}", code=2)
    assert "no pool ''" in say("rm --store s", "", code=2)
    text = say("rm --store s --all --dry-run")
    assert text.count("2 experts would be removed") == 2
    assert len(pools(store)) == 2
    twin = store.root / KIND / f"{one.name[:3]}-twin"
    twin.mkdir()
    assert f"{one.name[:3]!r} fits 2 pools" in say(f"rm --store s {one.name[:3]}", code=2)
    twin.rmdir()
    third = canonical(replace(two.spec, index=2))  # not there yet, but being made
    with holding(
        store.root / KIND / f".{spec_hash(json.loads(third))}.lock", wait=True, note=third
    ):
        text = say("rm --store s --all", code=1)
    assert f"{one.name}: 2 experts removed" in text
    assert f"Another process is making experts of the pool {two.name}" in text
    assert [pool.name for pool in pools(store)] == [two.name]
    left = two.entries[0].folder.with_name(".abc.12345678.tmp")
    left.mkdir()
    assert f"{two.name}: 2 experts removed, 0.0" in say(f"rm {two.name[:5]} --store s")
    assert list((store.root / KIND).iterdir()) == []


def test_import_and_use(say, store, tmp_path):
    data = open_data("digits", limit=20)
    net = FlatNet(
        build(NetSpec(name="convnet1", width=4), channels=1, size=data.size, classes=10, seed=0)
    )
    rows = torch.randn(2, 3, net.numel, generator=torch.Generator().manual_seed(0))
    experts = [[[v.clone() for v in net.views(row).values()] for row in part] for part in rows]
    torch.save(experts, "replay_buffer_0.pt")
    images = "--data digits --limit 20 --normaliser measured"
    line = f"import replay_buffer_0.pt --store s {images} --lr .03"
    text = say(line, "--net", "convnet1", "--net.width", "4")
    (pool,) = pools(store)
    assert f"2 experts of 2 epochs are now the pool {pool.name}" in text
    assert "% of the validation images right" in text
    cells = pool_cells(pool)
    assert cells[1] == "0-1"
    assert cells[2].endswith("replay_buffer_0.pt")
    assert cells[5:7] == ("imported, 2 epochs, lr 0.03", "-")
    use = text.splitlines()[1].split()
    run = ["--data", "digits", *COUNTS, "--net.name", "convnet1", "--net.width", "4"]
    out = ["--store", "s", "--no-evaluate", "--out", "r"]
    assert cli.run(["distill", "--method", "mtt", "--ipc", "1", *run, *use, *out]) == 0
    assert read_run(tmp_path / "r").method.experts.imported == pool.name[:12]
    assert cli.run(["evaluate", "r", "--store", "s", "--seeds", "1", "--no-baselines"]) == 0
    said = say(line, "--net", "convnet1", code=2)
    assert "parameter 0 of convnet1 should be features.0.weight [128, 1, 3, 3]" in said
    assert "the file has [4, 1, 3, 3]" in said
    assert find_pool(store, pool.name[:4]).name == pool.name


MISTAKES = {
    "lst": ("command of experts 'lst'", "'list'"),
    "list now": ("now",),
    "train": ("--data",),
    "train mtt_cifar10_ipc1 --scale cpu": ("CIFAR-10", "--data"),
    "train --method random --data digits": ("trains no experts",),
    "train --data digits --experts.lr 0": ("lr",),
    "train --data digits --experts.gsam.alpha 1": ("no effect without a gsam.rho",),
    "train --data digits --experts.imported abc": ("no pool 'abc'",),
    "import": ("--data",),
    "import absent.pt --data digits": ("--normaliser",),
    "import --data digits --normaliser measured": ("Name the files",),
    "import absent.pt --data digits --normaliser measured": ("no file absent.pt",),
    "import absent.pt --data digits --net convnet9 --normaliser measured": ("convnet",),
    "import absent.pt --data digits --normaliser tiny@mtt": ("3 channels",),
    "rm zzz": ("no pool 'zzz'",),
    "verify --stor s": ("--store",),
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_sentence(line, capsys, tmp_path):
    assert cli.run(["experts", *line.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("potstill: ")
    assert err.count("\n") == 1, err
    assert all(part in err for part in MISTAKES[line]), err
    assert {item.name for item in tmp_path.iterdir()} <= {"cache"}


def test_a_full_disk(say, monkeypatch):
    open_data("digits")
    usage = namedtuple("usage", "total used free")(0, 0, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    said = say("train --store s", *RUN, code=2)
    assert "experts still to be made need" in said
    assert "choose another folder with --store" in said


def test_spec_names_are_explicit(store, say):
    say("train --store s --data digits", *COUNTS, "--net.name", "convnet1", "--net.width", "4")
    (pool,) = pools(store)
    assert isinstance(pool.spec, ExpertSpec)
    assert (pool.spec.net.norm, pool.spec.net.act, pool.spec.net.pool) == (
        "instance",
        "relu",
        "avg",
    )
