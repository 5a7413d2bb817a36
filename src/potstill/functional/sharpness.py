"""GSAM: a gradient that leads to flat minima, taken at a perturbed point.

Source: Zhuang et al., Surrogate Gap Minimization Improves Sharpness-Aware Training, ICLR 2022
(arXiv 2203.08065), with the adaptive perturbation of Kwon et al., ASAM, ICML 2021 (arXiv
2102.11600), as Du et al. use it for experts: Minimizing the Accumulated Trajectory Error to
Improve Dataset Distillation (FTD), CVPR 2023 (arXiv 2211.11004).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.core.ranges import at_least
from potstill.core.spec import record

_TINY = 1e-12


@record
@dataclass(frozen=True, kw_only=True)
class GSAM:
    """A step's gradient is taken at w + e: g <- g' - alpha * (part of g orthogonal to g').

    g is the gradient at w, g' that at w + e with e = w^2 g rho / (| |w| g | + 1e-12), or without
    `adaptive` e = g rho / (|g| + 1e-12). Any optimizer then takes its step from w.

    Raises:
        InputError: for a negative rho or alpha.
    """

    rho: float = 0.01
    """Length of the step to the perturbed point where the gradient is taken; FTD has 0.01."""
    alpha: float = 1.0
    """Weight of the step against the gap between there and here; FTD has 0.3 or 1."""
    adaptive: bool = True
    """Perturb each parameter in proportion to its square."""

    def __post_init__(self) -> None:
        at_least(0, self, "rho", "alpha", prefix="GSAM ")

    def perturbation(self, theta: Tensor, grad: Tensor) -> Tensor:
        """Return e [P] at theta [P] from the gradient there."""
        scaled = theta.abs() * grad if self.adaptive else grad
        weighted = theta.square() * grad if self.adaptive else grad
        return weighted * (self.rho / (scaled.norm() + _TINY))

    def combined(self, grad: Tensor, there: Tensor) -> Tensor:
        """Return the gradient to step along from those at theta and at theta + e."""
        unit = there / (there.norm() + _TINY)
        return there - self.alpha * (grad - torch.sum(grad * unit) * unit)
