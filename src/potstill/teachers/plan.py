"""Which teachers a run has: trained on its data, or there already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from potstill.augment import DSA, Chain, Crops, Policy, RandAugment
from potstill.core.compute import Compute
from potstill.core.errors import InputError, unknown
from potstill.core.keys import integer
from potstill.core.spec import later, record
from potstill.data import DataSet, MeanStd
from potstill.engine import Tasks
from potstill.functional import SGD, Adam, Segment, TrainSpec
from potstill.functional.cosine import cosine_segments
from potstill.functional.cycle import OneCycle
from potstill.nets import NetSpec, variant
from potstill.teachers.take import TakeSpec, take_spec, take_teacher
from potstill.teachers.train import KIND, TeacherSpec, teacher_tasks, train_teacher


@record
@dataclass(frozen=True, kw_only=True)
class Squeeze:
    """How a teacher is trained, by default as SRe2L does for Tiny-ImageNet.

    sgd: the step size rises on a line for some epochs, then falls to 0 on a cosine, epoch by epoch.
    adam, as for ImageNet-21K: it does both on a cosine, step by step (`OneCycle`), and only weights
    of two or more dimensions decay, by a part of their gradient. More epochs make a better teacher
    and worse images (SRe2L, table 2).
    """

    lr: float = 0.2
    """Highest step size."""
    epochs: int = 50
    """Epochs in all."""
    warmup: int = 5
    """Of them, epochs in which the step size rises."""
    batch: int = 256
    """Images a step."""
    momentum: float = 0.9
    weight_decay: float = 1e-4
    augment: Policy | None = Crops()
    """Augmentation of the real images; crops: of 0.08 to 1 of the area, resized, and mirrored."""
    optimizer: Literal["sgd", "adam"] = later("sgd")
    smoothing: float = later(0.0)
    """Part of every label that is spread over all classes."""

    def __post_init__(self) -> None:
        if self.optimizer not in ("sgd", "adam"):
            raise unknown("optimizer of a teacher", self.optimizer, ("sgd", "adam"))
        if self.optimizer == "adam" and (self.momentum != Squeeze.momentum or not self.warmup):
            raise InputError("A teacher's adam has no momentum, and 1 or more epochs of warm-up.")
        if self.batch < 1:
            raise InputError(f"training.batch must be at least 1, not {self.batch}.")
        if not 0 <= self.warmup < self.epochs:
            raise InputError(
                f"training.epochs ({self.epochs}) must be more than those of warm-up "
                f"({self.warmup})."
            )
        _ = self.spec  # its records refuse the rest

    @property
    def spec(self) -> TrainSpec:
        """Return the training."""
        common = TrainSpec(
            lr=self.lr,
            segments=(Segment(epochs=self.epochs),),
            batch=self.batch,
            augment=self.augment,
            smoothing=self.smoothing,
        )
        decay = self.weight_decay
        if self.optimizer == "adam":
            adam = Adam(weight_decay=decay, decays="weights" if decay else "all")
            return replace(common, optimizer=adam, cycle=OneCycle(rise=self.warmup / self.epochs))
        sgd = SGD(momentum=self.momentum, weight_decay=decay)
        segments = cosine_segments(self.epochs, warmup=self.warmup)
        return replace(common, optimizer=sgd, segments=segments)

    def scaled(self, scale: Literal["smoke", "cpu"]) -> Squeeze:
        """Return the training with at most the counts of a scale."""
        epochs, batch = (10, 20) if scale == "smoke" else (20, 256)
        epochs = min(self.epochs, epochs)
        return replace(
            self,
            epochs=epochs,
            warmup=self.warmup if epochs == self.epochs else min(self.warmup, epochs // 4),
            batch=min(self.batch, batch),
        )


TINY = Squeeze()
"""Tiny-ImageNet (SRe2L, CDA); network resnet18-tiny, normaliser tiny@sre2l."""
CIFAR100 = Squeeze(
    lr=0.1,
    epochs=200,
    warmup=0,
    batch=128,
    weight_decay=5e-4,
    augment=DSA(strategy="crop_flip", mode="M"),
)
"""CIFAR-100 (SRe2L); network resnet18-tiny. Differs: beyond a shifted image lies the mean colour,
where the original has black."""
IN21K = Squeeze(
    lr=3e-4,
    epochs=80,
    warmup=8,
    batch=64,
    augment=Chain(parts=(DSA(strategy="cutout", mode="M"), RandAugment())),
    optimizer="adam",
    smoothing=0.2,
)
"""ImageNet-21K-P at 224x224 pixels in [0, 1], not normalised (Ridnik et al., NeurIPS 2021 Datasets
and Benchmarks, arXiv 2104.10972). Differs: begins with new weights, not with those of ImageNet-1K;
one GPU's batch; float32 or bfloat16, not float16; no hierarchy of classes; boxes cut out are black,
and RandAugment's strengths torchvision's, since the original's are not stated."""
_STATED = (TINY, TINY.scaled("smoke"), TINY.scaled("cpu"))


