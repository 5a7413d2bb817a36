"""Work as a list of tasks named by the hash of their spec: inline, in processes, on a cluster."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from potstill.core.compute import Compute
from potstill.core.errors import InputError, WorkError, unknown
from potstill.core.store import Store
from potstill.core.threads import using_threads
from potstill.engine.progress import heard_by
from potstill.engine.ray import Job, in_ray

ENGINES = ("inline", "processes", "ray")


@dataclass(frozen=True, kw_only=True)
class Tasks:
    """A top-level function over frozen specs; `context` (paths) is no part of a task's name.

    `fn(spec, context, folder)` writes its outputs in `folder`. A spec with a `Compute` named
    `compute` is run with its number of torch threads, any other with the caller's.
    """

    kind: str
    fn: Callable[[Any, dict[str, str], Path], None]
    specs: tuple[Any, ...]
    context: dict[str, str] = field(default_factory=dict)
    label: str = "task"
    name: str = ""
    """Under what a run knows the folders of this phase; by default the kind."""
    together: bool = False
    """Whether processes of torchrun do each task together (`run_together`)."""

    @property
    def phase(self) -> str:
        """Return the name of the phase."""
        return self.name or self.kind


def run_tasks(
    tasks: Tasks,
    store: Store,
    *,
    engine: str = "inline",
    workers: int = 1,
    on_done: Callable[[int, int], None] | None = None,
    on_part: Callable[[float, str], None] | None = None,
) -> list[Path]:
    """Run what is not finished yet and return the folder of every spec, in the order of specs.

    The results do not depend on engine and workers. `on_done(finished, all)` is called after each
    task, finished ones included; `on_part(finished, what)` within a task inline that tells its
    `progress`, with the part of it that is done: (2.35, "epoch 7 of 20"). After a failure no new
    task starts, those under way are finished and kept. An interrupt ends the workers and keeps what
    is finished. The engine ray@ADDRESS joins a Ray cluster, ray starts one here; both begin a task
    anew whose worker died.

    Raises:
        InputError: for an unknown engine, a wrong number of workers, or as a task raised it.
        WorkError: if a task failed or a worker died; names the task.
    """
    check_engine(engine, workers)
    store.tidy(tasks.kind)
    paths = [store.path(tasks.kind, spec) for spec in tasks.specs]
    first = {path: place for place, path in reversed(list(enumerate(paths)))}
    places = sorted(p for p in first.values() if not store.has(tasks.kind, tasks.specs[p]))
    jobs = [
        partial(
            _do,
            tasks.fn,
            tasks.specs[place],
            tasks.context,
            store,
            tasks.kind,
            name=f"{tasks.label} {place + 1} of {len(paths)} ({paths[place].name})",
            threads=threads_of(tasks.specs[place]),
        )
        for place in places
    ]
    finished = len(first) - len(jobs)

    def tick() -> None:
        nonlocal finished
        finished += 1
        if on_done is not None:
            on_done(finished, len(first))

    def part(done: int, of: int, what: str) -> None:
        if on_part is not None and done < of:
            on_part(finished + done / of, f"{what} {done:,} of {of:,}")

    workers = min(workers, len(jobs))
    if jobs and engine == "inline":
        for job in jobs:
            with heard_by(part):
                job()
            tick()
    elif jobs and engine == "processes":
        _in_processes(jobs, workers, tick)
    elif jobs:
        sized = [
            Job(job, cpus=job.keywords["threads"], gpus=_gpus(tasks.specs[place]))
            for job, place in zip(jobs, places, strict=True)
        ]
        in_ray(sized, workers, tick, address=engine.partition("@")[2])
    return paths


def check_engine(engine: str, workers: int) -> None:
    """Refuse an engine that there is not, or that has no so many workers.

    Raises:
        InputError: saying what is allowed.
    """
    name, at, address = engine.partition("@")
    if name not in ENGINES or (at and (name != "ray" or not address)):
        raise unknown("engine", engine, ENGINES)
    if workers < 1 or (engine == "inline" and workers > 1):
        raise InputError(
            "workers must be 1 for the engine 'inline', and 1 or more for 'processes' and 'ray', "
            f"not {workers} for {engine!r}."
        )
    if name == "ray" and importlib.util.find_spec("ray") is None:
        raise InputError("The engine 'ray' needs the package ray: pip install 'potstill[ray]'.")


def _gpus(spec: Any) -> int:
    return int(getattr(getattr(spec, "compute", None), "device", "cpu") == "cuda")


def threads_of(spec: Any) -> int:
    """Return the threads that a task is run with."""
    compute = getattr(spec, "compute", None)
    return compute.threads if isinstance(compute, Compute) else torch.get_num_threads()


def _do(
    fn: Callable[[Any, dict[str, str], Path], None],
    spec: Any,
    context: dict[str, str],
    store: Store,
    kind: str,
    *,
    name: str,
    threads: int,
) -> None:
    """Do one task and file its result; a failure comes out as InputError or WorkError."""
    try:
        with using_threads(threads):
            store.put(kind, spec, lambda folder: fn(spec, context, folder))
    except (InputError, WorkError) as error:
        raise type(error)(f"{name}: {error}") from error
    except Exception as error:
        raise WorkError(f"{name} failed: {type(error).__name__}: {error}") from error


def _in_worker(job: Callable[[], None]) -> None:
    try:
        job()
    except SystemExit:  # asked to stop: the unfinished folder is removed by now
        os._exit(1)


def _obey_parent_only() -> None:
    """Leave Ctrl-C to the parent, unwind at its SIGTERM, and end when it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _in_processes(jobs: list[partial[None]], workers: int, tick: Callable[[], None]) -> None:
    failure: BaseException | None = None
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=spawn, initializer=_obey_parent_only)
    try:
        futures = [pool.submit(_in_worker, job) for job in jobs]
        for future in as_completed(futures):
            error = None if future.cancelled() else future.exception()
            if error is not None and failure is None:
                failure = error
                for other in futures:
                    other.cancel()
            elif error is None and not future.cancelled():
                tick()
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    if isinstance(failure, BrokenProcessPool):
        raise WorkError(
            "A worker process died (out of memory, killed, or a script that starts potstill "
            "without `if __name__ == '__main__':`)."
        ) from failure
    if failure is not None:
        raise failure
