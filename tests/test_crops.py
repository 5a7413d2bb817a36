"""Crops as matrices against torchvision, and the curriculum against the published table."""

from __future__ import annotations

import math

import pytest
import torch

from potstill.augment import Crops, Curriculum, policy_of, text_of
from potstill.augment.crops import COLUMNS, matrices
from potstill.augment.operations import Params
from potstill.core.errors import InputError
from potstill.core.spec import from_json, to_json
from potstill.core.vision import import_torchvision

F64 = torch.float64


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def vision():
    try:
        import_torchvision()
    except InputError as error:
        pytest.skip(str(error))
    from torchvision.transforms import functional

    return functional


def theirs(x, row, functional):
    """Do crop, flip and roll as torchvision does, one after the other."""
    top, left, height, width, flip, down, right = (int(v) for v in row)
    z = functional.resized_crop(x, top, left, height, width, list(x.shape[2:]), antialias=True)
    z = functional.hflip(z) if flip else z
    return torch.roll(z, (down, right), (2, 3))


@pytest.mark.parametrize("size", [(64, 64), (24, 31)])
@pytest.mark.parametrize("shared", [True, False])
def test_values_and_gradients_equal_torchvision(size, shared):
    functional = vision()
    crops = Crops(scale=(0.08, 1.0), roll=1 / 8, two_sided=True, shared=shared)
    for seed in range(6):
        params = crops.sample(4, (3, *size), rng(seed))
        assert len(params.values) == (1 if shared else 4)
        x = torch.randn(4, 3, *size, dtype=F64, generator=rng(seed))
        weight = torch.randn(4, 3, *size, dtype=F64, generator=rng(seed + 100))
        exact = x.clone().requires_grad_()
        rows = params.values.expand(4, -1)
        want = torch.cat([theirs(exact[k : k + 1], rows[k], functional) for k in range(4)])
        (slope,) = torch.autograd.grad((want * weight).sum(), exact)
        for dtype, value, gradient in ((F64, 1e-12, 1e-12), (torch.float32, 1e-6, 5e-6)):
            leaf = x.to(dtype).requires_grad_()
            got = crops.apply(leaf, params)
            assert got.dtype == dtype
            assert got.is_contiguous()
            (own,) = torch.autograd.grad((got * weight.to(dtype)).sum(), leaf)
            assert (got.double() - want).abs().max() <= value
            assert (own.double() - slope).abs().max() <= gradient


def test_half_precision_is_computed_in_float32():
    crops = Crops(roll=0.1)
    x = torch.randn(3, 3, 16, 16, generator=rng()).bfloat16()
    params = crops.sample(3, (3, 16, 16), rng(1))
    got = crops.apply(x, params)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, crops.apply(x.float(), params).bfloat16())


def test_a_shared_row_is_the_same_row_for_each_image():
    crops = Crops(roll=0.2, shared=True)
    x = torch.randn(5, 3, 20, 20, dtype=F64, generator=rng())
    params = crops.sample(5, (3, 20, 20), rng(2))
    each = Params(ops=params.ops, values=params.values.expand(5, -1))
    assert (crops.apply(x, params) - crops.apply(x, each)).abs().max() < 1e-14
    one, five = (Crops(roll=0.2).sample(n, (3, 20, 20), rng(2)).values for n in (1, 5))
    assert torch.equal(one, five[:1])
    assert torch.equal(one, params.values)


def test_differentiable_to_any_order():
    crops = Crops(roll=0.2)
    params = crops.sample(2, (1, 6, 6), rng(3))
    x = torch.randn(2, 1, 6, 6, dtype=F64, generator=rng()).requires_grad_()
    fn = lambda x: crops.apply(x.square(), params)  # noqa: E731
    assert torch.autograd.gradcheck(fn, x)
    assert torch.autograd.gradgradcheck(fn, x)


