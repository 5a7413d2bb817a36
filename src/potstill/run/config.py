"""What a run is, and what is checked and resolved before it costs time."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from potstill.core.errors import InputError, unknown
from potstill.core.spec import record
from potstill.core.store import Store, default_cache
from potstill.data import DataSet, Reading, make_space, open_data
from potstill.engine import ENGINES
from potstill.functional import choose_strategy
from potstill.methods.api import Context, Cost, Plan, SynthBlock
from potstill.nets import FlatNet, NetSpec, build, describe, fitting


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
    normaliser: str = "measured"
    """`measured` (mean and std of the training part), named statistics such as cifar10@mtt, or
    whitening: zca-mtt, zca-kip (zca-mtt:800 keeps rank 800, zca-mtt:full allows large images)."""
    resize: int | None = None
    """Resize the images to this many pixels a side (see --fit)."""
    fit: Literal["crop", "squash"] = "crop"
    """With --resize: crop the centre to a square, or squash the whole image into it."""
    classes: str | None = None
    """Only these classes, in this order: names with commas, or a list such as imagenette@mtt."""
    replacement: bool = False
    """Let classes with fewer images than ipc give images twice (each once before any twice)."""
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

    @property
    def reading(self) -> Reading:
        """Return how images are read from the source."""
        return Reading(resize=self.resize, fit=self.fit, classes=self.classes)


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
        if self.store is not None and self.store.exists() and not self.store.is_dir():
            raise InputError(f"The store {self.store} is a file; name a folder.")
        if self.workers < 1:
            raise InputError(f"workers must be at least 1, not {self.workers}.")
        if self.engine == "inline" and self.workers > 1:
            raise InputError(f"{self.workers} workers need the engine 'processes'.")

    def open_store(self) -> Store:
        """Return the store."""
        return Store(self.store if self.store is not None else default_cache())


def open_run_data(run: Run) -> DataSet:
    """Open the images of a run."""
    return open_data(
        run.data,
        resize=run.resize,
        fit=run.fit,
        classes=run.classes,
        validation=run.validation,
        limit=run.limit,
    )


def resolved(run: Run, data: DataSet) -> Run:
    """Return the run with all settings of its network; `auto` is a ConvNet that ends at ~4x4."""
    return dataclasses.replace(run, net=fitting(run.net, data.size))


def preflight(
    run: Run, data: DataSet, plan: Plan | None = None, *, store: Store | None = None
) -> tuple[Context, Cost]:
    """Check a run against its data and resolve its plan, before anything costs time.

    Raises:
        InputError: for settings that cannot work.
    """
    if data.n_classes < 2:
        raise InputError(
            f"{run.data} has one class only ({data.classes[0]!r}); at least 2 are needed."
        )
    run = resolved(run, data)
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
    if run.ipc > count and not run.replacement:
        raise InputError(
            f"ipc {run.ipc} is larger than class {data.classes[smallest]!r}, which has {count} "
            "training images (a part is kept for validation); lower ipc or add --replacement."
        )
    if run.select_every and not hasattr(run.method, "iterations"):
        name = type(run.method).__name__.lower()
        raise InputError(
            f"select_every is for methods that improve their images step by step; {name} does not."
        )
    unresolved = Plan(strategy="adjoint", threads=run.threads or torch.get_num_threads())
    ctx = Context(
        data=data,
        space=make_space(run.normaliser, data),
        net=FlatNet(module),
        net_spec=run.net,
        ipc=run.ipc,
        seed=run.seed,
        plan=plan or unresolved,
        synth=(SynthBlock(ipc=run.ipc),),
        replacement=run.replacement,
        store=store,
    )
    run.method.check(ctx)
    cost = run.method.cost(ctx)
    if run.strategy != "auto" and not cost.graph_bytes:
        raise InputError(
            f"strategy {run.strategy!r} is for methods with an unrolled gradient; "
            f"{type(run.method).__name__.lower()} has none."
        )
    if plan is None:
        budget = int(run.memory * 2**30)
        strategy = choose_strategy(run.strategy, predicted=cost.graph_bytes, budget=budget)
        ctx = dataclasses.replace(ctx, plan=Plan(strategy=strategy, threads=unresolved.threads))
    return ctx, cost


def plan_lines(run: Run, data: DataSet, store: Store | None = None) -> list[str]:
    """Return what a run will need, as lines for people."""
    run = resolved(run, data)
    ctx, cost = preflight(run, data, store=store)
    return [
        plan_line(run, ctx, cost),
        *([_gradient_line(run, cost)] if cost.graph_bytes else []),
        *cost.notes,
    ]


def _gradient_line(run: Run, cost: Cost) -> str:
    """Return what both ways of the unrolled gradient need."""
    return (
        f"graph of all student steps: {cost.graph_bytes / 2**20:.0f} MiB; adjoint: "
        f"{cost.adjoint_bytes / 2**20:.0f} MiB; budget {run.memory:g} GiB; "
        f"{cost.steps} outer steps"
    )


def plan_line(run: Run, ctx: Context, cost: Cost) -> str:
    """Return data, network, strategy, threads and disk of a run in one line."""
    need = cost.graph_bytes if ctx.plan.strategy == "graph" else cost.adjoint_bytes
    gradient = f"gradient {ctx.plan.strategy} ({need / 2**20:.0f} MiB); " if need else ""
    return (
        f"{run.data}: {len(ctx.data.train)} training images, {ctx.data.n_classes} classes, "
        f"{ctx.data.channels}x{ctx.data.size[0]}x{ctx.data.size[1]}; ipc {run.ipc}; "
        f"{describe(run.net)}; {ctx.space.describe()}; {gradient}{ctx.plan.threads} threads; "
        f"experts on disk {cost.disk_bytes / 2**20:.0f} MiB"
    )
