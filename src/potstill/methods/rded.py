"""RDED as a method: real crops that a teacher finds easiest, tiled into images.

    teachers -> patches -> [labels of views] -> loop: the teacher looks at the images, and gives
    them soft labels if asked for

Source: Sun, Shi, Yu and Lin, On the Diversity and Realism of Distilled Dataset: An Efficient
Dataset Distillation Paradigm, CVPR 2024 (arXiv 2312.03526).

Differs: see `potstill.coresets.patches`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from potstill.core.errors import InputError
from potstill.core.spec import later, record
from potstill.coresets.patch_tasks import read_patches
from potstill.methods.api import METHODS, Context, Cost, Done, Phase
from potstill.methods.chosen import Use
from potstill.methods.labelled import (
    ViewLabels,
    check_labels,
    check_room,
    label_bytes,
    label_work,
    last_phase,
)
from potstill.methods.taught import begin, check_temperature, export, look, loop, scaled_training
from potstill.methods.tutors import (
    Patches,
    check_patches,
    check_teachers,
    patch_phase,
    teacher_phase,
    teacher_work,
)
from potstill.teachers import TeacherPlan


@METHODS.add("rded")
@record
@dataclass(frozen=True, kw_only=True)
class RDED:
    """Tile the crops of real images that a teacher finds easiest (Sun et al., CVPR 2024)."""

    teacher: TeacherPlan = TeacherPlan()
    """Which teacher; one."""
    patches: Patches = Patches()
    """How the crops are chosen and tiled."""
    temperature: float | None = None
    """None: labels are classes; else each image has one soft label, the teacher's at this
    temperature. Who learns it is not softened, so that a large one teaches little."""
    labels: ViewLabels = later(ViewLabels())
    """Labels of augmented views, by which the published results were made."""
    use: Use = Use()
    """How networks are trained on the images, without labels of views."""

    def __post_init__(self) -> None:
        if len(self.teacher.nets) > 1:
            raise InputError(f"rded has one teacher, not {len(self.teacher.nets)}.")
        check_temperature(self)
        check_labels(self)

    def check(self, ctx: Context) -> None:
        """Refuse classes with too few images, and what no teacher can be had for."""
        check_patches(self.patches, ctx)
        check_teachers(self.teacher, ctx)
        check_room(self, ctx)

    def cost(self, ctx: Context) -> Cost:
        """Return the work of the teacher and its look at the crops, and their bytes on disk."""
        images, steps, disk, advice = teacher_work(self.teacher, ctx)
        views, told = label_work(self, ctx)
        crops = self.patches.looked_at(ctx)
        area = ctx.data.channels * ctx.data.size[0] * ctx.data.size[1]
        return Cost(
            graph_bytes=0,
            adjoint_bytes=0,
            disk_bytes=disk + ctx.ipc * ctx.data.n_classes * area + label_bytes(self, ctx),
            steps=ctx.data.n_classes,
            set_bytes=label_bytes(self, ctx),
            batch=self.teacher.batch,
            nets=tuple(self.teacher.of(name, ctx.net_spec) for name in self.teacher.nets),
            task_images=images + crops // 3 + views,
            task_steps=steps,
            notes=(f"patches: up to {crops:,} crops of real images are looked at", *told, *advice),
        )

    def phases(self, ctx: Context, done: Done) -> Phase | None:
        """Make the teacher and the patches; look at them."""
        if "loop" in done:
            return None
        if "teachers" not in done:
            return teacher_phase(self.teacher, ctx)
        if "patches" not in done:
            return patch_phase(self.patches, ctx, done)
        return last_phase(self, ctx, done, loop(ctx))

    def pixels(self, ctx: Context) -> Tensor:
        """Return the tiled images, uint8, class by class."""
        return _gathered(tuple(ctx.done["patches"]))

    def scaled(self, scale: Literal["smoke", "cpu"]) -> RDED:
        """Return the method with at most the counts of the scale; nothing else changes."""
        return dataclasses.replace(
            self,
            teacher=self.teacher.scaled(scale),
            patches=self.patches.scaled(scale),
            **scaled_training(self, scale),
        )

    init, step, export = begin, look, export


@lru_cache(maxsize=1)
def _gathered(folders: Sequence[Path]) -> Tensor:
    """Return the images of finished patches; kept in the process."""
    return torch.cat([read_patches(folder)["images"].flatten(0, 1) for folder in folders])
