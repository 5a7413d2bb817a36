"""How a run begins, and what all processes but the first do when torchrun started several."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from potstill.artefact import DistilledSet, load
from potstill.core.errors import InputError
from potstill.core.store import Store, existing, need_room
from potstill.core.threads import using_threads
from potstill.data import DataSet
from potstill.engine import Tasks, joined, run_together, take_gpu
from potstill.methods.api import Context, Cost, Plan, name_of
from potstill.run.config import Run, Where, open_run_data, resolved
from potstill.run.folder import check_machine, made, occupied, plan_of, resume_line
from potstill.run.parts import check_part
from potstill.run.plan import preflight
from potstill.run.stop import stoppable

Ready = tuple[Run, Context, Cost, Plan | None]
"""The resolved run, its context, its cost, and the plan in its folder."""


def begun(run: Run, out: Path, data: DataSet | None, where: Where) -> DistilledSet | Ready:
    """Return what a run in `out` needs to go on, the same in all processes, or its finished set.

    Nothing is written. The plan is the recorded one, else the first process's.

    Raises:
        InputError: for settings, data, a folder or a machine that cannot work.
    """
    ranks = joined()
    ready = ranks.in_turn(lambda: _ready(run, out, data, where))
    if isinstance(ready, DistilledSet):
        return ready
    run, ctx, cost, plan = ready
    if plan is None and cost.batch:
        ctx = dataclasses.replace(ctx, plan=dataclasses.replace(ctx.plan, ranks=ranks.world))
    ctx = dataclasses.replace(ctx, plan=ranks.first(lambda: ctx.plan), ranks=ranks)
    ranks.in_turn(lambda: _check_here(run, ctx, cost, out))
    check_part(run, ctx, where.units)
    return run, ctx, cost, plan


def _ready(run: Run, out: Path, data: DataSet | None, where: Where) -> DistilledSet | Ready:
    """Return what this process finds."""
    if occupied(out):
        raise InputError(f"{out} exists and is not a run; choose another folder.")
    data = data or open_run_data(run)
    run = resolved(run, data)
    plan = plan_of(run, out, data)
    if (found := made(out)) is not None:
        return found
    ctx, cost = preflight(run, data, plan, store=where.open_store(), workers=where.workers)
    if isinstance(first := run.method.phases(ctx, {}), Tasks):
        where.open_store().need_room(first.kind, first.specs, cost.disk_bytes)
    disks = {existing(folder).stat().st_dev for folder in (out, where.open_store().root)}
    if plan is None and len(disks) > 1:
        need_room(out, cost.set_bytes, what="labels of the set", hint="choose another --out")
    return run, ctx, cost, plan


def _check_here(run: Run, ctx: Context, cost: Cost, out: Path) -> None:
    """Refuse processes that do not divide the tasks, and a machine that cannot follow the plan."""
    world, tasks, name = ctx.ranks.world, cost.shares, name_of(run.method)
    if cost.batch and cost.batch % world:
        raise InputError(
            f"{world} processes cannot share the training of the teacher of {name}, of which a "
            f"step has {cost.batch} images: their number must divide that of the images."
        )
    if tasks % world and not cost.batch:
        raise InputError(
            f"{world} processes cannot share an outer step of {name}, which has {tasks} "
            f"task{'s' * (tasks > 1)}: their number must divide that of the tasks."
        )
    check_machine(ctx.plan, out)
    if world > 1 and ctx.plan.window.device == "cuda":
        take_gpu()


def follow(run: Run, ctx: Context, out: Path, store: Store) -> DistilledSet:
    """Take part in the work of a run whose files, checks and other tasks are the first process's.

    Raises:
        WorkError: if the first process ended.
    """
    done: dict[str, Any] = {}
    began = time.process_time()
    with using_threads(ctx.plan.window.threads), stoppable(resume_line(out)) as stop:
        if ctx.ranks.first(bool):
            return load(out / "distilled")
        while (phase := run.method.phases(ctx, done)) is not None:
            if isinstance(phase, Tasks):
                if phase.together:
                    run_together(phase, store, ctx.ranks)
                done[phase.phase] = ctx.ranks.first(list)
                continue
            kept = out / "stages" / phase.stage if phase.stage else out / "distilled"
            if ctx.ranks.first(bool):
                done[phase.stage] = [kept]
                continue
            looped = dataclasses.replace(ctx, nets=phase.nets, done=dict(done))
            it, state = ctx.ranks.first(tuple)
            with stop.gently():
                while it < phase.first + phase.steps and not stop.anywhere(ctx.ranks):
                    state, _ = run.method.step(looped, state, it)
                    it += 1
            ctx.ranks.total(time.process_time() - began)
            began = time.process_time()
            if it < phase.first + phase.steps:
                stop.check()
            ctx.ranks.first(tuple)
            done[phase.stage or "loop"] = [kept]
    return load(out / "distilled")
