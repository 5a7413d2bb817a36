"""Image steps of gradient matching: one for all classes together, or one after each class.

The published code steps all images after each class in turn, with one SGD state, while only that
class has a gradient. Between two turns of class c its images therefore coast on their velocity:

    n steps without gradient:  x <- x - lr v (m + ... + m^n),  v <- m^n v

so that a round over C classes is: coast c steps, one step along class c's gradient, coast C - 1 - c
steps; and no class waits for another. With m = 0.5 a round moves class c by about 2 lr along its
gradient, as plain SGD of twice the step size would.

Source: Kim et al., ICML 2022 (arXiv 2205.14959), as its authors' code steps; Zhao, Mopuri, Bilen,
ICLR 2021 (arXiv 2006.05929), for the joint step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.data import MeanStd, Space


@dataclass(frozen=True, kw_only=True)
class Steps:
    """How images [C * ipc, ch, H, W], class-major, move along gradients."""

    classes: int
    lr: float
    momentum: float
    in_turn: bool
    """Whether the published code's step after each class is taken, not one for all."""
    scale: Tensor
    """How far a value moves when its pixel, in units of the gradient's own, moves by 1: [ch, 1, 1];
    1 for images moved as they are, 1 / std for raw pixels."""

    def before(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return images and velocity of each class at its turn."""
        return self._coasted(x, v, torch.arange(self.classes)) if self.in_turn else (x, v)

    def after(self, x: Tensor, v: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Return both after the step along dL/dx and, in turn, the rest of the round."""
        v = self.momentum * v + self.scale * grad
        x = x - self.lr * self.scale * v
        left = torch.arange(self.classes - 1, -1, -1)
        return self._coasted(x, v, left) if self.in_turn else (x, v)

    def _coasted(self, x: Tensor, v: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Return both after so many steps of each class without a gradient."""
        m = self.momentum
        power = torch.tensor(m, dtype=torch.float64) ** steps
        path = m * (1 - power) / (1 - m)
        power, path = (
            each.to(x).repeat_interleave(len(x) // self.classes)[:, None, None, None]
            for each in (power, path)
        )
        return x - self.lr * self.scale * path * v, power * v


def pixel_scale(space: Space) -> Tensor:
    """Return how far a value of model input moves when its raw pixel moves by 1: [ch, 1, 1]."""
    assert isinstance(space, MeanStd)
    return 1 / torch.tensor(space.std)[:, None, None]


def clipped(x: Tensor, space: Space) -> Tensor:
    """Return images of model input whose raw pixels lie in [0, 1]."""
    assert isinstance(space, MeanStd)
    mean, std = (torch.tensor(v, device=x.device)[:, None, None] for v in (space.mean, space.std))
    return x.clamp(min=-mean / std, max=(1 - mean) / std)
