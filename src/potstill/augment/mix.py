"""CutMix and MixUp: images take in a box, or a part, of other ones; their targets are mixed.

Sources: Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
Features", ICCV 2019 (arXiv 1905.04899), as IDC draws it (ICML 2022, arXiv 2205.14959); Zhang et
al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018 (arXiv 1710.09412).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from potstill.core.errors import InputError
from potstill.core.spec import record


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """What is mixed in one call: the box (rows, columns) and whose box each image takes."""

    rows: slice
    columns: slice
    partner: Tensor
    """int64 [n] on the CPU."""
    ratio: float
    """Weight of an image's own target: 1 minus the share of the box."""
    own: float = 0.0
    """Weight of an image's own pixels within the box."""


def mixed_pair(mix: Mix, x: Tensor, y: Tensor, mixing: Mixing | None) -> tuple[Tensor, Tensor]:
    """Return images [n, C, H, W] and soft targets [n, K], mixed; new tensors, or the given."""
    return mix.images(x, mixing), mix.targets(y, mixing)


def mixed_images(mix: Mix, x: Tensor, mixing: Mixing | None) -> Tensor:
    """Return images [n, C, H, W], mixed; a new tensor, or the given one."""
    if mixing is None:
        return x
    mixed, box = x.clone(), (slice(None), slice(None), mixing.rows, mixing.columns)
    other = x[box].index_select(0, mixing.partner.to(x.device, non_blocking=True))
    mixed[box] = mixing.own * x[box] + (1 - mixing.own) * other if mixing.own else other
    return mixed


def mixed_targets(mix: Mix, y: Tensor, mixing: Mixing | None) -> Tensor:
    """Return soft targets [n, K], mixed; a new tensor, or the given one."""
    if mixing is None:
        return y
    partner = mixing.partner.to(y.device, non_blocking=True)
    return mixing.ratio * y + (1 - mixing.ratio) * y.index_select(0, partner)


@record
@dataclass(frozen=True, kw_only=True)
class CutMix:
    """Mix a batch with chance `prob`; else leave it.

    With l drawn from Beta(beta, beta) a box of sides int(S sqrt(1 - l)) has a uniform centre and
    half sides rounded down; the images take it, clipped, from a random permutation of the batch.
    Targets are mixed by the exact area of the clipped box.

    Raises:
        InputError: for a chance outside [0, 1] or a beta of at most 0.
    """

    prob: float = 0.5
    """Chance of a batch to be mixed."""
    beta: float = 1.0
    """Of the distribution of the share that stays."""

    def __post_init__(self) -> None:
        if not 0 <= self.prob <= 1:
            raise InputError(f"prob of CutMix lies between 0 and 1, not at {self.prob}.")
        if not self.beta > 0:
            raise InputError(f"beta of CutMix must be above 0, not {self.beta}.")

    def sample(
        self, n: int, shape: tuple[int, int, int], generator: torch.Generator
    ) -> Mixing | None:
        """Draw what is mixed among n images of shape (C, H, W) on the CPU; None if nothing is."""
        u = torch.rand(4, generator=generator, dtype=torch.float64, device="cpu").tolist()
        if u[0] >= self.prob:
            return None
        cut = (1 - _beta(u[1], self.beta)) ** 0.5
        rows, columns = (_span(side, cut, at) for side, at in zip(shape[1:], u[2:], strict=True))
        area = (rows.stop - rows.start) * (columns.stop - columns.start)
        partner = torch.randperm(n, generator=generator, device="cpu")
        ratio = 1 - area / (shape[1] * shape[2])
        return Mixing(rows=rows, columns=columns, partner=partner, ratio=ratio)

    apply, images, targets = mixed_pair, mixed_images, mixed_targets


@record
@dataclass(frozen=True, kw_only=True)
class MixUp:
    """Mix every image with another one: l x + (1 - l) x', and so the targets.

    l is drawn from Beta(alpha, alpha) for the whole batch, the others are a random permutation.

    Raises:
        InputError: for an alpha of at most 0.
    """

    alpha: float = 0.8
    """SRe2L's for CIFAR-100."""
    prob: ClassVar[float] = 1.0
    """Chance of a batch to be mixed."""

    def __post_init__(self) -> None:
        if not 0 < self.alpha < math.inf:
            raise InputError(f"alpha of MixUp must be above 0, not {self.alpha}.")

    def sample(self, n: int, shape: tuple[int, int, int], generator: torch.Generator) -> Mixing:
        """Draw what is mixed among n images of shape (C, H, W) on the CPU."""
        u = torch.rand((), generator=generator, dtype=torch.float64, device="cpu").item()
        ratio = _beta(u, self.alpha)
        partner = torch.randperm(n, generator=generator, device="cpu")
        rows, columns = (slice(0, side) for side in shape[1:])
        return Mixing(rows=rows, columns=columns, partner=partner, ratio=ratio, own=ratio)

    apply, images, targets = mixed_pair, mixed_images, mixed_targets


Mix = CutMix | MixUp


def _beta(u: float, beta: float) -> float:
    """Return the number below which Beta(beta, beta) lies with chance u."""
    if beta == 1:
        return u
    from scipy.special import betaincinv

    return float(betaincinv(beta, beta, u))


def _span(side: int, cut: float, at: float) -> slice:
    """Return the clipped part of a side that the box covers."""
    half, centre = int(side * cut) // 2, int(at * side)
    return slice(max(centre - half, 0), min(centre + half, side))
