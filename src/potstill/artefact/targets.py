"""What a distilled set says about its images: hard or soft targets, or labels of their views."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.artefact.stored import LabelStore
from potstill.core.errors import InputError


@dataclass(frozen=True, eq=False)
class Hard:
    """One class index per image: labels int64 [N]."""

    labels: Tensor

    @property
    def values(self) -> Tensor:
        """Return what a loss takes: int64 [N]."""
        return self.labels

    @property
    def classes(self) -> Tensor:
        """Return the class of each image, int64 [N]."""
        return self.labels

    def taken(self, rows: Tensor) -> Hard:
        """Return those of some images, int64 rows."""
        return Hard(self.labels[rows])


@dataclass(frozen=True, eq=False)
class Soft:
    """Weights of the classes per image: probabilities, floating [N, K], at least 0.

    Rows need not sum to 1: learned labels of some methods weigh their image, too. `own` is the
    class of each image by its place in the set, int64 [N], which stays when learned labels leave
    it; without it an image is of its likeliest class.
    """

    probabilities: Tensor
    own: Tensor | None = None

    @property
    def values(self) -> Tensor:
        """Return what a loss takes: floating [N, K]."""
        return self.probabilities

    @property
    def classes(self) -> Tensor:
        """Return the class of each image, int64 [N]."""
        return self.probabilities.argmax(1) if self.own is None else self.own

    def taken(self, rows: Tensor) -> Soft:
        """Return those of some images, int64 rows."""
        return Soft(self.probabilities[rows], None if self.own is None else self.own[rows])


Targets = Hard | Soft | LabelStore


def check_targets(targets: Targets, count: int, classes: int) -> None:
    """Refuse targets that do not fit that many images and classes.

    Raises:
        InputError: for another number, shape or type, and for impossible values.
    """
    values = targets.values
    if len(values) != count:
        raise InputError(f"There are {count} images but {len(values)} targets.")
    if not isinstance(targets, Soft) or targets.own is not None:
        _check_classes(targets.classes, count, classes)
    if isinstance(targets, LabelStore) and targets.width != classes:
        raise InputError(f"The labels are of {targets.width} classes, not {classes}.")
    if not isinstance(targets, Soft):
        return
    if values.shape != (count, classes):
        raise InputError(f"Soft targets must be {[count, classes]}, not {list(values.shape)}.")
    if not bool(((values >= 0) & values.isfinite()).all()):
        raise InputError("Soft targets must be finite and at least 0; take the softmax of logits.")


def _check_classes(labels: Tensor, count: int, classes: int) -> None:
    """Refuse anything but one class number an image."""
    if labels.ndim != 1 or labels.dtype != torch.int64:
        raise InputError(f"Labels must be int64 [N], not {labels.dtype} {list(labels.shape)}.")
    if len(labels) != count:
        raise InputError(f"There are {count} images but {len(labels)} classes of them.")
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(f"Labels must lie in 0 to {classes - 1}.")
