"""Labels of views as the last phase of methods whose images come from a teacher.

Source: relabel and validate of SRe2L, Yin, Xing and Shen, NeurIPS 2023 (arXiv 2306.13092), by the
settings of its release for ImageNet-1K.

Differs: views follow from seeds (see `artefact.labels`), labels have 8 bits by default where the
    release keeps float16, and no batch of training is cut into parts whose gradients are added up.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from potstill.artefact import LabelPlan, LabelStore, label_store
from potstill.artefact.quantise import Codes
from potstill.augment import Crops, CutMix, MixUp
from potstill.core.errors import InputError
from potstill.core.ranges import at_least
from potstill.core.spec import later, record
from potstill.core.store import Store, default_cache, need_room
from potstill.engine import Tasks
from potstill.functional import Adam, Softened, TrainSpec
from potstill.functional.cosine import cosine_segments
from potstill.methods.api import Context, Done, Loop
from potstill.methods.chosen import Use
from potstill.methods.start import labels_of
from potstill.methods.tutors import space_of, teachers_of
from potstill.recover import relabel
from potstill.teachers import TeacherPlan


@record
@dataclass(frozen=True, kw_only=True)
class ViewLabels:
    """Labels of augmented views, stored an epoch at a time, and the training on them.

    AdamW whose step size falls to 0 on a cosine, as published for ImageNet-1K.
    """

    epochs: int = 0
    """Epochs with labels of their own; 0: no labels of views."""
    training: int = 300
    """Epochs of training; where fewer have labels, it begins again with the first of these."""
    batch: int = 128
    """Images a step; published: 1,024 (SRe2L), 128 (CDA)."""
    lr: float = 0.001
    """First step size."""
    codes: Codes = "uint8"
    """How logits are kept."""
    least: float = 0.08
    """Smallest share of the area that a view shows; 1: whole images."""
    cutmix: float = 1.0
    """Chance of a view to have a box of another one."""
    mix_scope: Literal["batch", "image"] = "batch"
    """One box (or weight) for a batch, as published, or for every image its own."""
    temperature: float = 20.0
    """Of the lesson."""
    squared: bool = False
    """Whether the loss is multiplied by the temperature's square."""
    mixup: float = later(0.0)
    """Instead of boxes (with a cutmix of 0): alpha of MixUp, of whole views; 0: none."""

    def __post_init__(self) -> None:
        at_least(0, self, "epochs", prefix="labels.")
        at_least(1, self, "training", "batch", prefix="labels.")
        if self.epochs > self.training:
            raise InputError(
                f"A training of {self.training} epochs (labels.training) has no use for labels of "
                f"{self.epochs} (labels.epochs)."
            )
        if self.mixup and self.cutmix:
            raise InputError(
                "Views are mixed by boxes or as wholes: labels.mixup needs labels.cutmix 0."
            )
        if self.mix_scope != "batch" and not (self.cutmix or self.mixup):
            raise InputError("labels.mix_scope says nothing where no views are mixed.")
        _ = self.recipe  # its records refuse the rest

    def plan(self, seed: int) -> LabelPlan:
        """Return which views have labels, and how these are kept."""
        boxes = CutMix(prob=self.cutmix) if self.cutmix else None
        return LabelPlan(
            epochs=max(1, self.epochs),
            batch=self.batch,
            codes=self.codes,
            crops=Crops(scale=(self.least, 1.0)),
            mix=MixUp(alpha=self.mixup) if self.mixup else boxes,
            mix_scope=self.mix_scope,
            seed=seed,
        )

    @property
    def recipe(self) -> TrainSpec:
        """Return the recipe of a set with such labels."""
        plan = self.plan(0)
        return TrainSpec(
            lr=self.lr,
            segments=cosine_segments(self.training),
            batch=self.batch,
            optimizer=Adam(weight_decay=0.01, decoupled=True, decays="weights"),
            augment=plan.crops,
            mix=plan.mix,
            lesson=Softened(temperature=self.temperature, squared=self.squared),
        )

    def scaled(self, scale: Literal["smoke", "cpu"]) -> ViewLabels:
        """Return the same with at most the epochs of a scale."""
        most = 3 if scale == "smoke" else 100
        epochs, training = min(self.epochs, most), min(self.training, most)
        return (
            self if not self.epochs else dataclasses.replace(self, epochs=epochs, training=training)
        )


