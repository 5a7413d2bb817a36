"""What a distilled set has to be: parts that fit together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from potstill.artefact.decode import Identity
from potstill.artefact.stored import LabelStore
from potstill.artefact.targets import Embedding, Hard, Soft, check_targets
from potstill.core.errors import InputError
from potstill.data.space import Space

if TYPE_CHECKING:
    from potstill.artefact.types import DistilledSet

LOSSES = {Hard: "ce", LabelStore: "ce", Soft: "soft_ce", Embedding: "mse"}
"""The loss of a recipe for each kind of targets."""


def check_set(s: DistilledSet) -> None:
    """Refuse images, targets, decoder, recipe or blocks that do not fit together.

    Raises:
        InputError: naming the first thing.
    """
    check_images(s.images, s.space)
    check_targets(s.targets, len(s.images), len(s.classes))
    s.decode.check(s.shape)
    s.decode.index(s.targets.classes)
    if not s.images.is_floating_point() and s.decode != Identity():
        raise InputError("Images that are cut into cells are floating numbers, not pixels (uint8).")
    _check_recipe(s)
    for block in s.blocks:
        if not 0 <= block.start < block.stop <= len(s):
            raise InputError(f"{block} does not lie within the {len(s)} images.")
    if len({bool(block.train) for block in s.blocks}) > 1:
        raise InputError("Either all blocks of a set say how to train on them, or none does.")
    if s.blocks and s.blocks[0].train:
        check_nested(s, "stages")
    if any(segment.blocks for segment in s.recipe.segments):
        raise InputError("The recipe of a set is for all its images; its blocks have stages.")


def check_nested(s: DistilledSet, wanted: str) -> None:
    """Refuse a set without blocks that follow one another; `wanted` is what it cannot have so.

    Raises:
        InputError: if it has none.
    """
    stops = [0, *(block.stop for block in s.blocks)]
    if [*(block.start for block in s.blocks), len(s)] != stops:
        raise InputError(f"The set has no blocks that follow one another, so it has no {wanted}.")


def check_use(s: DistilledSet, *, pretrains: bool) -> None:
    """Refuse a set for the other use: training on classes, or pre-training.

    Raises:
        InputError: with what to call instead.
    """
    if s.pretrains and not pretrains:
        learned = "features of an encoder" if s.recipe.pairs is None else "views of its images"
        raise InputError(
            f"Networks learn {learned} from this set, not classes: pretrain(net) returns an "
            "encoder; train a classifier on what it gives."
        )
    if pretrains and not s.pretrains:
        raise InputError(
            "The targets of this set are classes, not features of an encoder: use train(net)."
        )


def _check_recipe(s: DistilledSet) -> None:
    """Refuse a recipe that is for other targets than the set has."""
    recipe, wanted = s.recipe, LOSSES[type(s.targets)]
    if recipe.loss != wanted:
        kind = type(s.targets).__name__
        raise InputError(f"{kind} targets need loss {wanted!r}, not {recipe.loss!r}.")
    if isinstance(s.targets, Embedding) and s.targets.own is None and recipe.balanced:
        raise InputError("Class-balanced batches need the class of each image (own).")
    if not isinstance(s.targets, LabelStore):
        return
    plan = s.targets.plan
    if recipe.lesson is None or recipe.balanced is not None:
        raise InputError(
            "Labels of views need a recipe with a lesson (`Softened`), and epochs of all images."
        )
    if (recipe.augment, recipe.mix) != (plan.crops, plan.mix):
        raise InputError("The recipe of a set with labels of views augments and mixes as they do.")
    if s.decode != Identity() or any(block.train for block in s.blocks):
        raise InputError("Labels of views are for sets without cells and without stages.")


def check_images(images: Tensor, space: Space) -> None:
    """Refuse images that are neither finite floating [N, C, H, W] in the space nor pixels.

    Raises:
        InputError: if they are not.
    """
    right = images.is_floating_point() or images.dtype == torch.uint8
    if images.ndim != 4 or not right or 0 in images.shape:
        found = f"{images.dtype} {list(images.shape)}"
        raise InputError(f"Distilled images must be floating [N, C, H, W] or uint8, not {found}.")
    if space.channels != images.shape[1]:
        channels = f"{space.channels} channels, the images have {images.shape[1]}"
        raise InputError(f"The normaliser has {channels}.")
    space.check(images.shape)
    bad = int((~images.isfinite()).flatten(1).any(1).sum())
    if bad:
        raise InputError(f"{bad} of the {len(images)} distilled images hold NaN or infinity.")
