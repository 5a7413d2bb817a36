"""How encoders that were pre-trained on a set are probed, as data, each protocol by its name.

Rows of two protocols are never shown in one table.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from torch import Tensor

from potstill.augment import DSA
from potstill.core.errors import InputError
from potstill.core.registry import Registry
from potstill.core.spec import later, record
from potstill.data import DataSet
from potstill.evaluation.probe import label_subset
from potstill.functional import SGD, Segment, TrainSpec
from potstill.functional.cosine import cosine_segments
from potstill.functional.selfsup import BarlowTwins, SimCLR
from potstill.nets import HeadSpec


@record
@dataclass(frozen=True, kw_only=True)
class LabelBudget:
    """How many labels a probe is given: a part of all, or so many of each class."""

    fraction: float | None = None
    shots: int | None = None

    def text(self) -> str:
        """Return it in words: "1%", "10 shots"."""
        if self.fraction is not None:
            return f"{100 * self.fraction:g}%"
        return f"{self.shots} shot{'s'[: self.shots != 1]}"


@record
@dataclass(frozen=True, kw_only=True)
class FineTune:
    """How whole pre-trained networks learn the classes of a data set, with all labels.

    SGD at `lr`, which falls on a cosine epoch by epoch, on random crops and mirrored images.
    """

    steps: int = 10_000
    """About so many, in whole epochs, for data of at least `large` images."""
    few: int = 5_000
    """For smaller ones."""
    large: int = 45_000
    batch: int = 256
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    pad: int = 4
    """Pixels by which a crop moves at most."""

    def train_spec(self, images: int, size: tuple[int, int]) -> TrainSpec:
        """Return the training on so many images of a size."""
        steps = self.steps if images >= self.large else self.few
        return TrainSpec(
            lr=self.lr,
            segments=cosine_segments(max(1, round(steps / -(-images // self.batch)))),
            batch=self.batch,
            optimizer=SGD(momentum=self.momentum, weight_decay=self.weight_decay),
            augment=DSA(strategy="crop_flip", mode="M", crop_pad=self.pad / min(size)),
        )


@record
@dataclass(frozen=True, kw_only=True)
class ProbeRules:
    """How a network is pre-trained and probed; None means "as the recipe inside the set says"."""

    name: str
    help: str = ""
    """One line for people."""
    real_lr: float | None = None
    """Step size of real images with targets; a set keeps its own, learned one."""
    lr_grid: tuple[float, ...] = ()
    """Step sizes that real images may take instead, by the validation part."""
    optimizer: SGD | None = None
    segments: tuple[Segment, ...] | None = None
    batch: int | None = None
    augment: Literal["none"] | None = None
    """Whether images are not augmented at all."""
    labels: tuple[str, ...] = ("1%", "5%")
    """Parts of the labels that probes are given, unless others are asked for."""
    l2: float = 1e-3
    """Weight of |W|^2 in a probe's loss."""
    stratified: bool = True
    """Whether a part of the labels is drawn in proportion to the classes, or of all at once."""
    whole: bool = False
    """Whether the validation part gives labels too, as in papers that cut none; then nothing can be
    chosen by it."""
    seeds: int = 5
    """Networks a row, seeds 0, 1, ...; the labels are drawn anew for each."""
    ddof: int = 1
    """Std over networks: 1 = of the sample, 0 = of the population."""
    finetune: FineTune | None = later(None)
    """How whole networks are fine-tuned, where that is asked for."""

    def train_spec(self, recipe: TrainSpec) -> TrainSpec:
        """Return the recipe of a set with this protocol's parts in place, at its own step size.

        Raises:
            InputError: for a recipe of views where the protocol augments nothing.
        """
        if recipe.pairs is not None and self.augment == "none":
            raise InputError(
                f"The protocol {self.name!r} trains on images that are not augmented, so it is not "
                "for sets whose views are learned; take another."
            )
        return replace(
            recipe,
            optimizer=self.optimizer or recipe.optimizer,
            segments=self.segments or recipe.segments,
            batch=self.batch or recipe.batch,
            balanced=recipe.balanced if self.batch is None else None,
            augment=None if self.augment == "none" else recipe.augment,
        )

    def real_specs(self, recipe: TrainSpec, *lrs: float) -> tuple[TrainSpec, ...]:
        """Return how real images with targets are trained on, the first by default.

        `lrs` are step sizes beside those of the grid.
        """
        own, first = self.train_spec(recipe), self.real_lr or recipe.lr
        grid = () if self.whole else (*lrs, *self.lr_grid)
        return tuple(replace(own, lr=lr) for lr in dict.fromkeys((first, *grid)))

    def pool(self, data: DataSet) -> tuple[Tensor, ...]:
        """Return the labels of the parts from which probes are given some."""
        return (data.train.labels, data.val.labels) if self.whole else (data.train.labels,)


