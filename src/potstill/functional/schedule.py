"""How a network is trained on a set of images, as data."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Literal, get_args

from potstill.augment import DSA, IDC, CutMix, Mix, Policy
from potstill.core.errors import InputError, unknown
from potstill.core.spec import later, record
from potstill.functional.cycle import OneCycle
from potstill.functional.losses import Loss, Softened
from potstill.functional.optim import SGD, Adam
from potstill.functional.selfsup import PairLoss
from potstill.functional.sharpness import GSAM


@record
@dataclass(frozen=True, kw_only=True)
class Segment:
    """Some epochs at one step size, lr_scale times that of the `TrainSpec`.

    optimizer: start with "new" optimizer state or with that "carried" from the segment before;
    blocks: train on the first so many blocks of a set with stages only; None: on all images.

    Raises:
        InputError: for fewer than 1 epoch or block, an lr_scale of at most 0, another optimizer
            word.
    """

    epochs: int
    lr_scale: float = 1.0
    optimizer: Literal["new", "carried"] = "new"
    blocks: int | None = later(None)

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise InputError(f"A segment needs at least 1 epoch, not {self.epochs}.")
        if not self.lr_scale > 0:
            raise InputError(f"A segment's lr_scale must be above 0, not {self.lr_scale}.")
        if self.optimizer not in ("new", "carried"):
            raise unknown("segment optimizer", self.optimizer, ("new", "carried"))
        if self.blocks is not None and self.blocks < 1:
            raise InputError(f"A segment needs at least 1 block, not {self.blocks}.")


@record
@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """How to train a network on a set of images.

    lr: step size; segments: consecutive parts of the training; batch: images a step, the last batch
    of an epoch may be smaller; balanced: None for epochs that see each image once, else an epoch is
    one step, on so many images of each of batch / balanced classes that are drawn anew (see
    `functional.sampling`); loss: "ce" takes class numbers, "soft_ce" probabilities, "mse" features;
    augment: applied to every batch, or None; sharpness: see `GSAM`, or None; mix: what mixes
    augmented images and their targets, class numbers too, or None; lesson: how a teacher's outputs
    for the augmented, mixed images are learned (`fit`'s `teach`), None without a teacher; targets
    then only tell the classes of balanced batches; cycle: the step size of each step of the one
    segment, or None; smoothing: this part of every target is spread over all classes; pairs: the
    loss of two views of each image, which takes the place of `loss`, or None; second: the
    augmentation of the second view, None for that of the first. Targets of pairs only tell the
    classes of balanced batches.

    Raises:
        InputError: for an lr of at most 0, a batch below 1 or no multiple of `balanced`, no
            segments, an unknown loss, pairs without augmentation or with what is done to targets.
    """

    lr: float
    segments: tuple[Segment, ...]
    batch: int = 256
    optimizer: SGD | Adam = field(default_factory=lambda: SGD(momentum=0.9, weight_decay=5e-4))
    loss: Loss = "ce"
    augment: Policy | None = field(default_factory=DSA)
    sharpness: GSAM | None = None
    balanced: int | None = None
    mix: Mix | None = None
    lesson: Softened | None = later(None)
    cycle: OneCycle | None = later(None)
    smoothing: float = later(0.0)
    pairs: PairLoss | None = later(None)
    second: Policy | None = later(None)

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
        if self.cycle is not None and (len(self.segments) > 1 or self.segments[0].blocks):
            raise InputError("A cycle is for a training of one segment, on all images.")
        if not 0 <= self.smoothing < 1 or (self.smoothing and self.lesson is not None):
            raise InputError(
                f"smoothing lies in [0, 1), and at 0 with a teacher's lesson, not {self.smoothing}."
            )
        if self.loss not in get_args(Loss):
            raise unknown("loss", self.loss, get_args(Loss))
        if self.loss == "mse" and (self.mix is not None or self.smoothing or self.lesson):
            raise InputError("Targets of loss 'mse' take no mix, lesson or smoothing.")
        self._check_pairs()

    def _check_pairs(self) -> None:
        """Refuse what pairs of views have no use for, and a second view without them."""
        if self.pairs is None:
            if self.second is not None:
                raise InputError("A second augmentation is for pairs of views.")
            return
        if self.augment is None:
            raise InputError("Pairs of views need an augmentation.")
        if self.batch == 1:
            raise InputError("A batch of pairs of views holds at least 2 images, not 1.")
        targeted = (self.loss != "ce", self.mix, self.lesson, self.smoothing)
        if any(targeted):
            raise InputError(
                "Training on pairs of views takes no targets: it has no other loss, mix, "
                "lesson or smoothing."
            )

    @property
    def epochs(self) -> int:
        """The number of epochs of all segments."""
        return sum(segment.epochs for segment in self.segments)

    def steps(self, count: int, ends: Sequence[int] = ()) -> int:
        """Return the optimizer steps of a training on `count` images.

        `ends` are the images of the first 1, 2, ... blocks, for segments that name blocks.
        """
        return sum(
            epochs * (1 if self.balanced else -(-images // self.batch))
            for epochs, images in self._parts(count, ends)
        )

    def seen(self, count: int, ends: Sequence[int] = ()) -> int:
        """Return how many images, with repetition, a training on `count` images takes at most.

        `ends` is as in `steps`.
        """
        return sum(
            epochs * (min(self.batch, images) if self.balanced else images)
            for epochs, images in self._parts(count, ends)
        )

    def _parts(self, count: int, ends: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Yield epochs and number of images of each segment."""
        for segment in self.segments:
            blocks = segment.blocks or 0
            if blocks > len(ends):
                raise InputError(
                    f"A segment takes the first {blocks} blocks; sizes of {len(ends)} are known."
                )
            yield segment.epochs, ends[blocks - 1] if blocks else count


def within(staged: TrainSpec, flat: TrainSpec, ends: Sequence[int]) -> TrainSpec:
    """Return a training in stages with at most the steps and images of a flat one on the union.

    All its segments keep the same part of their epochs, the largest that fits, rounded down. The
    first of each stage has at least 1 epoch, even where that is too much; others may vanish. `ends`
    is as in `TrainSpec.steps`.
    """
    blocks = [None, *(segment.blocks for segment in staged.segments[:-1])]
    least = [int(s.blocks != before) for s, before in zip(staged.segments, blocks, strict=True)]

    def at(part: Fraction) -> TrainSpec:
        pairs = zip(staged.segments, least, strict=True)
        epochs = [(s, max(n, int(part * s.epochs))) for s, n in pairs]
        return replace(staged, segments=tuple(replace(s, epochs=n) for s, n in epochs if n))

    def fits(spec: TrainSpec) -> bool:
        return spec.steps(count, ends) <= steps and spec.seen(count, ends) <= seen

    count = ends[-1]
    steps, seen = flat.steps(count), flat.seen(count)
    parts = {Fraction(n, s.epochs) for s in staged.segments for n in range(1, s.epochs + 1)}
    falling = sorted(parts, reverse=True)
    first = bisect_left(falling, True, key=lambda part: fits(at(part)))
    return at(falling[first] if first < len(falling) else Fraction(0))


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
