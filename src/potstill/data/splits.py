"""Cutting test and validation parts: per class, keyed, the same on every machine."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from potstill.core import keys
from potstill.core.errors import InputError
from potstill.data.types import P, Parts, Split

TEST_FRACTION = 0.2
_ALSO_TEST = 3, "one to train on, one to validate and one to test"
_TRAIN_AND_VALIDATE = 2, "one to train on and one to validate"


def check_fraction(validation: float) -> None:
    """Check the validation fraction.

    Raises:
        InputError: if it is not in (0, 0.5].
    """
    if not 0 < validation <= 0.5:
        raise InputError(
            f"The validation fraction is {validation}; allowed is more than 0 and at most 0.5."
        )


def drawn(
    labels: Tensor, classes: tuple[str, ...], fraction: float, *, key: str, need: tuple[int, str]
) -> Tensor:
    """Return which rows are set aside (bool [N]): round(fraction * n) of each class, at least 1.

    `need` is the least number of images of a class, and why.

    Raises:
        InputError: if a class has fewer; names it and its count.
    """
    least, why = need
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label, name in enumerate(classes):
        rows = (labels == label).nonzero().flatten()
        n = len(rows)
        if n < least:
            raise InputError(
                f"Class {name!r} has {n} image{'' if n == 1 else 's'}; "
                f"at least {least} are needed: {why}."
            )
        order = torch.randperm(n, generator=keys.generator(0, key, label))
        chosen[rows[order[: max(1, round(fraction * n))]]] = True
    return chosen


def parted(part: P, chosen: Tensor) -> tuple[P, P]:
    """Return (the rows not chosen, the chosen rows), both in their old order."""
    return part.take(~chosen), part.take(chosen)


def cut_validation(
    train: Split, classes: tuple[str, ...], validation: float
) -> tuple[Split, Split]:
    """Return (train, val) of a training part.

    Raises:
        InputError: if the fraction is not in (0, 0.5] or a class has fewer than 2 images.
    """
    check_fraction(validation)
    need = _TRAIN_AND_VALIDATE
    return parted(train, drawn(train.labels, classes, validation, key="validation", need=need))


def limited(train: Split, n_classes: int, limit: int) -> Split:
    """Return at most `limit` images of each class, keyed, in their old order."""
    kept = torch.zeros(len(train), dtype=torch.bool)
    for label in range(n_classes):
        rows = (train.labels == label).nonzero().flatten()
        order = torch.randperm(len(rows), generator=keys.generator(0, "limit", label))
        kept[rows[order[:limit]]] = True
    return train.take(kept)


def numbered_classes(labels: Tensor) -> tuple[str, ...]:
    """Return the class names "0".."K-1" of training labels.

    Raises:
        InputError: if a label is negative or so high that there must be classes without images.
    """
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= len(labels):
        raise InputError(
            f"The {len(labels)} training labels reach from {low} to {high}; "
            "labels must be 0..K-1, each with images."
        )
    return tuple(map(str, range(high + 1)))


def _check_labels(labels: Tensor, classes: tuple[str, ...], part: str) -> None:
    wrong = ((labels < 0) | (labels >= len(classes))).nonzero().flatten()
    if len(wrong):
        row = int(wrong[0])
        raise InputError(
            f"Row {row} of the {part} part has the label {int(labels[row])}; "
            f"allowed is 0 to {len(classes) - 1} ({len(classes)} classes in the training part)."
        )


def checked(parts: Parts) -> Parts:
    """Return the parts.

    Raises:
        InputError: for a label outside 0..K-1.
    """
    _check_labels(parts.train.labels, parts.classes, "training")
    if parts.test is not None:
        _check_labels(parts.test.labels, parts.classes, "test")
    return parts


def completed(parts: Parts) -> Parts:
    """Return the parts with a test part: where there is none, 20 % of each class.

    Raises:
        InputError: for a class with too few images.
    """
    if parts.test is not None:
        return parts
    chosen = drawn(parts.train.labels, parts.classes, TEST_FRACTION, key="test", need=_ALSO_TEST)
    train, test = parted(parts.train, chosen)
    note = f"No test part found: {len(test)} images ({TEST_FRACTION:.0%} of each class) set aside."
    return replace(parts, train=train, test=test, notes=(*parts.notes, note))
