"""What a protocol is: how a set is trained on and how accuracies become one number."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from potstill.artefact import DistilledSet
from potstill.augment import Mix, Policy, Views
from potstill.core.errors import InputError
from potstill.core.spec import record
from potstill.data import MeanStd
from potstill.functional import SGD, Adam, Segment, Softened, TrainSpec, idc_segments


@record
@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a set is evaluated; None means "as the recipe inside the artefact says"."""

    name: str
    help: str = ""
    """One line for people."""
    lr: float | None = None
    """Step size."""
    own_lr: bool = False
    """Whether a recipe with the protocol's kind of optimizer keeps its step size."""
    augment: Policy | Literal["none"] | None = None
    """Augmentation of the training images, or "none" at all."""
    mix: Mix | Literal["none"] | None = None
    """Mixing of images and targets, or "none" at all."""
    keeps: bool = False
    """Whether a recipe with the protocol's policy, of whatever constants, keeps it and its mix."""
    segments: tuple[Segment, ...] | None = None
    """Epochs, step-size factors and optimizer resets."""
    epochs: tuple[tuple[int, int], ...] = ()
    """Instead of segments: for more than so many training images a class so many epochs (see
    `suited`), ascending from (0, ...)."""
    stage: tuple[Segment, ...] = ()
    """How each stage is trained on, whatever the set's own blocks say, in parts of the block's step
    size; `segments` are then for the whole union at once."""
    half_from: int | None = None
    """From this stage on half of the step size."""
    marks: tuple[int, ...] = ()
    """Epochs after which networks are measured too; a row is of the mark best on validation."""
    optimizer: SGD | Adam | None = None
    batch: int | None = None
    sampler: tuple[int, int] | None = None
    """Classes and images of each a step (an epoch is then one step), unless the recipe has its own
    class-balanced batches."""
    batches: tuple[tuple[int, int], ...] = ()
    """Instead of batch: for more than so many training images a class batches of so many (see
    `suited`), ascending from (0, ...)."""
    lesson: Softened | None = None
    """How a teacher's labels of every augmented batch are learned; the protocol is then for the
    regime online, unless another is asked for."""
    hard_only: bool = False
    """Whether soft labels are refused."""
    seeds: int = 5
    """Networks a row, seeds 0, 1, ...; the report is of the last epoch unless there are marks."""
    ddof: int = 1
    """Std over networks: 1 = of the sample, 0 = of the population."""
    baselines: bool = True
    """Whether matched real images are shown beside the set."""
    lr_grid: tuple[float, ...] = ()
    """Step sizes that matched real images may take instead of the set's own one."""

    def suited(self, s: DistilledSet) -> Protocol:
        """Return the protocol for a set: what depends on its images and normaliser is filled in.

        Epochs follow from the decoded images a class; with 100 or more classes they are two thirds
        of those in the table, in whole hundreds. Batches do, too; with 100 or more classes they are
        twice those in the table (but 100 with 200 classes), at most the whole set. Views of pixels
        get mean and std.

        Raises:
            InputError: if views are asked for of images that are not normalised by mean and std.
        """
        found, classes = self, len(s.classes)
        total = len(s.decode.index(s.targets.classes))
        count = total / classes
        if self.batches:
            batch = [batch for more, batch in self.batches if count > more][-1]
            batch = 100 if classes == 200 else batch * (2 if classes >= 100 else 1)
            found = replace(found, batch=min(batch, total))
        if self.epochs:
            epochs = [epochs for more, epochs in self.epochs if count > more][-1]
            epochs = epochs * 2 // 3 // 100 * 100 if classes >= 100 else epochs
            found = replace(found, segments=idc_segments(epochs))
        if isinstance(self.augment, Views):
            space = s.space
            if not isinstance(space, MeanStd):
                raise InputError(
                    f"Protocol {self.name!r} changes colours, which it can do to images normalised "
                    "by mean and standard deviation only."
                )
            found = replace(found, augment=replace(self.augment, mean=space.mean, std=space.std))
        return found

    def train_spec(self, recipe: TrainSpec) -> TrainSpec:
        """Return the recipe of a set with this protocol's parts (see `suited`) in place."""
        augment = None if self.augment == "none" else self.augment or recipe.augment
        mix = None if self.mix == "none" else self.mix or recipe.mix
        if self.keeps and type(recipe.augment) is type(self.augment):
            augment, mix = recipe.augment, recipe.mix
        batch, balanced = recipe.batch, recipe.balanced
        if self.batch is not None:
            batch, balanced = self.batch, None
        elif self.sampler is not None and balanced is None:
            batch, balanced = math.prod(self.sampler), self.sampler[1]
        return replace(
            recipe,
            lr=self._lr(recipe) or recipe.lr,
            augment=augment,
            mix=mix,
            segments=self.segments or recipe.segments,
            optimizer=self.optimizer or recipe.optimizer,
            batch=batch,
            balanced=balanced,
        )

    def staged(self, s: DistilledSet) -> TrainSpec | None:
        """Return how a set is trained on in stages (see `suited`); None if it has none.

        Stages are those that the blocks of the set bring, or all its blocks, if the protocol says
        how. A step size of the protocol is for all stages.
        """
        if not s.blocks or not (self.stage or s.blocks[0].train):
            return None
        if self._lr(s.recipe) is not None:
            s = replace(s, blocks=tuple(replace(block, lr=None) for block in s.blocks))
        halved = self.half_from or len(s.blocks) + 1
        segments = tuple(
            replace(part, lr_scale=part.lr_scale / (2 if (part.blocks or 0) >= halved else 1))
            for part in s.staged(self.stage or None).segments
        )
        return replace(self.train_spec(s.recipe), segments=segments)

    def _lr(self, recipe: TrainSpec) -> float | None:
        """Return the step size that takes the place of a recipe's, if one does."""
        keeps = self.own_lr and type(recipe.optimizer) is type(self.optimizer)
        return None if keeps else self.lr
