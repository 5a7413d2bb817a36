"""Runs: one configuration, one folder, phases in order, resumable at any moment."""

from __future__ import annotations

import dataclasses
import math
import os
import platform
import resource
import shlex
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from potstill.artefact import DistilledSet, load
from potstill.core.errors import InputError, unknown
from potstill.core.files import locked, read_json, sweep, write_json
from potstill.core.log import Metrics, Quiet, Reporter
from potstill.core.spec import canonical, differences, from_json, record, to_json
from potstill.core.state import load_tree, save_tree
from potstill.core.store import Store, default_cache
from potstill.core.version import __version__
from potstill.data import DataSet, measure_stats, named_stats, open_data
from potstill.engine import ENGINES, Tasks, run_tasks
from potstill.evaluation.tasks import Distilled, EvalSpec, evaluate_one, set_digest
from potstill.functional import choose_strategy
from potstill.methods.api import Context, Cost, Loop, Plan, SynthBlock
from potstill.nets import FlatNet, NetSpec, build


@record
@dataclass(frozen=True, kw_only=True)
class Run:
    """A distillation: the method, the images, and how the result is chosen."""

    method: Any
    """The method with its settings."""
    data: str
    """Where the images come from: digits, folder:DIR, parquet:DIR (see `potstill datasets`)."""
    ipc: int
    """Distilled images per class."""
    net: NetSpec = NetSpec(name="auto")
    """The network that the set is distilled with; auto = a ConvNet that ends at about 4x4."""
    stats: str = "measured"
    """Normaliser: `measured` on the training part, or a named one such as cifar10@mtt."""
    resize: int | None = None
    """Resize the images so that the shorter side has this many pixels, and crop the centre."""
    limit: int | None = None
    """Use at most this many training images a class."""
    validation: float = 0.1
    """Part of the training images kept for validation."""
    seed: int = 0
    """Seed of everything random."""
    select_every: int = 0
    """Check the set on validation images every so many outer steps, keep the best; 0 = last."""
    select_nets: int = 2
    """Networks trained for one such check."""
    strategy: Literal["graph", "adjoint", "auto"] = "auto"
    """Gradient through the student steps: graph | adjoint | auto (by the memory budget)."""
    memory: float = 4.0
    """Memory budget of that gradient in GiB."""
    threads: int | None = None
    """Threads of torch; as many as torch finds by default. They change the last bits."""
    recipe: str | None = None
    """The recipe that this run follows, if any."""
    scale: str = "full"
    """full, or the smaller counts of `cpu` or `smoke`."""

    def __post_init__(self) -> None:
        if self.ipc < 1:
            raise InputError(f"ipc (images per class) must be at least 1, not {self.ipc}.")
        if self.select_every < 0 or self.select_nets < 1:
            raise InputError("select_every must be at least 0 and select_nets at least 1.")
        if not 0 < self.memory < math.inf:
            raise InputError(
                f"The memory budget must be a number of GiB above 0, not {self.memory}."
            )
        if self.threads is not None and self.threads < 1:
            raise InputError(f"threads must be at least 1, not {self.threads}.")


