"""Import of IDC's data.pt and DC's res_*.pt: what is read, what is refused, and that it scores."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from potstill import cli, load
from potstill.artefact import FORMATS, Hard, Identity, MultiFormation, Told, import_set
from potstill.augment import IDC, CutMix
from potstill.core.errors import InputError
from potstill.data import from_arrays, make_space
from potstill.evaluation import PROTOCOLS
from potstill.functional import SGD, TrainSpec, idc_recipe, idc_segments, mtt_segments
from potstill.nets import NetSpec

CLASSES, SHAPE = 4, (1, 8, 8)
LABELS = torch.arange(CLASSES).repeat_interleave(2)
FLIPS = "idc:color_crop_scale_rotate_flip"
pytestmark = pytest.mark.usefixtures("alone")


@pytest.fixture
def data():
    chance = torch.Generator().manual_seed(0)
    labels = torch.arange(CLASSES).repeat(15)
    pixels = torch.randint(0, 256, (len(labels), *SHAPE), generator=chance, dtype=torch.uint8)
    return from_arrays(pixels, labels, validation=0.2)


def noise(count=8, seed=1):
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def unclipped():
    return 0.5 + 0.5 * noise()  # about [0, 1], some outside


def imported(file, data, kind, told=None, space=None):
    space = space or make_space("mnist@dc", data)
    return import_set(
        file, format=kind, data=data, space=space, net=NetSpec(name="auto"), told=told
    )


def write_dc(file, experiments, **more):
    """Write a stand-in, with accuracies in numbers of NumPy as evaluations leave them."""
    accuracies = {"ConvNet": [np.float64(0.283), np.float64(0.281)]}
    torch.save({"data": experiments, "accs_all_exps": accuracies} | more, file)


@pytest.mark.parametrize("old", [False, True])
def test_idc_pixels_are_normalised_and_not_clipped(tmp_path, data, old):
    pixels, file = unclipped(), tmp_path / "data.pt"
    assert pixels.min() < 0
    assert pixels.max() > 1
    torch.save([pixels, LABELS], file, _use_new_zipfile_serialization=not old)
    s = imported(file, data, "idc", Told(factor=2, augment=FLIPS))
    space = make_space("mnist@dc", data)
    assert torch.equal(s.images, space.forward(pixels))
    assert torch.equal(s.targets.values, LABELS)
    assert isinstance(s.targets, Hard)
    assert s.decode == MultiFormation(factor=2, pad=((0.5 - 0.1307) / 0.3081,))
    assert s.recipe == TrainSpec(
        lr=0.01,
        segments=idc_segments(1000),
        batch=64,
        optimizer=SGD(momentum=0.9, weight_decay=5e-4),
        augment=IDC(strategy="color_crop_scale_rotate_flip"),
        mix=CutMix(prob=0.5),
    )
    assert PROTOCOLS.get("idc").train_spec(s.recipe) == s.recipe
    assert (s.ref, s.classes) == (data.ref, data.classes)
    facts = s.origin.method_spec
    assert (facts["type"], facts["file"]) == ("imported idc", "data.pt")
    raw = MultiFormation(factor=2)
    wanted = space.forward(raw.take(pixels, raw.index(LABELS)))
    torch.testing.assert_close(s.decoded()[0], wanted, rtol=0, atol=1e-5)
    file.unlink()
    assert torch.equal(s.images, space.forward(pixels))  # nothing stays in the file


def test_idc_factors_and_decoders(tmp_path, data):
    file = tmp_path / "data.pt"
    torch.save([unclipped().double(), LABELS], file)
    assert imported(file, data, "idc", Told(factor=1, augment=FLIPS)).decode == Identity()
    bound = imported(file, data, "idc", Told(factor=3, decoder="bound", augment=FLIPS))
    assert (bound.decode.factor, bound.decode.kind, bound.decode.bound) == (3, "bound", 128)
    assert bound.images.dtype == torch.float32
    for told, message in (
        (Told(), r"do not say their factor: name it with --factor\.$"),
        (Told(factor=2, experiment=0), "format idc have no experiment: leave it out"),
        (Told(factor=1, decoder="multi"), "factor 1 are not cut: leave the decoder out"),
        (Told(factor=0), "factor and a bound of at least 1, not 0"),
        (
            Told(factor=9, augment=FLIPS),
            "is unsound: Images of 8 x 8 pixels cannot be cut with the factor 9",
        ),
        (Told(factor=2, decoder="tripple"), "Unknown kind of decoder 'tripple'"),
    ):
        with pytest.raises(InputError, match=message):
            imported(file, data, "idc", told)
    with pytest.raises(InputError, match="cannot be whitened"):
        imported(file, data, "idc", Told(factor=2), space=make_space("zca-mtt", data))


@pytest.mark.parametrize(
    ("augment", "cutmix", "policy", "mix"),
    [
        ("idc:color_crop_scale_rotate", 0.0, IDC(strategy="color_crop_scale_rotate"), None),
        ("idc:color_crop_scale_rotate", None, IDC(strategy="color_crop_scale_rotate"), 0.5),
        ("none", 1.0, None, 1.0),
    ],
)
def test_idc_sets_of_digits_are_trained_on_as_told(tmp_path, data, augment, cutmix, policy, mix):
    file = tmp_path / "data.pt"
    torch.save([unclipped(), LABELS], file)
    recipe = imported(file, data, "idc", Told(factor=2, augment=augment, cutmix=cutmix)).recipe
    assert recipe == replace(
        idc_recipe(), augment=policy, mix=None if mix is None else CutMix(prob=mix)
    )
    if policy is not None:
        assert PROTOCOLS.get("idc").train_spec(recipe) == recipe


def test_idc_mirrors_images_of_three_channels_only_unless_told(tmp_path, data):
    file = tmp_path / "data.pt"
    torch.save([unclipped(), LABELS], file)
    for told, message in (
        (Told(factor=2), "one channel may be digits, .* --augment idc:color_crop_scale_rotate for"),
        (Told(factor=2, augment="idc:mirror"), "mirror"),
        (Told(factor=2, augment=FLIPS, cutmix=1.5), r"1\.5"),
    ):
        with pytest.raises(InputError, match=message):
            imported(file, data, "idc", told)
    torch.save([unclipped().expand(-1, 3, -1, -1), LABELS], file)
    pixels = data.train.pixels.expand(-1, 3, -1, -1).contiguous()
    colour = from_arrays(pixels, data.train.labels, validation=0.2)
    space = make_space("cifar10@idc", colour)
    s = imported(file, colour, "idc", Told(factor=2), space=space)
    assert s.recipe == idc_recipe()


def test_sets_of_large_images_have_their_own_protocol():
    for name, shape, wanted in (
        ("idc", (3, 32, 32), "idc"),
        ("idc", (1, 64, 64), "idc"),
        ("idc", (3, 224, 224), "idc-imagenet"),
        ("dc", (3, 128, 128), "dc"),
    ):
        assert FORMATS.get(name).published_by(shape) == wanted


def test_dc_images_are_taken_as_they_are(tmp_path, data):
    file = tmp_path / "res_DC_MNIST_ConvNet_2ipc.pt"
    experiments = [[noise(seed=k), LABELS] for k in range(3)]
    write_dc(file, experiments)
    last = imported(file, data, "dc")
    assert torch.equal(last.images, experiments[2][0])
    assert torch.equal(last.targets.values, LABELS)
    assert last.decode == Identity()
    assert last.recipe == TrainSpec(
        lr=0.01,
        segments=mtt_segments(300),
        batch=256,
        optimizer=SGD(momentum=0.9, weight_decay=5e-4),
        augment=None,
    )
    assert PROTOCOLS.get("dc").train_spec(last.recipe) == last.recipe
    assert last.origin.method_spec["experiment"] == "2 of 0 to 2"
    first = imported(file, data, "dc", Told(experiment=0))
    assert torch.equal(first.images, experiments[0][0])
    for told, message in (
        (Told(experiment=3), "has the experiments 0 to 2, not 3"),
        (Told(experiment=-1), "has the experiments 0 to 2, not -1"),
        (Told(factor=2), "format dc have no factor: leave it out"),
        (Told(decoder="single"), "format dc have no decoder: leave it out"),
        (Told(augment="dsa"), "format dc have no augment: leave it out"),
        (Told(cutmix=0.5), "format dc have no cutmix: leave it out"),
    ):
        with pytest.raises(InputError, match=message):
            imported(file, data, "dc", told)


def strange(shape):
    """A tensor that claims far more numbers than its file holds."""
    return torch.zeros(1).as_strided(shape, (0,) * len(shape))


PAIRS = [
    ((torch.zeros(8, 1, 8, 7), LABELS), r"float32 \[8, 1, 8, 7\]; expected are floats \[N, 1, 8"),
    ((torch.zeros(8, 64), LABELS), r"\[8, 64\]; expected are floats"),
    ((torch.zeros(8, *SHAPE, dtype=torch.uint8), LABELS), "images are torch.uint8"),
    ((torch.zeros(0, *SHAPE), LABELS[:0]), "holds 0 images; expected are 1 to 40"),
    ((strange((10**12, *SHAPE)), LABELS), "holds 1000000000000 images"),
    ((noise(), LABELS[:7]), r"labels are torch.int64 \[7\]; expected are class numbers \[8\]"),
    ((noise(), torch.eye(8)), "labels are torch.float32"),
    ((noise(), LABELS + 1), "unsound: Labels must lie in 0 to 3"),
    ((noise() * torch.inf, LABELS), "8 of the 8 distilled images hold NaN or infinity"),
    (([1.0], LABELS), "images are a list of 1, not a plain tensor"),
    ((noise().to_sparse(), LABELS), "images are a Tensor, not a plain tensor"),
    ((noise(), None), "labels are a NoneType, not a plain tensor"),
]


@pytest.mark.parametrize(("pair", "message"), PAIRS)
def test_other_contents_are_refused(tmp_path, data, pair, message):
    torch.save(list(pair), tmp_path / "data.pt")
    with pytest.raises(InputError, match=message):
        imported(tmp_path / "data.pt", data, "idc", Told(factor=2, augment=FLIPS))
    write_dc(tmp_path / "res.pt", [list(pair)])
    with pytest.raises(InputError, match=message):
        imported(tmp_path / "res.pt", data, "dc")


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("hacked",)


@pytest.mark.parametrize(
    ("held", "idc", "dc"),
    [
        ([noise()], "list of images and labels, not a list of 1", "as 'data', not a list of 1"),
        ({"data": []}, "not a dict of 1", "not a list of 0 as 'data'"),
        ({"data": [noise()]}, "not a dict of 1", "experiment 0 must be a list of images and"),
        ({"images": noise()}, "not a dict of 1", "as 'data', not a dict of 1"),
        (noise(), "not a Tensor", "not a Tensor"),
        ([noise(), Hostile()], r"asks for \w+\.mkdir", r"asks for \w+\.mkdir"),
        ([noise(), np.float64(1)], r"asks for numpy\.", "as 'data', not a list of 2"),
        ({"data": np.zeros(3)}, r"asks for numpy\.", r"asks for numpy\."),
    ],
)
def test_foreign_files_are_refused_and_nothing_is_run(tmp_path, data, monkeypatch, held, idc, dc):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "a.pt"
    torch.save(held, file)
    for kind, told, message in (("idc", Told(factor=2, augment=FLIPS), idc), ("dc", None, dc)):
        with pytest.raises(InputError, match=message):
            imported(file, data, kind, told)
    assert not (tmp_path / "hacked").exists()


def test_damaged_files_are_refused(tmp_path, data):
    file = tmp_path / "data.pt"
    torch.save([unclipped(), LABELS], file)
    whole = file.read_bytes()
    changed = bytearray(whole)
    changed[len(changed) // 2] ^= 1
    for content in (b"no such thing", b"", whole[:500], bytes(changed)):
        file.write_bytes(content)
        for kind, told in (("idc", Told(factor=2, augment=FLIPS)), ("dc", None)):
            with pytest.raises(InputError, match=r"damaged or not a file of torch\.save"):
                imported(file, data, kind, told)
    with pytest.raises(InputError, match="There is no file"):
        imported(tmp_path / "none.pt", data, "dc")


def test_command_line_imports_and_scores(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    labels = torch.arange(10)
    torch.save([0.5 + 0.2 * noise(10), labels], "data.pt")
    write_dc("res.pt", [[noise(10), labels]])
    common = "--data digits --normaliser measured --net.width 8"
    digits = "--augment idc:color_crop_scale_rotate --cutmix 0"
    idc = f"import data.pt --format idc {common} --factor 2 {digits} --out idc"
    assert cli.run(idc.split()) == 0
    said = capsys.readouterr().out
    assert "10 images with class numbers are now the set idc" in said
    assert "cut into 40 training images;" in said
    assert "with the augmentation idc:color_crop_scale_rotate, CutMix 0;" in said
    assert "taken to be pixels, normalised now by: mean" in said
    assert "potstill evaluate idc --protocol idc" in said
    assert cli.run(f"import res.pt --format dc {common} --experiment 0 --out dc".split()) == 0
    said = capsys.readouterr().out
    assert "experiment: 0 of 0 to 0" in said
    assert "cut into" not in said
    assert "in the space of: mean" in said
    assert "potstill evaluate dc --protocol dc" in said
    for name in ("idc", "dc"):
        s = load(name)
        short = replace(s.recipe.segments[0], epochs=1)
        replace(s, recipe=replace(s.recipe, segments=(short,))).save(f"short-{name}")
        assert cli.run(["evaluate", f"short-{name}", "--seeds", "1"]) == 0
        said = capsys.readouterr().out
        assert ("random mosaics, own step" in said) == (name == "idc")
    for wrong, sentence in (
        (f"import data.pt --format idc {common} --out new", "name it with --factor"),
        (f"import data.pt --format idc {common} --factor 2 --out new", "may be digits"),
        (f"import data.pt --format idc {common} --factor 2 --experiment 1 --out new",
         "have no experiment"),
        (f"import res.pt --format dc {common} --cutmix 0 --out new", "have no cutmix"),
        (f"import res.pt --format dc {common} --factor 2 --out new", "have no factor"),
        (f"import res.pt --format dc {common} --experiment 1 --out new", "experiments 0 to 0"),
        (f"import data.pt --format idc {common} --factor 2 --decoder tripple --out new", "tripple"),
    ):  # fmt: skip
        assert cli.run(wrong.split()) == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
