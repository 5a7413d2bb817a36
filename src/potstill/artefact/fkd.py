"""Stored labels of views as FKD and SRe2L release them, as labels of ours.

A folder an epoch, in it a file a batch: a list of crops [B, 4] (top, left, height, width as parts
of the image's sides), flips [B], a permutation [B] of the batch, l, the box (first row, first
column, last row, last column, the last excluded) that is taken from the permuted batch, and logits
[B, K]. Without a box, views are mixed by MixUp: l of the batch, 1 - l of the permuted one. Which
images a batch has is not stored: it follows from torch's sampler with one generator of seed 42 that
runs on through the epochs.

Source: Shen and Xing, "A Fast Knowledge Distillation Framework for Visual Recognition", ECCV 2022
(arXiv 2112.01528), as SRe2L uses it (arXiv 2306.13092).

Differs: views are resized without rounding to whole levels; rows come first in the box, which the
    files do not say.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from potstill.artefact.imports import Images
from potstill.artefact.labels import Epoch, LabelPlan
from potstill.artefact.stored import LabelStore, label_store, write_labels
from potstill.augment import Crops, CutMix, MixUp
from potstill.core.errors import InputError
from potstill.core.files import file_hash, replacing_folder
from potstill.core.store import default_cache
from potstill.core.torchfile import kind_of, read_torch
from potstill.functional import Adam, Softened, TrainSpec
from potstill.functional.cosine import cosine_segments

SEED = 42


class Batch(NamedTuple):
    """What a file holds, by the place in the batch."""

    crops: Tensor
    """Columns of `Crops`, float64 [B, 7]."""
    partner: Tensor
    """int64 [B]; whose view fills the box."""
    box: tuple[int, int, int, int]
    """First and last row, first and last column (the last excluded); zeros without a box."""
    own: float | None
    """Weight of an image's own pixels, of MixUp."""
    logits: Tensor
    """[B, K]."""


def import_labels(folder: Path, labels: Tensor, wanted: Images) -> LabelStore:
    """Return the labels in a folder, kept in the user's cache as files of ours.

    Args:
        folder: of the epochs.
        labels: class of each image, int64 [N], in the order of folders and names.
        wanted: the images of these data.

    Raises:
        InputError: for files that are missing, damaged or no such labels, or labels that are not of
            these images.
        WorkError: if the disk refuses.
    """
    epochs = _files(folder)
    first = read_batch(epochs[0][0], wanted)
    boxes = CutMix(prob=1.0) if any(first.box) else None
    plan = LabelPlan(
        epochs=len(epochs),
        batch=len(first.logits),
        codes="float16",
        crops=Crops(),
        mix=boxes if first.own is None else MixUp(),
    )
    digest = file_hash(*(file for files in epochs for file in files))
    home = default_cache() / "imported" / f"{digest[:20]}-{len(labels)}"
    names = [f"epoch-{e:03}.safetensors" for e in range(len(epochs))]
    if not home.is_dir():
        orders = sampled(len(labels))
        with replacing_folder(home) as fresh:
            for name, files in zip(names, epochs, strict=True):
                epoch, logits = read_epoch(files, next(orders), wanted)
                if name == names[0]:
                    _check_aligned(folder, epoch, logits, labels)
                write_labels(fresh / name, logits, plan, epoch)
    files = [home / name for name in names]
    return label_store(labels, plan, files, classes=wanted.classes)


def sampled(count: int, seed: int = SEED) -> Iterator[Tensor]:
    """Yield the order of the images, int64 [count], in one epoch after the other.

    It is that of torch's `RandomSampler` with a generator of its own, which draws a second
    permutation at the end of every epoch and takes nothing of it.
    """
    chance = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randperm(count, generator=chance)
        torch.randperm(count, generator=chance)


def read_epoch(files: list[Path], order: Tensor, wanted: Images) -> tuple[Epoch, Tensor]:
    """Return the views and logits [N, K] of an epoch, by the row of the image.

    Raises:
        InputError: if the files are not of as many images as the order has.
    """
    count, start = len(order), 0
    crops, own = (torch.zeros(count, n, dtype=torch.float64) for n in (7, 1))
    logits = torch.empty(count, wanted.classes, dtype=torch.float16)
    partner, box = torch.arange(count), torch.zeros(count, 4, dtype=torch.int64)
    for file in files:
        batch = read_batch(file, wanted)
        rows = order[start : start + len(batch.logits)]
        start += len(batch.logits)
        if start > count:
            break
        crops[rows], own[rows], logits[rows] = batch.crops, batch.own or 0.0, batch.logits.half()
        partner[rows], box[rows] = rows[batch.partner], torch.tensor(batch.box)
    if start != count:
        more = "more than " * (start > count) + f"{min(start, count)}"
        raise InputError(f"The labels in {files[0].parent} are of {more} images, not of {count}.")
    weights = own[:, 0] if own.any() else None
    return Epoch(order=order, crops=crops, partner=partner, box=box, own=weights), logits


