"""What a data set is: splits of uint8 images with labels, and the reference that reopens it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from potstill.core.spec import record


@dataclass(frozen=True, eq=False)
class Split:
    """Hold one part of a data set: `pixels` uint8 [N, C, H, W] and `labels` int64 [N]."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False, kw_only=True)
class Parts:
    """Hold what a source delivers, before the validation part is cut from `train`."""

    train: Split
    test: Split | None
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()


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
        """Return the number of colour channels, 1 or 3."""
        return self.train.pixels.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """Return (height, width) in pixels."""
        return self.train.pixels.shape[2], self.train.pixels.shape[3]

    @property
    def n_classes(self) -> int:
        """Return the number of classes."""
        return len(self.classes)
