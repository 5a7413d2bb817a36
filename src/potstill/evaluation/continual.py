"""Classes that come step by step: the memory of each step is a set's images of the classes so far.

Source: Prabhu, Torr and Dokania, "GDumb: A Simple Approach that Questions Our Progress in Continual
Learning", ECCV 2020, with distilled images as memory (SRe2L, NeurIPS 2023, arXiv 2306.13092).

Differs: one set is taken apart, whose images, and whose teacher, may know of classes to come; each
    network has a class order of its own, by its seed.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from potstill.core.errors import InputError
from potstill.core.keys import generator
from potstill.evaluation.asked import Asked
from potstill.evaluation.images import Images
from potstill.evaluation.regimes import is_stored
from potstill.evaluation.result import Row, spread
from potstill.evaluation.rows import Group
from potstill.evaluation.rules import Protocol
from potstill.evaluation.specs import Real, among


def check_steps(asked: Asked, steps: int) -> None:
    """Refuse steps of fewer than two classes, and labels that are of all classes together.

    Raises:
        InputError: saying what is allowed.
    """
    classes = len(asked.s.classes)
    if not 2 <= steps <= classes // 2:
        raise InputError(
            f"The classes come in 2 steps or more, of two classes or more: {classes} classes "
            f"cannot come in {steps} (continual)."
        )
    sets = (asked.s, *(one for each in asked.beside for one in each.sets))
    if any(is_stored(s, regime) for s in sets for regime in asked.regimes):
        raise InputError(
            "Stored labels of views are of all images together, not of those of some classes: ask "
            "for the regime 'hard' or 'online'."
        )


def seen_at(classes: int, steps: int, seed: int) -> list[tuple[int, ...]]:
    """Return the classes seen at each step, ascending: the first groups of a random order.

    Groups are of equal size, up to one class.
    """
    order = torch.randperm(classes, generator=generator(seed, "continual"))
    groups = order.tensor_split(steps)
    return [tuple(torch.cat(groups[: k + 1]).sort().values.tolist()) for k in range(steps)]


def in_steps(asked: Asked, groups: Sequence[Group], steps: int) -> Iterator[Group]:
    """Yield each group of trainings once a step, with the classes seen by then.

    Trainings in stages are left out: classes are stages of another kind. The last step is that of
    an evaluation on all classes, and the same work.
    """
    classes = len(asked.s.classes)
    orders = [seen_at(classes, steps, seed) for seed in range(asked.rules.seeds)]
    for group in groups:
        if group.specs[0].train.segments[0].blocks:
            continue
        for k, seen in enumerate(orders[0]):
            last = k + 1 == steps
            specs = tuple(
                replace(spec, seen=None if last else orders[spec.seed][k]) for spec in group.specs
            )
            name = f"{group.images.name}, {len(seen)} of {classes} classes"
            nbytes = _bytes_of(group.images, asked, seen)
            images = replace(group.images, name=name, nbytes=nbytes)
            yield replace(group, images=images, specs=specs)


def _bytes_of(item: Images, asked: Asked, seen: tuple[int, ...]) -> dict[str, int]:
    """Return the bytes of the images of some classes, and of what belongs to them."""
    whole = item.what == (Real(indices=None),)
    labels: Tensor = asked.data.train.labels if whole else (item.of or asked.s).targets.classes
    share = len(among(labels, seen)) / len(labels)
    return {
        part: count if part == "normaliser" else round(count * share)
        for part, count in item.nbytes.items()
    }


def with_means(rows: Sequence[Row], steps: int, rules: Protocol) -> Iterator[Row]:
    """Yield the rows of each group's steps, and after them that of the means over these."""
    for first in range(0, len(rows), steps):
        part = rows[first : first + steps]
        yield from part
        accuracies = tuple(
            map(statistics.fmean, zip(*(row.accuracies for row in part), strict=True))
        )
        mean, std, ci95 = spread(accuracies, ddof=rules.ddof)
        yield replace(
            part[-1],
            name=f"{part[-1].name.rpartition(', ')[0]}, mean of {steps} steps",
            accuracies=accuracies,
            validation=statistics.fmean(row.validation for row in part),
            mean=mean,
            std=std,
            ci95=ci95,
            seconds=sum(row.seconds for row in part),
            cpu_seconds=sum(row.cpu_seconds for row in part),
            peak_bytes=max(row.peak_bytes for row in part),
            marks=(),
        )
