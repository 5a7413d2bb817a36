"""High-loss subsets: the images that experts fit worst early in training.

Source: Joshi, Ni and Mirzasoleiman, Dataset Distillation via Knowledge Distillation: Towards
Efficient Self-Supervised Pre-Training of Deep Networks (MKDT), ICLR 2025 (arXiv 2410.02116).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from potstill.core.errors import InputError, WorkError, unknown

Balance = Literal["none", "class", "cluster"]


def high_loss_order(
    losses: Tensor,
    *,
    balance: Balance = "none",
    labels: Tensor | None = None,
    clusters: Tensor | None = None,
    targets: Tensor | None = None,
) -> Tensor:
    """Return all N images, those to choose first first; a subset of size n is the first n.

    Images go by their mean over experts of losses [K, N] (or [N]), highest first, equal ones by
    number; so a smaller subset is the beginning of a larger one. With targets [N, D] each loss is
    divided by the mean square of its target, and so is free of the target's norm.

    With `balance` class (labels, int64 [N]) or cluster (clusters, int64 [N]) the highest of every
    group come first, then the second ones, and so on: groups have equal shares of a subset, until
    the small ones are used up.

    Differs: the published subsets are neither balanced nor freed of the norm (`balance` none).

    Raises:
        InputError: for an unknown balance, or one without its groups.
        WorkError: if a loss is not finite.
    """
    mean = losses.double().reshape(-1, losses.shape[-1]).mean(0)
    if not bool(mean.isfinite().all()):
        raise WorkError("The loss of an image is not finite, so images cannot be put in order.")
    if targets is not None:
        mean = mean / targets.double().square().mean(1).clamp(min=torch.finfo(mean.dtype).tiny)
    order = mean.argsort(descending=True, stable=True)
    if balance == "none":
        return order
    if balance not in get_args(Balance):
        raise unknown("balance", balance, get_args(Balance))
    groups = labels if balance == "class" else clusters
    if groups is None:
        raise InputError(f"A subset balanced by {balance} needs the {balance} of each image.")
    return order[_ranks(groups[order]).argsort(stable=True)]


def _ranks(groups: Tensor) -> Tensor:
    """Return how many earlier places hold the group of each place (int64 [N])."""
    by_group = groups.argsort(stable=True)
    counts = torch.bincount(groups)
    first = counts.cumsum(0) - counts
    ranks = torch.empty_like(by_group)
    ranks[by_group] = torch.arange(len(groups)) - first[groups[by_group]]
    return ranks