class Labelled(Protocol):
    """A method that can have labels of views."""

    @property
    def teacher(self) -> TeacherPlan:
        """Which teachers."""
        ...

    @property
    def labels(self) -> ViewLabels:
        """Labels of views, if any."""
        ...

    @property
    def temperature(self) -> float | None:
        """Temperature of one soft label an image."""
        ...

    @property
    def use(self) -> Use:
        """How networks are trained on images with one label each."""
        ...

    def pixels(self, ctx: Context) -> Tensor:
        """Return the finished images, uint8, class by class."""
        ...


def check_labels(method: Labelled) -> None:
    """Refuse settings that say nothing beside, or without, labels of views.

    Raises:
        InputError: naming the first one.
    """
    if not method.labels.epochs and method.labels != ViewLabels():
        raise InputError("Settings of labels say nothing without labels.epochs.")
    if method.labels.epochs and method.temperature is not None:
        raise InputError(
            "An image has one soft label (temperature) or labels of its views (labels.epochs, "
            "labels.temperature), not both."
        )
    idle = {Use(), scaled_use(Use(), "smoke"), scaled_use(Use(), "cpu")}
    if method.labels.epochs and method.use not in idle:
        raise InputError(
            "use is for images with one label each; with labels of views the training is that of "
            "labels.training, labels.batch and labels.lr."
        )


def scaled_use(use: Use, scale: Literal["smoke", "cpu"]) -> Use:
    """Return the training on images with one label each with at most the epochs of a scale."""
    return dataclasses.replace(use, epochs=min(use.epochs, 10 if scale == "smoke" else 300))


def label_bytes(method: Labelled, ctx: Context) -> int:
    """Return the bytes of labels of views, and of the images beside them, on disk."""
    if not method.labels.epochs:
        return 0
    count, (height, width) = ctx.ipc * ctx.data.n_classes, ctx.data.size
    pixels = count * ctx.data.channels * height * width
    return method.labels.plan(ctx.seed).nbytes(count, ctx.data.n_classes) + pixels


def check_room(method: Labelled, ctx: Context) -> None:
    """Refuse a new run whose labels do not fit on the disk.

    Raises:
        InputError: naming both numbers.
    """
    if method.labels.epochs and not ctx.recorded:
        root, hint = _store(ctx).root, "lower labels.epochs, or choose another --store"
        need_room(root, label_bytes(method, ctx), what="labels", hint=hint)


def label_work(method: Labelled, ctx: Context) -> tuple[int, tuple[str, ...]]:
    """Return the work of labelling, in images of a training step, and a note."""
    epochs, count = method.labels.epochs, ctx.ipc * ctx.data.n_classes
    if not epochs:
        return 0, ()
    said = (
        f"labels: views of {count:,} images in {epochs:,} epoch{'s'[: epochs != 1]}, "
        f"{label_bytes(method, ctx) / 2**20:,.1f} MiB"
    )
    return len(method.teacher.nets) * epochs * count // 3, (said,)


def last_phase(method: Labelled, ctx: Context, done: Done, loop: Loop) -> Tasks | Loop:
    """Return the labels of views of the finished images, an epoch a task, then the loop.

    Raises:
        InputError: if the labels do not fit on the disk, or a teacher knows nothing.
    """
    if not method.labels.epochs or relabel.KIND in done:
        return loop
    store, pixels = _store(ctx), method.pixels(dataclasses.replace(ctx, done=done))
    digest, folder = relabel.kept_images(store, pixels, labels_of(ctx))
    tasks = relabel.relabel_tasks(
        digest,
        folder,
        teachers_of(ctx, done),
        method.labels.plan(ctx.seed),
        space=space_of(ctx),
        compute=ctx.plan.tasks,
    )
    store.need_room(tasks.kind, tasks.specs, label_bytes(method, ctx))
    return tasks


def stored_labels(method: Labelled, ctx: Context) -> LabelStore:
    """Return the labels that the phase made."""
    return label_store(
        labels_of(ctx),
        method.labels.plan(ctx.seed),
        [folder / relabel.FILE for folder in ctx.done[relabel.KIND]],
        classes=ctx.data.n_classes,
        teachers=tuple(teacher.digest for teacher in teachers_of(ctx, ctx.done)),
    )


def _store(ctx: Context) -> Store:
    return ctx.store or Store(default_cache())
