"""Recovery as methods: SRe2L and CDA are one method with two presets.

    teachers:   trained on the real images (squeeze), or there already
    patches:    RDED's images, where recovery begins with them
    recovered:  images of some classes a task, from noise, real images or patches
    labels:     the teacher's labels of views, an epoch a task, if asked for
    loop:       the teacher looks at the finished images, and gives them soft labels if asked for

Sources: SRe2L, Yin, Xing and Shen, Squeeze, Recover and Relabel, NeurIPS 2023 (arXiv 2306.13092);
CDA, Yin and Shen, Dataset Distillation via Curriculum Data Synthesis in Large Data Era, TMLR 2024
(arXiv 2311.18838).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, Self

from torch import Tensor

from potstill.core.errors import InputError, unknown
from potstill.core.spec import later, record
from potstill.core.store import Store, default_cache
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
    teachers_of,
)
from potstill.recover import (
    CDA_TINY,
    KIND,
    SRE2L_TINY,
    Recovery,
    Unit,
    gathered,
    recover_tasks,
    side_by_side,
    units_of,
)
from potstill.teachers import TeacherPlan


@record
@dataclass(frozen=True, kw_only=True)
class Recovering:
    """Recover images from a teacher: SRe2L and CDA are presets of this."""

    teacher: TeacherPlan = TeacherPlan()
    """Which teacher, or committee."""
    recovery: Recovery = SRE2L_TINY
    """The loop; published for Tiny-ImageNet by default."""
    batch: int = 100
    """Classes of a unit, whose images are matched to the teacher's statistics together; fewer
    classes than this have several images each in a unit."""
    order: Literal["sequential", "permuted"] = "sequential"
    """Which classes share a unit: those that follow one another (published), or a random order."""
    together: int = 1
    """Units that are computed side by side, for a GPU."""
    patches: Patches = Patches()
    """For the start `patches` alone: how they are chosen."""
    temperature: float | None = None
    """None: labels are classes; else each image has one soft label, the teacher's at this
    temperature. Who learns it is not softened, so that a large one teaches little."""
    labels: ViewLabels = later(ViewLabels())
    """Labels of augmented views, by which the published results were made."""
    use: Use = Use()
    """How networks are trained on the images, without labels of views."""

    def __post_init__(self) -> None:
        for name in ("batch", "together"):
            if (value := getattr(self, name)) < 1:
                raise InputError(f"{name} must be at least 1, not {value}.")
        if self.order not in ("sequential", "permuted"):
            raise unknown("order", self.order, ("sequential", "permuted"))
        if self.recovery.start != "patches" and self.patches != Patches():
            raise InputError(
                f"patches are for the start 'patches', not for {self.recovery.start!r}."
            )
        check_temperature(self)
        check_labels(self)

    def units(self, ctx: Context) -> tuple[Unit, ...]:
        """Return the units of a run."""
        return units_of(
            ctx.data.n_classes, ctx.ipc, batch=self.batch, order=self.order, seed=ctx.seed
        )

    def parts(self, ctx: Context) -> tuple[str, int]:
        """Return the phase whose tasks can be done in parts by hand, and how many they are."""
        return KIND, len(side_by_side(self.units(ctx), self.together))

    def check(self, ctx: Context) -> None:
        """Refuse what no teacher, or no patches, can be had for."""
        if self.recovery.codec == "jpeg75" and ctx.data.channels not in (1, 3):
            raise InputError(
                f"The codec jpeg75 takes 1 or 3 channels, not the {ctx.data.channels} of the data."
            )
        if self.order == "permuted" and ctx.data.n_classes <= self.batch:
            raise InputError(
                f"order 'permuted' says nothing where all {ctx.data.n_classes} classes share a "
                f"unit (batch {self.batch})."
            )
        if self.together > (units := len(self.units(ctx))) and not ctx.recorded:
            raise InputError(f"together must be at most the {units} units, not {self.together}.")
        if self.recovery.start == "patches":
            check_patches(self.patches, ctx)
        check_teachers(self.teacher, ctx)
        check_room(self, ctx)

    def cost(self, ctx: Context) -> Cost:
        """Return the work of teachers, patches and units, and their bytes on disk."""
        images, steps, disk, advice = teacher_work(self.teacher, ctx)
        views, told = label_work(self, ctx)
        units, made = self.units(ctx), ctx.ipc * ctx.data.n_classes
        count, patched = self.recovery.iterations, self.recovery.start == "patches"
        area = ctx.data.channels * ctx.data.size[0] * ctx.data.size[1]
        looked = patched * self.patches.looked_at(ctx)
        largest = max(map(len, units))
        return Cost(
            graph_bytes=0,
            adjoint_bytes=0,
            disk_bytes=disk + self._bytes(ctx) + patched * made * area + label_bytes(self, ctx),
            steps=ctx.data.n_classes,
            set_bytes=label_bytes(self, ctx),
            batch=self.teacher.batch,
            nets=tuple(self.teacher.of(name, ctx.net_spec) for name in self.teacher.nets),
            task_images=images + len(self.teacher.nets) * made * count + looked // 3 + views,
            task_steps=steps + count * -(-len(units) // self.together),
            notes=(
                f"recovery: {made:,} images in {len(units):,} unit{'s'[: len(units) != 1]} of up "
                f"to {largest}, {count:,} steps each",
                *told,
                *advice,
            ),
        )

    def phases(self, ctx: Context, done: Done) -> Phase | None:
        """Make the teachers, patches if recovery begins with them, and the units; look at them.

        Raises:
            InputError: if the units do not fit on the disk, or a teacher knows nothing.
        """
        if "loop" in done:
            return None
        if "teachers" not in done:
            return teacher_phase(self.teacher, ctx)
        start = self.recovery.start
        if start == "patches" and "patches" not in done:
            return patch_phase(self.patches, ctx, done)
        if "recovered" in done:
            return last_phase(self, ctx, done, loop(ctx))
        teachers, store = teachers_of(ctx, done), ctx.store or Store(default_cache())
        tasks = recover_tasks(
            tuple(teachers),
            self.recovery,
            self.units(ctx),
            seed=ctx.seed,
            compute=ctx.plan.tasks,
            folders={teacher.digest: folder for teacher, folder in teachers.items()},
            store=store,
            data=ctx.data.ref if start == "real" else None,
            patches=patch_phase(self.patches, ctx, done).specs if start == "patches" else (),
            together=self.together,
        )
        store.need_room(tasks.kind, tasks.specs, self._bytes(ctx), what="recovered images")
        return tasks

    def _bytes(self, ctx: Context) -> int:
        """Return the bytes of the units on disk."""
        area = ctx.data.channels * ctx.data.size[0] * ctx.data.size[1]
        return ctx.ipc * ctx.data.n_classes * area * (1 + len(self.recovery.snapshots))

    def pixels(self, ctx: Context) -> Tensor:
        """Return the recovered images, uint8, class by class."""
        store = ctx.store or Store(default_cache())
        return _gathered(store, tuple(ctx.done["recovered"]), ctx.data.n_classes, ctx.ipc)

    def scaled(self, scale: Literal["smoke", "cpu"]) -> Self:
        """Return the method with at most the counts of the scale; nothing else changes."""
        smoke = scale == "smoke"
        steps = min(self.recovery.iterations, 20 if smoke else 1000)
        snapshots = tuple(step for step in self.recovery.snapshots if step <= steps)
        patched = self.recovery.start == "patches"
        return dataclasses.replace(
            self,
            teacher=self.teacher.scaled(scale),
            recovery=dataclasses.replace(self.recovery, iterations=steps, snapshots=snapshots),
            patches=self.patches.scaled(scale) if patched else self.patches,
            **scaled_training(self, scale),
        )

    init, step, export = begin, look, export


@lru_cache(maxsize=1)
def _gathered(store: Store, folders: Sequence[Path], classes: int, ipc: int) -> Tensor:
    """Return the images of finished units; the last ones are kept at hand."""
    return gathered(store, folders, classes, ipc)


@METHODS.add("sre2l")
@record
@dataclass(frozen=True, kw_only=True)
class SRe2L(Recovering):
    """Recover images from a trained network (Yin, Xing and Shen, NeurIPS 2023)."""


@METHODS.add("cda")
@record
@dataclass(frozen=True, kw_only=True)
class CDA(Recovering):
    """SRe2L with crops that are whole at first and small at the end (Yin and Shen, TMLR 2024)."""

    recovery: Recovery = CDA_TINY
