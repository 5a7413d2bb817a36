"""The policy `dsa`, operation by operation, against loops written from its formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from potstill.augment import DSA, POLICIES, Params
from potstill.augment.operations import COLUMNS
from potstill.core.errors import InputError
from potstill.core.spec import from_json, to_json

NAMES = ("color", "crop", "cutout", "flip", "scale", "rotate")
SHAPES = [(3, 32, 32), (1, 28, 28), (3, 12, 19), (2, 7, 10)]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int, shape: tuple[int, int, int]) -> torch.Tensor:
    return torch.randn(n, *shape, dtype=torch.float64, generator=rng(7))


def params(op: str, n: int, shape: tuple[int, int, int], seed: int = 1) -> Params:
    return DSA(strategy=op).sample(n, shape, rng(seed))


def inject(op: str, **columns: list[float]) -> Params:
    n = len(next(iter(columns.values())))
    values = torch.zeros(n, len(COLUMNS), dtype=torch.float64)
    for name, numbers in columns.items():
        values[:, COLUMNS.index(name)] = torch.tensor(numbers, dtype=torch.float64)
    return Params(ops=(op,), values=values)


def bilinear(image: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Sample one image at theta (x, y), corners of the image at -1 and 1, zero outside."""
    _, h, w = image.shape
    out = np.zeros_like(image)
    for i in range(h):
        for j in range(w):
            x, y = theta @ (2 * j / (w - 1) - 1, 2 * i / (h - 1) - 1)
            column, row = (x + 1) / 2 * (w - 1), (y + 1) / 2 * (h - 1)
            for r in (math.floor(row), math.floor(row) + 1):
                for k in (math.floor(column), math.floor(column) + 1):
                    if 0 <= r < h and 0 <= k < w:
                        out[:, i, j] += (1 - abs(row - r)) * (1 - abs(column - k)) * image[:, r, k]
    return out


def slow(op: str, image: np.ndarray, p: dict[str, float]) -> np.ndarray:
    """Do one operation on one image [C, H, W], from the formulas."""
    _, h, w = image.shape
    out = np.zeros_like(image)
    if op == "color":
        x = image + p["brightness"]
        m = x.mean(axis=0)
        x = (x - m) * p["saturation"] + m
        return (x - x.mean()) * p["contrast"] + x.mean()
    if op == "crop":
        for i in range(h):
            for j in range(w):
                r, k = i + int(p["crop_y"]), j + int(p["crop_x"])
                if 0 <= r < h and 0 <= k < w:
                    out[:, i, j] = image[:, r, k]
        return out
    if op == "cutout":
        out[:] = image
        high, wide = math.floor(h * 0.5 + 0.5), math.floor(w * 0.5 + 0.5)
        for i in range(high):
            for j in range(wide):
                r = min(max(i + int(p["cutout_y"]) - high // 2, 0), h - 1)
                k = min(max(j + int(p["cutout_x"]) - wide // 2, 0), w - 1)
                out[:, r, k] = 0
        return out
    if op == "flip":
        return image[:, :, ::-1] if p["flip"] else image
    if op == "scale":
        return bilinear(image, np.diag([p["scale_x"], p["scale_y"]]))
    a = p["angle"] * math.pi / 180
    return bilinear(image, np.array([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]]))


def reference(x: torch.Tensor, p: Params) -> torch.Tensor:
    done = x.numpy()
    for op in p.ops:
        rows = [dict(zip(COLUMNS, row, strict=True)) for row in p.values.tolist()]
        done = np.stack([slow(op, i, r) for i, r in zip(done, rows, strict=True)])
    return torch.from_numpy(done.copy())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("op", NAMES)
def test_operation_equals_formula(op, shape):
    x = images(6, shape)
    p = params(op, 6, shape)
    got, want = DSA().apply(x, p), reference(x, p)
    assert got.shape == x.shape
    assert got.is_contiguous()
    assert (got - want).abs().max() < 1e-12
    assert not torch.equal(got, x)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 7, 10), (1, 9, 5)])
def test_every_crop_and_box_at_the_border(shape):
    """All translations and all offsets that can be drawn, both ends included."""
    _, h, w = shape
    pads = [math.floor(side * 0.125 + 0.5) for side in (h, w)]
    boxes = [math.floor(side * 0.5 + 0.5) for side in (h, w)]
    for op, rows, columns in (
        ("crop", range(-pads[0], pads[0] + 1), range(-pads[1], pads[1] + 1)),
        ("cutout", range(h + 1 - boxes[0] % 2), range(w + 1 - boxes[1] % 2)),
    ):
        pairs = [(r, k) for r in rows for k in columns]
        y, x = ([float(pair[axis]) for pair in pairs] for axis in (0, 1))
        p = inject(op, **{f"{op}_y": y, f"{op}_x": x})
        batch = images(len(pairs), shape)
        assert torch.equal(DSA().apply(batch, p), reference(batch, p))


