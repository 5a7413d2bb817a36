"""Losses of self-supervised training: Barlow Twins, its MixUp term, and SimCLR.

They take the embeddings of two views of each image of a batch. Sources: Zbontar et al., "Barlow
Twins", ICML 2021 (arXiv 2103.03230), equations 1 and 2; Bandara, De Melo and Patel, "Guarding
Barlow Twins Against Overfitting with Mixed Samples", 2023 (arXiv 2312.02151); Chen et al., "A
Simple Framework for Contrastive Learning of Visual Representations", ICML 2020 (arXiv 2002.05709),
equation 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.augment import Policy
from potstill.core.errors import InputError, unknown
from potstill.core.spec import record


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """Embeddings of the images x_m = alpha x_1 + (1 - alpha) x_2[order] of a batch."""

    z: Tensor
    """[B, D]."""
    alpha: float | Tensor
    """Uniform in [0, 1], one for the batch."""
    order: Tensor
    """A permutation, int64 [B]."""


@record
@dataclass(frozen=True, kw_only=True)
class BarlowTwins:
    """scale * [sum_i (C_ii - 1)^2 + lam * sum_{i != j} C_ij^2] of C = s_1^T s_2 / B.

    s are embeddings standardised over the batch (see `standardised`). With a `mixup` above 0, that
    many times `mixup_term` is added.

    Raises:
        InputError: for a lam, scale, mixup or eps out of its range.
    """

    lam: float = 5e-3
    scale: float = 1.0
    unbiased: bool = True
    """Whether variances are divided by B - 1; else by B, as batch norm does."""
    mixup: float = 0.0
    """Weight of the MixUp term; 4 lam in the training of the published mix-bt teachers."""
    eps: float = 0.0
    """Added to variances; batch norm, which some take instead, adds 1e-5."""

    def __post_init__(self) -> None:
        for name in ("lam", "mixup", "eps"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(
                    f"{name} of Barlow Twins is at least 0, not {getattr(self, name)}."
                )
        if not 0 < self.scale < math.inf:
            raise InputError(f"scale of Barlow Twins must be above 0, not {self.scale}.")

    def __call__(self, z1: Tensor, z2: Tensor, mixed: Mixed | None = None) -> Tensor:
        """Return the loss (0-dim) of the embeddings [B, D] of two views.

        Raises:
            InputError: for fewer than 2 images, shapes that differ, or a `mixed` without `mixup`
                or the other way round.
        """
        _check(z1, z2)
        if (mixed is None) == bool(self.mixup):
            raise InputError("Barlow Twins needs mixed images if, and only if, mixup is above 0.")
        s1, s2 = (standardised(z, unbiased=self.unbiased, eps=self.eps) for z in (z1, z2))
        c = s1.T @ s2 / len(s1)
        one = torch.eye(len(c), dtype=c.dtype, device=c.device)
        loss = ((c - one).square() * (one + self.lam * (1 - one))).sum()
        if mixed is not None:
            s = standardised(mixed.z, unbiased=self.unbiased, eps=self.eps)
            loss = loss + self.mixup * mixup_term(s, s1, s2, mixed.alpha, mixed.order)
        return self.scale * loss


@record
@dataclass(frozen=True, kw_only=True)
class SimCLR:
    """NT-Xent: the mean over all 2B views i of -s_ip / t + log sum_{j != i} exp(s_ij / t).

    s is the cosine of two embeddings, p the other view of the same image, t the temperature.

    Raises:
        InputError: for a temperature that is not above 0.
    """

    temperature: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise InputError(f"SimCLR's temperature must be above 0, not {self.temperature}.")

    def __call__(self, z1: Tensor, z2: Tensor) -> Tensor:
        """Return the loss (0-dim) of the embeddings [B, D] of two views.

        Raises:
            InputError: for fewer than 2 images, or shapes that differ.
        """
        _check(z1, z2)
        z = F.normalize(torch.cat([z1, z2]), dim=1)
        itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
        s = (z @ z.T / self.temperature).masked_fill(itself, -math.inf)
        return F.cross_entropy(s, torch.arange(len(z), device=z.device).roll(len(z1)))


PairLoss = BarlowTwins | SimCLR
"""What two views of each image are trained with."""
_LOSSES: Mapping[str, type[PairLoss]] = {"bt": BarlowTwins, "simclr": SimCLR}


def pair_loss_of(text: str) -> PairLoss:
    """Return the loss that a text names: bt or simclr, settings as in bt:lam=0.005,mixup=0.02.

    Raises:
        InputError: for an unknown loss or setting, or a value that it cannot have.
    """
    name, colon, settings = text.partition(":")
    if name not in _LOSSES:
        raise unknown("loss of pairs", name, _LOSSES)
    made, found = _LOSSES[name], {}
    own = {field.name: field.default for field in fields(made)}
    for part in settings.split(",") if colon else ():
        setting, _, value = part.partition("=")
        if setting not in own:
            raise unknown(f"setting of {name}", setting, own)
        try:
            flag = isinstance(own[setting], bool)
            found[setting] = {"True": True, "False": False}[value] if flag else float(value)
        except (KeyError, ValueError):
            example = f"{setting}={own[setting]}"
            raise InputError(f"A setting of {name} is written as {example}, not {part}.") from None
    return made(**found)


def text_of_loss(loss: PairLoss) -> str:
    """Return the text of a loss, as `pair_loss_of` reads it."""
    name = next(name for name, kind in _LOSSES.items() if isinstance(loss, kind))
    own = [(f.name, getattr(loss, f.name), f.default) for f in fields(loss)]
    said = [f"{setting}={value}" for setting, value, default in own if value != default]
    return f"{name}:{','.join(said)}" if said else name


Blend = tuple[Tensor, Tensor]
"""alpha (0-dim) and order (int64 [B]) of mixed images, see `Mixed`."""


@dataclass(frozen=True, eq=False)
class Views:
    """Two views [B, C, H, W] of each image of a batch, and perhaps the mixed images."""

    images: tuple[Tensor, ...]
    blend: Blend | None = None


def views_of(
    x: Tensor, first: Policy, second: Policy, chance: torch.Generator, *, mixed: bool
) -> Views:
    """Return two views of images x [B, C, H, W], drawn one after the other; mixed if wanted."""
    shape = (x.shape[1], x.shape[2], x.shape[3])
    one, two = (p.apply(x, p.sample(len(x), shape, chance).to(x.device)) for p in (first, second))
    if not mixed:
        return Views((one, two))
    alpha = torch.rand((), generator=chance, dtype=torch.float64, device="cpu").to(x)
    order = torch.randperm(len(x), generator=chance, device="cpu").to(x.device)
    return Views((one, two, alpha * one + (1 - alpha) * two[order]), (alpha, order))


def pair_loss(loss_of: PairLoss, z: Sequence[Tensor], blend: Blend | None) -> Tensor:
    """Return the loss (0-dim) of the embeddings of `Views`, [B, D] each."""
    if blend is None:
        return loss_of(z[0], z[1])
    assert isinstance(loss_of, BarlowTwins)
    return loss_of(z[0], z[1], Mixed(z=z[2], alpha=blend[0], order=blend[1]))


def standardised(z: Tensor, *, unbiased: bool = True, eps: float = 0.0) -> Tensor:
    """Return (z - mean) / sqrt(variance + eps) of each column of z [B, D].

    A column of numbers that are equal up to rounding becomes 0 and gets no gradient.
    """
    variance, mean = torch.var_mean(z, dim=0, correction=int(unbiased))
    still = variance <= (8 * torch.finfo(z.dtype).eps * mean).square()
    s = (z - mean) * torch.where(still, 1, variance + eps).rsqrt()
    return torch.where(still, 0, s)


def mixup_term(s: Tensor, s1: Tensor, s2: Tensor, alpha: float | Tensor, order: Tensor) -> Tensor:
    """Return ||(s - m)^T s_1 / B||^2 + ||(s - m)^T s_2 / B||^2, m = alpha s_1 + (1 - alpha) s_2'.

    The correlations of mixed images with both views are drawn to the same mixture of the
    correlations of the images that they were mixed from; s_2' is s_2[order].

    Args:
        s, s1, s2: standardised embeddings [B, D] of the mixed images and of both views.
        alpha: part of the first view in the mixed images.
        order: from where their second view is, int64 [B].

    Differs: the paper halves the sum; here the weight alone says how much it counts.
    """
    away = (s - alpha * s1 - (1 - alpha) * s2[order]).T / len(s)
    return (away @ s1).square().sum() + (away @ s2).square().sum()


def _check(z1: Tensor, z2: Tensor) -> None:
    """Refuse what is no pair of batches of embeddings."""
    if z1.dim() != 2 or z1.shape != z2.shape or len(z1) < 2:
        raise InputError(
            "Two views of at least 2 images have embeddings [B, D] of one shape, not "
            f"{list(z1.shape)} and {list(z2.shape)}."
        )
