"""Carry out a run: phases in order, resumable at any moment."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from potstill.artefact import DistilledSet, load
from potstill.core.errors import InputError
from potstill.core.files import locked, sweep, write_json
from potstill.core.log import Metrics, Quiet, Reporter
from potstill.core.spec import canonical
from potstill.core.state import load_tree, save_tree
from potstill.core.store import Store
from potstill.core.threads import using_threads
from potstill.data import DataSet, keep_space
from potstill.engine import Tasks, joined, run_tasks, run_together
from potstill.experts import Ahead, Conditioned, Paths, Trajectories
from potstill.methods.api import Context, Loop
from potstill.run.config import Run, Where
from potstill.run.folder import (
    config_of,
    environment,
    made,
    plan_of,
    read_run,
    recorded_data,
    resume_line,
)
from potstill.run.parts import part_done, part_of
from potstill.run.plan import plan_line
from potstill.run.select import better, exported
from potstill.run.shared import begun, follow
from potstill.run.spent import Spent
from potstill.run.stop import Stop, stoppable


def distil(
    run: Run,
    out: Path,
    *,
    data: DataSet | None = None,
    where: Where | None = None,
    report: Reporter | None = None,
) -> DistilledSet:
    """Carry out a run in the folder `out`, or go on with it; return the distilled set.

    Processes that torchrun started share the outer steps; all else is the first one's work.

    Raises:
        InputError: for bad settings or data, a folder that holds another run, or one in use.
        WorkError: if the work failed.
        Interrupted: after Ctrl-C or SIGTERM; the run can be resumed.
        PartDone: when the units that `where` names are finished.
    """
    where, report = where or Where(), report or Quiet()
    ready = begun(run, out, data, where)
    if isinstance(ready, DistilledSet):
        return ready
    run, ctx, cost, plan = ready
    if ctx.ranks.rank:
        return follow(run, ctx, out, where.open_store())
    data, config = ctx.data, config_of(run, ctx, ctx.data)
    with locked(out), using_threads(ctx.plan.window.threads), stoppable(resume_line(out)) as stop:
        if plan != plan_of(run, out, data):
            raise InputError(f"Another process began the same run in {out} just now.")
        if plan is None:
            write_json(out / "config.json", config)
        for folder in (out, out / "state", out / "candidates", out / "stages"):
            sweep(folder)
        write_json(out / "env.json", environment())
        keep_space(ctx.space)  # for tasks in other processes
        notes = ("smoke: not a result",) if run.scale == "smoke" else ()
        for line in (*notes, *data.notes, *cost.notes, plan_line(run, ctx, cost)):
            report.say(line)
        return _phases(run, ctx, out, where, report, stop)


def resume(
    out: Path, *, where: Where | None = None, report: Reporter | None = None
) -> DistilledSet:
    """Go on with the run in a folder; a finished run returns its set at once.

    Raises:
        InputError: if the folder is not a run, or as `distil`.
    """
    run, found = joined().in_turn(lambda: (read_run(out), made(out) or recorded_data(out)))
    if isinstance(found, DistilledSet):
        return found
    return distil(run, out, data=found, where=where, report=report)


def _phases(
    run: Run, ctx: Context, out: Path, where: Where, report: Reporter, stop: Stop
) -> DistilledSet:
    store, done = where.open_store(), {}
    found = made(out)  # as `sweep` found it
    ctx.ranks.first(lambda: found is not None)
    if found is not None:
        return found
    spent = Spent(out / "state" / "spent.json")
    result: DistilledSet | None = None
    while (phase := run.method.phases(ctx, done)) is not None:
        if isinstance(phase, Tasks):
            part = part_of(run, ctx, phase, where.units)
            with report.phase(phase.label, len(part.specs)) as advance:
                tick = partial(_tick, advance)
                if phase.together:
                    run_together(phase, store, ctx.ranks, on_done=tick, on_part=advance)
                else:
                    run_tasks(
                        part,
                        store,
                        engine=where.engine,
                        workers=where.workers,
                        on_done=tick,
                        on_part=advance,
                    )
            if where.units is not None and part is not phase:
                spent.save()
                raise part_done(where.units, len(phase.specs))
            done[phase.phase] = [store.verify(phase.kind, spec) for spec in phase.specs]
            ctx.ranks.first(lambda phase=phase: done[phase.phase])
            spent.save()
        else:
            kept = out / "stages" / phase.stage if phase.stage else None
            there = ctx.ranks.first(lambda kept=kept: kept is not None and kept.is_dir())
            if kept is not None and there:
                done[phase.stage] = [kept]
                continue
            nets = phase.nets
            stored = Trajectories | Paths | Conditioned
            if ctx.plan.window.device == "cuda" and isinstance(nets, stored):
                nets = Ahead(nets)  # the disk is read while the GPU computes
            looped = dataclasses.replace(ctx, nets=nets, done=dict(done))
            with stop.gently():
                result = _loop(run, looped, phase, out, store, where, report, stop, spent)
            result = _signed(run, result, spent)
            kept = kept or out / "distilled"
            result.save(kept)
            ctx.ranks.first(lambda: None)  # the others wait for it
            done[phase.stage or "loop"] = [kept]
    assert result is not None
    return result


def _tick(advance: Callable[[int], None], done: int, total: int) -> None:
    advance(done)


def _signed(run: Run, s: DistilledSet, spent: Spent) -> DistilledSet:
    """Return a set with what the method does not know of where it comes from."""
    cost = canonical(spent.total())
    origin = dataclasses.replace(s.origin, recipe=run.recipe, cost=cost, reading=run.reading)
    return dataclasses.replace(s, origin=origin)


def _loop(
    run: Run,
    ctx: Context,
    loop: Loop,
    out: Path,
    store: Store,
    where: Where,
    report: Reporter,
    stop: Stop,
    spent: Spent,
) -> DistilledSet:
    """Take the outer steps from the last checkpoint on and return the chosen set."""
    file = out / "state" / "checkpoint.safetensors"
    rests = {name: [folder.name for folder in folders] for name, folders in ctx.done.items()}
    saved = _restored(file, rests) if file.exists() else None
    begin, end, of = loop.first, loop.first + loop.steps, f" of {loop.stage}" if loop.stage else ""
    if saved is not None and saved[0] == loop.stage:
        _, it, state, best = saved
        report.say(f"Going on at outer step {it - begin} of {loop.steps}{of}.")
    else:
        it, state, best = begin, run.method.init(ctx), None
    it, state = ctx.ranks.first(lambda: (it, state))
    if loop.opening is not None and it == begin:
        report.say(loop.opening(ctx, state))
    metrics = Metrics(out / "metrics.jsonl", keep_before=it)

    def checkpoint() -> None:
        metrics.sync()
        known = {"stage": loop.stage, "it": it, "state": state, "best": best}
        save_tree(file, {**known, "rests": canonical(rests)})
        spent.save()

    saved_at = time.monotonic()
    try:
        with report.phase(f"distilling{of}", loop.steps, it - begin) as advance:
            while it < end and not stop.anywhere(ctx.ranks):
                state, numbers = run.method.step(ctx, state, it)
                metrics.write(it, numbers)
                it += 1
                if numbers.get("undone"):
                    report.say(f"Outer step {it - 1} was not finite: undone.")
                advance(it - begin, " ".join(f"{k} {v:.4g}" for k, v in list(numbers.items())[:2]))
                if _is_mark(run, it - begin, loop.steps):
                    best = better(run, ctx, state, it, best, out, store, where)
                    checkpoint()
                elif time.monotonic() - saved_at >= where.checkpoint_seconds:
                    checkpoint()
                    saved_at = time.monotonic()
        spent.add(ctx.ranks.total(0.0))
        checkpoint()
        stop.check()
    finally:
        metrics.close()
    if best is None:
        return exported(run, ctx, state, it, "last outer step")
    rule = f"best of validation checks every {run.select_every} outer steps"
    chosen = load(out / "candidates" / str(best["it"]))
    origin = dataclasses.replace(chosen.origin, selection=rule)
    return dataclasses.replace(chosen, origin=origin)


def _restored(
    file: Path, rests: dict[str, list[str]]
) -> tuple[str, int, Any, dict[str, Any] | None]:
    """Return stage, outer step, state and best candidate of a checkpoint.

    Refuse a file that cannot be read, or steps that rest on other finished tasks than `rests`.
    """
    try:
        saved = load_tree(file)
        found = saved.get("stage", ""), saved["it"], saved["state"], saved["best"]
        before = json.loads(saved.get("rests", "{}"))
        other = [name for name, folders in before.items() if rests.get(name) != folders]
    except (InputError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"The checkpoint cannot be read ({error}) Remove {file} to begin the outer steps "
            "anew; the experts are kept."
        ) from error
    if other:
        raise InputError(
            f"The {other[0]} are no longer those that this run began with: bring back the files "
            f"that they were made of, or remove {file} to begin the outer steps anew."
        )
    return found


def _is_mark(run: Run, it: int, last: int) -> bool:
    return run.select_every > 0 and (it % run.select_every == 0 or it == last)
