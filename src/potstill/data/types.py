"""What a data set is: splits of uint8 images with labels, and the reference that reopens it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, TypeVar, get_args

from torch import Tensor

from potstill.core.errors import InputError, unknown
from potstill.core.spec import record
from potstill.data.rows import Pixels, Rows

if TYPE_CHECKING:
    from PIL.Image import Image

Opener = Callable[[], "Image"]
"""Decodes one image, into mode "L" or "RGB"."""
Fit = Literal["crop", "squash"]


@record
@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a source is read.

    resize: bring images to so many pixels a side (None: as they are); fit: then "crop" the centre
    after resizing the shorter side, or "squash" the whole image into the square; classes: use only
    these, in this order (see `potstill.data.subsets`).

    Raises:
        InputError: for a size below 1, another fit, `squash` without a size.
    """

    resize: int | None = None
    fit: Fit = "crop"
    classes: str | None = None

    def __post_init__(self) -> None:
        if self.resize is not None and self.resize < 1:
            raise InputError(
                f"Images cannot be resized to {self.resize} pixels; allowed is 1 or more."
            )
        if self.fit not in get_args(Fit):
            raise unknown("fit", self.fit, get_args(Fit))
        if self.fit == "squash" and self.resize is None:
            raise InputError("fit 'squash' needs a size: add --resize N (in Python resize=N).")


@dataclass(frozen=True, eq=False)
class Split:
    """Hold one part of a data set: `pixels` uint8 [N, C, H, W] and `labels` int64 [N].

    Pixels are a tensor, or `Rows` of a file if the data set is larger than the resident budget.
    """

    pixels: Pixels
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, which: Tensor) -> Self:
        """Return the rows that an int64 or bool tensor names; `Rows` are not copied."""
        pixels = self.pixels
        chosen = pixels.subset(which) if isinstance(pixels, Rows) else pixels[which]
        return replace(self, pixels=chosen, labels=self.labels[which])


@dataclass(frozen=True, eq=False, kw_only=True)
class Listed:
    """Hold one part of a source whose images are still to be decoded.

    `labels` int64 [N]; `rows` int64 [N], ascending: which of the source's images these are;
    `named(rows)` yields for each of these rows a name for errors and what decodes the image.
    """

    labels: Tensor
    rows: Tensor
    named: Callable[[Tensor], Iterator[tuple[str, Opener]]]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, which: Tensor) -> Self:
        """Return the images that a bool tensor names."""
        return replace(self, labels=self.labels[which], rows=self.rows[which])


Part = Split | Listed
P = TypeVar("P", bound=Split | Listed)


@dataclass(frozen=True, eq=False, kw_only=True)
class Parts:
    """Hold what a source delivers, before the validation part is cut from `train`.

    files: the files that decide the content, by name, so that images decoded before are found
    (None: quick to read, read anew each time); identity: of data that the cache holds as they are;
    shape: (channels, pixels a side) that the images must have, None for any.
    """

    train: Part
    test: Part | None
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    files: Mapping[str, str | Path] | None = None
    identity: str | None = None
    shape: tuple[int, int | None] | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Stored:
    """Hold what the cache keeps of a source."""

    train: Split
    test: Split
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """Describe a kind of source.

    `open(rest, reading)` looks at what the user wrote after "name:" and decodes as little as it
    can; `help` is one line for people.
    """

    open: Callable[[str, Reading], Parts]
    help: str


@record
@dataclass(frozen=True, kw_only=True)
class DataRef:
    """Name a data set by its content, so that any process can reopen it from the cache."""

    identity: str
    validation: float = 0.1
    limit: int | None = None
    """At most this many training images a class, after the validation cut."""


@dataclass(frozen=True, eq=False, kw_only=True)
class DataSet:
    """Hold an opened data set.

    `val` is cut from the source's training part; `notes` are things that the user should know;
    `ref.identity` is the SHA-256 of all pixels, labels and class names before that cut.
    """

    source: str
    ref: DataRef
    train: Split
    val: Split
    test: Split
    classes: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def channels(self) -> int:
        """Return the number of channels: 1 for grayscale, 3 for colour, any number of arrays."""
        return self.train.pixels.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """Return (height, width) in pixels."""
        return self.train.pixels.shape[2], self.train.pixels.shape[3]

    @property
    def n_classes(self) -> int:
        """Return the number of classes."""
        return len(self.classes)
