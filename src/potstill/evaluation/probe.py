"""What features are worth: a linear probe at its optimum, nearest neighbours, parts of the labels.

Everything here is a pure function of features [N, D] and labels (int64 [N]). The probe is the one
of MKDT (Joshi, Ni and Mirzasoleiman, ICLR 2025, arXiv 2410.02116).
"""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.core.errors import InputError, WorkError
from potstill.core.keys import generator
from potstill.coresets.sizes import budgets
from potstill.functional.kernel_ridge import ridge
from potstill.functional.neighbours import knn_accuracy as knn_accuracy

_EVALUATIONS = 5000  # of the loss, after which a probe counts as diverged
_STEEP = 1e-4  # of features up to 1: a gradient that no optimum has, but L-BFGS may end at


class Probe(NamedTuple):
    """A linear classifier of features: weight [C, D] and bias [C]."""

    weight: Tensor
    bias: Tensor

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """Return the part of the features [N, D] that are given their label."""
        return _right(F.linear(features, self.weight, self.bias).argmax(1), labels)


def linear_probe(
    features: Tensor, labels: Tensor, classes: int, l2: float = 1e-3, *, tolerance: float = 1e-7
) -> Probe:
    """Return the softmax regression that minimises mean cross-entropy + l2 |W|^2.

    The bias is free. L-BFGS with a strong-Wolfe line search in float64 until no entry of the
    gradient is above `tolerance`, or the loss falls by less than 1e-12; features are centred
    meanwhile, which leaves the optimum as it is and saves most of the steps. Equal to
    scikit-learn's LogisticRegression(C=1 / (2 l2 n)) for three classes and more.

    Differs: MKDT runs 20 calls of torch's L-BFGS without line search, which end at the same
        optimum.

    Raises:
        InputError: for an l2 that is not above 0, which leaves no optimum.
        WorkError: if the optimum is not reached.
    """
    if not l2 > 0:
        raise InputError(f"The l2 of a linear probe must be above 0, not {l2}.")
    centre = features.double().mean(0)
    x, y = features.double() - centre, F.one_hot(labels, classes).double()
    both = torch.zeros(classes, x.shape[1] + 1, dtype=x.dtype, device=x.device, requires_grad=True)
    both.grad = torch.zeros_like(both)
    grad, weight, bias = both.grad, both.detach()[:, :-1], both.detach()[:, -1]
    search = torch.optim.LBFGS(
        [both],
        max_iter=_EVALUATIONS,
        max_eval=_EVALUATIONS,
        history_size=100,
        tolerance_grad=tolerance,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    @torch.no_grad()
    def loss() -> Tensor:
        log_p = F.log_softmax(x @ weight.T + bias, dim=1)
        error = (log_p.exp() - y) / len(x)
        grad[:, :-1], grad[:, -1] = error.T @ x + 2 * l2 * weight, error.sum(0)
        return l2 * weight.square().sum() - (y * log_p).sum() / len(x)

    search.step(loss)
    spent, last = search.state[both]["func_evals"] >= _EVALUATIONS, loss()
    slope = torch.cat([grad[:, :-1] / x.abs().max().clamp(min=1), grad[:, -1:]], dim=1)
    if spent or not bool(last.isfinite()) or bool(slope.abs().max() > _STEEP):
        raise WorkError(
            "A linear probe did not reach its optimum: its features are too large or not finite."
        )
    return Probe(weight.to(features), (bias - weight @ centre).to(features))


def ridge_probe(features: Tensor, labels: Tensor, classes: int, lam: float = 1e-3) -> Probe:
    """Return the ridge regression of one-hot labels in closed form: a cheap monitor.

    `lam` is a part of the trace of the kernel matrix, as in `ridge`; the bias is a feature.

    Raises:
        InputError: as `ridge`.
    """
    both = ridge(features, F.one_hot(labels, classes).to(features), lam=lam)
    return Probe(both[:-1].T, both[-1])


def _right(found: Tensor, labels: Tensor) -> float:
    return float((found == labels).double().mean())


def label_subset(
    labels: Tensor,
    classes: int,
    *,
    fraction: float | None = None,
    shots: int | None = None,
    stratified: bool = True,
    force: bool = False,
    seed: int,
) -> Tensor:
    """Return the rows (ascending) of the labels that a probe is given.

    `shots`: as many of every class. `fraction`: int(fraction N) of N labels, `stratified` in
    proportion to the classes, or else of all in one draw, as in MKDT's protocol. `force` takes what
    there is where a class would be left without a label, or has fewer images than shots.

    Raises:
        InputError: unless one of fraction and shots is given; for a fraction outside (0, 1]; for a
            class that would be left without a label, or that has fewer images than shots.
    """
    if (fraction is None) == (shots is None):
        raise InputError("A part of the labels is either a fraction or a number of shots a class.")
    counts = torch.bincount(labels, minlength=classes).tolist()
    chance = generator(seed, "label subset")
    if fraction is None:
        assert shots is not None
        given = _shots(counts, shots, force)
    else:
        if not 0 < fraction <= 1:
            raise InputError(f"A fraction of the labels must lie in (0, 1], not {fraction}.")
        total = int(Fraction(str(fraction)) * len(labels))
        if not stratified:
            rows = torch.randperm(len(labels), generator=chance)[:total].sort().values
            given = torch.bincount(labels[rows], minlength=classes).tolist()
            _check_missing(
                given, len(labels), fraction, "take a stratified draw (--stratified),", force
            )
            return rows
        given = budgets(counts, total)
        _check_missing(given, len(labels), fraction, "take", force)
    members = labels.argsort(stable=True).split(counts)
    orders = [torch.randperm(count, generator=chance) for count in counts]
    parts = [m[o[:n]] for m, o, n in zip(members, orders, given, strict=True)]
    return torch.cat(parts).sort().values


def _shots(counts: list[int], shots: int, force: bool) -> list[int]:
    if shots < 1:
        raise InputError(f"Shots a class must be at least 1, not {shots}.")
    for label, count in enumerate(counts):
        if count < shots and not force:
            raise InputError(f"Class {label} has {count} labels, fewer than {shots} shots.")
    return [min(count, shots) for count in counts]


def _check_missing(given: list[int], n: int, fraction: float, hint: str, force: bool) -> None:
    missing = sum(not count for count in given)
    if missing and not force:
        raise InputError(
            f"{100 * fraction:g} % of {n} labels leaves {missing} of {len(given)} classes without "
            f"a label: {hint} a larger fraction or shots of every class."
        )