PROBES: Registry[ProbeRules] = Registry("probe protocol")

RECOMMENDED = PROBES.add("recommended")(
    ProbeRules(
        name="recommended",
        help="the set's own recipe and optimizer; stratified labels, 5 networks, t-interval; real "
        "images may choose their step on the validation part",
        lr_grid=(0.1, 1.0),
    )
)
"""The optimizer is that for which the step size of the set was learned."""

PARITY = PROBES.add("mkdt-parity")(
    ProbeRules(
        name="mkdt-parity",
        help="MKDT's: 20 epochs of SGD with momentum .9, batch 256, at the learned step size or "
        ".1; labels of the whole training part in one draw, 3 networks, std of the population",
        real_lr=0.1,
        optimizer=SGD(momentum=0.9, weight_decay=1e-4),
        segments=(Segment(epochs=20),),
        batch=256,
        augment="none",
        stratified=False,
        whole=True,
        seeds=3,
        ddof=0,
    )
)
"""Joshi, Ni and Mirzasoleiman, ICLR 2025 (arXiv 2410.02116), by its released evaluation. Differs:
networks are seeded; features are those of evaluation mode for training images, too; images of other
data sets have the size of the set's (there 64 for Tiny-ImageNet, else 32) and are normalised by
their own statistics, as measured; labels that leave a class out are refused. A step size learned
without momentum is used with it, as published."""

KRR_ST = PROBES.add("krr-st")(
    ProbeRules(
        name="krr-st",
        help="KRR-ST's: 1000 epochs of SGD with momentum .9 and decay 1e-3, batch 256, at the "
        "set's step size or .1; all labels of the whole training part, 3 networks; fine-tuning",
        real_lr=0.1,
        optimizer=SGD(momentum=0.9, weight_decay=1e-3),
        segments=(Segment(epochs=1000),),
        batch=256,
        augment="none",
        labels=("100%",),
        whole=True,
        seeds=3,
        finetune=FineTune(),
    )
)
"""Lee et al., ICLR 2024 (arXiv 2310.06511). Differs: the probe is the optimum of `linear_probe`,
not the end of 5000 steps; fine-tuning takes whole epochs, and the std is that of the sample."""

DIRECT_HEAD = HeadSpec(widths=(128, 128))
"""The projector of trainings on views of few images."""


def direct_recipe(objective: Literal["bt", "simclr"] = "bt", *, epochs: int = 800) -> TrainSpec:
    """Return how a network is trained on views of few real images, without targets.

    SGD .01 with momentum .9 and decay 5e-4, a tenth of the step from half of the epochs on, batch
    256, DSA: by an independent study of self-supervised training on subsets of CIFAR-10 (800 epochs
    for 2 % of it), long against the 20 epochs of a set.
    """
    losses = {"bt": BarlowTwins(lam=0.005), "simclr": SimCLR(temperature=0.2)}
    parts = ((epochs - epochs // 2, 1.0), (epochs // 2, 0.1))
    return TrainSpec(
        lr=0.01,
        segments=tuple(Segment(epochs=n, lr_scale=lr, optimizer="carried") for n, lr in parts if n),
        batch=256,
        optimizer=SGD(momentum=0.9, weight_decay=5e-4),
        augment=DSA(),
        pairs=losses[objective],
    )


def budgets_of(labels: tuple[str, ...], shots: tuple[int, ...]) -> tuple[LabelBudget, ...]:
    """Return the budgets that people write as "1%" and as numbers of shots, none twice.

    Raises:
        InputError: for anything but a percentage in (0, 100], or shots below 1.
    """
    found = []
    for text in labels:
        number = re.fullmatch(r"(\d+(?:\.\d+)?)%", text.strip())
        if not number or not 0 < float(number[1]) <= 100:
            raise InputError(
                f"A part of the labels is a percentage above 0 and up to 100%, not {text!r}."
            )
        found.append(LabelBudget(fraction=float(Fraction(number[1]) / 100)))
    if bad := [k for k in shots if k < 1]:
        raise InputError(f"Shots a class must be at least 1, not {bad[0]}.")
    return tuple(dict.fromkeys([*found, *(LabelBudget(shots=k) for k in shots)]))


def given_rows(
    labels: Tensor, classes: int, budget: LabelBudget, *, stratified: bool, seed: int
) -> Tensor:
    """Return the rows (ascending) of labels that a probe is given; as `label_subset`."""
    return label_subset(
        labels,
        classes,
        fraction=budget.fraction,
        shots=budget.shots,
        stratified=stratified,
        seed=seed,
    )
