"""Import of PDD's sets of several stages: what is read, what is refused, and that it scores."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace

import pytest
import torch

from potstill import cli, load
from potstill.artefact import Block, Identity, MultiFormation, Told, import_set
from potstill.augment import DSA
from potstill.core.errors import InputError
from potstill.data import from_arrays, make_space
from potstill.evaluation import PROTOCOLS
from potstill.functional import SGD, Segment, TrainSpec, idc_recipe, mtt_segments
from potstill.nets import NetSpec

CLASSES, SHAPE, SLOTS = 4, (3, 8, 8), 2
NEW = torch.arange(CLASSES).repeat_interleave(SLOTS)  # labels of a stage's own images
TOLD = Told(factor=2)
pytestmark = pytest.mark.usefixtures("alone")


@pytest.fixture
def data():
    chance = torch.Generator().manual_seed(0)
    labels = torch.arange(CLASSES).repeat(40)
    pixels = torch.randint(0, 256, (len(labels), *SHAPE), generator=chance, dtype=torch.uint8)
    return from_arrays(pixels, labels, validation=0.2)


def stages_of(count, each=CLASSES * SLOTS, shape=SHAPE):
    """Images that each stage makes, class by class."""
    chance = torch.Generator().manual_seed(1)
    return [0.5 + 0.5 * torch.randn(each, *shape, generator=chance) for _ in range(count)]


def interleaved(stages, classes=CLASSES):
    """The images of stages as PDD over IDC stores them, in plain loops, with labels."""
    slots = len(stages[0]) // classes
    images, labels = [], []
    for c in range(classes):
        for slot in range(slots):
            for made in stages:
                images.append(made[c * slots + slot])
                labels.append(c)
    return [torch.stack(images), torch.tensor(labels)]


def imported(file, data, kind, told=None):
    space = make_space("cifar10@idc", data)
    return import_set(
        file, format=kind, data=data, space=space, net=NetSpec(name="auto"), told=told
    )


def write_stage(folder, union, lr, labels=None):
    folder.mkdir(parents=True, exist_ok=True)
    labels = NEW.repeat(len(union)) if labels is None else labels
    torch.save(torch.cat(union), folder / "images_best.pt")
    torch.save(labels, folder / "labels_best.pt")
    torch.save(lr, folder / "syn_lr_best.pt")


@pytest.fixture
def folders(tmp_path):
    """Folders of eleven stages: in the order of letters stage 10 would be the second one."""
    made = stages_of(11)
    for k in range(11):
        name = f"interval{k + 1}_epoch{5 * k + 1}-{5 * k + 5}"
        write_stage(tmp_path / "run" / name, made[: k + 1], torch.tensor(0.01 * (k + 1)))
    (tmp_path / "run" / "logs").mkdir()
    return tmp_path / "run", made


@pytest.mark.parametrize("count", [1, 3, 7])
def test_slots_of_a_file_over_idc_become_stages(tmp_path, data, count):
    made, file = stages_of(count), tmp_path / f"interval_{count - 1}_data.pt"
    torch.save(interleaved(made), file)
    s = imported(file, data, "pdd-idc", TOLD)
    assert torch.equal(s.images, make_space("cifar10@idc", data).forward(torch.cat(made)))
    assert torch.equal(s.targets.values, NEW.repeat(count))
    assert (type(s.decode), s.decode.factor) == (MultiFormation, 2)
    assert s.recipe == idc_recipe()
    parts = [(333, 1.0), (83, 0.2), (84, 0.04)]
    for k, block in enumerate(s.blocks):
        half = 0.5 if k >= 5 else 1.0  # from the 6th stage on
        train = tuple(Segment(epochs=n, lr_scale=x * half, optimizer="carried") for n, x in parts)
        start, stop = len(NEW) * k, len(NEW) * (k + 1)
        assert block == Block(name=f"stage{k + 1}", start=start, stop=stop, train=train)
    assert len(s.blocks) == count
    rules = PROTOCOLS.get("staged-idc")
    assert rules.suited(s).staged(s) == s.training
    assert rules.train_spec(s.recipe) == s.recipe
    first = s.prefix(1)
    assert torch.equal(first.images, s.images[: len(NEW)])
    assert torch.equal(first.targets.values, NEW)
    assert s.origin.method_spec["stages"] == f"{count}, of {', '.join(['8'] * count)} images"


def test_stages_are_told_where_a_name_does_not(tmp_path, data):
    file, other = tmp_path / "best.pt", tmp_path / "interval_2_data.pt"
    for path in (file, other):
        torch.save(interleaved(stages_of(3)), path)
    named = imported(other, data, "pdd-idc", TOLD)
    for path in (file, other):
        s = imported(path, data, "pdd-idc", replace(TOLD, stages=3))
        assert torch.equal(s.images, named.images)
        assert s.blocks == named.blocks
    for path, told, message in (
        (file, TOLD, "best.pt does not say how many stages .* with --stages"),
        (file, replace(TOLD, stages=0), "stages must be at least 1, not 0"),
        (file, replace(TOLD, stages=5), "24 images, .* each of 4 classes and 5 stages"),
        (other, replace(TOLD, stages=5), "holds 3 stages by its name, not 5"),
        (other, Told(), "do not say their factor"),
        (other, replace(TOLD, experiment=0), "have no experiment"),
        (tmp_path / "none.pt", replace(TOLD, stages=1), "There is no file"),
        (tmp_path, TOLD, "There is no file"),
    ):
        with pytest.raises(InputError, match=message):
            imported(path, data, "pdd-idc", told)


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("hacked",)


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ([torch.cat(stages_of(2)), NEW.repeat(2)], "labels .* must lie class by class, 4 times"),
        ([torch.cat(stages_of(2)), NEW.repeat(2).sort().values + 1], "each of 0 to 3"),
        ([torch.cat(stages_of(2))[:14], NEW.repeat(2)[:14]], "holds 14 images, which are no whole"),
        ([torch.cat(stages_of(2)), NEW], r"labels are torch.int64 \[8\]"),
        ([torch.cat(stages_of(2))[:, :1], NEW.repeat(2)], "expected are floats"),
        ([torch.cat(stages_of(17)), NEW.repeat(17)], "holds 136 images; expected are 1 to 104"),
        ([stages_of(1)[0] * torch.inf, NEW], "8 of the 8 distilled images hold NaN"),
        ([stages_of(1)[0]], "a list of images and labels, not a list of 1"),
        ({"data": 1}, "not a dict of 1"),
        ([NEW, Hostile()], r"asks for \w+\.mkdir"),
    ],
)
def test_other_files_over_idc_are_refused(tmp_path, data, monkeypatch, held, message):
    monkeypatch.chdir(tmp_path)
    torch.save(held, tmp_path / "interval_1_data.pt")
    with pytest.raises(InputError, match=message):
        imported(tmp_path / "interval_1_data.pt", data, "pdd-idc", TOLD)
    assert not (tmp_path / "hacked").exists()


def test_damaged_files_over_idc_are_refused(tmp_path, data):
    file = tmp_path / "interval_1_data.pt"
    torch.save(interleaved(stages_of(2)), file)
    whole = file.read_bytes()
    changed = bytearray(whole)
    changed[len(changed) // 2] ^= 1
    for content in (b"no such thing", b"", whole[:500], bytes(changed)):
        file.write_bytes(content)
        with pytest.raises(InputError, match=r"damaged or not a file of torch\.save"):
            imported(file, data, "pdd-idc", TOLD)


def test_folders_over_mtt_become_stages(data, folders):
    run, made = folders
    s = imported(run, data, "pdd-mtt")
    assert torch.equal(s.images, torch.cat(made))
    assert torch.equal(s.targets.values, NEW.repeat(11))
    assert s.decode == Identity()
    lrs = [float(torch.tensor(0.01 * (k + 1))) for k in range(11)]
    assert s.recipe == TrainSpec(
        lr=lrs[-1],
        segments=mtt_segments(1000),
        batch=256,
        optimizer=SGD(momentum=0.9, weight_decay=5e-4),
        augment=DSA(),
    )
    train = (Segment(epochs=252), Segment(epochs=249, lr_scale=0.1))
    assert s.blocks == tuple(
        Block(name=f"stage{k + 1}", start=8 * k, stop=8 * k + 8, lr=lr, train=train)
        for k, lr in enumerate(lrs)
    )
    rules = PROTOCOLS.get("staged")
    assert rules.suited(s).staged(s) == s.training
    assert rules.train_spec(s.recipe) == s.recipe
    facts = s.origin.method_spec
    assert (facts["type"], facts["file"]) == ("imported pdd-mtt", "run")
    assert facts["step sizes"].startswith("0.01, 0.02, 0.03,")
    parts = ("images_best.pt", "labels_best.pt", "syn_lr_best.pt")
    order = [f"interval{k + 1}_epoch{5 * k + 1}-{5 * k + 5}" for k in range(11)]
    content = b"".join((run / name / part).read_bytes() for name in order for part in parts)
    assert facts["sha256"] == hashlib.sha256(content).hexdigest()


def test_a_folder_of_one_stage_stands_for_those_up_to_it(data, folders, monkeypatch):
    run, made = folders
    stage = run / "interval3_epoch11-15"
    monkeypatch.chdir(stage)
    whole = imported(run, data, "pdd-mtt").prefix(3)
    for path in (stage, stage.relative_to(stage)):
        s = imported(path, data, "pdd-mtt")
        assert torch.equal(s.images, torch.cat(made[:3]))
        assert (s.blocks, s.recipe) == (whole.blocks, whole.recipe)
        assert s.origin.method_spec["file"] == stage.name


@pytest.mark.parametrize("lr", [torch.tensor([0.02]), torch.nn.Parameter(torch.tensor(0.02)), 0.02])
def test_step_sizes_are_numbers_or_tensors_of_one(tmp_path, data, lr):
    write_stage(tmp_path / "stage1", stages_of(1), lr)
    assert imported(tmp_path, data, "pdd-mtt").blocks[0].lr == pytest.approx(0.02)


def remove(run, stage):
    for path in (folder := next(run.glob(f"interval{stage}_*"))).iterdir():
        path.unlink()
    folder.rmdir()


def rewrite(name, thing):
    return lambda run: torch.save(thing, run / "interval2_epoch6-10" / f"{name}_best.pt")


TWO = torch.cat(stages_of(2))
BAD = [
    (lambda run: remove(run, 1), r"from 1, .* are of the stages: 2, 3, 4, 5, 6, 7, 8, 9, 10, 11\."),
    (lambda run: remove(run, 4), r"a folder for each stage .*: 1, 2, 3, 5, 6, 7, 8, 9, 10, 11\."),
    (lambda run: (run / "interval2_epoch6-20").mkdir(),
     "two folders of stage 2, interval2_epoch6-10 and interval2_epoch6-20"),
    (lambda run: (run / "interval2_epoch6-10" / "syn_lr_best.pt").unlink(),
     "no file .*interval2_epoch6-10/syn_lr_best.pt"),
    (lambda run: (run / "interval2_epoch6-10" / "labels_best.pt").write_bytes(b"?"),
     "interval2_epoch6-10/labels_best.pt is damaged"),
    (rewrite("images", TWO + 1e-6), "Stage 2, .*, does not begin with the images of the stage bef"),
    (rewrite("images", torch.cat(stages_of(11))[8:24]), "Stage 2, .*, does not begin with"),
    (rewrite("labels", NEW.flip(0).repeat(2)), "Stage 2, .*, does not begin with the images of"),
    (rewrite("images", TWO[:12]), r"interval2_epoch6-10: the labels are torch.int64 \[16\]"),
    (rewrite("images", TWO[:, :1]), "interval2_epoch6-10: the images are .* expected are floats"),
    (rewrite("images", [TWO]), "the images are a list of 1, not a plain tensor"),
    (rewrite("labels", torch.cat([NEW, NEW.clamp(max=2)])), "Stage 2, .* as many .* it adds 8"),
    (rewrite("labels", torch.cat([NEW, NEW + 1])), "as many images of each of the classes 0 to 3"),
    (rewrite("syn_lr", torch.tensor(-0.01)), "hold a step size above 0, not -0.01"),
    (rewrite("syn_lr", torch.tensor(torch.nan)), "hold a step size above 0, not nan"),
    (rewrite("syn_lr", torch.ones(2)), "hold a step size above 0, not a Tensor"),
    (rewrite("syn_lr", torch.ones(1, device="meta")), "hold a step size above 0, not a Tensor"),
    (rewrite("syn_lr", torch.tensor(1)), "hold a step size above 0, not a int"),
    (rewrite("syn_lr", None), "hold a step size above 0, not a NoneType"),
    (rewrite("syn_lr", Hostile()), r"asks for \w+\.mkdir"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "message"), BAD)
def test_other_folders_over_mtt_are_refused(data, folders, monkeypatch, spoil, message):
    run, _ = folders
    monkeypatch.chdir(run)
    spoil(run)
    with pytest.raises(InputError, match=message):
        imported(run, data, "pdd-mtt")
    assert not (run / "hacked").exists()


def test_a_stage_that_adds_nothing_or_lies_elsewhere_is_refused(tmp_path, data, folders):
    run, made = folders
    write_stage(run / "interval2_epoch6-10", made[:1], torch.tensor(0.01))
    for path, message in (
        (run, r"Stage 2, .* it adds 0\."),
        (run / "logs", "must have a folder for each stage .*: none"),
        (run / "none", "There is no folder"),
        (run / "interval1_epoch1-5" / "images_best.pt", "There is no folder"),
    ):
        with pytest.raises(InputError, match=message):
            imported(path, data, "pdd-mtt")
    write_stage(tmp_path / "plain", made[:1], torch.tensor(0.01))  # no stage by its name
    with pytest.raises(InputError, match="must have a folder for each stage from 1"):
        imported(tmp_path / "plain", data, "pdd-mtt")
    for told, part in ((Told(factor=2), "factor"), (Told(stages=11), "stages")):
        with pytest.raises(InputError, match=f"have no {part}"):
            imported(run, data, "pdd-mtt", told)


def test_command_line_imports_stages(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = stages_of(2, each=10, shape=(1, 8, 8))
    torch.save(interleaved(made, classes=10), "mine.pt")
    for k in range(2):
        labels = torch.arange(10).repeat(k + 1)
        write_stage(tmp_path / "run" / f"interval{k + 1}", made[: k + 1], 0.01, labels)
    common = "--data digits --normaliser measured --net.width 8"
    idc = f"import mine.pt --format pdd-idc {common} --factor 2 --augment none --stages 2 --out idc"
    mtt = f"import run --format pdd-mtt {common} --out mtt"
    for line, protocol in ((idc, "staged-idc"), (mtt, "staged")):
        out = line.split()[-1]
        assert cli.run(line.split()) == 0
        said = capsys.readouterr().out
        assert "stages: 2, of 10, 10 images" in said
        assert ("step sizes: 0.01, 0.01" in said) == (out == "mtt")
        assert f"20 images with class numbers are now the set {out}" in said
        assert f"potstill evaluate {out} --protocol {protocol}" in said
        s = load(out)
        assert [block.name for block in s.blocks] == ["stage1", "stage2"]
        once = Segment(epochs=1)
        blocks = tuple(replace(block, train=(once,)) for block in s.blocks)
        recipe = replace(s.recipe, segments=(once,))
        replace(s, recipe=recipe, blocks=blocks).save(f"short-{out}")
        assert cli.run(["evaluate", f"short-{out}", "--seeds", "1"]) == 0
        said = capsys.readouterr().out
        assert all(row in said for row in ("staged, ", "matched budget", "flat union"))
    for line, sentence in (
        (f"import mine.pt --format pdd-idc {common} --factor 2 --augment none --out new",
         "does not say how many stages"),
        (f"import run --format pdd-mtt {common} --stages 2 --out new", "have no stages"),
        (f"import mine.pt --format pdd-mtt {common} --out new", "There is no folder mine.pt"),
    ):  # fmt: skip
        assert cli.run(line.split()) == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