def test_mode_m_does_all_in_the_order_of_the_strategy():
    x = images(4, (3, 12, 12))
    for strategy in ("color_crop_cutout_flip_scale_rotate", "rotate_flip_color"):
        policy = DSA(strategy=strategy, mode="M")
        p = policy.sample(4, (3, 12, 12), rng())
        assert p.ops == tuple(strategy.split("_"))
        assert (policy.apply(x, p) - reference(x, p)).abs().max() < 1e-12


@pytest.mark.parametrize("side", [32, 30, 64])
def test_ranges_of_the_numbers(side):
    """Uniform on the published ranges: ends, means, and every whole number reached."""
    n = 20_000
    p = DSA().sample(n, (3, side, side), rng())
    v = dict(zip(COLUMNS, p.values.unbind(1), strict=True))
    pad, box = math.floor(side * 0.125 + 0.5), math.floor(side * 0.5 + 0.5)
    real = {
        "brightness": (-0.5, 0.5),
        "saturation": (0, 2),
        "contrast": (0.5, 1.5),
        "scale_y": (1 / 1.2, 1.2),
        "scale_x": (1 / 1.2, 1.2),
        "angle": (-15, 15),
    }
    for name, (low, high) in real.items():
        width = high - low
        assert low <= v[name].min() < low + 0.002 * width, name
        assert high - 0.002 * width < v[name].max() <= high, name
        assert abs(v[name].mean() - (low + high) / 2) < 5 * width / math.sqrt(12 * n), name
    top = side if box % 2 == 0 else side - 1
    whole = {"crop": (-pad, pad), "cutout": (0, top)}
    for name, (low, high) in whole.items():
        for axis in "yx":
            values, counts = v[f"{name}_{axis}"].unique(return_counts=True)
            assert values.tolist() == list(range(low, high + 1))
            expected = n / len(values)
            chi2 = ((counts - expected) ** 2 / expected).sum()
            assert chi2 < len(values) - 1 + 5 * math.sqrt(2 * len(values))
    assert set(v["flip"].tolist()) == {0.0, 1.0}
    assert abs(v["flip"].mean() - 0.5) < 5 * 0.5 / math.sqrt(n)
    correlation = torch.corrcoef(p.values.T) - torch.eye(len(COLUMNS))
    assert correlation.abs().max() < 5 / math.sqrt(n)


def test_known_sizes():
    small, large = (DSA().sample(5000, (3, s, s), rng()).values for s in (32, 64))
    crop, cutout = COLUMNS.index("crop_y"), COLUMNS.index("cutout_y")
    assert (small[:, crop].max(), large[:, crop].max()) == (4, 8)
    assert small[:, cutout].max() == 32
    ones = DSA().apply(torch.ones(1, 1, 32, 32), inject("cutout", cutout_y=[16], cutout_x=[16]))
    assert ones[0, 0, 8:24, 8:24].eq(0).all()
    assert ones.sum() == 32 * 32 - 16 * 16


def test_constants_are_settings():
    still = DSA(
        mode="M", brightness=0, saturation=0, contrast=0, crop_pad=0, cutout=0, flip_prob=0,
        scale_ratio=1, rotate=0, strategy="crop_cutout_flip_scale_rotate",
    )  # fmt: skip
    x = images(3, (3, 9, 8))
    assert (still.apply(x, still.sample(3, (3, 9, 8), rng())) - x).abs().max() < 1e-12
    wide = DSA(brightness=4, saturation=6, contrast=2, crop_pad=0.5, flip_prob=1, scale_ratio=3)
    v = dict(zip(COLUMNS, wide.sample(4000, (3, 8, 8), rng()).values.unbind(1), strict=True))
    assert 1.9 < v["brightness"].max() < 2
    assert 5.9 < v["saturation"].max() < 6
    assert 2 < v["contrast"].min() < 2.1
    assert (v["crop_x"].min(), v["crop_x"].max()) == (-4, 4)
    assert v["flip"].min() == 1
    assert 1 / 3 < v["scale_x"].min() < 0.35


