"""How students train on the distilled set, in the outer steps and afterwards."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch

from potstill.augment import RAT, Params, Policy
from potstill.core.errors import InputError
from potstill.core.ranges import above_zero, at_least
from potstill.core.spec import record
from potstill.functional import (
    SGD,
    Adam,
    Batch,
    Segment,
    TrainSpec,
    augmented,
    ce,
    soft_ce,
    training_loss,
)
from potstill.functional.sampling import balanced_rows, members
from potstill.methods.api import Context
from potstill.methods.start import labels_of
from potstill.methods.student import Student


@record
@dataclass(frozen=True, kw_only=True)
class Inner:
    """How students train on the distilled set.

    Differs: SGD has no momentum and no weight decay by default, the original's .9 and 5e-4.
    """

    optimizer: SGD | Adam = Adam()
    """Optimizer of the student."""
    window_eps: Literal["torch", "higher021"] | None = None
    """Where Adam's eps stands inside the window; by default as outside of it."""
    lr: float = 1e-3
    """Step size of the student, before the first outer step if it is learned."""
    classes: int | None = None
    """Random classes that a student step sees; all by default."""
    images: int | None = None
    """Random distilled images of each of these classes; all by default."""
    augment: Policy | None = RAT()
    """Augmentation of the distilled images."""

    def __post_init__(self) -> None:
        above_zero(self, "lr", prefix="inner.")
        at_least(1, self, "classes", "images", prefix="inner.")
        if isinstance(self.optimizer, Adam) and self.optimizer.decays == "weights":
            raise InputError(
                "inner.optimizer.decays 'weights' is only for plain trainings; students whose "
                "steps are differentiated take 'all'."
            )
        if self.window_eps is not None:
            if not isinstance(self.optimizer, Adam):
                raise InputError(f"inner.window_eps ({self.window_eps!r}) says nothing to SGD.")
            replace(self.optimizer, eps_mode=self.window_eps)  # knows what is allowed

    def check(self, ctx: Context) -> None:
        """Refuse steps that want more than the set has."""
        ipc = sum(block.ipc for block in ctx.synth)
        for name, most in (("classes", ctx.data.n_classes), ("images", ipc)):
            if (getattr(self, name) or 1) > most:
                raise InputError(f"inner.{name} must be at most {most}, not {getattr(self, name)}.")

    def per_step(self, ctx: Context) -> tuple[int, int]:
        """Return how many classes a step sees, and how many images of each."""
        ipc = sum(block.ipc for block in ctx.synth)
        return self.classes or ctx.data.n_classes, self.images or ipc

    def student(self, ctx: Context, *, soft: bool, part: int) -> Student:
        """Return how a run trains its students on hard or soft labels, the network set to it."""
        ctx.net.train()
        inside = self.optimizer
        if self.window_eps is not None and isinstance(inside, Adam):
            inside = replace(inside, eps_mode=self.window_eps)
        loss = partial(training_loss, ctx.net, soft_ce if soft else ce)
        window = ctx.plan.window.precision
        return Student(
            net=ctx.net,
            plain=loss(precision=ctx.plan.prefix or window),
            loss=loss(precision=window),
            before=self.optimizer,
            inside=inside,
            prepare=augmented(self.augment),
            strategy=ctx.plan.strategy,
            compute=ctx.plan.window,
            part=part,
        )

    def batches(self, ctx: Context, steps: int, chance: torch.Generator) -> list[Batch]:
        """Draw the rows of each student step, and their augmentation.

        Random classes and random rows of each, both without replacement, anew each step.
        """
        (classes, images), device = self.per_step(ctx), torch.device(ctx.plan.window.device)
        table = members(labels_of(ctx))
        drawn = [
            balanced_rows(table, classes=classes, images=images, generator=chance)
            for _ in range(steps)
        ]
        extras: list[Params | None] = [None] * steps
        if self.augment is not None:
            shape = (ctx.data.channels, *ctx.data.size)
            sample = partial(self.augment.sample, classes * images, shape, chance)
            extras = _on(device, [sample() for _ in range(steps)])
        index = torch.stack(drawn).to(device)
        return [Batch(index=rows, extra=extra) for rows, extra in zip(index, extras, strict=True)]

    def recipe(self, ctx: Context, lr: float, *, steps: int, soft: bool) -> TrainSpec:
        """Return how to train on the set: so many steps as those of the students."""
        classes, images = self.per_step(ctx)
        return TrainSpec(
            lr=lr,
            segments=(Segment(epochs=steps),),
            batch=classes * images,
            balanced=images,
            optimizer=self.optimizer,
            loss="soft_ce" if soft else "ce",
            augment=self.augment,
        )


def _on(device: torch.device, extras: list[Params]) -> list[Params | None]:
    """Return the parameters of all steps on a device, to which they go as one tensor."""
    rows = torch.cat([each.values for each in extras]).to(device)
    parts = rows.split([len(each.values) for each in extras])
    return [replace(each, values=part) for each, part in zip(extras, parts, strict=True)]
