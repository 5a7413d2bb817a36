"""Whether a teacher and data belong together; found out before anything starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from potstill.core.errors import InputError
from potstill.core.spec import spec_hash
from potstill.data import DataSet, MeanStd
from potstill.teachers.files import Teacher

_BATCH = 128


def names_of(classes: Sequence[str]) -> str:
    """Return the hash by which class names in their order are known."""
    return spec_hash(list(classes))


def check_teacher(teacher: Teacher, data: DataSet) -> None:
    """Refuse data of another shape or other classes than the teacher's; looks at no image.

    Raises:
        InputError: saying what differs.
    """
    shape = (data.channels, *data.size)
    if teacher.shape != shape or teacher.classes != data.n_classes:
        raise InputError(
            f"The teacher is for {teacher.classes} classes of images {teacher.shape}, the data "
            f"have {data.n_classes} of {shape}."
        )
    if teacher.names not in (None, names_of(data.classes)):
        raise InputError(
            "The teacher's classes are others than the data's, or come in another order; name the "
            "data that it was trained on, or train another teacher."
        )


def teacher_accuracy(space: MeanStd, module: nn.Module, data: DataSet) -> float:
    """Return the accuracy of a teacher on the validation part, as a fraction.

    `module` is in evaluation mode (`open_teacher`), on any device; `space` normalises its images.
    """
    device = next(module.parameters()).device
    right, at = 0, 0
    with torch.no_grad():
        for part in data.val.pixels.split(_BATCH):
            found = module(space.forward(part.to(device))).argmax(1).cpu()
            right += int((found == data.val.labels[at : at + len(part)]).sum())
            at += len(part)
    return right / at


def check_facts(facts: Mapping[str, Any], teacher: Teacher) -> None:
    """Refuse a teacher by what its folder tells of it.

    Raises:
        InputError: as `check_accuracy`.
    """
    recorded = facts.get("recorded_accuracy")
    check_accuracy(facts["validation_accuracy"], teacher, recorded=recorded)


def check_accuracy(found: float, teacher: Teacher, *, recorded: float | None = None) -> None:
    """Refuse a teacher that has learned nothing, or nothing of these data.

    A teacher with random weights, or whose classes come in another order, is right about once in
    as many images as there are classes.

    Args:
        found: its accuracy on the validation part.
        teacher: the teacher.
        recorded: the accuracy that it should have, if that is known.

    Raises:
        InputError: if it is below twice chance (halfway to 1 of two or three classes), or below
            half of what is recorded.
    """
    chance = 1 / teacher.classes
    least = min(2 * chance, (1 + chance) / 2)
    if recorded is not None:
        least = max(least, recorded / 2)
    if found < least:
        raise InputError(
            f"The teacher is right on {found:.1%} of the validation images; expected is "
            f"{least:.1%} or more: are its weights trained, and its classes in the order of the "
            "data's?"
        )
