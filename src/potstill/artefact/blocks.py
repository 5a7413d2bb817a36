"""Parts of a set: some of its images, the first blocks, trainings in stages on these."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from potstill.artefact.checks import check_nested
from potstill.artefact.stored import LabelStore
from potstill.core.errors import InputError
from potstill.functional.schedule import Segment, TrainSpec

if TYPE_CHECKING:
    from potstill.artefact.types import DistilledSet


def staged(s: DistilledSet, stage: tuple[Segment, ...] | None) -> TrainSpec:
    """Return the training in stages of a set; see `DistilledSet.staged`."""
    check_nested(s, "stages")
    if not (stage or s.blocks[0].train):
        raise InputError("The blocks of the set do not say how to train on them in stages.")
    own = s.recipe.lr
    first, *others = (
        replace(
            segment,
            lr_scale=segment.lr_scale * ((block.lr or own) / own),
            optimizer="carried",
            blocks=k,
        )
        for k, block in enumerate(s.blocks, 1)
        for segment in stage or block.train
    )
    return replace(s.recipe, segments=(replace(first, optimizer="new"), *others))


def prefix(s: DistilledSet, blocks: int) -> DistilledSet:
    """Return the set of the first so many blocks; see `DistilledSet.prefix`."""
    check_nested(s, "prefix")
    if not 1 <= blocks <= len(s.blocks):
        raise InputError(
            f"The set has {len(s.blocks)} block{'s'[: len(s.blocks) != 1]}; a prefix "
            f"takes the first 1 to {len(s.blocks)}, not {blocks}."
        )
    first, own = s.blocks[:blocks], s.recipe.lr
    part = s.taken(torch.arange(first[-1].stop))
    if (lr := first[-1].lr) is None:
        return replace(part, blocks=first)
    first = tuple(replace(block, lr=block.lr or own) for block in first)
    return replace(part, blocks=first, recipe=replace(s.recipe, lr=lr))


def taken(s: DistilledSet, rows: Tensor) -> DistilledSet:
    """Return the set of some of its images; see `DistilledSet.taken`."""
    if isinstance(s.targets, LabelStore):
        return s.hardened().taken(rows)
    own = tuple(s.origin.rows[k] for k in rows.tolist()) if s.origin.rows else ()
    return replace(
        s,
        images=s.images[rows],
        targets=s.targets.taken(rows),
        blocks=(),
        origin=replace(s.origin, accuracy="{}", rows=own),
    )
