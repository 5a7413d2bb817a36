"""What methods share whose images come from a teacher: its look at them, and the set.

The functions take the method as `method` and become methods of its class by assignment.
"""

from __future__ import annotations

import dataclasses
import math
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.artefact import DistilledSet
from potstill.core.errors import InputError
from potstill.methods.api import Context, Loop, Metrics
from potstill.methods.chosen import Use
from potstill.methods.export import distilled
from potstill.methods.labelled import ViewLabels, scaled_use, stored_labels
from potstill.methods.start import labels_of
from potstill.methods.tutors import teachers_of
from potstill.teachers import Teacher, TeacherPlan, open_teacher, teacher_facts


class Seen(TypedDict):
    """What the teacher said of the images of the classes so far."""

    entropy: Tensor
    """Its cross-entropy of each image, float32 [n]."""
    labels: Tensor
    """Soft labels [n, C]; [n, 0] where the labels are hard."""
    teachers: str
    """Digests of the teachers."""


class Taught(Protocol):
    """A method whose images come from a teacher."""

    @property
    def teacher(self) -> TeacherPlan:
        """Which teacher."""
        ...

    @property
    def temperature(self) -> float | None:
        """Temperature of soft labels."""
        ...

    @property
    def labels(self) -> ViewLabels:
        """Return labels of views, if any."""
        ...

    @property
    def use(self) -> Use:
        """How networks are trained on the images."""
        ...

    def pixels(self, ctx: Context) -> Tensor:
        """Return the finished images, uint8 [C * ipc, ch, H, W], class by class."""
        ...


def check_temperature(method: Taught) -> None:
    """Refuse a temperature that is none."""
    value = method.temperature
    if value is not None and not 0 < value < math.inf:
        raise InputError(f"temperature must be above 0, not {value}.")


def scaled_training(method: Taught, scale: Literal["smoke", "cpu"]) -> dict[str, Any]:
    """Return the settings of labels and training with at most the counts of a scale."""
    if method.labels.epochs:
        return {"labels": method.labels.scaled(scale)}
    return {"use": scaled_use(method.use, scale)}


def loop(ctx: Context) -> Loop:
    """Return the phase in which the teacher looks at the finished images, a class a step."""
    return Loop(steps=ctx.data.n_classes, opening=_opening)


def _opening(ctx: Context, state: Seen) -> str:
    facts = [teacher_facts(folder)["validation_accuracy"] for folder in ctx.done["teachers"]]
    said = " and ".join(f"{found:.1%}" for found in facts)
    return f"The teacher is right on {said} of the validation images."


def begin(method: Any, ctx: Context) -> Seen:
    """Return the state before the first class."""
    width = 0 if method.temperature is None else ctx.data.n_classes
    names = " ".join(teacher.digest for teacher in teachers_of(ctx, ctx.done))
    return Seen(entropy=torch.empty(0), labels=torch.empty(0, width), teachers=names)


def look(method: Taught, ctx: Context, state: Seen, it: int) -> tuple[Seen, Metrics]:
    """Ask the teachers about the images of class `it` as they are stored.

    The metrics are the class, the part that is classified right, and the mean cross-entropy.

    Raises:
        InputError: if a file of weights is another one than when the first class was looked at.
    """
    teachers, device = teachers_of(ctx, ctx.done), torch.device(ctx.plan.tasks.device)
    if state["teachers"] != " ".join(teacher.digest for teacher in teachers):
        raise InputError(
            "The teacher's weights were altered after the run began; put the old ones back, or "
            "begin another run."
        )
    pixels = method.pixels(ctx)[it * ctx.ipc : (it + 1) * ctx.ipc].to(device)
    with torch.no_grad():
        logits = [
            _opened(teacher, folder, device)(teacher.space.forward(pixels)).float().cpu()
            for teacher, folder in teachers.items()
        ]
    mean = torch.stack([each.softmax(1) for each in logits]).mean(0)
    entropy = torch.stack([-each.log_softmax(1)[:, it] for each in logits]).mean(0)
    heat = method.temperature
    labels = torch.empty(len(pixels), 0)
    if heat is not None:
        labels = torch.stack([F.softmax(each / heat, 1) for each in logits]).mean(0)
    right = float((mean.argmax(1) == it).float().mean())
    found = Seen(
        entropy=torch.cat([state["entropy"], entropy]),
        labels=torch.cat([state["labels"], labels]),
        teachers=state["teachers"],
    )
    return found, {"class": float(it), "right": right, "entropy": float(entropy.mean())}


@lru_cache(maxsize=4)
def _opened(teacher: Teacher, folder: Path, device: torch.device) -> nn.Module:
    return open_teacher(teacher, folder).to(device)


def export(method: Taught, ctx: Context, state: Seen) -> DistilledSet:
    """Return the images with hard labels, one soft label each, or labels of their views.

    Its parents are the teachers.

    Raises:
        InputError: before the last class is done.
    """
    labels = labels_of(ctx)
    if len(state["entropy"]) < len(labels):
        raise InputError("A set of a teacher's images is whole after its last class.")
    recipe, targets = method.use.recipe, labels
    if method.labels.epochs:
        recipe, targets = method.labels.recipe, stored_labels(method, ctx)
    elif method.temperature is not None:
        recipe, targets = dataclasses.replace(recipe, loss="soft_ce"), state["labels"]
    pixels = method.pixels(ctx)
    s = distilled(ctx, method, images=pixels, targets=targets, recipe=recipe)
    parents = tuple(f"teacher {t.digest}" for t in teachers_of(ctx, ctx.done))
    return dataclasses.replace(s, origin=dataclasses.replace(s.origin, parents=parents))
