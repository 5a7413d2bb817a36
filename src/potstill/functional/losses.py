"""Losses of a batch of logits."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def ce(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits [B, K] and class numbers (int64 [B])."""
    return F.cross_entropy(logits, labels)


def soft_ce(logits: Tensor, probabilities: Tensor) -> Tensor:
    """Return the mean over the batch of -sum_k p_k log softmax(logits)_k, both [B, K].

    Differentiable with respect to the probabilities; they need not sum to one.
    """
    return -(probabilities * F.log_softmax(logits, dim=1)).sum(1).mean()
