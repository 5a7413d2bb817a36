"""Preflight: a run is checked against its data, and what decides rounding is resolved."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch

from potstill.core.compute import Compute, choose
from potstill.core.errors import InputError
from potstill.core.store import Store
from potstill.coresets import size_of
from potstill.data import DataSet, make_space
from potstill.functional import choose_strategy, fresh
from potstill.methods.api import Context, Cost, Plan, SynthBlock, name_of
from potstill.methods.boost import Boost
from potstill.nets import describe, flops
from potstill.run.config import Run, resolved

GRAPH_FLOPS = 2**25
"""Forward work of an image from which on a CPU is faster through the whole graph in eager mode
(0.74 of a plain implementation's time) than through compiled steps of the adjoint (0.87)."""


def preflight(
    run: Run,
    data: DataSet,
    plan: Plan | None = None,
    *,
    store: Store | None = None,
    workers: int = 1,
    recorded: bool = False,
) -> tuple[Context, Cost]:
    """Check a run against its data and resolve its plan, before anything costs time.

    A plan that is given (of a run that is resumed) stands as it is, and so do the settings of a
    `recorded` run, or one with a plan, where a new run with settings of no effect is refused.

    Raises:
        InputError: for settings that cannot work.
    """
    if data.n_classes < 2:
        raise InputError(
            f"{run.data} has one class only ({data.classes[0]!r}); at least 2 are needed."
        )
    run = resolved(run, data)
    net = fresh(run.net, data, seed=run.seed, key=("student",))
    count = _count(run, data)
    one = Compute(threads=1)
    until_the_cost_is_known = Plan(strategy="adjoint", window=one, tasks=one, memory=run.budget)
    ctx = Context(
        data=data,
        space=make_space(run.normaliser, data),
        net=net,
        net_spec=run.net,
        ipc=run.ipc or 0,
        seed=run.seed,
        plan=plan or until_the_cost_is_known,
        synth=() if run.ipc is None else (SynthBlock(ipc=run.ipc),),
        count=count,
        replacement=run.replacement,
        recorded=recorded or plan is not None,
        store=store,
    )
    run.method.check(ctx)
    cost = run.method.cost(ctx)
    if run.strategy != "auto" and not cost.graph_bytes:
        raise InputError(
            f"strategy {run.strategy!r} is for methods with an unrolled gradient; "
            f"{name_of(run.method)} has none."
        )
    if plan is None:
        ctx = replace(ctx, plan=resolve(run, ctx, cost, workers=workers))
    return ctx, cost


def _count(run: Run, data: DataSet) -> int:
    """Return how many images are wanted.

    Raises:
        InputError: if there are fewer, of a class or in all; for a size that means nothing to the
            method; for selection where there are no steps, or no classes to be right about.
    """
    if getattr(run.method, "unlabelled", False):
        return _unlabelled(run, data)
    if run.ipc is None:
        raise InputError(
            f"size {run.size!r} is for methods without classes (mkdt, krr-st, subset-kd, mtt on "
            f"views); {name_of(run.method)} distils class by class: give ipc, images a class."
        )
    smallest = int(torch.bincount(data.train.labels, minlength=data.n_classes).argmin())
    count = int((data.train.labels == smallest).sum())
    if run.ipc > count and not run.replacement:
        raise InputError(
            f"ipc {run.ipc} is larger than class {data.classes[smallest]!r}, which has {count} "
            "training images (a part is kept for validation); lower ipc or add --replacement."
        )
    if run.select_every and isinstance(run.method, Boost):
        raise InputError(
            "select_every is not for boost: its checks would choose among sets of different sizes."
        )
    if run.select_every and not hasattr(run.method, "iterations"):
        name = name_of(run.method)
        raise InputError(
            f"select_every is for methods that improve their images step by step; {name} does not."
        )
    return run.ipc * data.n_classes


def _unlabelled(run: Run, data: DataSet) -> int:
    """Return how many images are wanted for a set of which no classifier is trained."""
    name, of = name_of(run.method), len(data.train)
    if run.replacement:
        raise InputError(f"{name} does not fill classes up, so replacement says nothing.")
    if run.select_every:
        raise InputError(
            f"select_every checks sets by classifiers trained on them; those of {name} have no "
            "labels."
        )
    if run.size is not None:
        return size_of(run.size, of)
    count = (run.ipc or 0) * data.n_classes
    if count > of:
        raise InputError(
            f"ipc {run.ipc} of {data.n_classes} classes makes {count} images; there are only {of} "
            "training images (a part is kept for validation)."
        )
    return count


def plan_lines(
    run: Run, data: DataSet, store: Store | None = None, *, workers: int = 1
) -> list[str]:
    """Return what a run will need, as lines for people."""
    run = resolved(run, data)
    ctx, cost = preflight(run, data, store=store, workers=workers)
    return [
        plan_line(run, ctx, cost),
        *([_gradient_line(run.budget, cost)] if cost.graph_bytes else []),
        *cost.notes,
    ]


def _gradient_line(budget: int, cost: Cost) -> str:
    """Return what both ways of the unrolled gradient need."""
    return (
        f"graph of all student steps: {cost.graph_bytes / 2**20:.0f} MiB; adjoint: "
        f"{cost.adjoint_bytes / 2**20:.0f} MiB; budget {budget / 2**20:.0f} MiB; "
        f"{cost.steps} outer steps"
    )


def plan_line(run: Run, ctx: Context, cost: Cost) -> str:
    """Return data, network, plan and disk of a run in one line."""
    plan = ctx.plan
    need = cost.graph_bytes if plan.strategy == "graph" else cost.adjoint_bytes
    other = plan.prefix if plan.prefix != plan.window.precision else None
    before = f", plain steps before it in {other}" if other else ""
    how = f"({need / 2**20:.0f} MiB), {plan.window.describe()}{before}"
    parts = [
        (need, f"gradient {plan.strategy} {how}"),
        (
            cost.window_images and not need,
            f"image steps {plan.window.describe()}, networks {plan.tasks.describe()}",
        ),
        (cost.disk_bytes or run.select_every, f"experts and checks {plan.tasks.describe()}"),
        (cost.disk_bytes, f"experts on disk {cost.disk_bytes / 2**20:.0f} MiB"),
    ]
    said = "; ".join(text for there, text in parts if there)
    return (
        f"{run.data}: {len(ctx.data.train)} training images, {ctx.data.n_classes} classes, "
        f"{ctx.data.channels}x{ctx.data.size[0]}x{ctx.data.size[1]}; {run.amount}; "
        f"{describe(run.net)}; {ctx.space.describe()}{'; ' if said else ''}{said}"
    )


def resolve(run: Run, ctx: Context, cost: Cost, *, workers: int = 1) -> Plan:
    """Return strategy, device, threads, precision, compilation and memory of a run.

    A wish of the run wins. Tasks side by side share torch's threads, the outer steps have all of
    them. Compiled student steps need the adjoint. Networks with parts from elsewhere, which might
    not compile, are compiled only if asked for.

    Raises:
        InputError: for a wish that this machine cannot grant.
    """
    module = ctx.net.load(ctx.net.theta0)
    work = flops(module, ctx.data.channels, ctx.data.size)
    compiles = ctx.net.known or run.compile == "on"
    theirs = [fresh(net, ctx.data) for net in cost.nets] or [ctx.net]
    shape = (ctx.data.channels, ctx.data.size)
    tasks = choose(
        run.wish.among(workers),
        order=1,
        flops=max(flops(net.load(net.theta0), *shape) for net in theirs),
        images=cost.task_images,
        steps=cost.task_steps,
        compiles=all(net.known for net in theirs) or run.compile == "on",
    )
    if not cost.window_images:  # outer steps that differentiate nothing, on the CPU
        window = Compute(threads=run.threads or torch.get_num_threads())
        return Plan(strategy="adjoint", window=window, tasks=tasks, memory=run.budget)
    if run.compile == "on" and not cost.compiles:
        raise InputError(f"The outer steps of {name_of(run.method)} cannot be compiled.")
    window = choose(
        replace(run.wish, compile="off") if run.strategy == "graph" else run.wish,
        order=2,
        flops=work,
        images=cost.window_images,
        steps=cost.window_steps,
        compiles=compiles and cost.compiles,
    )
    strategy = choose_strategy(run.strategy, predicted=cost.graph_bytes, budget=run.budget)
    free = run.strategy == "auto" and run.compile == "auto" and window.device == "cpu"
    if free and strategy == "graph" and work > GRAPH_FLOPS:
        window = replace(window, compiled=False)
    strategy = "adjoint" if window.compiled else strategy
    return Plan(
        strategy=strategy,
        window=window,
        tasks=tasks,
        memory=_left(run.budget, cost, strategy),
        prefix=_prefix(run, window) if cost.prefix else None,
    )


def _left(budget: int, cost: Cost, strategy: str) -> int:
    """Return what the gradient's own bytes leave of a budget, at least an eighth."""
    own = cost.graph_bytes if strategy == "graph" else cost.adjoint_bytes
    return max(budget - own, budget // 8)


def _prefix(run: Run, window: Compute) -> Literal["float32", "bfloat16"]:
    """Return the precision of plain steps that are computed as the window is."""
    as_it = replace(run.wish, compile="on" if window.compiled else "off")
    return choose(as_it, order=1, flops=0, images=0, steps=0).precision
