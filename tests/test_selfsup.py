"""Self-supervised losses against closed forms, slow loops and, where it is there, lightly."""

from __future__ import annotations

import math
from importlib import import_module
from importlib.util import find_spec

import pytest
import torch

from potstill.core.errors import InputError
from potstill.core.spec import from_json, to_json
from potstill.core.vision import import_torchvision
from potstill.functional.selfsup import BarlowTwins, Mixed, SimCLR, mixup_term, standardised

torch.set_num_threads(1)
F64 = torch.float64
SQUARE = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=F64)
"""Two columns of mean 0, biased variance 1 and correlation 0."""


def some(seed: int, n: int = 7, d: int = 5, dtype: torch.dtype = F64) -> torch.Tensor:
    return torch.randn(n, d, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def correlations(z1, z2, unbiased, eps=0.0):
    """Return C [D][D], entry by entry."""
    n, width = z1.shape
    columns = []
    for z in (z1, z2):
        rows = []
        for k in range(width):
            numbers = z[:, k].tolist()
            mean = sum(numbers) / n
            variance = sum((v - mean) ** 2 for v in numbers) / (n - unbiased)
            rows.append([(v - mean) / math.sqrt(variance + eps) for v in numbers])
        columns.append(rows)
    one, two = columns
    return [[sum(one[i][b] * two[j][b] for b in range(n)) / n for j in range(width)]
            for i in range(width)]  # fmt: skip


# ---- Barlow Twins -----------------------------------------------------------------------------


def test_equal_views_without_correlation_lose_nothing():
    loss = BarlowTwins(lam=1.0, unbiased=False)
    assert loss(SQUARE, 3 * SQUARE + 7) == 0
    assert loss(SQUARE, -SQUARE) == 2 * (-1 - 1) ** 2
    # by B - 1 the diagonal of C is 3/4
    assert float(BarlowTwins(lam=1.0)(SQUARE, SQUARE)) == pytest.approx(2 * 0.25**2, abs=1e-15)
    # the second view swapped: C = [[0, 1], [1, 0]]
    swapped = SQUARE.flip(1)
    assert BarlowTwins(lam=0.3, unbiased=False)(SQUARE, swapped) == 2 + 0.3 * 2
    assert BarlowTwins(lam=0.3, unbiased=False, scale=0.1)(SQUARE, swapped) == 0.1 * (2 + 0.3 * 2)


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_barlow_twins_entry_by_entry(unbiased, eps):
    z1, z2 = some(0), some(0) + 0.5 * some(1)
    c = correlations(z1, z2, unbiased, eps)
    on = sum((c[i][i] - 1) ** 2 for i in range(5))
    off = sum(c[i][j] ** 2 for i in range(5) for j in range(5) if i != j)
    loss = BarlowTwins(lam=0.02, scale=0.1, unbiased=unbiased, eps=eps)
    assert float(loss(z1, z2)) == pytest.approx(0.1 * (on + 0.02 * off), rel=1e-12)
    # float32 of a long batch stays near float64
    near = loss(*(some(s, 256, 64, torch.float32) for s in (2, 3)))
    exact = loss(*(some(s, 256, 64, torch.float32).double() for s in (2, 3)))
    assert float(near) == pytest.approx(float(exact), rel=1e-5)


def test_the_mixup_term_regresses_correlations_onto_their_mixture():
    z, z1, z2 = some(3), some(4), some(5)
    order, alpha = torch.tensor([3, 1, 0, 6, 5, 2, 4]), 0.3
    s, s1, s2 = (standardised(v) for v in (z, z1, z2))
    n = len(z)
    found = (s.T @ s1 / n, s.T @ s2 / n)
    wanted = (
        alpha * (s1.T @ s1) / n + (1 - alpha) * (s2[order].T @ s1) / n,
        alpha * (s1.T @ s2) / n + (1 - alpha) * (s2[order].T @ s2) / n,
    )
    term = sum((a - b).square().sum() for a, b in zip(found, wanted, strict=True))
    assert float(mixup_term(s, s1, s2, alpha, order)) == pytest.approx(float(term), rel=1e-12)
    plain, mixed = BarlowTwins(scale=0.1), BarlowTwins(scale=0.1, mixup=0.02)
    got = mixed(z1, z2, Mixed(z=z, alpha=alpha, order=order))
    assert float(got) == pytest.approx(float(plain(z1, z2) + 0.1 * 0.02 * term), rel=1e-12)
    # features that are linear in pixels lose nothing
    assert float(mixup_term(s1, s1, s2, 1.0, order)) == 0
    assert float(mixup_term(s2[order], s1, s2, 0.0, order)) == 0


@pytest.mark.parametrize("value", [0.0, 0.7, -31.1])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_column_of_equal_numbers_has_no_gradient(value, dtype):
    z = some(6, 100, dtype=dtype).index_fill(1, torch.tensor([2]), value).requires_grad_()
    s = standardised(z)
    assert s[:, 2].abs().max() == 0
    assert (s[:, [0, 1, 3, 4]].std(0) - 1).abs().max() < 1e-6
    (grad,) = torch.autograd.grad(BarlowTwins()(z, some(7, 100, dtype=dtype)), z)
    assert grad.isfinite().all()
    assert grad[:, 2].abs().max() == 0
    assert grad[:, 1].abs().max() > 0


# ---- SimCLR -----------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 0.07])
def test_simclr_by_two_loops(temperature):
    z1, z2 = some(8), some(8) + some(9)
    n, views, total = len(z1), [*z1.tolist(), *z2.tolist()], 0.0

    def cosine(a, b):
        dot = sum(p * q for p, q in zip(a, b, strict=True))
        return dot / math.sqrt(sum(p * p for p in a) * sum(q * q for q in b))

    for i in range(2 * n):
        others = sum(
            math.exp(cosine(views[i], views[j]) / temperature) for j in range(2 * n) if j != i
        )
        total += math.log(others) - cosine(views[i], views[(i + n) % (2 * n)]) / temperature
    got = SimCLR(temperature=temperature)(z1, z2)
    assert float(got) == pytest.approx(total / (2 * n), rel=1e-12)


def test_simclr_of_known_angles():
    axes = torch.eye(3, dtype=F64)
    wanted = math.log(math.exp(2) + 4) - 2  # its twin has cosine 1, the four others have 0
    assert float(SimCLR()(axes, 5 * axes)) == pytest.approx(wanted, rel=1e-14)
    same = torch.ones(3, 4, dtype=F64)
    assert float(SimCLR()(same, same)) == pytest.approx(math.log(5), rel=1e-14)


# ---- both -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "loss",
    [BarlowTwins(lam=0.1), BarlowTwins(unbiased=False, eps=1e-5, scale=0.1), SimCLR()],
    ids=["barlow", "barlow of batch norm", "simclr"],
)
def test_gradients_and_what_does_not_change_a_loss(loss):
    z1, z2 = some(10, 4, 3).requires_grad_(), some(11, 4, 3).requires_grad_()
    assert torch.autograd.gradcheck(loss, (z1, z2))
    order = torch.tensor([2, 0, 3, 1])
    for other in (loss(z1[order], z2[order]), loss(z2, z1)):
        assert float(other.detach()) == pytest.approx(float(loss(z1, z2).detach()), rel=1e-12)
    assert loss(z1, z2).shape == ()
    assert from_json(to_json(loss)) == loss


