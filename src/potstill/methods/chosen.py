"""What the methods share that choose real images: one class an outer step, and the export.

The functions take the method as `method` and become methods of its class by assignment.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypedDict

import torch
from torch import Tensor

from potstill.artefact import DistilledSet
from potstill.augment import DSA, Policy
from potstill.core.errors import InputError
from potstill.core.ranges import above_zero, at_least
from potstill.core.spec import record
from potstill.coresets import members_of, repeated
from potstill.experts import ExpertPlan
from potstill.functional import SGD, TrainSpec, mtt_segments
from potstill.methods.api import Context, Cost, Done, Loop, Metrics
from potstill.methods.export import distilled
from potstill.methods.start import labels_of
from potstill.methods.work import expert_work

Pick = Callable[[int], list[int]]
"""From a number k of images, at most those of the class, to k of their places."""


@record
@dataclass(frozen=True, kw_only=True)
class Use:
    """How networks are trained on the chosen images."""

    lr: float = 0.01
    """Step size; a tenth of it in the second half."""
    epochs: int = 1000
    """Nominal epochs (the published loop makes one more)."""
    augment: Policy | None = DSA()
    """Augmentation of the images."""

    def __post_init__(self) -> None:
        at_least(1, self, "epochs", prefix="use.")
        above_zero(self, "lr", prefix="use.")

    @property
    def recipe(self) -> TrainSpec:
        """Return the recipe of the set."""
        return TrainSpec(
            lr=self.lr,
            segments=mtt_segments(self.epochs),
            batch=256,
            optimizer=SGD(momentum=0.9, weight_decay=5e-4),
            augment=self.augment,
        )


class Choice(TypedDict):
    """The rows of the training part that were chosen so far, int64 [classes done * ipc]."""

    chosen: Tensor


class Chooser(Protocol):
    """A method that chooses real images."""

    @property
    def use(self) -> Use:
        """How networks are trained on the images."""
        ...

    def pick(self, ctx: Context, label: int, rows: Tensor) -> Pick:
        """Return how to choose among the images of a class, which are these rows."""
        ...


def check(method: Any, ctx: Context) -> None:
    """Refuse classes with too few images, and sets of several blocks."""
    if len(ctx.synth) > 1 or ctx.synth[0].images is not None:
        raise InputError("Real images are chosen for one block without images of its own.")
    members_of(
        ctx.data.train,
        [ctx.ipc] * ctx.data.n_classes,
        replacement=ctx.replacement,
        classes=ctx.data.classes,
    )


def cost_of(ctx: Context, disk_bytes: int, training: ExpertPlan | None = None) -> Cost:
    """Return the cost of choosing: no gradient, one outer step a class, networks if any."""
    images, steps = (0, 0) if training is None else expert_work(training, len(ctx.data.train))
    return Cost(
        graph_bytes=0,
        adjoint_bytes=0,
        disk_bytes=disk_bytes,
        steps=ctx.data.n_classes,
        task_images=images,
        task_steps=steps,
    )


def loop(ctx: Context, done: Done) -> Loop | None:
    """Return the phase in which the images are chosen, one class an outer step."""
    return None if "loop" in done else Loop(steps=ctx.data.n_classes)


def begin(method: Any, ctx: Context) -> Choice:
    """Return the state before the first class."""
    return Choice(chosen=torch.empty(0, dtype=torch.int64))


def choose(method: Chooser, ctx: Context, state: Choice, it: int) -> tuple[Choice, Metrics]:
    """Choose the images of class `it`; its number and its images are the metrics."""
    rows = torch.nonzero(ctx.data.train.labels == it)[:, 0]
    found = rows[repeated(method.pick(ctx, it, rows), len(rows), ctx.ipc)]
    numbers = {"class": float(it), "images": float(len(rows))}
    return Choice(chosen=torch.cat([state["chosen"], found])), numbers


def export(method: Chooser, ctx: Context, state: Choice) -> DistilledSet:
    """Return the chosen images; `origin.rows` are their rows in the training part.

    Raises:
        InputError: before the last class is done.
    """
    rows, labels = state["chosen"], labels_of(ctx)
    if len(rows) < len(labels):
        raise InputError(
            "A set of chosen images is whole after its last class; leave out --select-every."
        )
    return distilled(
        ctx,
        method,
        images=ctx.space.forward(ctx.data.train.pixels[rows]),
        targets=labels,
        recipe=method.use.recipe,
        rows=tuple(rows.tolist()),
    )


def scaled(method: Any, scale: Literal["smoke", "cpu"]) -> Any:
    """Return the method with at most the counts of the scale; nothing else changes."""
    smoke = scale == "smoke"
    use: Use = method.use
    changes: dict[str, Any] = {
        "use": dataclasses.replace(use, epochs=min(use.epochs, 10 if smoke else 300))
    }
    plan: ExpertPlan | None = getattr(method, "training", None)
    if plan is not None:
        count, epochs = min(plan.count, 2 if smoke else 3), min(plan.epochs, 2 if smoke else 8)
        changes["training"] = dataclasses.replace(plan, count=count, epochs=epochs)
    return dataclasses.replace(method, **changes)
