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
from potstill.data.sources import SOURCES, Source
from potstill.data.splits import check_fraction, completed, cut_validation, limited
from potstill.data.types import DataRef, DataSet, Parts, Split

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = [
    "SOURCES",
    "STATISTICS",
    "DataRef",
    "DataSet",
    "MeanStd",
    "Source",
    "Split",
    "from_arrays",
    "measure_stats",
    "named_stats",
    "open_data",
    "reopen",
]


def _assembled(source: str, parts: Parts, ref: DataRef) -> DataSet:
    assert parts.test is not None
    train, val = cut_validation(parts.train, parts.classes, ref.validation)
    if ref.limit is not None:
        train = limited(train, len(parts.classes), ref.limit)
    return DataSet(
        source=source,
        ref=ref,
        train=train,
        val=val,
        test=parts.test,
        classes=parts.classes,
        notes=parts.notes,
    )


def open_data(
    source: str,
    *,
    resize: int | None = None,
    validation: float = 0.1,
    limit: int | None = None,
) -> DataSet:
    """Open a data set; decoded once, then read from the cache.

    Args:
        source: "name" or "name:rest", as `potstill datasets` lists them ("digits", "folder:DIR").
        resize: bring the shorter side of each image to this many pixels and crop the centre.
        validation: the part of each class cut from the training part, in (0, 0.5].
        limit: keep at most so many training images a class (keyed, after the validation cut).

    Raises:
        InputError: for an unknown source, files that are missing or unreadable, images of
            different sizes without `resize`, bad labels, or classes with too few images.
        WorkError: if the cache cannot be written.
    """
    check_fraction(validation)
    if limit is not None and limit < 1:
        raise InputError(f"The limit of training images a class must be at least 1, not {limit}.")
    if resize is not None and resize < 1:
        raise InputError(f"Images cannot be resized to {resize} pixels; allowed is 1 or more.")
    name, _, rest = source.partition(":")
    if name not in SOURCES.names() and Path(source).expanduser().is_dir():
        raise InputError(f"{source!r} is a folder: write folder:{source} or parquet:{source}.")
    opener = SOURCES.get(name)
    key = cache.source_key(opener.files(rest), name, resize) if opener.files else None
    found = cache.recall(key) if key else None
    if found is None:
        parts = completed(opener.open(rest, resize))
        found = cache.store(parts), parts
        if key:
            cache.remember(key, found[0], parts.notes)
    identity, parts = found
    ref = DataRef(identity=identity, validation=validation, limit=limit)
    return _assembled(source, parts, ref)


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
        images: [N, H, W], [N, C, H, W] or [N, H, W, C]; uint8, or floating in [0, 1].
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
    parts = completed(array_parts(images, labels, test_images, test_labels, classes))
    ref = DataRef(identity=cache.store(parts), validation=validation)
    return _assembled(name, parts, ref)


@lru_cache(maxsize=2)
def _reopened(path: Path, ref: DataRef) -> DataSet:
    return _assembled(f"cache:{ref.identity[:12]}", cache.load(ref.identity), ref)


def reopen(ref: DataRef) -> DataSet:
    """Return a data set that was opened before, from the cache alone; kept in the process.

    Raises:
        InputError: if it is not in the cache or damaged there; says to name the source again.
    """
    try:
        return _reopened(cache.data_path(ref.identity), ref)
    except InputError as error:
        check_fraction(ref.validation)
        raise InputError(
            f"The data set {ref.identity[:12]} cannot be read from the cache ({error}) "
            "Name its source again to have it made anew."
        ) from error
