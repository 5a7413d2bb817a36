"""How much training differs from run to run: against loops, and Theorem 4.1 against autograd."""

import itertools
import math

import pytest
import torch

from potstill.core.errors import InputError, WorkError
from potstill.functional.spread import (
    contrastive_gradients,
    cosine,
    noise_to_signal,
    spread,
    supervised_gradients,
    theorem_check,
)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_spread_and_cosine_are_means_over_pairs():
    deltas = normal(4, 30) + 0.7
    pairs = list(itertools.combinations(deltas, 2))
    length = sum(float(d @ d) for d in deltas) / 4
    apart = sum(float((a - b) @ (a - b)) for a, b in pairs) / 6
    assert spread(deltas) == pytest.approx(apart / (2 * length), rel=1e-12)
    angle = sum(float(torch.cosine_similarity(a, b, dim=0)) for a, b in pairs) / 6
    assert cosine(deltas) == pytest.approx(angle, rel=1e-12)
    assert spread(deltas[:1].repeat(3, 1)) == pytest.approx(0, abs=1e-15)
    assert cosine(deltas[:1].repeat(3, 1)) == pytest.approx(1, abs=1e-12)
    assert spread(torch.eye(3)) == pytest.approx(1, abs=1e-15)
    assert cosine(torch.eye(3)) == pytest.approx(0, abs=1e-15)
    with pytest.raises(InputError, match="at least 2 runs or batches, not 1"):
        cosine(deltas[:1])
    with pytest.raises(WorkError, match="No run has moved"):
        spread(torch.zeros(3, 5))


def test_the_noise_of_gradients_is_measured_without_bias():
    mean, dims = 0.1, 50  # |E g|^2 = 0.5, E|g - E g|^2 = 50
    batches = normal(3000, 24, dims) + mean
    variance = batches.var(1, correction=1).sum(1)
    signal = batches.mean(1).square().sum(1)
    place = int(signal.argmax())
    plain = float(variance[place] / (signal[place] - variance[place] / 24))
    assert noise_to_signal(batches[place]) == pytest.approx(plain, rel=1e-12)
    assert float(variance.mean()) == pytest.approx(dims, rel=0.01)
    assert float((signal - variance / 24).mean()) == pytest.approx(mean**2 * dims, rel=0.05)
    assert noise_to_signal(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])) == math.inf
    with pytest.raises(InputError, match="at least 2"):
        noise_to_signal(batches[0, :1])


def test_hand_written_gradients_equal_autograd():
    w, x, views = normal(2, 6), normal(3, 2, 6, seed=1), normal(3, 4, 6, seed=2)
    y = torch.tensor([[0, 1], [1, 1], [0, 0]])

    def supervised(w, x, y):
        errors = [w @ xi - torch.eye(2, dtype=w.dtype)[yi] for xi, yi in zip(x, y, strict=True)]
        return sum(e @ e for e in errors) / (2 * len(errors))

    def contrastive(w, x, views):
        def moment(z):
            return sum(torch.outer(a, a) for a in z) / len(z)

        s, m = w.T @ w, moment(views)
        return -2 * torch.trace(moment(x) @ s) + torch.trace(m @ s @ m @ s)

    w.requires_grad_()
    for hand, loss, other in (
        (supervised_gradients, supervised, y),
        (contrastive_gradients, contrastive, views),
    ):
        ours = hand(w.detach(), x, other)
        for row, xi, oi in zip(ours, x, other, strict=True):
            (theirs,) = torch.autograd.grad(loss(w, xi, oi), w)
            torch.testing.assert_close(row, theirs.flatten(), rtol=1e-12, atol=1e-12)


def test_the_contrastive_loss_is_the_one_over_pairs_of_views():
    """-2 E[f(x)^T f(x+)] + E[(f(x)^T f(x'))^2], of which the moments are a rewriting."""
    w, views = normal(2, 6), normal(4, 6, seed=2)
    f, moment = views @ w.T, views.T @ views / 4
    pairs = sum(float(a @ b) ** 2 for a in f for b in f) / 16
    s = w.T @ w
    assert float(torch.trace(moment @ s @ moment @ s)) == pytest.approx(pairs, rel=1e-12)


@pytest.mark.parametrize(
    ("scale", "noise", "views"),
    [(1, 0.1, 0.0), (1, 0.1, 0.3), (1, 0.3, 0.3), (2, 0.1, 0.1), (0.3, 0.1, 0.1)],
)
def test_theorem_4_1(scale, noise, views):
    """The normalised ratio is above 1 everywhere, the absolute one depends on the scale."""
    found = theorem_check(scale, noise, views, seed=0)
    assert found.normalised > 1
    assert found.absolute < 0.6 if scale < 1 else found.absolute > 1
    if scale == 2:
        assert found.absolute > 4


def test_the_check_repeats_and_refuses():
    few = theorem_check(1, 0.1, 0.1, batches=50, seed=1, draws=2)
    assert few == theorem_check(1, 0.1, 0.1, batches=50, seed=1, draws=2)
    assert few != theorem_check(1, 0.1, 0.1, batches=50, seed=2, draws=2)
    with pytest.raises(InputError, match="not 1, 4000 and 16"):
        theorem_check(1, 0.1, 0.1, d=1, seed=0)
