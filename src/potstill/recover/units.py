"""Units: the images that are recovered together, matched as one batch to the teacher's statistics.

Class order and size of a unit are part of the algorithm: they decide what a batch looks like.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from potstill.core.errors import InputError, unknown
from potstill.core.keys import generator
from potstill.core.spec import record


@record
@dataclass(frozen=True, kw_only=True)
class Unit:
    """Image number k of every class c, for all k of `indices` and c of `classes`, k by k."""

    classes: tuple[int, ...]
    indices: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("classes", "indices"):
            values = getattr(self, name)
            if not values or min(values) < 0 or len(set(values)) < len(values):
                raise InputError(f"{name} of a unit must be different numbers, not {values}.")

    def __len__(self) -> int:
        return len(self.classes) * len(self.indices)

    @property
    def key(self) -> tuple[int, int]:
        """Return what names the unit among those of a run: its first index and class."""
        return self.indices[0], self.classes[0]

    def pairs(self) -> list[tuple[int, int]]:
        """Return (class, index) of each image."""
        return [(c, k) for k in self.indices for c in self.classes]

    def labels(self) -> Tensor:
        """Return the class of each image, int64 [n]."""
        return torch.tensor(self.classes).repeat(len(self.indices))


def units_of(
    classes: int,
    ipc: int,
    *,
    batch: int = 100,
    order: Literal["sequential", "permuted"] = "sequential",
    seed: int = 0,
) -> tuple[Unit, ...]:
    """Return all units of ipc images of each class, index by index.

    Each has one image of `batch` classes that follow one another (the last one of fewer), or in
    permuted order, which is drawn once by the seed.

    Raises:
        InputError: for a number below 1 or an unknown order.

    Differs: with fewer classes than `batch` a unit has ceil(batch / classes) images of each, since
        statistics of a few images are far from any data set's.
    """
    if min(classes, ipc, batch) < 1:
        raise InputError(
            f"Units need classes, ipc and batch of at least 1, not {classes}, {ipc}, {batch}."
        )
    if order not in ("sequential", "permuted"):
        raise unknown("order of classes", order, ("sequential", "permuted"))
    names = list(range(classes))
    if order == "permuted":
        names = torch.randperm(classes, generator=generator(seed, "class order")).tolist()
    each = -(-batch // classes)
    return tuple(
        Unit(
            classes=tuple(names[c : c + batch]),
            indices=tuple(range(k, min(k + each, ipc))),
        )
        for k in range(0, ipc, each)
        for c in range(0, classes, batch)
    )


def side_by_side(units: Sequence[Unit], together: int) -> list[tuple[Unit, ...]]:
    """Return units in groups of `together`, each of units of equal size, the largest first.

    Raises:
        InputError: for a `together` below 1.
    """
    if together < 1:
        raise InputError(f"At least 1 unit is recovered at a time, not {together}.")
    sizes = sorted({len(unit) for unit in units}, reverse=True)
    by_size = [[unit for unit in units if len(unit) == size] for size in sizes]
    return [
        tuple(same[k : k + together]) for same in by_size for k in range(0, len(same), together)
    ]
