"""The policy `rat` against a loop over images written from its formulas."""

from __future__ import annotations

import math

import pytest
import torch

from potstill.augment import DSA, POLICIES, RAT, Params, policy_of, text_of
from potstill.core.errors import InputError
from potstill.core.spec import from_json, to_json

SHAPES = [(3, 32, 32), (1, 7, 10), (2, 9, 5)]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int, shape: tuple[int, int, int]) -> torch.Tensor:
    return torch.randn(n, *shape, dtype=torch.float64, generator=rng(7))


def slow(image: torch.Tensor, ops: tuple[str, ...], flip: float, degrees: float) -> torch.Tensor:
    """Mirror and rotate one image [C, H, W]; edges of the outer pixels lie at -1 and 1."""
    if "flip" in ops and flip:
        image = image.flip(2)
    if "rotate" not in ops:
        return image
    _, h, w = image.shape
    out, a = torch.zeros_like(image), degrees * math.pi / 180
    for i in range(h):
        for j in range(w):
            x, y = (2 * j + 1) / w - 1, (2 * i + 1) / h - 1
            x, y = math.cos(a) * x - math.sin(a) * y, math.sin(a) * x + math.cos(a) * y
            column, row = ((x + 1) * w - 1) / 2, ((y + 1) * h - 1) / 2
            for r in (math.floor(row), math.floor(row) + 1):
                for k in (math.floor(column), math.floor(column) + 1):
                    if 0 <= r < h and 0 <= k < w:
                        weight = (1 - abs(row - r)) * (1 - abs(column - k))
                        out[:, i, j] += weight * image[:, r, k]
    return out


def reference(x: torch.Tensor, p: Params) -> torch.Tensor:
    rows = zip(x, p.values.tolist(), strict=True)
    return torch.stack([slow(image, p.ops, flip, angle) for image, (flip, angle) in rows])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ops", [("flip",), ("rotate",), ("flip", "rotate")])
def test_every_image_as_the_formulas_say(ops, shape):
    x = images(6, shape)
    p = Params(ops=ops, values=RAT().sample(6, shape, rng(1)).values)
    got, want = RAT().apply(x, p), reference(x, p)
    assert got.is_contiguous()
    assert (got - want).abs().max() < 1e-12
    assert not torch.equal(got, x)
    near = RAT().apply(x.float(), p)
    assert near.dtype == torch.float32
    assert (near - want).abs().max() < 1e-5


def test_one_operation_for_the_whole_batch_and_the_published_ranges():
    n = 20_000
    drawn = [RAT().sample(1, (3, 8, 8), rng(seed)).ops for seed in range(2000)]
    assert set(drawn) == {("flip",), ("rotate",)}
    assert abs(drawn.count(("flip",)) - 1000) < 5 * math.sqrt(500)
    assert RAT(mode="M").sample(2, (3, 8, 8), rng()).ops == ("flip", "rotate")
    flip, angle = RAT().sample(n, (3, 8, 8), rng()).values.unbind(1)
    assert set(flip.tolist()) == {0.0, 1.0}
    assert abs(flip.mean() - 0.5) < 5 * 0.5 / math.sqrt(n)
    assert -15 <= angle.min() < -14.99
    assert 14.99 < angle.max() <= 15
    assert abs(angle.mean()) < 5 * 30 / math.sqrt(12 * n)
    quarters = torch.histc(angle, 4, -15, 15)
    assert (quarters - n / 4).abs().max() < 5 * math.sqrt(n / 4)
    assert torch.corrcoef(torch.stack([flip, angle]))[0, 1].abs() < 5 / math.sqrt(n)
    still = RAT(mode="M", flip_prob=0, rotate=0)
    x = images(3, (3, 9, 8))
    assert (still.apply(x, still.sample(3, (3, 9, 8), rng())) - x).abs().max() < 1e-12


def test_draws_follow_the_generator_alone():
    before = torch.random.get_rng_state()
    a, b, c = (RAT().sample(n, (3, 8, 8), rng(s)) for n, s in ((4, 5), (900, 5), (4, 6)))
    assert a.ops == b.ops
    assert torch.equal(a.values[0], b.values[0])
    assert not torch.equal(a.values, c.values)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("op", ["flip", "rotate"])
def test_linear_and_differentiable(op):
    x, other = images(3, (2, 6, 7)), torch.randn(3, 2, 6, 7, dtype=torch.float64, generator=rng(2))
    p = Params(ops=(op,), values=RAT().sample(3, (2, 6, 7), rng(1)).values)
    apply = RAT().apply
    assert (apply(2 * x - other, p) - 2 * apply(x, p) + apply(other, p)).abs().max() < 1e-12
    assert torch.autograd.gradcheck(lambda t: apply(t, p), x.requires_grad_())
    if op == "flip":
        assert torch.autograd.gradgradcheck(lambda t: apply(t, p), x)


def test_names_and_wrong_input():
    assert POLICIES.get("rat") is RAT
    for text, policy in {
        "none": None,
        "rat": RAT(),
        "rat:M": RAT(mode="M"),
        "crop_flip": DSA(strategy="crop_flip"),
        "color_crop_cutout_flip_scale_rotate:M": DSA(mode="M"),
    }.items():
        assert policy_of(text) == policy
        assert text_of(policy) == text
        assert from_json(to_json(policy)) == policy
    assert policy_of("dsa") == DSA()
    with pytest.raises(InputError, match="'crob': did you mean 'crop'"):
        policy_of("crob")
    with pytest.raises(InputError, match="mode of augmentation 'X'"):
        policy_of("rat:X")
    with pytest.raises(InputError, match="'S' or 'M', not 'X'"):
        RAT(mode="X")
    with pytest.raises(InputError, match=r"flip_prob lies between 0 and 1, not at 1\.5"):
        RAT(flip_prob=1.5)
