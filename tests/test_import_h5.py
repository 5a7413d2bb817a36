"""Import of the .h5 files of RaT-BPTT's line: what is read, what is refused, and that it scores."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch

from potstill import cli, load
from potstill.artefact import Hard, Soft, Told, import_set
from potstill.artefact.imports import Images
from potstill.augment import RAT
from potstill.core.errors import InputError
from potstill.data import from_arrays, make_space
from potstill.functional import Adam, Segment, TrainSpec
from potstill.nets import NetSpec, filled

h5py = pytest.importorskip("h5py")

CLASSES, SHAPE = 4, (1, 8, 8)
LINK = r"'data' in .* must be plain numbers within the file"


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)


@pytest.fixture
def data():
    chance = torch.Generator().manual_seed(0)
    labels = torch.arange(CLASSES).repeat(15)
    pixels = torch.randint(0, 256, (len(labels), *SHAPE), generator=chance, dtype=torch.uint8)
    return from_arrays(pixels, labels, validation=0.2)


def released(file, **parts):
    """Write a stand-in: flat images and soft labels as the line stores them, unless told else."""
    chance = torch.Generator().manual_seed(1)
    images = torch.randn(8, 64, generator=chance)
    soft = 5 * torch.rand(8, CLASSES, generator=chance) + 3 * torch.eye(CLASSES).repeat(2, 1)
    with h5py.File(file, "w") as h5:
        for name, value in ({"data": images, "label": soft, "epoch": 1825} | parts).items():
            if value is not None:
                h5[name] = value
    return images, soft


def imported(file, data, **changes):
    options = {"format": "ratbptt-h5", "space": make_space("measured", data)}
    return import_set(file, data=data, net=NetSpec(name="auto"), **(options | changes))


def test_images_labels_and_recipe(tmp_path, data):
    images, soft = released(tmp_path / "a.h5")
    s = imported(tmp_path / "a.h5", data)
    assert torch.equal(s.images, images.view(8, *SHAPE))
    assert isinstance(s.targets, Soft)
    assert torch.equal(s.targets.values, soft)  # as they are, not normalised
    assert s.recipe == TrainSpec(
        lr=0.001, segments=(Segment(epochs=1000),), batch=100, balanced=25, optimizer=Adam(),
        augment=RAT(), loss="soft_ce",
    )  # fmt: skip
    assert s.net == filled(NetSpec(name="convnet1", width=128))
    assert (s.ref, s.classes, s.origin.identity) == (data.ref, data.classes, data.ref.identity)
    facts = s.origin.method_spec
    assert (facts["type"], facts["file"], facts["epoch"]) == ("imported ratbptt-h5", "a.h5", 1825)

    shaped = {"data": images.view(8, *SHAPE).double(), "label": soft.argmax(1), "epoch": None}
    released(tmp_path / "b.h5", **shaped)
    hard = imported(tmp_path / "b.h5", data)
    assert torch.equal(hard.images, s.images)
    assert isinstance(hard.targets, Hard)
    assert torch.equal(hard.targets.values, soft.argmax(1))
    assert hard.recipe == replace(s.recipe, loss="ce")
    released(tmp_path / "c.h5", label=None)
    bare = imported(tmp_path / "c.h5", data)
    assert bare.targets.values.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert "class by class" in bare.origin.method_spec["labels"]


def test_rows_that_lie_class_by_class_keep_their_places(tmp_path, data):
    soft = torch.eye(CLASSES).repeat_interleave(2, 0) + 0.1
    soft[3] = soft[7]  # a label that has left its class
    released(tmp_path / "a.h5", label=soft, epoch=float("nan"))
    s = imported(tmp_path / "a.h5", data)
    assert s.targets.classes.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert s.cut(1).targets.classes.tolist() == [0, 1, 2, 3]
    assert "epoch" not in s.origin.method_spec
    for other in (soft.roll(3, 0), soft[:7]):
        released(tmp_path / "b.h5", label=other, data=torch.randn(len(other), 64))
        assert imported(tmp_path / "b.h5", data).targets.own is None


def test_parts_larger_than_the_numbers_are_refused(tmp_path, data):
    released(tmp_path / "a.h5", data=None)
    with h5py.File(tmp_path / "a.h5", "a") as h5:
        shape = {"shape": (8, 64), "maxshape": (None, 64), "chunks": (2**20, 64)}
        h5.create_dataset("data", dtype="f4", compression="gzip", **shape)
    with pytest.raises(InputError, match=r"'data' in .* is stored in parts larger than itself"):
        imported(tmp_path / "a.h5", data)


@pytest.mark.parametrize(
    ("classes", "batch", "balanced"), [(10, 100, 10), (100, 100, 1), (200, 50, 1), (1000, 50, 1)]
)
def test_published_batches(classes, batch, balanced):
    from potstill.artefact.hdf5 import recipe

    spec = recipe(Told(), Images(shape=(3, 32, 32), classes=classes, most=classes))
    assert (spec.batch, spec.balanced) == (batch, balanced)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"data": None}, "has no images: there is no 'data' in it, but 'epoch', 'label'"),
        ({"data": torch.zeros(8, 63)}, r"float32 \[8, 63\]; expected are floats \[N, 64\] or"),
        ({"data": torch.zeros(8, 8, 8, 1)}, r"\[8, 8, 8, 1\]; expected are floats"),
        ({"data": torch.zeros(8, 64, dtype=torch.uint8)}, "are uint8"),
        ({"data": torch.zeros(0, 64), "label": None}, "holds 0 images; expected are 1 to 40"),
        ({"data": torch.zeros(99, 64)}, "holds 99 images; expected are 1 to"),
        ({"data": torch.full((8, 64), torch.nan)}, "8 of the 8 distilled images hold NaN"),
        ({"data": torch.full((8, 64), 1e300, dtype=torch.float64)}, "hold NaN or infinity"),
        ({"label": torch.zeros(8, 3)}, r"\[8, 3\]; expected are class numbers \[8\] or weights"),
        ({"label": torch.zeros(7, 4)}, r"are float32 \[7, 4\]"),
        ({"label": -torch.ones(8, 4)}, "finite and at least 0"),
        ({"label": torch.full((8,), 4)}, "Labels must lie in 0 to 3"),
        ({"label": None, "data": torch.zeros(6, 64)}, "no labels, and its 6 images are no whole"),
        ({"label": "dogs"}, "The labels in .* are object"),
    ],
)
def test_other_contents_are_refused(tmp_path, data, parts, message):
    released(tmp_path / "a.h5", **parts)
    with pytest.raises(InputError, match=message):
        imported(tmp_path / "a.h5", data)


def test_damaged_files_and_links_are_refused(tmp_path, data):
    with pytest.raises(InputError, match="There is no file"):
        imported(tmp_path / "none.h5", data)
    file = tmp_path / "a.h5"
    file.write_bytes(b"no such thing")
    with pytest.raises(InputError, match="damaged or not an HDF5 file"):
        imported(file, data)
    released(file)
    file.write_bytes(file.read_bytes()[:1500])
    with pytest.raises(InputError, match="damaged or not an HDF5 file"):
        imported(file, data)
    released(tmp_path / "other.h5")
    (tmp_path / "raw").write_bytes(bytes(8 * 64 * 4))
    elsewhere = h5py.ExternalLink(str(tmp_path / "other.h5"), "data")
    for link in (elsewhere, h5py.SoftLink("/label")):
        released(file, data=link)
        with pytest.raises(InputError, match=LINK):
            imported(file, data)
    layout = h5py.VirtualLayout(shape=(8, 64), dtype="f4")
    layout[:] = h5py.VirtualSource(tmp_path / "other.h5", "data", shape=(8, 64))
    for kind in ("raw", "virtual", "group"):
        released(file, data=None)
        with h5py.File(file, "a") as h5:
            if kind == "raw":
                raw = [(str(tmp_path / "raw"), 0, 8 * 64 * 4)]
                h5.create_dataset("data", (8, 64), "f4", external=raw)
            elif kind == "virtual":
                h5.create_virtual_dataset("data", layout)
            else:
                h5.create_group("data")
        with pytest.raises(InputError, match=LINK):
            imported(file, data)


def test_without_h5py_the_extra_is_named(tmp_path, data, monkeypatch):
    released(tmp_path / "a.h5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match=r"pip install 'potstill\[hdf5\]'"):
        imported(tmp_path / "a.h5", data)


def test_command_line_imports_and_scores(tmp_path, data, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chance = torch.Generator().manual_seed(2)
    released("set.h5", data=torch.randn(10, 64, generator=chance), label=torch.arange(10))
    flags = "--format ratbptt-h5 --data digits --normaliser measured --net.width 8"
    assert cli.run(["import", "set.h5", *flags.split(), "--out", "set"]) == 0
    said = capsys.readouterr().out
    assert "epoch: 1825" in said
    assert "10 images with class numbers are now the set set, for convnet1 width 8" in said
    assert "in the space of: mean" in said
    short = replace(load("set").recipe, segments=(Segment(epochs=2),))
    replace(load("set"), recipe=short).save("short")
    assert cli.run(["evaluate", "short", "--seeds", "1", "--no-baselines"]) == 0
    assert "distilled" in capsys.readouterr().out
    for wrong, sentence in (
        ("import set.h5 --format ratbptt-h5 --data digits --normaliser measured --out set",
         "set is there already"),
        ("import set.h5 --format ratbpt --data digits --normaliser measured --out new",
         "did you mean 'ratbptt-h5'"),
        ("import", "What is missing is the file"),
        ("import set.h5 --format ratbptt-h5 --data digits --out new", "--normaliser"),
    ):  # fmt: skip
        assert cli.run(wrong.split()) == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