def read_batch(file: Path, wanted: Images) -> Batch:
    """Read a file of one batch; nothing in it is run.

    Raises:
        InputError: if it is damaged, asks for more than tensors and numbers, or holds other things.
    """
    held = read_torch(file, numbers=True)
    if not isinstance(held, (list, tuple)) or len(held) != 6:
        raise InputError(
            f"{file} must hold a list of crops, flips, permutation, weight, box and logits, not "
            f"{kind_of(held)}."
        )
    boxes, flips, permutation, weight, box, logits = held
    count = len(logits) if torch.is_tensor(logits) and logits.ndim else 0
    _check_tensors(file, {"crops": (boxes, (count, 4)), "flips": (flips, (count,))})
    _check_tensors(file, {"logits": (logits, (count, wanted.classes))})
    if permutation is None and box is not None:
        raise InputError(f"{file} has a box without a permutation of the batch.")
    sides = torch.tensor(wanted.shape[1:] * 2)
    exact = boxes.double() * sides
    pixels = exact.round()
    high, wide = (pixels[:, k] + pixels[:, k + 2] for k in (0, 1))
    inside = bool((pixels >= 0).all() & (pixels[:, 2:] >= 1).all())
    inside = inside and float(high.max()) <= sides[0] and float(wide.max()) <= sides[1]
    if not inside or float((exact - pixels).abs().max()) > 1e-3:
        raise InputError(
            f"{file} has crops that are no whole pixels of images of {sides[0]}x{sides[1]}."
        )
    none = torch.zeros(count, 2, dtype=torch.float64)
    crops = torch.cat([pixels, flips.double()[:, None], none], dim=1)
    if permutation is None:
        return Batch(crops, torch.arange(count), (0, 0, 0, 0), None, logits)
    _check_tensors(file, {"permutation": (permutation, (count,))})
    partner = permutation.long()
    if not torch.equal(partner.sort().values, torch.arange(count)):
        raise InputError(f"{file}: the permutation is none of {count} images.")
    if box is not None:
        return Batch(crops, partner, _box(file, box, wanted), None, logits)
    if not isinstance(weight, (int, float)) or not 0 <= weight <= 1:
        raise InputError(f"{file}: the weight of MixUp lies between 0 and 1, not at {weight!r}.")
    high, wide = wanted.shape[1:]
    return Batch(crops, partner, (0, high, 0, wide), float(weight), logits)


def _check_tensors(file: Path, things: dict[str, tuple[Any, tuple[int, ...]]]) -> None:
    for name, (thing, shape) in things.items():
        if not torch.is_tensor(thing) or tuple(thing.shape) != shape or not shape[0]:
            has = list(thing.shape) if torch.is_tensor(thing) else kind_of(thing)
            raise InputError(f"{file}: {name} must be a tensor {list(shape)}, not {has}.")


def _box(file: Path, box: Any, wanted: Images) -> tuple[int, int, int, int]:
    """Return first and last row, first and last column of a box."""
    (high, wide), whole = wanted.shape[1:], isinstance(box, (list, tuple)) and len(box) == 4
    if whole and all(isinstance(number, int) for number in box):
        top, left, bottom, right = box
        if 0 <= top <= bottom <= high and 0 <= left <= right <= wide:
            return top, bottom, left, right
    raise InputError(f"{file}: the box must be four whole numbers within {high}x{wide} pixels.")


def _files(folder: Path) -> list[list[Path]]:
    """Return the files of each epoch, both in the order of the numbers in their names."""
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}.")
    epochs = _numbered(folder, [f for f in folder.iterdir() if f.is_dir()], "epochs")
    return [_numbered(each, list(each.glob("*.tar")), "batches") for each in epochs]


def _numbered(folder: Path, paths: list[Path], what: str) -> list[Path]:
    """Return paths in the order of the number that their name ends with: 0, 1, ..."""
    found = {int(m[1]): path for path in paths if (m := re.search(r"(\d+)$", path.stem))}
    if not found or sorted(found) != list(range(len(paths))):
        gap = next(k for k in range(len(paths) + 1) if k not in found)
        raise InputError(
            f"The labels in {folder} are cut short: of {what} 0, 1, ... number {gap} is missing."
        )
    return [found[k] for k in range(len(paths))]


def _check_aligned(folder: Path, epoch: Epoch, logits: Tensor, labels: Tensor) -> None:
    """Refuse labels that have nothing to do with the classes of their images."""
    likeliest, classes = logits.argmax(1), logits.shape[1]
    right = float(((likeliest == labels) | (likeliest == labels[epoch.partner])).double().mean())
    if classes >= 20 and right < 4 / classes:  # 2 / classes is chance
        raise InputError(
            f"The labels in {folder} do not suit these images (right for {right:.1%}): are they of "
            "other images, or is their order another one?"
        )


def recipe_of(plan: LabelPlan) -> TrainSpec:
    """Return how networks are trained on labels of a plan (SRe2L for ImageNet-1K)."""
    return replace(
        adamw_recipe(epochs=plan.epochs, batch=plan.batch),
        augment=plan.crops,
        mix=plan.mix,
        lesson=Softened(temperature=20, squared=False),
    )


def adamw_recipe(*, epochs: int, batch: int) -> TrainSpec:
    """Return SRe2L's and CDA's training for ImageNet-1K, without a teacher."""
    return TrainSpec(
        lr=0.001,
        segments=cosine_segments(epochs),
        batch=batch,
        optimizer=Adam(weight_decay=0.01, decoupled=True, decays="weights"),
        augment=Crops(),
        mix=CutMix(prob=1.0),
    )