def test_gradient_of_the_mixup_term():
    parts = [some(seed, 4, 3).requires_grad_() for seed in (12, 13, 14)]
    order, loss = torch.tensor([2, 0, 3, 1]), BarlowTwins(mixup=0.5)
    assert torch.autograd.gradcheck(
        lambda z, z1, z2: loss(z1, z2, Mixed(z=z, alpha=0.3, order=order)), parts
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BarlowTwins(lam=-1), "lam of Barlow Twins is at least 0, not -1"),
        (lambda: BarlowTwins(scale=0), "scale of Barlow Twins must be above 0, not 0"),
        (lambda: SimCLR(temperature=0), "temperature must be above 0, not 0"),
        (lambda: SimCLR()(some(0, 1), some(1, 1)), r"at least 2 images .* \[1, 5\]"),
        (lambda: BarlowTwins()(some(0, 4), some(1, 5)), r"of one shape, not \[4, 5\] and \[5, 5\]"),
        (lambda: BarlowTwins(mixup=0.1)(some(0), some(1)), "if, and only if, mixup is above 0"),
    ],
)
def test_wrong_input_is_one_sentence(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_lightly_agrees():
    """lightly's Barlow Twins takes batch norm's biased variance and its eps."""
    if find_spec("lightly") is None:
        pytest.skip("lightly is not installed: pip install 'potstill[oracle]'")
    try:
        import_torchvision()  # lightly imports it
    except InputError as error:
        pytest.skip(str(error))
    losses = import_module("lightly.loss")
    z1, z2 = (some(seed, 16, 8) for seed in (15, 16))
    theirs = losses.BarlowTwinsLoss(lambda_param=5e-3)(z1, z2)
    ours = BarlowTwins(lam=5e-3, unbiased=False, eps=1e-5)(z1, z2)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-10)
    theirs = losses.NTXentLoss(temperature=0.5)(z1, z2)
    assert float(SimCLR(temperature=0.5)(z1, z2)) == pytest.approx(float(theirs), rel=1e-10)
