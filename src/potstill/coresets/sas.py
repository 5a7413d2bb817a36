"""SAS: the images of each class that are most like the rest of it and least like each other.

Source: Joshi and Mirzasoleiman, Data-Efficient Contrastive Self-supervised Learning: Most
Beneficial Examples for Supervised Learning Contribute the Least, ICML 2023 (arXiv 2302.09195).
"""

from __future__ import annotations

import warnings
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.core.errors import InputError, unknown
from potstill.coresets.sizes import budgets, share_of

Objective = Literal["graph_cut", "released"]


def sas_order(z: Tensor, count: int | None = None, *, objective: Objective = "graph_cut") -> Tensor:
    """Return the places of `count` (default: all) of the points z [n, d] of one class, best first.

    With S_ij = max(cos(z_i, z_j), 0) the set function is f(A) = sum_{i not in A} sum_{j in A} S_ij,
    and each step takes the largest gain(e | A) = sum_{i != e} S_ie - 2 sum_{j in A} S_ej. O(n) a
    step after the similarities; gains are kept in float64.

    `released` leaves out the second term, so that points come in the order of their row sums: what
    the authors' code does, since it clears the row of S where the column was needed.

    Differs: the expectation over augmentations is left out, as in the authors' code.

    Raises:
        InputError: for an unknown objective.
    """
    if objective not in get_args(Objective):
        raise unknown("SAS objective", objective, get_args(Objective))
    z = F.normalize(z, dim=1)
    similar = (z @ z.T).clamp_(min=0)
    similar.fill_diagonal_(0)
    gain = similar.sum(1, dtype=torch.float64)
    chosen: list[int] = []
    for _ in range(len(z) if count is None else count):
        chosen.append(int(gain.argmax()))
        if objective == "graph_cut":
            gain -= 2 * similar[chosen[-1]]
        gain[chosen[-1]] = -torch.inf
    return torch.tensor(chosen, dtype=torch.int64)


def sas_subset(
    z: Tensor, groups: Tensor, size: str | int, *, objective: Objective = "graph_cut"
) -> list[Tensor]:
    """Return the chosen rows of each group, best first, of points z [N, d] in groups (int64 [N]).

    Groups are classes, or `proxies` where no labels are used. "2%" chooses the 2 % of each group,
    rounded down, as published; a number is that of all groups together, in proportion to their
    sizes. A smaller subset is the beginning of each list, not of all of them in a row.

    Raises:
        InputError: for a size that leaves nothing, and as `share_of` and `sas_order`.
    """
    counts = torch.bincount(groups).tolist()
    share = share_of(size, len(z))
    if str(size).strip().endswith("%"):
        given = [int(share * count) for count in counts]
    else:
        given = budgets(counts, int(share * len(z)))
    if not sum(given):
        raise InputError(f"The size {size} leaves no image of any of {len(counts)} groups.")
    members = groups.argsort(stable=True).split(counts)
    return [
        rows[sas_order(z[rows], count, objective=objective)]
        for rows, count in zip(members, given, strict=True)
    ]


def proxies(points: Tensor, k: int, *, seed: int) -> Tensor:
    """Return the k-means cluster (int64 [N]) of each of points [N, F], in place of classes.

    Raises:
        InputError: for a number of clusters below one or above the number of points.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    if not 1 <= k <= len(points):
        raise InputError(f"{len(points)} images make 1 to {len(points)} clusters, not {k}.")
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = KMeans(n_clusters=k, n_init=1, max_iter=1000, random_state=seed)
        return torch.as_tensor(model.fit_predict(points.numpy()), dtype=torch.int64)