@pytest.mark.parametrize(
    ("least", "whole", "area"),
    [
        *((1.0, 1.00, 1.0), (0.99, 0.746, 0.996), (0.95, 0.260, 0.976), (0.9, 0.095, 0.942)),
        *((0.8, 0.013, 0.871), (0.7, 0.001, 0.804), (0.6, 0.0, 0.750), (0.54, 0.0, 0.717)),
        *((0.4, 0.0, 0.645), (0.3, 0.0, 0.599), (0.2, 0.0, 0.543), (0.08, 0.0, 0.482)),
    ],
)
def test_whole_images_and_areas_as_published(least, whole, area):
    """3,000 draws are behind the published table, so both sides carry its error."""
    n = 20_000
    values = Crops(scale=(least, 1.0)).sample(n, (3, 64, 64), rng(5)).values
    is_whole = (values[:, 2] == 64) & (values[:, 3] == 64)
    share = values[:, 2] * values[:, 3] / 64**2
    error = math.sqrt(max(whole * (1 - whole), 1e-3) * (1 / 3000 + 1 / n))
    assert abs(float(is_whole.double().mean()) - whole) < 4 * error
    assert abs(float(share.mean()) - area) < 4 * 0.27 * math.sqrt(1 / 3000 + 1 / n)
    if least == 1:
        assert is_whole.all()


def test_flips_and_shifts_lie_in_their_ranges():
    def shifts(**options):
        values = Crops(flip_prob=0.25, **options).sample(30_000, (3, 64, 32), rng()).values
        v = dict(zip(COLUMNS, values.unbind(1), strict=True))
        assert abs(float(v["flip"].mean()) - 0.25) < 0.01
        return [v[name].unique().tolist() for name in ("down", "right")]

    assert shifts() == [[0], [0]]
    assert shifts(roll=1 / 16) == [list(range(5)), list(range(3))]
    assert shifts(roll=1 / 16, two_sided=True) == [list(range(-4, 5)), list(range(-2, 3))]
    large = Crops(roll=1 / 7).sample(5000, (3, 224, 224), rng()).values[:, 5:]
    assert (large.min(), large.max()) == (0, 32)


def test_rows_of_the_matrices_sum_to_one():
    values = Crops(roll=0.3).sample(50, (3, 9, 17), rng()).values
    for matrix, side in zip(matrices(values, (9, 17)), (9, 17), strict=True):
        assert matrix.shape == (50, side, side)
        assert (matrix.sum(2) - 1).abs().max() < 1e-12
        assert (matrix >= 0).all()


def test_wrong_numbers_are_refused():
    for options in (
        *({"scale": (0.0, 1.0)}, {"scale": (0.5, 1.2)}, {"ratio": (2.0, 1.0)}),
        *({"flip_prob": 1.5}, {"roll": -0.1}, {"two_sided": True}),
    ):
        with pytest.raises(InputError):
            Crops(**options)
    crops = Crops(roll=1 / 7, shared=True)
    assert from_json(to_json(crops)) == crops
    assert policy_of("crops") == Crops()
    assert text_of(Crops()) == "crops"
    with pytest.raises(InputError, match="setting of the policy crops"):
        policy_of("crops:M")


def test_curriculum_at_three_steps_and_at_milestones():
    assert [round(Curriculum().at(t, 3), 2) for t in range(3)] == [1.0, 0.77, 0.31]
    assert {Curriculum(kind="constant").at(t, 9) for t in range(9)} == {0.08}
    step = Curriculum(kind="step", milestone=0.5)
    assert [step.at(t, 4) for t in range(4)] == [1.0, 1.0, 0.08, 0.08]
    assert {Curriculum(kind="step").at(t, 9) for t in range(9)} == {1.0}
    linear = Curriculum(kind="linear", milestone=0.8)
    want = [1.0, 0.77, 0.54, 0.31, 0.08]
    assert [round(linear.at(t, 5), 12) for t in range(5)] == want
    half = Curriculum(milestone=0.5)
    assert half.at(50, 200) == pytest.approx(0.54)
    assert [half.at(t, 200) for t in (0, 100, 199)] == [1.0, 0.08, 0.08]


def test_the_reverse_is_the_cosine_from_its_other_end():
    cosine, reverse = Curriculum(milestone=0.5), Curriculum(kind="reverse", milestone=0.5)
    for t in range(101):
        assert reverse.at(t, 200) == pytest.approx(cosine.at(100 - t, 200), abs=1e-12)
    assert reverse.at(0, 200) == 0.08
    assert reverse.at(199, 200) == 1.0


def test_every_curriculum_gives_shares_that_crops_take():
    for kind in ("constant", "step", "linear", "cosine", "reverse"):
        for t in range(4000):
            assert 0.08 <= Curriculum(kind=kind).at(t, 4000) <= 1.0
    for options in (
        *({"kind": "cosin"}, {"milestone": 0.0}, {"milestone": 1.1}, {"least": 0.0}),
        *({"least": 0.5, "most": 0.4}, {"kind": "constant", "milestone": 0.5}),
    ):
        with pytest.raises(InputError):
            Curriculum(**options)
