"""How a network is trained on a set of images, as data."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from potstill.augment import DSA, IDC, CutMix, Policy
from potstill.core.errors import InputError, unknown
from potstill.core.spec import record
from potstill.functional.optim import SGD, Adam
from potstill.functional.sharpness import GSAM


@record
@dataclass(frozen=True, kw_only=True)
class Segment:
    """Some epochs at one step size, lr_scale times that of the `TrainSpec`.

    optimizer: start with "new" optimizer state or with that "carried" from the segment before.

    Raises:
        InputError: for fewer than 1 epoch, an lr_scale of at most 0, another optimizer word.
    """

    epochs: int
    lr_scale: float = 1.0
    optimizer: Literal["new", "carried"] = "new"

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise InputError(f"A segment needs at least 1 epoch, not {self.epochs}.")
        if not self.lr_scale > 0:
            raise InputError(f"A segment's lr_scale must be above 0, not {self.lr_scale}.")
        if self.optimizer not in ("new", "carried"):
            raise unknown("segment optimizer", self.optimizer, ("new", "carried"))


@record
@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """How to train a network on a set of images.

    lr: step size; segments: consecutive parts of the training; batch: images a step, the last
    batch of an epoch may be smaller; balanced: None for epochs that see each image once, else an
    epoch is one step, on so many images of each of batch / balanced classes that are drawn anew
    (see `functional.sampling`); loss: "ce" takes class numbers, "soft_ce" probabilities; augment:
    applied to every batch, or None; sharpness: see `GSAM`, or None; mix: what mixes augmented
    images and their targets, class numbers too, or None.

    Raises:
        InputError: for an lr of at most 0, a batch below 1 or no multiple of `balanced`, no
            segments, an unknown loss.
    """

    lr: float
    segments: tuple[Segment, ...]
    batch: int = 256
    optimizer: SGD | Adam = field(default_factory=lambda: SGD(momentum=0.9, weight_decay=5e-4))
    loss: Literal["ce", "soft_ce"] = "ce"
    augment: Policy | None = field(default_factory=DSA)
    sharpness: GSAM | None = None
    balanced: int | None = None
    mix: CutMix | None = None

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise InputError(f"The step size lr must be above 0, not {self.lr}.")
        if self.batch < 1:
            raise InputError(f"The batch must hold at least 1 image, not {self.batch}.")
        if self.balanced is not None and (self.balanced < 1 or self.batch % self.balanced):
            raise InputError(
                f"A batch of {self.batch} images is no whole number of classes with "
                f"{self.balanced} images each (balanced)."
            )
        if not self.segments:
            raise InputError("A training needs at least one segment.")
        if self.loss not in ("ce", "soft_ce"):
            raise unknown("loss", self.loss, ("ce", "soft_ce"))

    @property
    def epochs(self) -> int:
        """The number of epochs of all segments."""
        return sum(segment.epochs for segment in self.segments)

    def steps(self, count: int) -> int:
        """Return the optimizer steps of a training on `count` images."""
        return self.epochs * (1 if self.balanced else -(-count // self.batch))

    def seen(self, count: int) -> int:
        """Return how many images, with repetition, a training on `count` images takes at most."""
        return self.epochs * (min(self.batch, count) if self.balanced else count)


def mtt_segments(epochs: int = 1000) -> tuple[Segment, ...]:
    """Return the schedule by which MTT evaluates: epochs + 1 in all, the last part at lr / 10.

    The step size falls and the optimizer starts anew after epoch index epochs // 2 + 1; nominal
    1000 gives 502 epochs at lr and 499 at lr / 10.

    Source: Cazenavette et al., CVPR 2022, arXiv:2203.11932, as its authors' code counts epochs.
    """
    first = epochs // 2 + 2
    parts = ((min(first, epochs + 1), 1.0), (epochs + 1 - first, 0.1))
    return tuple(Segment(epochs=n, lr_scale=scale) for n, scale in parts if n > 0)


def idc_segments(epochs: int = 1000) -> tuple[Segment, ...]:
    """Return the schedule of IDC: a fifth of the step size at 2/3 and again at 5/6 of the epochs.

    The optimizer is carried on.

    Source: Kim et al., ICML 2022, arXiv:2205.14959.
    """
    first, second = epochs * 2 // 3, epochs * 5 // 6
    parts = ((first, 1.0), (second - first, 0.2), (epochs - second, 0.04))
    return tuple(Segment(epochs=n, lr_scale=lr, optimizer="carried") for n, lr in parts if n > 0)


IDC_AUGMENT = IDC(strategy="color_crop_scale_rotate_flip")
"""What IDC does to small images in training on a set, but for digits."""


def idc_recipe(
    *, epochs: int = 1000, augment: Policy | None = IDC_AUGMENT, cutmix: float = 0.5
) -> TrainSpec:
    """Return how IDC trains on sets of small images; `cutmix`: the part of steps that is mixed.

    Source: Kim et al., ICML 2022, arXiv:2205.14959.

    Raises:
        InputError: for a part outside [0, 1].
    """
    return TrainSpec(
        lr=0.01,
        segments=idc_segments(epochs),
        batch=64,
        optimizer=SGD(momentum=0.9, weight_decay=5e-4),
        augment=augment,
        mix=CutMix(prob=cutmix) if cutmix else None,
    )
