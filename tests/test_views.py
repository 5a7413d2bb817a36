"""The policy `views` against torchvision's functions and slow formulas."""

from __future__ import annotations

import math
from statistics import NormalDist

import pytest
import torch
from torch import Tensor

from potstill.augment import Params, Views
from potstill.augment.views import AXES, COLUMNS, GREY, SPREAD, TRIES, boxes
from potstill.core.errors import InputError
from potstill.core.spec import from_json, to_json
from potstill.core.vision import import_torchvision

F64 = torch.float64
STILL = {"own": 1.0}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inject(n: int, **columns: float) -> Params:
    values = torch.zeros(n, len(COLUMNS), dtype=F64)
    for name, number in columns.items():
        values[:, COLUMNS.index(name)] = number
    return Params(ops=("views",), values=values)


def box_of(u: list[list[float]], place: list[float], high: int, wide: int) -> list[int]:
    """Return top, left, height, width as torchvision's RandomResizedCrop.get_params computes it."""
    for a, b in u:
        area = high * wide * (0.5 + 0.5 * a)
        aspect = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * b)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= wide and 0 < h <= high:
            return [int(place[0] * (high - h + 1)), int(place[1] * (wide - w + 1)), h, w]
    h, w = high, wide
    if wide / high < 3 / 4:
        h = round(wide / (3 / 4))
    elif wide / high > 4 / 3:
        w = round(high * (4 / 3))
    return [(high - h) // 2, (wide - w) // 2, h, w]


@pytest.mark.parametrize("size", [(224, 224), (32, 32), (7, 10), (20, 9), (8, 31)])
def test_boxes_as_torchvision_computes_them(size):
    tries = torch.rand(400, TRIES, 2, dtype=F64, generator=rng())
    tries[:200] = tries[:200, :1]  # the same try ten times over: some never fit
    place = torch.rand(400, 2, dtype=F64, generator=rng(1))
    got = boxes(tries, place, size, scale=(0.5, 1.0), ratio=(3 / 4, 4 / 3))
    want = [box_of(u, p, *size) for u, p in zip(tries.tolist(), place.tolist(), strict=True)]
    assert got.tolist() == want
    assert len({tuple(row[2:]) for row in want}) > (10 if max(size) < 1.5 * min(size) else 0)
    assert (got[:, :2] + got[:, 2:] <= torch.tensor(size)).all()


@pytest.mark.parametrize("box", [(0, 0, 24, 20), (3, 5, 17, 13), (9, 0, 15, 20), (2, 4, 1, 2)])
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_crop_and_resize_equal_torchvision(box, flip):
    try:
        import_torchvision()
    except InputError as error:
        pytest.skip(str(error))
    from torchvision.transforms import functional

    x = torch.rand(2, 3, 24, 20, dtype=F64, generator=rng())
    top, left, height, width = box
    p = inject(2, top=top, left=left, height=height, width=width, flip=flip, **STILL)
    got = Views().apply(x, p)
    for antialias in (True, False):
        want = functional.resized_crop(x, top, left, height, width, [24, 20], antialias=antialias)
        want = functional.hflip(want) if flip else want
        assert (got - want).abs().max() < 1e-12
    near = Views().apply(x.float(), p)
    assert near.dtype == torch.float32
    assert (near - got).abs().max() < 1e-5


def slow(image: Tensor, order: tuple[int, ...], factors: list[float]) -> Tensor:
    """Do brightness, saturation and contrast one after the other on one picture [3, H, W]."""
    weights = torch.tensor(GREY, dtype=F64).view(3, 1, 1)
    for which in order:
        f, grey = factors[which], (image * weights).sum(0)
        image = f * image + (1 - f) * (0, grey, grey.mean())[which]
    return image


def test_colours_as_the_formulas_say_in_every_order():
    n = 300
    found = Views().sample(n, (3, 8, 8), rng(4))
    u = torch.rand((n, 30), dtype=F64, generator=rng(4))
    order, factors = (u[:, 23] * 6).long().tolist(), 0.6 + 0.8 * u[:, 24:27]
    assert len(set(order)) == 6
    normal = [[NormalDist(0, 0.1).inv_cdf(p) for p in row] for row in u[:, 27:30].tolist()]
    spread, axes = (torch.tensor(numbers, dtype=F64) for numbers in (SPREAD, AXES))
    light = (torch.tensor(normal, dtype=F64) * spread) @ axes.T
    mean, std = (0.48, 0.45, 0.4), (0.22, 0.23, 0.24)
    x = torch.rand(n, 3, 6, 5, dtype=F64, generator=rng(1))
    whole = torch.tensor([0.0, 0, 6, 5, 0]).expand(n, 5)
    p = Params(ops=found.ops, values=torch.cat([whole, found.values[:, 5:]], dim=1))
    m, s = (torch.tensor(v, dtype=F64).view(3, 1, 1) for v in (mean, std))
    got = Views(mean=mean, std=std).apply((x - m) / s, p) * s + m
    orders = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    for k in range(n):
        want = slow(x[k], orders[order[k]], factors[k].tolist()) + light[k].view(3, 1, 1)
        assert (got[k] - want).abs().max() < 1e-12
    assert torch.equal(found.values[:, :4], boxes(
        u[:, :20].view(n, 10, 2), u[:, 20:22], (8, 8), scale=(0.5, 1.0), ratio=(3 / 4, 4 / 3)
    ))  # fmt: skip


def test_draws_ranges_and_the_generator():
    n = 20_000
    values = Views().sample(n, (3, 64, 64), rng()).values
    v = dict(zip(COLUMNS, values.unbind(1), strict=True))
    share, ratio = v["height"] * v["width"] / 64**2, v["width"] / v["height"]
    assert 0.48 < share.min() < 0.52
    assert 0.98 < share.max() <= 1
    assert 0.72 < ratio.min() < 0.78
    assert 1.28 < ratio.max() < 1.38
    assert abs(ratio.log().mean()) < 0.01
    assert abs(v["flip"].mean() - 0.5) < 2.5 / math.sqrt(n)
    lights = values[:, 8:]
    wanted = (torch.tensor(AXES, dtype=F64) * torch.tensor(SPREAD)).square().sum(1).sqrt() * 0.1
    assert ((lights.std(0) / wanted - 1).abs() < 0.03).all()
    few = Views().sample(3, (3, 64, 64), rng())
    assert torch.equal(few.values[0], values[0])
    still = Views(scale=(1, 1), ratio=(1, 1), flip_prob=0, jitter=0, lighting=0)
    x = torch.rand(3, 3, 8, 8, dtype=F64, generator=rng())
    assert (still.apply(x, still.sample(3, (3, 8, 8), rng())) - x).abs().max() < 1e-12


def test_differentiable_twice():
    x = torch.rand(2, 3, 5, 6, dtype=F64, generator=rng()).requires_grad_()
    p = Views().sample(2, (3, 5, 6), rng(1))
    assert torch.autograd.gradcheck(lambda t: Views().apply(t, p), x)
    assert torch.autograd.gradgradcheck(lambda t: Views().apply(t, p), x)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": (0.0, 1.0)}, "scale must be two numbers above 0"),
        ({"scale": (0.5, 1.5)}, r"share of a crop \(scale\) is 1, not 1.5"),
        ({"ratio": (2.0, 1.0)}, "ratio must be two numbers above 0, the smaller one first"),
        ({"flip_prob": 2}, "flip_prob lies between 0 and 1"),
        ({"jitter": 1.5}, "jitter lies between 0 and 1"),
        ({"mean": (0.5,)}, "mean and std have 3 numbers"),
    ],
)
def test_wrong_input_is_one_sentence(changes, message):
    with pytest.raises(InputError, match=message):
        Views(**changes)
    with pytest.raises(InputError, match="3 channels, not 1"):
        Views().sample(1, (1, 8, 8), rng())
    assert from_json(to_json(Views(jitter=0.1))) == Views(jitter=0.1)
