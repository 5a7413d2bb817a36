"""RDED's parts against plain loops and torchvision; its tasks on a few digits' stand-ins."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from potstill.core.compute import Compute
from potstill.core.errors import InputError
from potstill.core.keys import forked, generator
from potstill.core.store import Store
from potstill.core.vision import import_torchvision
from potstill.coresets.patch_tasks import PatchSpec, patch_tasks, read_patches
from potstill.coresets.patches import (
    cropped,
    easiest,
    patch_boxes,
    patch_scores,
    resize_matrix,
    tiled,
)
from potstill.data import MeanStd, from_arrays
from potstill.engine import run_tasks
from potstill.nets import NetSpec, build
from potstill.teachers import keep_teacher, open_teacher

SPACE = MeanStd(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("size", "side"), [((16, 16), 16), ((24, 24), 12), ((20, 28), 10)])
def test_crops_equal_torchvision(size, side):
    try:
        import_torchvision()
    except InputError as error:
        pytest.skip(str(error))
    from torchvision.transforms import functional

    pixels = torch.randint(0, 256, (6, 3, *size), generator=rng(), dtype=torch.uint8)
    box = patch_boxes(6, 4, size, rng(1))
    assert (box[..., 2] == box[..., 3]).all()
    for k in range(4):
        got = cropped(pixels, box[:, k], side)
        for image, one, b in zip(pixels, got, box[:, k].int().tolist(), strict=True):
            want = functional.resized_crop(image[None].double(), *b, [side, side], antialias=True)
            clear = ((want[0] % 1) - 0.5).abs() > 1e-3  # halves may be rounded either way
            assert torch.equal(one.double()[clear], want[0].round()[clear])
            assert clear.double().mean() > 0.8


def test_resizing_equals_interpolation_with_antialiasing():
    x = torch.rand(1, 1, 30, 30, dtype=torch.float64, generator=rng())
    for start, length, out in ((0, 30, 10), (3, 17, 10), (5, 8, 12), (29, 1, 4), (0, 30, 30)):
        spot = (torch.tensor([float(v)], dtype=torch.float64) for v in (start, length))
        matrix = resize_matrix(*spot, side=30, out=out)[0]
        part = x[..., start : start + length, :]
        want = nn.functional.interpolate(part, (out, 30), mode="bilinear", antialias=True)
        assert (matrix @ x[0, 0] - want[0, 0]).abs().max() < 1e-12


def test_scores_are_cross_entropies_on_a_blank_canvas():
    with forked(0):
        net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5)).requires_grad_(False)
    patches = torch.randint(0, 256, (7, 3, 4, 4), generator=rng(), dtype=torch.uint8)
    got = patch_scores(net, SPACE, patches, 2, (8, 8))
    for patch, score in zip(patches, got, strict=True):
        canvas = torch.zeros(1, 3, 8, 8)
        canvas[:, :, 2:6, 2:6] = SPACE.forward(patch[None])
        want = nn.functional.cross_entropy(net(canvas), torch.tensor([2]))
        assert score == pytest.approx(float(want), rel=1e-5)
    whole = torch.randint(0, 256, (2, 3, 8, 8), generator=rng(), dtype=torch.uint8)
    want = nn.functional.cross_entropy(net(SPACE.forward(whole)), torch.tensor([0, 0]))
    assert patch_scores(net, SPACE, whole, 0, (8, 8)).mean() == pytest.approx(float(want))
    with pytest.raises(InputError, match="do not fit"):
        patch_scores(net, SPACE, whole, 0, (4, 4))


def test_the_easiest_crop_of_each_image_and_the_easiest_images():
    scores = torch.tensor([[3.0, 1.0], [0.5, 9.0], [1.0, 2.0], [7.0, 7.0]])
    images, crops = easiest(scores, 3)
    assert images.tolist() == [1, 0, 2]
    assert crops.tolist() == [0, 1, 0]
    with pytest.raises(InputError, match="5 patches"):
        easiest(scores, 5)


def test_tiles_lie_as_published():
    n, factor, side = 3, 2, 4
    patches = torch.arange(n * 4, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 3, side, side)
    patches[:, :, 0, 0] += 100
    images = tiled(patches, factor, (8, 8))
    assert images.shape == (n, 3, 8, 8)
    for q in range(n):
        for i in range(factor):
            for j in range(factor):
                cell = images[q, :, side * i : side * i + side, side * j : side * j + side]
                assert torch.equal(cell, patches[(i * factor + j) * n + q])
    assert torch.equal(tiled(patches, 1, (4, 4)), patches)
    for bad, size in ((patches[:5], (8, 8)), (patches, (9, 8))):
        with pytest.raises(InputError, match="cannot be tiled"):
            tiled(bad, factor, size)


@pytest.fixture
def ready(alone, tmp_path):
    """Return data of 3 classes, a spec for them, and the folder of its teacher."""
    pixels = torch.randint(0, 256, (60, 3, 8, 8), generator=rng(), dtype=torch.uint8)
    data = from_arrays(pixels, torch.arange(60) % 3, validation=0.2)
    net = NetSpec(name="convnet1", width=4, norm="batch")
    module = build(net, channels=3, size=(8, 8), classes=3, seed=0)
    (folder := tmp_path / "teacher").mkdir()
    teacher = keep_teacher(module, folder, net=net, space=SPACE, shape=(3, 8, 8), classes=3)
    spec = PatchSpec(
        teacher=teacher,
        data=data.ref,
        classes=(0, 1, 2),
        ipc=2,
        factor=2,
        images=9,
        crops=3,
        seed=0,
        compute=Compute(threads=1),
    )
    return data, spec, folder


def made(spec, blocks, folder, store):
    tasks = patch_tasks(spec, blocks, teacher=folder)
    return [read_patches(done) for done in run_tasks(tasks, store)]


def test_patches_are_those_of_a_plain_loop(ready, tmp_path):
    data, spec, folder = ready
    (found,) = made(spec, [(0, 1, 2)], folder, Store(tmp_path / "store"))
    net = open_teacher(spec.teacher, folder)
    for label in range(3):
        chance = generator(0, "patches", label)
        members = torch.nonzero(data.train.labels == label)[:, 0]
        rows = members[torch.randperm(len(members), generator=chance)[:9]]
        box, ranked = patch_boxes(len(rows), 3, (8, 8), chance), []
        for row, boxes in zip(rows.tolist(), box, strict=True):
            best = []
            for one in boxes:
                patch = cropped(data.train.pixels[row][None], one[None], 4)
                canvas = torch.zeros(1, 3, 8, 8)
                canvas[:, :, 2:6, 2:6] = SPACE.forward(patch)
                best.append((float(-net(canvas).log_softmax(1)[0, label]), row, patch[0]))
            ranked.append(min(best, key=lambda item: item[0]))
        ranked = sorted(ranked, key=lambda item: item[0])[:8]
        want = tiled(torch.stack([patch for *_, patch in ranked]), 2, (8, 8))
        assert torch.equal(found["images"][label], want)
        scores = torch.tensor([score for score, *_ in ranked]).view(4, 2).T
        assert torch.allclose(found["scores"][label], scores, rtol=1e-4, atol=1e-6)
        assert found["rows"][label].T.flatten().tolist() == [row for _, row, _ in ranked]


def test_a_class_has_the_same_patches_in_every_block(ready, tmp_path):
    _, spec, folder = ready
    (whole,) = made(spec, [(0, 1, 2)], folder, Store(tmp_path / "one"))
    parts = made(spec, [(2, 0), (1,)], folder, Store(tmp_path / "two"))
    for name in ("images", "rows", "scores"):
        assert torch.equal(torch.cat([p[name] for p in parts]), whole[name][[2, 0, 1]])


def test_what_does_not_fit_is_told(ready, tmp_path):
    _, spec, folder = ready
    store = Store(tmp_path / "store")
    with pytest.raises(InputError, match="needs 12 images"):
        made(replace(spec, ipc=3), [(0,)], folder, store)
    other = replace(spec.teacher, classes=4)
    with pytest.raises(InputError, match="4 classes"):
        made(replace(spec, teacher=other), [(0,)], folder, store)
    other = replace(spec.teacher, digest="0" * 64)
    with pytest.raises(InputError, match="another teacher"):
        made(replace(spec, teacher=other), [(0,)], folder, store)
