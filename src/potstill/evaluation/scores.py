"""DD-Ranking's scores as pure functions of accuracies; the raw gaps come with each score.

Source: Li et al., DD-Ranking: Rethinking the Evaluation of Dataset Distillation
(arXiv 2505.13300).

Differs: release 0.2.0 puts percentages into the exponential; accuracies here are fractions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from potstill.core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class LabelRobust:
    """Label robust score `lrs` in [0, 1], the gaps `hlr` and `ior`, and their mix `alpha`."""

    hlr: float
    ior: float
    alpha: float
    lrs: float


@dataclass(frozen=True, kw_only=True)
class AugmentRobust:
    """Augmentation robust score `ars` in [0, 1] and the mixed gap `beta`."""

    beta: float
    ars: float


def label_robust(
    *, real_hard: float, syn_hard: float, syn_any: float, rdm_any: float, w: float = 0.5
) -> LabelRobust:
    """Return LRS: (e^a - 1/e) / (e - 1/e) with a = w IOR - (1 - w) HLR.

    HLR = real_hard - syn_hard (hard labels; lower is better), IOR = syn_any - rdm_any (the
    method's own recipe; higher is better).

    Raises:
        InputError: for an accuracy or a weight outside [0, 1].
    """
    _check(real_hard=real_hard, syn_hard=syn_hard, syn_any=syn_any, rdm_any=rdm_any, w=w)
    hlr, ior = real_hard - syn_hard, syn_any - rdm_any
    alpha = w * ior - (1 - w) * hlr
    return LabelRobust(hlr=hlr, ior=ior, alpha=alpha, lrs=_squash(alpha))


def augment_robust(
    *, syn_aug: float, rdm_aug: float, syn_naug: float, rdm_naug: float, w: float = 0.5
) -> AugmentRobust:
    """Return ARS: the map of LRS over b = w (gap with) + (1 - w) (gap without augmentation).

    Raises:
        InputError: for an accuracy or a weight outside [0, 1].
    """
    _check(syn_aug=syn_aug, rdm_aug=rdm_aug, syn_naug=syn_naug, rdm_naug=rdm_naug, w=w)
    beta = w * (syn_aug - rdm_aug) + (1 - w) * (syn_naug - rdm_naug)
    return AugmentRobust(beta=beta, ars=_squash(beta))


def _squash(gap: float) -> float:
    return (math.exp(gap) - math.exp(-1)) / (math.e - math.exp(-1))


def _check(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise InputError(f"{name}={value:g}: accuracies and weights are fractions in [0, 1].")
