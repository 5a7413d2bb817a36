"""The phases of methods whose images come from a teacher, before the images: teachers, patches."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch

from potstill.core.errors import InputError
from potstill.core.spec import record
from potstill.core.store import Store, default_cache
from potstill.coresets.patch_tasks import PatchSpec, class_blocks, patch_tasks
from potstill.data import MeanStd
from potstill.engine import Tasks, run_tasks
from potstill.methods.api import Context, Done
from potstill.nets import NetSpec, build
from potstill.teachers import (
    Teacher,
    TeacherPlan,
    TeacherSpec,
    check_facts,
    check_teacher,
    planned,
    read_teacher,
    taken,
    teacher_facts,
)


@record
@dataclass(frozen=True, kw_only=True)
class Patches:
    """How RDED's images are made: the crops of real images that a teacher finds easiest."""

    factor: int = 1
    """Cells a side of an image; published: 2 at 224 pixels, 1 at 64 and below."""
    images: int = 300
    """Random images of a class that are looked at; of a smaller class all."""
    crops: int = 5
    """Crops of each."""

    def __post_init__(self) -> None:
        for name in ("factor", "images", "crops"):
            if (value := getattr(self, name)) < 1:
                raise InputError(f"patches.{name} must be at least 1, not {value}.")

    def looked_at(self, ctx: Context) -> int:
        """Return the crops of real images that a teacher looks at."""
        counts = torch.bincount(ctx.data.train.labels, minlength=ctx.data.n_classes)
        return int(counts.clamp(max=self.images).sum()) * self.crops

    def scaled(self, scale: Literal["smoke", "cpu"]) -> Patches:
        """Return the same with at most as many images as a scale has: enough for 10 of a class."""
        most = max(20, 10 * self.factor**2) if scale == "smoke" else 1000
        return dataclasses.replace(self, images=min(self.images, most))


def space_of(ctx: Context) -> MeanStd:
    """Return the normaliser of the run.

    Raises:
        InputError: for whitening, in which no teacher's images are clipped to black and white.
    """
    if not isinstance(ctx.space, MeanStd):
        raise InputError(
            "A teacher takes images with a mean and a standard deviation, not whitened ones; leave "
            "out --normaliser zca-... ."
        )
    return ctx.space


def teacher_phase(plan: TeacherPlan, ctx: Context) -> Tasks:
    """Return the tasks that make the teachers.

    Raises:
        InputError: as `planned`.
    """
    return planned(
        plan,
        ctx.data,
        space_of(ctx),
        ctx.net_spec,
        seed=ctx.seed,
        compute=ctx.plan.tasks,
        ranks=ctx.plan.ranks,
    )


def check_teachers(plan: TeacherPlan, ctx: Context) -> None:
    """Refuse several blocks, networks that are no teachers, finished teachers that know nothing.

    Finished weights are taken at once, into the store, so that a wrong file, another order of
    classes or random weights show before anything starts.
    """
    if len(ctx.synth) > 1 or ctx.synth[0].images is not None:
        raise InputError("Images come from a teacher for one block without images of its own.")
    there = taken(teacher_phase(plan, ctx))
    _accepted(ctx, run_tasks(there, ctx.store or Store(default_cache())))


def teachers_of(ctx: Context, done: Done) -> dict[Teacher, Path]:
    """Return the finished teachers and their folders.

    Raises:
        InputError: if one knows nothing of the data.
    """
    return _accepted(ctx, done["teachers"])


def _accepted(ctx: Context, folders: list[Path]) -> dict[Teacher, Path]:
    found = {read_teacher(folder): folder for folder in folders}
    if len(found) < len(folders):
        raise InputError("Two networks of the committee have the same weights: name one of them.")
    for teacher, folder in found.items():
        check_teacher(teacher, ctx.data)
        check_facts(teacher_facts(folder), teacher)
    return found


def teacher_work(plan: TeacherPlan, ctx: Context) -> tuple[int, int, int, tuple[str, ...]]:
    """Return images, steps, bytes on disk and advice of the teachers that are trained."""
    specs, train = teacher_phase(plan, ctx).specs, plan.training
    trained = sum(isinstance(spec, TeacherSpec) for spec in specs)
    images = len(ctx.data.train)
    steps = -(-images // train.batch)
    advice = (
        f"Note: an epoch of the teacher is only {steps} step{'s'[: steps != 1]} of {train.batch} "
        f"images; try --method.teacher.training.batch {max(1, images // 20)}.",
    )
    return (
        trained * train.epochs * images,
        trained * train.epochs * steps,
        sum(_bytes(spec.net, ctx) for spec in specs),
        advice if trained and steps < 10 else (),
    )


@lru_cache(maxsize=16)
def _numel(net: NetSpec, channels: int, size: tuple[int, int], classes: int) -> int:
    module = build(net, channels=channels, size=size, classes=classes, seed=0)
    return sum(part.numel() for part in module.state_dict().values())


def _bytes(net: NetSpec, ctx: Context) -> int:
    return 4 * _numel(net, ctx.data.channels, ctx.data.size, ctx.data.n_classes)


def patch_phase(patches: Patches, ctx: Context, done: Done) -> Tasks:
    """Return the tasks that choose patches by the first teacher: some classes each."""
    teacher, folder = next(iter(teachers_of(ctx, done).items()))
    spec = PatchSpec(
        teacher=teacher,
        data=ctx.data.ref,
        classes=(0,),
        ipc=ctx.ipc,
        factor=patches.factor,
        images=patches.images,
        crops=patches.crops,
        seed=ctx.seed,
        compute=ctx.plan.tasks,
    )
    return patch_tasks(spec, class_blocks(ctx.data.n_classes), teacher=folder)


def check_patches(patches: Patches, ctx: Context) -> None:
    """Refuse classes with too few images, and cells that are no whole pixels."""
    counts = torch.bincount(ctx.data.train.labels, minlength=ctx.data.n_classes)
    least, wanted = int(counts.argmin()), ctx.ipc * patches.factor**2
    if min(int(counts[least]), patches.images) < wanted:
        raise InputError(
            f"Class {ctx.data.classes[least]!r} needs {wanted} images for its patches; it has "
            f"{int(counts[least])}, of which {patches.images} may be looked at (patches.images)."
        )
    if any(side % patches.factor for side in ctx.data.size) or len(set(ctx.data.size)) > 1:
        raise InputError(
            f"Images of {ctx.data.size[0]}x{ctx.data.size[1]} cannot be tiled of square patches, "
            f"{patches.factor} a side (patches.factor)."
        )
