"""Kernel ridge regression against `torch.linalg.solve`, and the ages of a pool."""

import pytest
import torch

from potstill.core.errors import InputError
from potstill.core.spec import from_json, to_json
from potstill.functional.kernel_ridge import PoolAges, krr_loss, ridge, with_bias


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def plain(fs, ys, fr, yr, lam):
    fs = torch.cat([fs, torch.ones(len(fs), 1, dtype=fs.dtype)], 1)
    fr = torch.cat([fr, torch.ones(len(fr), 1, dtype=fr.dtype)], 1)
    kss, krs = fs @ fs.T, fr @ fs.T
    ridged = kss + lam * kss.trace().detach() * torch.eye(len(fs), dtype=fs.dtype)
    return (krs @ torch.linalg.solve(ridged, ys) - yr).square().mean()


def problem(n, d, dtype=torch.float64):
    shapes = ((n, d), (n, 3), (11, d), (11, 3))
    return [normal(*shape, seed=seed, dtype=dtype) for seed, shape in enumerate(shapes)]


@pytest.mark.parametrize(("n", "d"), [(6, 20), (20, 6), (7, 6)])
@pytest.mark.parametrize("lam", [1e-6, 1e-2])
def test_both_forms_equal_the_plain_solution(n, d, lam):
    fs, ys, fr, yr = problem(n, d)
    fs.requires_grad_(), ys.requires_grad_()
    ours, theirs = krr_loss(fs, ys, fr, yr, lam), plain(fs, ys, fr, yr, lam)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=0)
    ours, theirs = (torch.autograd.grad(loss, (fs, ys)) for loss in (ours, theirs))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


def test_dual_and_primal_weights_agree():
    fs, ys = problem(9, 8)[:2]  # 9 rows, 9 columns with the bias: the dual form
    f = with_bias(fs)
    ridged = f.T @ f + 1e-3 * f.square().sum() * torch.eye(9, dtype=f.dtype)
    primal = torch.linalg.solve(ridged, f.T @ ys)
    torch.testing.assert_close(ridge(fs, ys, lam=1e-3), primal, rtol=1e-9, atol=1e-12)


def test_the_ridge_is_scaled_by_the_trace_without_a_gradient():
    fs, ys, fr, yr = problem(5, 9)
    trace = float(with_bias(fs).square().sum())

    def fixed(fs, ys):
        f = with_bias(fs)
        alpha = torch.linalg.solve(f @ f.T + 0.1 * trace * torch.eye(5, dtype=f.dtype), ys)
        return (with_bias(fr) @ f.T @ alpha - yr).square().mean()

    fs.requires_grad_(), ys.requires_grad_()
    assert torch.autograd.gradcheck(fixed, (fs, ys))
    ours = torch.autograd.grad(krr_loss(fs, ys, fr, yr, 0.1), (fs, ys))
    theirs = torch.autograd.grad(fixed(fs, ys), (fs, ys))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_float32_features_are_solved_in_float64():
    exact = plain(*problem(40, 300), 1e-6)
    single = problem(40, 300, dtype=torch.float32)
    near = plain(*(part.double() for part in single), 1e-6)
    found = krr_loss(*single)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), near, rtol=1e-4, atol=0)
    assert exact > 0
    few = krr_loss(*single, double=False)
    torch.testing.assert_close(few.double(), near, rtol=1e-2, atol=0)


def test_a_kernel_that_is_not_positive_definite_is_refused():
    fs, ys, fr, yr = problem(4, 9)
    equal = torch.zeros_like(fs)
    equal[:, :2] = 2  # with the bias of length 3, so that the pivots are whole numbers
    with pytest.raises(InputError, match="of 4 rows is not positive definite with lam 0: "):
        krr_loss(equal, ys, fr, yr, lam=0)
    assert krr_loss(equal, ys, fr, yr).isfinite()
    fs[1, 2] = torch.nan
    with pytest.raises(InputError, match="not positive definite"):
        krr_loss(fs, ys, fr, yr)


def test_ages_stay_below_the_life_unless_legacy():
    slots = torch.randint(10, (5000,), generator=torch.Generator().manual_seed(0)).tolist()
    right = PoolAges.begun(10, seed=0, life=100)
    legacy = PoolAges.begun(10, seed=0, life=100, legacy=True)
    assert right.ages == legacy.ages
    assert min(right.ages) >= 1
    anew = {"right": [], "legacy": []}
    for slot in slots:
        before = right.ages[slot]
        right, made = right.stepped(slot)
        assert all(0 <= age < 100 for age in right.ages)
        assert made == (before == 99)
        assert right.ages[slot] == (0 if made else before + 1)
        anew["right"].append(made)
        legacy, made = legacy.stepped(slot)
        anew["legacy"].append(made)
    assert 40 <= sum(anew["right"]) <= 60
    assert all(anew["legacy"][2000:])  # each network is made anew at every visit
    assert from_json(to_json(right)) == right


def test_pools_to_begin_with():
    ages = PoolAges.begun(500, seed=1, life=5).ages
    assert set(ages) == {1, 2, 3, 4}
    assert PoolAges.begun(500, seed=2, life=5).ages != ages
    assert PoolAges.begun(3, seed=0, life=1).ages == (0, 0, 0)
    with pytest.raises(InputError, match="not 2 networks and 0 steps"):
        PoolAges(ages=(0, 0), life=0)
    with pytest.raises(InputError, match="not 0 networks"):
        PoolAges.begun(0, seed=0)
