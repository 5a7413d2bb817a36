"""Where images come from, how they are normalised, and how a validation part is cut."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from potstill.core.errors import InputError
from potstill.data import cache
from potstill.data.arrays import array_parts
from potstill.data.normalise import STATISTICS, MeanStd, measure_stats, named_stats
from potstill.data.rows import Pixels, Rows, moved, resident_budget
from potstill.data.sources import SOURCES
from potstill.data.space import (
    Space,
    SpaceSpec,
    at_hand,
    keep_space,
    make_space,
    open_space,
    prepared,
)
from potstill.data.splits import check_fraction, checked, completed, cut_validation, limited
from potstill.data.subsets import CLASS_LISTS, selected
from potstill.data.types import DataRef, DataSet, Fit, Reading, Source, Split, Stored
from potstill.data.zca import Zca, ZcaRef

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = [
    "CLASS_LISTS",
    "SOURCES",
    "STATISTICS",
    "DataRef",
    "DataSet",
    "MeanStd",
    "Pixels",
    "Reading",
    "Rows",
    "Source",
    "Space",
    "SpaceSpec",
    "Split",
    "Zca",
    "ZcaRef",
    "at_hand",
    "from_arrays",
    "keep_space",
    "make_space",
    "measure_stats",
    "moved",
    "named_stats",
    "open_data",
    "open_space",
    "prepared",
    "reopen",
]


def _assembled(source: str, stored: Stored, ref: DataRef, notes: tuple[str, ...] = ()) -> DataSet:
    train, val = cut_validation(stored.train, stored.classes, ref.validation)
    if ref.limit is not None:
        train = limited(train, len(stored.classes), ref.limit)
    return DataSet(
        source=source,
        ref=ref,
        train=train,
        val=val,
        test=stored.test,
        classes=stored.classes,
        notes=notes,
    )


def open_data(
    source: str,
    *,
    resize: int | None = None,
    fit: Fit = "crop",
    classes: str | None = None,
    validation: float = 0.1,
    limit: int | None = None,
) -> DataSet:
    """Open a data set; decoded once, then read from the cache.

    Data of more bytes than POTSTILL_RESIDENT (4GiB) stay in a memory-mapped file of the cache.

    Args:
        source: "name" or "name:rest", as `potstill datasets` lists them ("digits", "folder:DIR").
        resize: bring images to this many pixels a side.
        fit: with resize, "crop" (shorter side resized, centre cut) or "squash" (both sides).
        classes: use only these classes, in this order: names between commas, or a class list.
        validation: the part of each class cut from the training part, in (0, 0.5].
        limit: keep at most so many training images a class (keyed, after the validation cut).

    Raises:
        InputError: for an unknown source or class, files that are missing or unreadable, images of
            different sizes without `resize`, bad labels, classes with too few images, or a disk
            that is too small for the decoded images.
        WorkError: if the cache cannot be written.
    """
    check_fraction(validation)
    if limit is not None and limit < 1:
        raise InputError(f"The limit of training images a class must be at least 1, not {limit}.")
    reading = Reading(resize=resize, fit=fit, classes=classes)
    name, _, rest = source.partition(":")
    if name not in SOURCES.names() and Path(source).expanduser().is_dir():
        raise InputError(f"{source!r} is a folder: write folder:{source} or parquet:{source}.")
    opened = checked(SOURCES.get(name).open(rest, reading))
    parts = completed(selected(opened, classes))
    identity, stored = cache.fetch(parts, name, reading)
    ref = DataRef(identity=identity, validation=validation, limit=limit)
    data = _assembled(source, stored, ref, parts.notes)
    if parts.shape is not None:
        _check_shape(data, *parts.shape)
    return data


def _check_shape(data: DataSet, channels: int, side: int | None) -> None:
    high, wide = data.size
    if data.channels != channels or (side is not None and (high, wide) != (side, side)):
        raise InputError(
            f"The images of {data.source} are {data.channels}x{high}x{wide}; expected is "
            f"{channels}x{side}x{side} (channels x height x width)."
        )


def from_arrays(
    images: ArrayLike | Tensor,
    labels: ArrayLike | Tensor,
    *,
    test_images: ArrayLike | Tensor | None = None,
    test_labels: ArrayLike | Tensor | None = None,
    classes: Sequence[str] | None = None,
    validation: float = 0.1,
    name: str = "arrays",
) -> DataSet:
    """Make a data set of arrays or tensors, and put it in the cache for worker processes.

    Args:
        images: [N, H, W], [N, C, H, W] or [N, H, W, C]; uint8, or floating in [0, 1]. C is the
            dimension of size 1 or 3, else the one beside two equal ones, else the smaller one.
        labels: integers 0..K-1, [N].
        test_images: as `images`; without them 20 % of each class are set aside.
        test_labels: as `labels`.
        classes: K names; default "0".."K-1".
        validation: the part of each class cut from the training part, in (0, 0.5].
        name: what to call the source.

    Raises:
        InputError: for shapes, types, values or labels other than these.
        WorkError: if the cache cannot be written.
    """
    check_fraction(validation)
    parts = completed(checked(array_parts(images, labels, test_images, test_labels, classes)))
    identity, stored = cache.fetch(parts, name, Reading())
    return _assembled(name, stored, DataRef(identity=identity, validation=validation), parts.notes)


@lru_cache(maxsize=2)
def _reopened(path: Path, ref: DataRef, budget: int) -> DataSet:
    return _assembled(f"cache:{ref.identity[:12]}", cache.load(ref.identity), ref)


def reopen(ref: DataRef) -> DataSet:
    """Return a data set that was opened before, from the cache alone; kept in the process.

    Raises:
        InputError: if it is not in the cache or damaged there; says to name the source again.
    """
    try:
        return _reopened(cache.data_path(ref.identity), ref, resident_budget())
    except InputError as error:
        check_fraction(ref.validation)
        raise InputError(
            f"The data set {ref.identity[:12]} cannot be read from the cache ({error}) "
            "Name its source again to have it made anew."
        ) from error