@record
@dataclass(frozen=True, kw_only=True)
class TeacherPlan:
    """One teacher, or a committee."""

    nets: tuple[str, ...] = ("own",)
    """own: the run's network; another network's name: that one; both are trained on the data.
    NAME@WEIGHTS: finished weights, torchvision:resnet18@IMAGENET1K_V1 or from a file,
    timm:resnet18@FILE, own@FILE; or from the folder of an earlier teacher. Several: a committee."""
    norm: str | None = None
    """Norm of the networks, such as batch, where it is not the network's."""
    training: Squeeze = TINY
    """How those without weights are trained."""

    def __post_init__(self) -> None:
        if not self.nets or not all(self.nets):
            raise InputError(f"nets of the teacher must be names of networks, not {self.nets}.")
        given = [name for name in self.nets if "@" in name]
        if len(set(given)) < len(given):
            raise InputError(f"nets of a committee must be different, not {self.nets}.")
        if given == list(self.nets) and self.training not in _STATED:
            raise InputError(
                f"No teacher of {', '.join(self.nets)} is trained, so its training has no settings."
            )

    @property
    def batch(self) -> int:
        """Return the images of a step of training; 0 if no teacher is trained."""
        return 0 if all("@" in name for name in self.nets) else self.training.batch

    def of(self, name: str, own: NetSpec) -> NetSpec:
        """Return the network of one of the names, without its weights."""
        net = variant(name.partition("@")[0], own)
        return net if self.norm is None else replace(net, norm=self.norm)

    def anew(self) -> TeacherPlan:
        """Return the plan for data that no weights are for: then the run's network is trained."""
        return replace(self, nets=("own",)) if any("@" in name for name in self.nets) else self

    def scaled(self, scale: Literal["smoke", "cpu"]) -> TeacherPlan:
        """Return the plan with at most the counts of a scale."""
        return replace(self, training=self.training.scaled(scale))


def planned(
    plan: TeacherPlan,
    data: DataSet,
    space: MeanStd,
    own: NetSpec,
    *,
    seed: int,
    compute: Compute,
    ranks: int = 1,
) -> Tasks:
    """Return the tasks that make the teachers of a plan, in the order of its names.

    Those that are trained are so by one process, or by so many (`ranks`) of torchrun.

    Raises:
        InputError: for a network without batch norm, or weights that are not there or do not fit.
    """
    specs: list[TeacherSpec | TakeSpec] = []
    context = {"source": data.source}
    for k, name in enumerate(plan.nets):
        net, (_, at, weights) = plan.of(name, own), name.partition("@")
        if at:
            spec, where = take_spec(net, weights, data, space)
            specs, context = [*specs, spec], {**context, **where}
        else:
            of = integer(seed, "teacher", k) if k else seed
            train = plan.training.spec
            made = teacher_tasks(data, space, net, train, seed=of, compute=compute, ranks=ranks)
            specs += made.specs
    return Tasks(
        kind=KIND,
        fn=make_teacher,
        specs=tuple(specs),
        context=context,
        label="teacher",
        together=ranks > 1,
    )


def taken(tasks: Tasks) -> Tasks:
    """Return those of the tasks that take weights that are there already."""
    specs: Sequence[TeacherSpec | TakeSpec] = tasks.specs
    return replace(tasks, specs=tuple(s for s in specs if isinstance(s, TakeSpec)))


def make_teacher(spec: TeacherSpec | TakeSpec, context: dict[str, str], folder: Path) -> None:
    """Train a teacher, or take it from where it is.

    Raises:
        InputError: as `take_teacher`.
        WorkError: as `train_teacher` and `take_teacher`.
    """
    if isinstance(spec, TakeSpec):
        take_teacher(spec, context, folder)
    else:
        train_teacher(spec, context, folder)
