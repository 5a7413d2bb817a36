"""Which images a step takes: epochs of all images, or class-balanced draws as of RaT-BPTT.

Source of the latter: Feng, Vedantam, Kempe, ICLR 2024 (arXiv 2311.07025).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from potstill.core.errors import InputError
from potstill.functional.schedule import TrainSpec

Sampler = Callable[[torch.Generator], Sequence[Tensor]]
"""From a generator to the rows of each batch of one epoch, int64 on the CPU."""


def sampler(targets: Tensor, spec: TrainSpec, places: Tensor | None = None) -> Sampler:
    """Return how the epochs of a training on these targets (int64 [N] or [N, K]) are drawn.

    `places` is the class of each image, int64 [N]; by default its target, or the likeliest one.
    """
    if spec.balanced is None:
        return lambda chance: torch.randperm(len(targets), generator=chance).split(spec.batch)
    if places is None and spec.loss == "mse":
        raise InputError("Class-balanced batches need the class of each image (places).")
    if places is None:
        places = targets.argmax(1) if targets.is_floating_point() else targets
    table = members(places.cpu())
    classes, images = spec.batch // spec.balanced, spec.balanced
    return lambda g: (balanced_rows(table, classes=classes, images=images, generator=g),)


def members(classes: Tensor) -> Tensor:
    """Return the rows of each class that occurs, int64 [C, widest], in order; -1 fills up.

    `classes` is the class of each row, int64 [N].
    """
    order = classes.argsort(stable=True)
    counts = classes.unique(return_counts=True)[1]
    table = torch.full((len(counts), int(counts.max())), -1)
    table[torch.arange(table.shape[1]) < counts[:, None]] = order
    return table


def balanced_rows(
    table: Tensor, *, classes: int, images: int, generator: torch.Generator
) -> Tensor:
    """Draw random classes and random rows of each, without replacement; rows ascending, int64.

    So many classes (all, if there are fewer), and so many images of each (all, if it has fewer).
    `table` is what `members` returned, on the CPU.
    """
    if classes < len(table):
        table = table[torch.randperm(len(table), generator=generator)[:classes]]
    u = torch.rand(table.shape, generator=generator)
    first = u.masked_fill(table < 0, 2).argsort(1)[:, :images]
    rows = table.gather(1, first).flatten()
    return rows[rows >= 0].sort().values
