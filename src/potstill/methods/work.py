"""What the work of a method costs, and advice about it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from potstill.engine import Tasks
from potstill.experts import PAIRS, ExpertPlan, expert_tasks
from potstill.functional import graph_bytes
from potstill.methods.api import Context
from potstill.nets import FlatNet, kept_bytes


def expert_phase(plan: ExpertPlan, ctx: Context, targets: Path | None = None) -> Tasks:
    """Return the training of experts, which in later stages begin where links ended.

    `targets` is the folder of what those of objective kd_mse learn.
    """
    tasks = expert_tasks(
        plan,
        ctx.data,
        ctx.space,
        ctx.net_spec,
        seed=ctx.seed,
        compute=ctx.plan.tasks,
        store=ctx.store,
        targets=targets,
    )
    return tasks if ctx.after is None else ctx.after.continued(tasks)


def window_bytes(ctx: Context, net: FlatNet, *, batch: int, steps: int) -> tuple[int, int]:
    """Return the predicted bytes of the gradient through student steps: by graph, by adjoint."""
    kept = kept_bytes(net.load(net.theta0), ctx.data.channels, ctx.data.size)
    given = {"batch": batch, "kept": kept, "parameters": net.numel, "steps": steps}
    return graph_bytes(strategy="graph", **given), graph_bytes(strategy="adjoint", **given)


def expert_work(plan: ExpertPlan, images: int) -> tuple[int, int]:
    """Return the images, with repetition, and the steps of training all experts of a plan."""
    epochs = 0 if plan.imported is not None else plan.count * plan.epochs
    passes = (2 if plan.gsam.rho else 1) * (2 if plan.objective in PAIRS else 1)
    return passes * epochs * images, epochs * -(-images // plan.batch)


def expert_advice(plan: ExpertPlan, images: int) -> tuple[str, ...]:
    """Warn of experts that hardly move, so that nothing is to match, or that know too much."""
    if plan.imported is not None:
        return (
            "Note: imported experts were trained elsewhere, most likely on the validation images "
            "too, so accuracies on these are too good.",
        )
    steps = -(-images // plan.batch)
    if steps >= 10:
        return ()
    batch = max(1, images // 20)
    return (
        f"Note: an epoch of an expert is only {steps} step{'' if steps == 1 else 's'} of "
        f"{plan.batch} images; try --method.experts.batch {batch}.",
    )


def at_once(ctx: Context) -> int:
    """Return how many images fit the memory budget in one pass through the network."""
    return max(1, ctx.plan.memory // _bytes_of_one(ctx.net, ctx.data.channels, ctx.data.size))


@lru_cache(maxsize=8)
def _bytes_of_one(net: FlatNet, channels: int, size: tuple[int, int]) -> int:
    return 2 * kept_bytes(net.load(net.theta0), channels, size)
