"""Losses of a batch of logits, and the gradient of one."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.nets.flat import FlatNet


def ce(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits [B, K] and class numbers (int64 [B])."""
    return F.cross_entropy(logits, labels)


def soft_ce(logits: Tensor, probabilities: Tensor) -> Tensor:
    """Return the mean over the batch of -sum_k p_k log softmax(logits)_k, both [B, K].

    Differentiable with respect to the probabilities; they need not sum to one.
    """
    return -(probabilities * F.log_softmax(logits, dim=1)).sum(1).mean()


def gradient(
    net: FlatNet, theta: Tensor, x: Tensor, y: Tensor, loss_of: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Return loss (0-dim) and gradient [P] at theta [P], both without a graph."""
    leaf = theta.detach().requires_grad_()
    with torch.enable_grad():
        loss = loss_of(net(leaf, x), y)
        (grad,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), grad
