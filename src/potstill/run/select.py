"""Which set of a loop is kept: the best of some checks on the validation part, or the last."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from potstill.artefact import DistilledSet, set_digest
from potstill.core.files import read_json
from potstill.core.store import Store
from potstill.engine import Tasks, run_tasks
from potstill.evaluation import Distilled, EvalSpec, evaluate_one
from potstill.methods.api import Context
from potstill.run.config import Run, Where


def exported(run: Run, ctx: Context, state: Any, it: int, selection: str) -> DistilledSet:
    """Return the set of a state, with the outer step and the rule that took it."""
    s = run.method.export(ctx, state)
    origin = dataclasses.replace(s.origin, iteration=it, selection=selection)
    return dataclasses.replace(s, origin=origin)


def better(
    run: Run,
    ctx: Context,
    state: Any,
    it: int,
    best: dict[str, Any] | None,
    out: Path,
    store: Store,
    where: Where,
) -> dict[str, Any]:
    """Save the set of this moment, score it on the validation part, return the better one."""
    candidate = exported(run, ctx, state, it, "candidate")
    folder = out / "candidates" / str(it)
    candidate.save(folder)
    specs = tuple(
        EvalSpec(
            what=Distilled(digest=set_digest(candidate)),
            net=run.net,
            train=candidate.training,
            seed=1000 + k,
            data=ctx.data.ref,
            space=ctx.space.record(),
            compute=ctx.plan.tasks,
        )
        for k in range(run.select_nets)
    )
    tasks = Tasks(
        kind="evaluations",
        fn=evaluate_one,
        specs=specs,
        context={set_digest(candidate): str(folder)},
        label="check",
    )
    run_tasks(tasks, store, engine=where.engine, workers=where.workers)
    folders = [store.verify(tasks.kind, spec) for spec in specs]
    values = [read_json(f / "result.json")["val"] for f in folders]
    score = sum(values) / len(values)
    return {"it": it, "score": score} if best is None or score > best["score"] else best
