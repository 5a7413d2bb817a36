"""Losses of a batch of logits, and the gradient of one."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.core.errors import InputError
from potstill.core.spec import record
from potstill.nets.flat import FlatNet

PART = 32 * 32 * 32
"""Pixels a channel that go through a network at once on a CPU: 32 images of 32x32."""

LossOf = Callable[[Tensor, Tensor], Tensor]
Precision = Literal["float32", "bfloat16"]
Loss = Literal["ce", "soft_ce", "mse"]
"""Names of losses of targets: class numbers, probabilities, features."""


def ce(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits [B, K] and class numbers (int64 [B])."""
    return F.cross_entropy(logits, labels)


def soft_ce(logits: Tensor, probabilities: Tensor) -> Tensor:
    """Return the mean over the batch of -sum_k p_k log softmax(logits)_k, both [B, K].

    Differentiable with respect to the probabilities; they need not sum to one.
    """
    return -(probabilities * F.log_softmax(logits, dim=1)).sum(1).mean()


def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean over batch and dimensions of (outputs - targets)^2, both [B, D].

    Source: the distillation loss of MKDT (Joshi, Ni and Mirzasoleiman, ICLR 2025, arXiv
    2410.02116).
    """
    return F.mse_loss(outputs, targets)


@record
@dataclass(frozen=True, kw_only=True)
class Softened:
    """The divergence of a network's softened outputs from a teacher's, a loss of logits.

    The mean over the batch of sum_k p_k (log p_k - log q_k), where p is the softmax of the
    teacher's logits / T and q that of the network's; times T^2 if `squared`, so that gradients
    keep their size when T changes.

    Source: Hinton, Vinyals, Dean, arXiv:1503.02531.

    Raises:
        InputError: for a temperature that is not above 0.
    """

    temperature: float = 20.0
    """T."""
    squared: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise InputError(f"A lesson's temperature must be above 0, not {self.temperature}.")

    def __call__(self, logits: Tensor, taught: Tensor) -> Tensor:
        """Return the loss (0-dim) of logits [B, K] against the teacher's [B, K]."""
        return self.each(logits, taught).mean()

    def each(self, logits: Tensor, taught: Tensor) -> Tensor:
        """Return the loss [B] of each image."""
        heat = self.temperature
        p, q = F.log_softmax(taught / heat, dim=1), F.log_softmax(logits / heat, dim=1)
        return (p.exp() * (p - q)).sum(1) * (heat**2 if self.squared else 1)


def each(loss_of: LossOf, logits: Tensor, y: Tensor) -> Tensor:
    """Return the loss [B] of each image, whose mean is `ce`, `soft_ce`, `mse` or a `Softened`."""
    if isinstance(loss_of, Softened):
        return loss_of.each(logits, y)
    if loss_of is ce:
        return F.cross_entropy(logits, y, reduction="none")
    if loss_of is mse:
        return F.mse_loss(logits, y, reduction="none").mean(1)
    assert loss_of is soft_ce
    return -(y * F.log_softmax(logits, dim=1)).sum(1)


def casting(device: torch.device, precision: Precision) -> AbstractContextManager[None]:
    """Return the context in which a network computes with that precision."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)  # pyrefly: ignore[bad-return]


def gradient(
    net: FlatNet,
    theta: Tensor,
    x: Tensor,
    y: Tensor,
    loss_of: LossOf,
    *,
    precision: Precision = "float32",
) -> tuple[Tensor, Tensor]:
    """Return loss (0-dim) and gradient [P] at theta [P], both without a graph.

    `loss_of` is a mean over the batch. On a CPU a batch goes through in parts that stay in its
    caches, which is up to 2.8 times as fast and equal up to rounding; networks with statistics of
    the batch take it whole.
    """
    size = len(x)
    if x.device.type == "cpu" and net.separable:
        size = max(1, PART // x[0, 0].numel())
    leaf = theta.detach().requires_grad_()
    loss, grad = torch.zeros_like(theta[0]), torch.zeros_like(theta)
    with torch.enable_grad():
        for part, labels in zip(x.split(size), y.split(size), strict=True):
            with casting(x.device, precision):
                logits = net(leaf, part)
            share = loss_of(logits.to(theta.dtype), labels) * (len(part) / len(x))
            loss += share.detach()
            grad += torch.autograd.grad(share, leaf)[0]
    return loss, grad