def test_siamese_shares_image_0_for_every_batch_size():
    one, shared = DSA(mode="M"), DSA(mode="M", siamese=True)
    shape = (3, 8, 8)
    rows = {n: shared.sample(n, shape, rng(3)).values for n in (1, 5, 300)}
    for n, values in rows.items():
        assert values.shape == (n, len(COLUMNS))
        assert torch.equal(values, rows[1].expand(n, -1))
        assert torch.equal(one.sample(n, shape, rng(3)).values[0], values[0])
    assert len(one.sample(300, shape, rng(3)).values.unique(dim=0)) == 300
    x = images(1, shape).expand(5, -1, -1, -1)
    assert shared.apply(x, shared.sample(5, shape, rng())).unique(dim=0).shape[0] == 1
    for seed in range(20):
        small, large = (DSA(siamese=True).sample(n, shape, rng(seed)).ops for n in (1, 99))
        assert small == large


def test_mode_s_draws_one_operation_uniformly():
    """Pooled over ten generators: the first 3000 draws of seed 0 alone are a rare outlier."""
    n, policy = 6000, DSA()
    draws = [policy.sample(1, (3, 8, 8), g).ops for g in map(rng, range(10)) for _ in range(600)]
    counts = [draws.count((name,)) for name in NAMES]
    assert sum(counts) == n
    chi2 = sum((count - n / 6) ** 2 / (n / 6) for count in counts)
    assert chi2 < 20.5  # the 99.9 % point of chi-square with 5 degrees of freedom


def test_same_generator_same_parameters_and_global_rng_untouched():
    before = torch.random.get_rng_state()
    policy = DSA(mode="M")
    a, b, c = (policy.sample(4, (3, 8, 8), rng(seed)) for seed in (5, 5, 6))
    x = images(4, (3, 8, 8))
    assert a.ops == b.ops
    assert torch.equal(a.values, b.values)
    assert not torch.equal(a.values, c.values)
    assert torch.equal(policy.apply(x, a), policy.apply(x, b.to("cpu")))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("op", NAMES)
def test_apply_is_pure_affine_and_differentiable(op):
    shape = (2, 6, 7)
    x, other = images(3, shape), torch.randn(3, *shape, dtype=torch.float64, generator=rng(2))
    p, policy = params(op, 3, shape), DSA()
    kept, numbers = x.clone(), p.values.clone()
    offset = policy.apply(torch.zeros_like(x), p)
    mixed = policy.apply(2 * x - 3 * other, p)
    parts = 2 * policy.apply(x, p) - 3 * policy.apply(other, p) + 2 * offset
    assert (mixed - parts).abs().max() < 1e-12
    assert torch.equal(x, kept)
    assert torch.equal(p.values, numbers)
    assert torch.autograd.gradcheck(lambda t: policy.apply(t, p), x.requires_grad_())
    if op not in ("scale", "rotate"):
        assert torch.autograd.gradgradcheck(lambda t: policy.apply(t, p), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("op", NAMES)
def test_type_is_kept_and_float32_is_near(op, dtype):
    x = images(4, (3, 16, 16))
    p = params(op, 4, (3, 16, 16))
    got = DSA().apply(x.to(dtype), p)
    assert got.dtype == dtype
    assert (got - DSA().apply(x, p)).abs().max() < 1e-5


def test_channels_last_gives_the_same():
    x, policy = images(4, (3, 16, 16)), DSA(mode="M")
    p = policy.sample(4, (3, 16, 16), rng())
    got = policy.apply(x.contiguous(memory_format=torch.channels_last), p)
    assert got.is_contiguous()
    assert (got - policy.apply(x, p)).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategy": "color_crob"}, "'crob': did you mean 'crop'"),
        ({"strategy": ""}, "Unknown operation of the augmentation strategy ''"),
        ({"mode": "X"}, "'S' or 'M', not 'X'"),
        ({"cutout": 1.5}, "cutout lies between 0 and 1, not at 1.5"),
        ({"crop_pad": -0.1}, "crop_pad lies between 0 and 1"),
        ({"scale_ratio": 0.5}, "scale_ratio is at least 1, not 0.5"),
    ],
)
def test_wrong_input_is_one_sentence(changes, message):
    with pytest.raises(InputError, match=message):
        DSA(**changes)


def test_registry_and_record():
    assert POLICIES.get("dsa") is DSA
    with pytest.raises(InputError, match="augmentation policy 'das': did you mean 'dsa'"):
        POLICIES.get("das")
    policy = DSA(mode="M", rotate=10.0)
    assert from_json(to_json(policy)) == policy