@dataclass(frozen=True, kw_only=True)
class Where:
    """Where and by whom the work is done; changes nothing in the result."""

    engine: str = "inline"
    """inline, or processes for several tasks side by side."""
    workers: int = 1
    """Worker processes."""
    store: Path | None = None
    """Folder of experts and evaluations; in the user's cache by default."""
    checkpoint_seconds: float = 30.0
    """Seconds of outer steps between two checkpoints; what a killed run loses at most."""

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise unknown("engine", self.engine, ENGINES)
        if self.workers < 1:
            raise InputError(f"workers must be at least 1, not {self.workers}.")
        if self.engine == "inline" and self.workers > 1:
            raise InputError(f"{self.workers} workers need the engine 'processes'.")

    def open_store(self) -> Store:
        """Return the store."""
        return Store(self.store if self.store is not None else default_cache())


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM asked the work to stop; what is finished is saved."""


def open_run_data(run: Run) -> DataSet:
    """Open the images of a run."""
    return open_data(run.data, resize=run.resize, validation=run.validation, limit=run.limit)


def resolved(run: Run, data: DataSet) -> Run:
    """Return the run with the network `auto` replaced by the ConvNet that ends at about 4x4."""
    if run.net.name != "auto":
        return run
    depth = max(1, min(8, round(math.log2(min(data.size) / 4))))
    return dataclasses.replace(run, net=dataclasses.replace(run.net, name=f"convnet{depth}"))


def preflight(run: Run, data: DataSet, plan: Plan | None = None) -> tuple[Context, Cost]:
    """Check a run against its data and resolve its plan, before anything costs time.

    Raises:
        InputError: for settings that cannot work.
    """
    space = measure_stats(data.train) if run.stats == "measured" else named_stats(run.stats)
    if len(space.mean) != data.channels:
        raise InputError(
            f"The statistics {run.stats!r} are for {len(space.mean)} channels; the images of "
            f"{data.source} have {data.channels}."
        )
    module = build(
        run.net,
        channels=data.channels,
        size=data.size,
        classes=data.n_classes,
        seed=run.seed,
        key=("student",),
    )
    smallest = int(torch.bincount(data.train.labels, minlength=data.n_classes).argmin())
    count = int((data.train.labels == smallest).sum())
    if run.ipc > count:
        raise InputError(
            f"ipc {run.ipc} is larger than class {data.classes[smallest]!r}, which has {count} "
            "training images (a part is kept for validation)."
        )
    unresolved = Plan(strategy="adjoint", threads=run.threads or torch.get_num_threads())
    ctx = Context(
        data=data,
        space=space,
        net=FlatNet(module),
        net_spec=run.net,
        ipc=run.ipc,
        seed=run.seed,
        plan=plan or unresolved,
        synth=(SynthBlock(ipc=run.ipc),),
    )
    run.method.check(ctx)
    cost = run.method.cost(ctx)
    if plan is None:
        budget = int(run.memory * 2**30)
        strategy = choose_strategy(run.strategy, predicted=cost.graph_bytes, budget=budget)
        ctx = dataclasses.replace(ctx, plan=Plan(strategy=strategy, threads=unresolved.threads))
    return ctx, cost


def distil(
    run: Run,
    out: Path,
    *,
    data: DataSet | None = None,
    where: Where | None = None,
    report: Reporter | None = None,
) -> DistilledSet:
    """Carry out a run in the folder `out`, or go on with it; return the distilled set.

    Raises:
        InputError: for bad settings or data, a folder that holds another run, or one in use.
        WorkError: if the work failed.
        Interrupted: after Ctrl-C or SIGTERM; the run can be resumed.
    """
    where, report = where or Where(), report or Quiet()
    if _occupied(out):
        raise InputError(f"{out} exists and is not a run; choose another folder.")
    data = data or open_run_data(run)
    run = resolved(run, data)
    plan = _recorded_plan(run, out, data)
    if (made := _made(out)) is not None:
        return made
    ctx, cost = preflight(run, data, plan)
    config = _config(run, ctx, data)
    with locked(out), _threads(ctx.plan.threads), stoppable(resume_line(out)) as stop:
        if plan != _recorded_plan(run, out, data):
            raise InputError(f"Another process began the same run in {out} just now.")
        if plan is None:
            write_json(out / "config.json", config)
        for folder in (out, out / "state", out / "candidates"):
            sweep(folder)
        write_json(out / "env.json", _environment())
        notes = ("smoke: not a result",) if run.scale == "smoke" else ()
        for line in (*notes, *data.notes, _plan_line(run, ctx, cost)):
            report.say(line)
        return _phases(run, ctx, out, where, report, stop)


def resume(
    out: Path, *, where: Where | None = None, report: Reporter | None = None
) -> DistilledSet:
    """Go on with the run in a folder; a finished run returns its set at once.

    Raises:
        InputError: if the folder is not a run, or as `distil`.
    """
    run = read_run(out)
    return _made(out) or distil(run, out, where=where, report=report)


def resume_line(out: Path) -> str:
    """Return the command that goes on with a run."""
    return f"potstill resume {shlex.quote(str(out))}"


def plan_lines(run: Run, data: DataSet) -> list[str]:
    """Return what a run will need, as lines for people."""
    run = resolved(run, data)
    ctx, cost = preflight(run, data)
    return [
        _plan_line(run, ctx, cost),
        f"graph of all student steps: {cost.graph_bytes / 2**20:.0f} MiB; adjoint: "
        f"{cost.adjoint_bytes / 2**20:.0f} MiB; budget {run.memory:g} GiB; "
        f"{cost.steps} outer steps",
    ]


def read_run(out: Path) -> Run:
    """Return the configuration of the run in a folder.

    Raises:
        InputError: if the folder is not a run.
    """
    run = from_json(_read_config(out).get("run"))
    if not isinstance(run, Run):
        raise InputError(f"{out / 'config.json'} does not describe a run.")
    return run


def _read_config(out: Path) -> dict[str, Any]:
    if not (out / "config.json").is_file():
        raise InputError(f"{out} is not a run: it has no config.json.")
    config = read_json(out / "config.json")
    if not isinstance(config, dict):
        raise InputError(f"{out / 'config.json'} does not describe a run.")
    return config


def _occupied(out: Path) -> bool:
    """Tell whether something other than a run (or a run that hardly began) is at `out`."""
    if not out.is_dir():
        return out.exists()
    names = [item.name for item in out.iterdir()]
    return "config.json" not in names and not all(name[0] == "." for name in names)


def _made(out: Path) -> DistilledSet | None:
    """Return the set of a finished run."""
    folder = out / "distilled"
    if not folder.is_dir():
        return None
    try:
        return load(folder)
    except InputError as error:
        raise InputError(f"{error} Remove {folder} to have it made again.") from error


def _config(run: Run, ctx: Context, data: DataSet) -> dict[str, Any]:
    return {
        "version": __version__,
        "run": to_json(run),
        "plan": dataclasses.asdict(ctx.plan),
        "identity": data.ref.identity,
    }


def _recorded_plan(run: Run, out: Path, data: DataSet) -> Plan | None:
    """Return the plan of the run already in `out`; refuse another configuration or other data."""
    if not (out / "config.json").exists():
        return None
    old = _read_config(out)
    changed = differences(old.get("run"), to_json(run))
    if old.get("identity") != data.ref.identity:
        changed.append(f"data: the images of {run.data} are not those that the run began with")
    if changed:
        raise InputError(
            f"{out} holds a run with another configuration ({'; '.join(changed)}); choose another "
            "folder."
        )
    return recorded_plan(out)


def recorded_plan(out: Path) -> Plan:
    """Return the plan that was resolved when the run in `out` began."""
    try:
        return Plan(**_read_config(out)["plan"])
    except (KeyError, TypeError):
        raise InputError(f"{out / 'config.json'} does not describe the plan of a run.") from None


def _environment() -> dict[str, Any]:
    return {
        "potstill": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }


def _plan_line(run: Run, ctx: Context, cost: Cost) -> str:
    graph = cost.graph_bytes if ctx.plan.strategy == "graph" else cost.adjoint_bytes
    return (
        f"{run.data}: {len(ctx.data.train)} training images, {ctx.data.n_classes} classes, "
        f"{ctx.data.channels}x{ctx.data.size[0]}x{ctx.data.size[1]}; ipc {run.ipc}; "
        f"{run.net.name} width {run.net.width}; gradient {ctx.plan.strategy} "
        f"({graph / 2**20:.0f} MiB); {ctx.plan.threads} threads; "
        f"experts on disk {cost.disk_bytes / 2**20:.0f} MiB"
    )


def _phases(
    run: Run, ctx: Context, out: Path, where: Where, report: Reporter, stop: Stop
) -> DistilledSet:
    store, done = where.open_store(), {}
    if (made := _made(out)) is not None:  # as `sweep` found it
        return made
    began = time.perf_counter(), time.process_time()
    result: DistilledSet | None = None
    while (phase := run.method.phases(ctx, done)) is not None:
        if isinstance(phase, Tasks):
            with report.phase(phase.label, len(phase.specs)) as advance:
                run_tasks(
                    phase,
                    store,
                    engine=where.engine,
                    workers=where.workers,
                    on_done=lambda done, total, advance=advance: advance(done),
                )
            done[phase.kind] = [store.verify(phase.kind, spec) for spec in phase.specs]
        else:
            looped = dataclasses.replace(ctx, nets=phase.nets)
            with stop.gently():
                result = _loop(run, looped, phase, out, store, where, report, stop)
            done["loop"] = [out]
    assert result is not None
    spent = {
        "seconds": round(time.perf_counter() - began[0], 3),
        "cpu_seconds": round(time.process_time() - began[1], 3),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    origin = dataclasses.replace(result.origin, recipe=run.recipe, cost=canonical(spent))
    result = dataclasses.replace(result, origin=origin)
    result.save(out / "distilled")
    return result


def _loop(
    run: Run,
    ctx: Context,
    loop: Loop,
    out: Path,
    store: Store,
    where: Where,
    report: Reporter,
    stop: Stop,
) -> DistilledSet:
    """Take the outer steps from the last checkpoint on and return the chosen set."""
    file = out / "state" / "checkpoint.safetensors"
    if file.exists():
        try:
            saved = load_tree(file)
            it, state, best = saved["it"], saved["state"], saved["best"]
        except (InputError, KeyError, TypeError) as error:
            raise InputError(
                f"The checkpoint cannot be read ({error}) Remove {file} to begin the outer steps "
                "anew; the experts are kept."
            ) from error
        report.say(f"Going on at outer step {it} of {loop.steps}.")
    else:
        it, state, best = 0, run.method.init(ctx), None
    metrics = Metrics(out / "metrics.jsonl", keep_before=it)

    def checkpoint() -> None:
        metrics.sync()
        save_tree(file, {"it": it, "state": state, "best": best})

    saved_at, rolled_back = time.monotonic(), 0.0
    try:
        with report.phase("distilling", loop.steps, it) as advance:
            while it < loop.steps and not stop.asked:
                state, numbers = run.method.step(ctx, state, it)
                metrics.write(it, numbers)
                it += 1
                if numbers.get("rolled_back", 0.0) > rolled_back:
                    rolled_back = numbers["rolled_back"]
                    report.say(f"Outer step {it - 1} was not finite: rolled back.")
                advance(it, " ".join(f"{k} {v:.4g}" for k, v in list(numbers.items())[:2]))
                if _is_mark(run, it, loop.steps):
                    best = _better(run, ctx, state, it, best, out, store, where)
                    checkpoint()
                elif time.monotonic() - saved_at >= where.checkpoint_seconds:
                    checkpoint()
                    saved_at = time.monotonic()
        checkpoint()
        stop.check()
    finally:
        metrics.close()
    if best is None:
        return _exported(run, ctx, state, it, "last outer step")
    rule = f"best of validation checks every {run.select_every} outer steps"
    chosen = load(out / "candidates" / str(best["it"]))
    origin = dataclasses.replace(chosen.origin, selection=rule)
    return dataclasses.replace(chosen, origin=origin)


def _is_mark(run: Run, it: int, last: int) -> bool:
    return run.select_every > 0 and (it % run.select_every == 0 or it == last)


def _exported(run: Run, ctx: Context, state: Any, it: int, selection: str) -> DistilledSet:
    s = run.method.export(ctx, state)
    origin = dataclasses.replace(s.origin, iteration=it, selection=selection)
    return dataclasses.replace(s, origin=origin)


def _better(
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
    candidate = _exported(run, ctx, state, it, "candidate")
    folder = out / "candidates" / str(it)
    candidate.save(folder)
    specs = tuple(
        EvalSpec(
            what=Distilled(digest=set_digest(candidate)),
            net=run.net,
            train=candidate.recipe,
            seed=1000 + k,
            data=ctx.data.ref,
            space=ctx.space,
            threads=ctx.plan.threads,
        )
        for k in range(run.select_nets)
    )
    tasks = Tasks(
        kind="evaluations",
        fn=evaluate_one,
        specs=specs,
        context={"set": str(folder)},
        label="check",
    )
    run_tasks(tasks, store, engine=where.engine, workers=where.workers)
    folders = [store.verify(tasks.kind, spec) for spec in specs]
    values = [read_json(f / "result.json")["val"] for f in folders]
    score = sum(values) / len(values)
    return {"it": it, "score": score} if best is None or score > best["score"] else best


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Stop:
    """Whether someone asked the work to stop; at once in tasks, after the step in the loop."""

    def __init__(self, again: str) -> None:
        self.asked = False
        self._gentle = False
        self._again = again

    def __call__(self, *_: Any) -> None:
        """Take note of a signal."""
        again, self.asked = self.asked, True
        if again or not self._gentle:
            self.check()

    def check(self) -> None:
        """Raise Interrupted, which says how to go on, if the work was asked to stop."""
        if self.asked:
            raise Interrupted(f"to go on: {self._again}")

    @contextmanager
    def gently(self) -> Iterator[None]:
        """Within the block the first request only sets `asked`."""
        self._gentle = True
        try:
            yield
        finally:
            self._gentle = False


@contextmanager
def stoppable(again: str) -> Iterator[Stop]:
    """Let Ctrl-C and SIGTERM stop the work in good order; `again` says how to go on.

    Outside the main thread, where Python cannot take signals, nothing changes.
    """
    stop = Stop(again)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
