"""The policy `idc` against loops over images written from its formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from potstill.augment import DSA, IDC, POLICIES, RAT, Params, Views, policy_of, text_of
from potstill.augment.operations import COLUMNS
from potstill.core.errors import InputError
from potstill.core.spec import from_json, to_json

ALL = "flip_color_crop_scale_rotate_translate_cutout"
ONE_OF = ("crop", "scale", "rotate", "translate")
SHAPES = [(3, 32, 32), (1, 7, 10), (2, 9, 5)]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int, shape: tuple[int, int, int]) -> Tensor:
    return torch.randn(n, *shape, dtype=torch.float64, generator=rng(7))


def at(image: Tensor, row: float, column: float) -> Tensor:
    """Return the bilinear value [C] of one image at a place in pixels; zero outside."""
    _, h, w = image.shape
    value = torch.zeros(len(image), dtype=image.dtype)
    for r in (math.floor(row), math.floor(row) + 1):
        for k in (math.floor(column), math.floor(column) + 1):
            if 0 <= r < h and 0 <= k < w:
                value += (1 - abs(row - r)) * (1 - abs(column - k)) * image[:, r, k]
    return value


def slow(op: str, image: Tensor, p: dict[str, float]) -> Tensor:
    """Do one operation on one image [C, H, W]; edges of the outer pixels lie at -1 and 1."""
    _, h, w = image.shape
    out = torch.zeros_like(image)
    if op == "flip":
        return image.flip(2) if p["flip"] else image
    if op == "color":
        x = image + p["brightness"]
        m = x.mean(0)
        x = (x - m) * p["saturation"] + m
        return (x - x.mean()) * p["contrast"] + x.mean()
    if op == "cutout":
        out[:] = image
        high, wide = int(0.5 * h + 0.5), int(0.5 * w + 0.5)
        for i in range(high):
            for j in range(wide):
                r = min(max(i + int(p["cutout_y"]) - high // 2, 0), h - 1)
                k = min(max(j + int(p["cutout_x"]) - wide // 2, 0), w - 1)
                out[:, r, k] = 0
        return out
    for i in range(h):
        for j in range(w):
            if op in ("crop", "translate"):
                down = p["crop_y"] if op == "crop" else 0
                out[:, i, j] = at(image, i + down, j + p["crop_x"])
                continue
            x, y, a = (2 * j + 1) / w - 1, (2 * i + 1) / h - 1, p["angle"] * math.pi / 180
            if op == "scale":
                x, y = p["scale_x"] * x, p["scale_y"] * y
            else:
                x, y = math.cos(a) * x - math.sin(a) * y, math.sin(a) * x + math.cos(a) * y
            out[:, i, j] = at(image, ((y + 1) * h - 1) / 2, ((x + 1) * w - 1) / 2)
    return out


def reference(x: Tensor, p: Params) -> Tensor:
    for op in p.ops:
        rows = [dict(zip(COLUMNS, row, strict=True)) for row in p.values.tolist()]
        x = torch.stack([slow(op, image, row) for image, row in zip(x, rows, strict=True)])
    return x


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("one", ONE_OF)
def test_every_image_as_the_formulas_say(one, shape):
    x, policy = images(4, shape), IDC(strategy=f"color_{one}_cutout_flip")
    p = policy.sample(4, shape, rng(1))
    assert p.ops == ("flip", "color", one, "cutout")
    for ops in ((one,), p.ops):  # alone, and all in their order
        chosen = Params(ops=ops, values=p.values)
        got, want = policy.apply(x, chosen), reference(x, chosen)
        assert got.is_contiguous()
        assert (got - want).abs().max() < 1e-12
        assert not torch.equal(got, x)
        near = policy.apply(x.float(), chosen)
        assert near.dtype == torch.float32
        assert (near - want).abs().max() < 2e-5


def test_one_geometric_operation_a_call_drawn_uniformly_among_those_named():
    n = 4000
    drawn = [IDC(strategy=ALL).sample(2, (3, 8, 8), rng(seed)).ops for seed in range(n)]
    assert {ops[:2] + ops[3:] for ops in drawn} == {("flip", "color", "cutout")}
    counts = [[ops[2] for ops in drawn].count(one) for one in ONE_OF]
    assert sum((count - n / 4) ** 2 / (n / 4) for count in counts) < 16.3  # 99.9 %, 3 degrees
    for strategy, ops in {
        "color_crop_cutout": ("color", "crop", "cutout"),
        "color_cutout": ("color", "cutout"),
        "cutout_flip": ("flip", "cutout"),
    }.items():
        assert IDC(strategy=strategy).sample(1, (3, 8, 8), rng()).ops == ops
    assert IDC() == IDC(strategy="color_crop_cutout")


@pytest.mark.parametrize("side", [32, 28, 9, 10])
def test_published_ranges(side):
    n = 20_000
    values = IDC().sample(n, (3, side, side), rng()).values
    v = dict(zip(COLUMNS, values.unbind(1), strict=True))
    pad, box = int(0.125 * side + 0.5), int(0.5 * side + 0.5)
    for name, (low, high) in {
        "brightness": (-0.5, 0.5), "saturation": (0, 2), "contrast": (0.5, 1.5),
        "scale_y": (1 / 1.2, 1.2), "scale_x": (1 / 1.2, 1.2), "angle": (-15, 15),
    }.items():  # fmt: skip
        assert low <= v[name].min() < low + 0.002 * (high - low)
        assert high - 0.002 * (high - low) < v[name].max() <= high
        assert abs(v[name].mean() - (low + high) / 2) < 5 * (high - low) / math.sqrt(12 * n)
    top = side if box % 2 == 0 else side - 1  # of the centre of the box
    for name, (low, high) in {"crop": (-pad, pad), "cutout": (0, top)}.items():
        for axis in "yx":
            assert v[f"{name}_{axis}"].unique().tolist() == list(range(low, high + 1))
    assert abs(v["flip"].mean() - 0.5) < 2.5 / math.sqrt(n)


def test_numbers_follow_the_generator_alone():
    before = torch.random.get_rng_state()
    shape = (3, 8, 8)
    rows = {
        (strategy, n): IDC(strategy=strategy).sample(n, shape, rng(5)).values
        for strategy in (ALL, "color", "color_crop_cutout")
        for n in (1, 4, 300)
    }
    for (_, n), values in rows.items():
        assert torch.equal(values, rows[ALL, n])
        assert torch.equal(values[0], rows[ALL, 300][0])
    assert len(rows[ALL, 300].unique(dim=0)) == 300
    assert not torch.equal(IDC().sample(4, shape, rng(6)).values, rows[ALL, 4])
    assert torch.equal(torch.random.get_rng_state(), before)


SHARED = (
    DSA(mode="M"),
    RAT(mode="M"),
    Views(),
    *(IDC(strategy=f"color_{o}_cutout") for o in ONE_OF),
)


@pytest.mark.parametrize("policy", SHARED, ids=text_of)
def test_parameters_drawn_for_one_image_are_shared_by_any_number(policy):
    shape = (3, 9, 8)
    real, few = images(5, shape), images(2, shape).flip(0)
    p = policy.sample(1, shape, rng(3))
    for x in (real, few):
        same = Params(ops=p.ops, values=p.values.expand(len(x), -1))
        assert torch.equal(policy.apply(x, p), policy.apply(x, same))
    joint = policy.apply(torch.cat([real, few]), p)
    apart = torch.cat([policy.apply(real, p), policy.apply(few, p)])
    assert (joint - apart).abs().max() < 1e-12
    own = policy.apply(real, policy.sample(5, shape, rng(3)))
    assert not torch.allclose(own[1:], policy.apply(real, p)[1:])


@pytest.mark.parametrize("op", ["flip", "color", "cutout", *ONE_OF])
@pytest.mark.parametrize("rows", [1, 3])
def test_affine_and_differentiable(op, rows):
    shape = (2, 6, 7)
    x, other = images(3, shape), torch.randn(3, *shape, dtype=torch.float64, generator=rng(2))
    p = Params(ops=(op,), values=IDC().sample(rows, shape, rng(1)).values)
    apply = IDC().apply
    mixed = apply(2 * x - 3 * other, p)
    parts = 2 * apply(x, p) - 3 * apply(other, p) + 2 * apply(torch.zeros_like(x), p)
    assert (mixed - parts).abs().max() < 1e-12
    assert torch.autograd.gradcheck(lambda t: apply(t, p), x.requires_grad_())
    if op not in ("scale", "rotate"):
        assert torch.autograd.gradgradcheck(lambda t: apply(t, p), x)


def test_names_and_wrong_input():
    assert POLICIES.get("idc") is IDC
    for text, policy in {
        "idc": IDC(),
        "idc:color_crop": IDC(strategy="color_crop"),
        f"idc:{ALL}": IDC(strategy=ALL),
    }.items():
        assert policy_of(text) == policy
        assert text_of(policy) == text
        assert from_json(to_json(policy)) == policy
    with pytest.raises(InputError, match="'crob': did you mean 'crop'"):
        policy_of("idc:crob")
    with pytest.raises(InputError, match="Unknown operation of the augmentation strategy ''"):
        policy_of("idc:")
    with pytest.raises(InputError, match="'translate'"):  # of idc, not of dsa
        policy_of("translate")
    with pytest.raises(InputError, match="for protocols and recipes only"):
        policy_of("views")
    with pytest.raises(InputError, match="crop_pad lies between 0 and 1"):
        IDC(crop_pad=-0.1)
