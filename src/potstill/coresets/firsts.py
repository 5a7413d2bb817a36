"""Subsets without labels: the real images that distillation for pre-training begins with."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from potstill.core.errors import unknown
from potstill.core.keys import generator
from potstill.coresets.high_loss import high_loss_order
from potstill.coresets.sas import sas_subset

Subset = Literal["high-loss", "high-loss-balanced", "random", "random-balanced", "sas"]


def subset_rows(
    subset: Subset,
    count: int,
    *,
    labels: Tensor,
    targets: Tensor,
    losses: Tensor | None = None,
    seed: int,
) -> Tensor:
    """Return `count` rows of the training part (labels int64 [N], targets [N, D]), int64.

    `high-loss`: those of the highest mean of losses [K, N], which leaves classes out; `random`;
    both `-balanced`: as many of each class, as far as it has them; `sas`: of each class those whose
    targets are most like the rest of it. A smaller subset is the beginning of a larger one, but for
    sas.

    Raises:
        InputError: for an unknown subset.
    """
    if subset not in get_args(Subset):
        raise unknown("subset", subset, get_args(Subset))
    if subset == "sas":
        return torch.cat(sas_subset(targets, labels, count))
    if losses is None or subset.startswith("random"):
        losses = torch.rand(len(labels), generator=generator(seed, "random rows"))
    balance = "class" if subset.endswith("balanced") else "none"
    return high_loss_order(losses, balance=balance, labels=labels)[:count]
