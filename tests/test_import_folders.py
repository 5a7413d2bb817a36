"""Import of recovered images in folders, and of a teacher's stored labels of their views."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, RandomSampler

from potstill import cli, load
from potstill.artefact import Hard, Identity, LabelStore, Told, fkd, import_set
from potstill.artefact.imports import Images
from potstill.augment import Crops, CutMix, MixUp, Params
from potstill.core.errors import InputError
from potstill.data import from_arrays, make_space
from potstill.evaluation import PROTOCOLS
from potstill.functional import Softened
from potstill.nets import NetSpec

CLASSES, EACH, SIDE = 4, 3, 8
COUNT, SHAPE = CLASSES * EACH, (3, SIDE, SIDE)
WANTED = Images(shape=SHAPE, classes=CLASSES, most=100)
pytestmark = pytest.mark.usefixtures("alone")


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def data():
    labels = torch.arange(CLASSES).repeat(40)
    pixels = torch.randint(0, 256, (len(labels), *SHAPE), generator=rng(), dtype=torch.uint8)
    return from_arrays(pixels, labels, validation=0.2)


@pytest.fixture
def folder(tmp_path):
    return written(tmp_path / "images", "new{:03}", "class{:03}_id{:03}.png")


def pictures():
    """uint8 [N, C, H, W], class by class."""
    return torch.randint(0, 256, (COUNT, *SHAPE), generator=rng(7), dtype=torch.uint8)


def written(home, named, files):
    for k, picture in enumerate(pictures()):
        of, index = divmod(k, EACH)
        place = home / named.format(of)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(place / files.format(of, index))
    return home


def imported(file, data, kind="recovered", labels=None):
    space = make_space("cifar10@idc", data)
    told = Told(labels=labels)
    net = NetSpec(name="auto")
    return import_set(file, format=kind, data=data, space=space, net=net, told=told)


@pytest.mark.parametrize(
    ("kind", "named", "files", "protocol"),
    [
        ("recovered", "new{:03}", "class{:03}_id{:03}.png", "tiny-kd"),
        ("recovered", "new{:05}", "class{:05}_id{:05}.png", "tiny-kd"),
        ("rded", "{:05}", "{1:05}.png", "rded"),
    ],
)
def test_folders_become_pixels_with_their_classes(tmp_path, data, kind, named, files, protocol):
    s = imported(written(tmp_path / "in", named, files), data, kind)
    assert torch.equal(s.images, pictures())
    assert torch.equal(s.targets.values, torch.arange(CLASSES).repeat_interleave(EACH))
    assert (type(s.targets), s.decode) == (Hard, Identity())
    recipe = PROTOCOLS.get(protocol).train_spec(s.recipe)
    assert recipe == s.recipe
    assert s.origin.method_spec["images a class"] == "3"
    s.save(tmp_path / "set")
    assert torch.equal(load(tmp_path / "set").images, pictures())


def test_large_images_have_the_recipes_of_imagenet():
    from potstill.artefact import folders

    large = Images(shape=(3, 224, 224), classes=1000, most=10**6)
    own = folders.recovered_recipe(Told(), large)
    assert PROTOCOLS.get("cda-in1k").train_spec(own) == own


def test_folders_that_are_not_those_of_the_classes(folder, data):
    def refused(message):
        with pytest.raises(InputError, match=message):
            imported(folder, data)

    shutil.move(folder / "new002", folder.parent / "kept")
    refused("has no images of class 2; the data have 4 classes, so its folders .* 0 to 3")
    (folder / "new002").mkdir()
    refused("has no images of class 2")
    (folder / "new002").rmdir()
    shutil.copytree(folder.parent / "kept", folder / "n01440764")
    refused("n01440764 is no folder of a class: they are named new000 or 00000")
    shutil.move(folder / "n01440764", folder / "00001")
    refused("two folders of class 1")
    shutil.move(folder / "00001", folder / "new002")
    shutil.copytree(folder.parent / "kept", folder / "new004")
    refused("has a folder of class 4, the data 4 classes")
    shutil.rmtree(folder / "new004")
    wide = folder / "new002" / "class002_id000.png"
    Image.fromarray(np.zeros((SIDE, 9, 3), np.uint8)).save(wide)
    refused("class002_id000.png is .*9")
    wide.write_bytes(wide.read_bytes()[:40])
    refused("Cannot read the image .*class002_id000.png")


def fkd_files(home, epochs=3, batch=5, mixed="boxes", classes=CLASSES):
    """Write labels as FKD does, from a real loader's order; return what each image got."""
    sampler = RandomSampler(range(COUNT), generator=rng(fkd.SEED))
    loader = DataLoader(torch.arange(COUNT), batch_size=batch, sampler=sampler)
    chance, seen = rng(3), []
    for epoch in range(epochs):
        each = {}
        for k, rows in enumerate(loader):
            n = len(rows)
            values = Crops().sample(n, SHAPE, chance).values
            crops = (values[:, :4] / SIDE).float()
            flips, logits = values[:, 4].bool(), torch.randn(n, classes, generator=chance).half()
            logits[torch.arange(n), rows // EACH] = 9
            partner = torch.randperm(n, generator=chance) if mixed else None
            box = None
            if mixed == "boxes":
                box = [np.int64(1), 2, np.int64(5), 8]  # rows 1 to 5, columns 2 to 8
            place = home / f"epoch_{epoch}"
            place.mkdir(parents=True, exist_ok=True)
            held = [crops, flips, partner, np.float64(0.3) if mixed else None, box, logits]
            torch.save(held, place / f"batch_{k}.tar")
            for j, row in enumerate(rows.tolist()):
                other = row if partner is None else int(rows[partner[j]])
                each[row] = (values[j], logits[j], other)
        order = torch.cat(list(seen_rows(loader, sampler, epoch)))
        seen.append((order, each))
    return seen


def seen_rows(loader, sampler, epoch):
    """The order of an epoch, from a sampler of its own."""
    again = RandomSampler(range(COUNT), generator=rng(fkd.SEED))
    for _ in range(epoch):
        list(again)
    yield torch.tensor(list(again))


@pytest.mark.parametrize("mixed", ["boxes", "wholes", ""])
def test_labels_belong_to_the_images_that_a_loader_gave(tmp_path, folder, data, mixed):
    seen = fkd_files(tmp_path / "labels", mixed=mixed)
    s = imported(folder, data, labels=tmp_path / "labels")
    store = s.targets
    assert isinstance(store, LabelStore)
    plan = store.plan
    assert (plan.epochs, plan.batch, plan.codes) == (3, 5, "float16")
    assert plan.mix == {"boxes": CutMix(prob=1.0), "wholes": MixUp(), "": None}[mixed]
    assert s.recipe.mix == plan.mix
    assert s.recipe.lesson == Softened(temperature=20, squared=False)
    if mixed:
        shorter = PROTOCOLS.get("sre2l-fkd").train_spec(s.recipe)
        assert (s.recipe.optimizer, s.recipe.lr) == (shorter.optimizer, shorter.lr)
    x = s.inputs.double()
    for epoch, (order, each) in enumerate(seen):
        replayed = store.replay(SHAPE)(epoch)
        assert torch.equal(replayed.order, order)
        rows = torch.tensor([11, 0, 5])
        views, logits = replayed.batch(rows, lambda some: x[some])
        for k, row in enumerate(rows.tolist()):
            values, wanted, other = each[row]
            view = cropped(x[row], values)
            if mixed:
                part = cropped(x[other], each[other][0])
            if mixed == "boxes":
                view[:, 1:5, 2:8] = part[:, 1:5, 2:8]
            elif mixed:
                view = 0.3 * view + 0.7 * part
            assert (views[k] - view).abs().max() < 1e-9
            assert torch.equal(logits[k], wanted.float())


def cropped(image, values):
    return Crops().apply(image[None], Params(ops=("crops",), values=values[None]))[0].clone()


def test_orders_are_those_of_a_loader_through_many_epochs():
    sampler = RandomSampler(range(50), generator=rng(fkd.SEED))
    loader = DataLoader(torch.arange(50), batch_size=7, sampler=sampler)
    for _, own in zip(range(6), fkd.sampled(50), strict=False):
        assert torch.equal(torch.cat(list(loader)), own)


def test_wrong_labels_are_one_sentence(tmp_path, folder, data):
    home = tmp_path / "labels"
    fkd_files(home)

    def refused(message):
        with pytest.raises(InputError, match=message):
            imported(folder, data, labels=home)

    def altered(place, value):
        file = home / "epoch_1" / "batch_1.tar"
        old = file.read_bytes()
        held = torch.load(file, weights_only=False)
        held[place] = value
        torch.save(held, file)
        return lambda: file.write_bytes(old)

    for place, value, message in (
        (0, torch.rand(5, 4), "no whole pixels of images of 8x8"),
        (0, torch.rand(4, 4), r"crops must be a tensor \[5, 4\], not \[4, 4\]"),
        (2, torch.zeros(5, dtype=torch.int64), "the permutation is none of 5 images"),
        (2, None, "a box without a permutation of the batch"),
        (4, [0, 0, 9, 4], "the box must be four whole numbers within 8x8 pixels"),
        (5, torch.rand(5, 7), r"logits must be a tensor \[5, 4\], not \[5, 7\]"),
        (3, Told(), "asks for potstill.artefact.imports.Told"),
    ):
        back = altered(place, value)
        refused(message)
        back()
    back = altered(4, None)  # then the weight is MixUp's
    altered(3, 1.5)
    refused("the weight of MixUp lies between 0 and 1, not at 1.5")
    back()
    (home / "epoch_1" / "batch_2.tar").rename(tmp_path / "away")
    refused("epoch_1 are of 10 images, not of 12")
    (home / "epoch_1" / "batch_1.tar").rename(home / "epoch_1" / "batch_2.tar")
    refused("of batches 0, 1, ... number 1 is missing")
    shutil.rmtree(home / "epoch_1")
    refused("cut short: of epochs 0, 1, ... number 1 is missing")
    with pytest.raises(InputError, match="have no labels"):
        imported(folder, data, kind="rded", labels=home)


def test_labels_of_other_images_are_found_out(tmp_path):
    labels = torch.arange(20).repeat(3)
    epoch = fkd.Epoch(
        order=torch.arange(60),
        crops=torch.zeros(60, 7),
        partner=torch.arange(60),
        box=torch.zeros(60, 4, dtype=torch.int64),
    )
    logits = torch.nn.functional.one_hot(labels, 20).float()
    fkd._check_aligned(tmp_path, epoch, logits, labels)
    with pytest.raises(InputError, match=r"do not suit these images \(right for 0.0%\)"):
        fkd._check_aligned(tmp_path, epoch, logits.roll(1, 0), labels)


def test_command_line(tmp_path, folder, data, capsys):
    fkd_files(tmp_path / "labels")
    source, out = f"cached:{data.ref.identity}", str(tmp_path / "out")
    command = ["import", str(folder), "--format", "recovered", "--data", source]
    command += ["--normaliser", "cifar10@idc", "--out", out]
    assert cli.run([*command, "--labels", str(tmp_path / "labels")]) == 0
    said = capsys.readouterr().out
    assert "12 images with a teacher's labels of 3 epochs" in said
    assert "images a class: 3" in said
    s = load(out)
    assert isinstance(s.targets, LabelStore)
    assert s.train("convnet1", seed=0)(pictures()).shape == (COUNT, CLASSES)
