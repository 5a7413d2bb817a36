"""What a distilled set says about its images: classes, labels of their views, or features."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from potstill.artefact.stored import LabelStore
from potstill.core.errors import InputError, unknown
from potstill.core.spec import record
from potstill.data.normalise import MeanStd
from potstill.nets.spec import NetSpec


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


@record
@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Whose features the targets of a set are.

    Raises:
        InputError: for an unknown scale.
    """

    digest: str
    """SHA-256 of the encoder: its weights, network and normaliser."""
    net: NetSpec
    space: MeanStd
    """Normaliser of the images that the encoder was trained on."""
    scale: Literal["raw", "standardised"] = "raw"
    """Features as they are, or with mean 0 and standard deviation 1 over the real images."""

    def __post_init__(self) -> None:
        if self.scale not in ("raw", "standardised"):
            raise unknown("scale", self.scale, ("raw", "standardised"))


@dataclass(frozen=True, eq=False)
class Embedding:
    """Features of an encoder, one vector per image: floating [N, D], for pre-training.

    They are rounded to float16, in memory as in files. `own` is the class of each image, int64 [N],
    if that is known; `by` says whose features they are, if that is known.
    """

    features: Tensor
    own: Tensor | None = None
    by: Encoded | None = None

    @property
    def kept(self) -> Tensor:
        """Return what files hold: float16 [N, D]."""
        return self.features.detach().to(torch.float16)

    @property
    def values(self) -> Tensor:
        """Return what a loss takes: float32 [N, D]."""
        return self.kept.to(torch.float32)

    @property
    def classes(self) -> Tensor:
        """Return the class of each image, int64 [N]; 0 for all where none is known."""
        if self.own is not None:
            return self.own
        return torch.zeros(len(self.features), dtype=torch.int64, device=self.features.device)

    def taken(self, rows: Tensor) -> Embedding:
        """Return those of some images, int64 rows."""
        own = None if self.own is None else self.own[rows]
        return replace(self, features=self.features[rows], own=own)


Targets = Hard | Soft | LabelStore | Embedding


def check_targets(targets: Targets, count: int, classes: int) -> None:
    """Refuse targets that do not fit that many images and classes.

    Raises:
        InputError: for another number, shape or type, and for impossible values.
    """
    values = targets.values
    if len(values) != count:
        raise InputError(f"There are {count} images but {len(values)} targets.")
    if not isinstance(targets, Soft | Embedding) or targets.own is not None:
        _check_classes(targets.classes, count, classes)
    if isinstance(targets, LabelStore) and targets.width != classes:
        raise InputError(f"The labels are of {targets.width} classes, not {classes}.")
    if isinstance(targets, Embedding):
        _check_features(targets)
    if not isinstance(targets, Soft):
        return
    if values.shape != (count, classes):
        raise InputError(f"Soft targets must be {[count, classes]}, not {list(values.shape)}.")
    if not bool(((values >= 0) & values.isfinite()).all()):
        raise InputError("Soft targets must be finite and at least 0; take the softmax of logits.")


def _check_features(targets: Embedding) -> None:
    """Refuse anything but finite float16 vectors."""
    features = targets.features
    if features.ndim != 2 or not features.is_floating_point() or not features.shape[1]:
        found = f"{features.dtype} {list(features.shape)}"
        raise InputError(f"Embedding targets must be floating [N, D], not {found}.")
    if not bool(targets.kept.isfinite().all()):
        raise InputError(
            "Embedding targets must be finite and below 65,504, the largest number of float16; "
            "standardise features that are larger."
        )


def _check_classes(labels: Tensor, count: int, classes: int) -> None:
    """Refuse anything but one class number an image."""
    if labels.ndim != 1 or labels.dtype != torch.int64:
        raise InputError(f"Labels must be int64 [N], not {labels.dtype} {list(labels.shape)}.")
    if len(labels) != count:
        raise InputError(f"There are {count} images but {len(labels)} classes of them.")
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(f"Labels must lie in 0 to {classes - 1}.")
