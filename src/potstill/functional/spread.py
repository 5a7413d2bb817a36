"""How much training differs from run to run: gradients, trajectories, and Theorem 4.1 of MKDT.

Source: Joshi, Ni and Mirzasoleiman, Dataset Distillation via Knowledge Distillation: Towards
Efficient Self-Supervised Pre-Training of Deep Networks (MKDT), ICLR 2025 (arXiv 2410.02116).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.core.errors import InputError, WorkError
from potstill.core.keys import generator


def noise_to_signal(*gradients: Tensor) -> float:
    """Return E|g - E g|^2 / |E g|^2 of n batches' gradients [n, P], each part without bias.

    The square of the mean gradient contains variance / n, which is taken off; where nothing is left
    the ratio is infinite. Of gradients at several places it is the ratio of both parts' means.

    Raises:
        InputError: for fewer than two gradients.
    """
    return ratio_of(map(moments, gradients))


def ratio_of(parts: Iterable[tuple[float, float]]) -> float:
    """Return the ratio of the means of both parts, each as `moments` gives them.

    It is infinite where the mean of the second is not above 0.
    """
    found = list(parts)
    variance, signal = (math.fsum(part[k] for part in found) for k in (0, 1))
    return variance / signal if signal > 0 else math.inf


def spread(deltas: Tensor) -> float:
    """Return the mean over pairs of |D_a - D_b|^2 / (2 mean |D|^2) of r runs' ways [r, P].

    D = theta_end - theta_0 from one theta_0: 0 for equal runs, 1 for ways at right angles.

    Raises:
        InputError: for fewer than two runs.
        WorkError: if no run has moved.
    """
    variance, _ = moments(deltas)
    length = float(deltas.double().square().sum(1).mean())
    if length == 0:
        raise WorkError("No run has moved from where it began, so there is no spread.")
    return variance / length


def cosine(deltas: Tensor) -> float:
    """Return the mean over pairs of the cosine between r runs' ways [r, P].

    Raises:
        InputError: for fewer than two runs.
    """
    runs = _several(deltas)
    total = float(F.normalize(deltas.double(), dim=1).sum(0).square().sum())
    return (total - runs) / (runs * (runs - 1))


def _several(rows: Tensor) -> int:
    if len(rows) < 2:
        raise InputError(f"A spread needs at least 2 runs or batches, not {len(rows)}.")
    return len(rows)


def moments(rows: Tensor) -> tuple[float, float]:
    """Return E|x - E x|^2 and |E x|^2 of rows [n, P], both without bias.

    Raises:
        InputError: for fewer than two rows.
    """
    count, rows = _several(rows), rows.double()
    mean = rows.mean(0)
    variance = float((rows - mean).square().sum()) / (count - 1)
    return variance, float(mean.square().sum()) - variance / count


@dataclass(frozen=True, kw_only=True)
class TheoremCheck:
    """Variances of batch gradients of the self-supervised loss over those of the supervised one.

    Medians over the weights drawn.
    """

    absolute: float
    """Ratio of the traces of the covariances; it changes with the scale of the weights."""
    normalised: float
    """Ratio of the `noise_to_signal`s: the one to report."""


def theorem_check(
    scale: float,
    feature_noise: float,
    view_noise: float,
    d: int = 8,
    batches: int = 4000,
    *,
    seed: int,
    draws: int = 16,
) -> TheoremCheck:
    """Return the ratios of Theorem 4.1 by Monte Carlo, in float64.

    x_i = e_{y_i} + feature_noise N(0, 1)^d with y_i of two classes; batches of two images; a linear
    model W [2, d] with entries scale N(0, 1) / sqrt(d), drawn `draws` times; two views of each
    image, x_i + view_noise N(0, 1)^d. Source: MKDT, theorem 4.1.

    Raises:
        InputError: for fewer than two dimensions, two batches or one draw.
    """
    if d < 2 or batches < 2 or draws < 1:
        raise InputError(
            f"The check needs at least 2 dimensions, 2 batches and 1 draw, not {d}, {batches} and "
            f"{draws}."
        )
    absolute, normalised = [], []
    for draw in range(draws):
        chance = generator(seed, "theorem", draw)

        def normal(*shape: int, chance: torch.Generator = chance) -> Tensor:
            return torch.randn(shape, generator=chance, dtype=torch.float64)

        w = scale / math.sqrt(d) * normal(2, d)
        y = torch.randint(2, (batches, 2), generator=chance)
        x = F.one_hot(y, d) + feature_noise * normal(batches, 2, d)
        views = x.repeat_interleave(2, 1) + view_noise * normal(batches, 4, d)
        ours, theirs = contrastive_gradients(w, x, views), supervised_gradients(w, x, y)
        absolute.append(moments(ours)[0] / moments(theirs)[0])
        normalised.append(noise_to_signal(ours) / noise_to_signal(theirs))
    return TheoremCheck(
        absolute=statistics.median(absolute), normalised=statistics.median(normalised)
    )


def supervised_gradients(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return the gradients [n, C d] of mean_i |W x_i - e_{y_i}|^2 / 2 in W [C, d].

    n batches of b images: x [n, b, d], y [n, b].
    """
    error = x @ w.T - F.one_hot(y, len(w))
    return (error.mT @ x / x.shape[1]).flatten(1)


def contrastive_gradients(w: Tensor, x: Tensor, views: Tensor) -> Tensor:
    """Return the gradients [n, C d] of the spectral contrastive loss in W [C, d].

    L = -2 tr(M' W^T W) + tr(M W^T W M W^T W), where M' is the second moment of the b images of a
    batch x [n, b, d], the centres of the augmentations, and M that of their views [n, v, d]; so
    dL/dW = -4 W M' + 4 W M W^T W M. Source: HaoChen et al., Provable Guarantees for Self-Supervised
    Deep Learning with Spectral Contrastive Loss, NeurIPS 2021 (arXiv 2106.04156), for a linear
    model.
    """
    centres, moment = x.mT @ x / x.shape[1], views.mT @ views / views.shape[1]
    wm = w @ moment
    return (4 * (wm @ w.T @ wm - w @ centres)).flatten(1)
