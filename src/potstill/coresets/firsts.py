"""Real images to begin with, or to learn features of as they are: by loss, by chance, by SAS."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from potstill.core.errors import InputError, unknown
from potstill.core.keys import generator
from potstill.coresets.high_loss import high_loss_order
from potstill.coresets.sas import Objective, sas_subset

Subset = Literal["high-loss", "high-loss-balanced", "random", "random-balanced", "sas"]
GROUPED = ("high-loss-balanced", "random-balanced", "sas")
"""Those that look at groups of images."""


def subset_rows(
    subset: Subset,
    count: int,
    *,
    groups: Tensor,
    targets: Tensor,
    losses: Tensor | None = None,
    normalise: bool = False,
    objective: Objective = "graph_cut",
    seed: int,
) -> Tensor:
    """Return `count` rows of the training part (groups int64 [N], targets [N, D]), int64.

    `high-loss`: those of the highest mean of losses [K, N], which leaves classes out; with
    `normalise` each loss is divided by the mean square of its target; `random`; both `-balanced`:
    as many of each group, as far as it has them; `sas`: of each group those whose targets are most
    like the rest of it, by `objective`. Groups are classes, or `proxies` of them where no labels
    are used. A smaller subset is the beginning of a larger one, but for sas.

    Raises:
        InputError: for an unknown subset, or one by losses without them.
    """
    if subset not in get_args(Subset):
        raise unknown("subset", subset, get_args(Subset))
    if subset == "sas":
        return torch.cat(sas_subset(targets, groups, count, objective=objective))
    if subset.startswith("random"):
        losses, normalise = torch.rand(len(groups), generator=generator(seed, "random rows")), False
    if losses is None:
        raise InputError(f"The subset {subset!r} needs the losses of experts.")
    balance = "class" if subset in GROUPED else "none"
    norms = targets if normalise else None
    return high_loss_order(losses, balance=balance, labels=groups, targets=norms)[:count]
