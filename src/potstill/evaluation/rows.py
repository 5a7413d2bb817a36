"""Rows: what the networks of one group found, and which rows are shown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from potstill.artefact import LabelStore
from potstill.evaluation.images import BASELINES, Images
from potstill.evaluation.result import Row, spread
from potstill.evaluation.rules import Protocol
from potstill.evaluation.specs import EvalSpec, Online, Stored, Taught, Teachers
from potstill.nets import describe
from potstill.teachers import Teacher


@dataclass(frozen=True, kw_only=True)
class Group:
    """The networks of one possible row: images at one step size under one regime of labels."""

    images: Images
    regime: str
    specs: tuple[EvalSpec, ...]


def _names(teachers: Teachers) -> str:
    """Return what teachers are, for a note."""
    names = " and ".join(f"a {describe(teacher.net)}" for teacher in teachers)
    own = isinstance(teachers[0], Teacher)
    return f"the teacher of the set, {names}" if own else names


def row_of(group: Group, found: dict[EvalSpec, dict[str, Any]], rules: Protocol) -> Row:
    """Return the row of a group; `found` holds the results of its specs."""
    results, first = [found[spec] for spec in group.specs], group.specs[0]
    marks, accuracies, validation = _at_best(results)
    mean, std, ci95 = spread(accuracies, ddof=rules.ddof)
    nbytes, notes = dict(group.images.nbytes), [group.images.note]
    nbytes.pop("labels", None)  # of a set whose labels this regime has no use for
    if marks:
        best = next(epochs for epochs, val, _ in marks if val == validation)
        notes.append(f"after {best:,} of {marks[-1][0]:,} steps, best on validation")
    if isinstance(first.labels, Taught):
        nbytes["targets"] = results[0]["target_bytes"]
        notes.append(f"soft labels by {_names(first.labels.teachers)}")
    if isinstance(first.labels, Stored):
        notes.append(f"labels of views by {_names(first.labels.first.teachers)}")
    if isinstance(first.labels, Online):
        nbytes |= {"targets": results[0]["target_bytes"], "teacher": results[0]["teacher_bytes"]}
        notes.append(f"labels online by {_names(first.labels.teachers)}")
    if (regime := _regime(first)) == "stored":
        nbytes["labels"] = results[0]["label_bytes"]
        of = group.images.of
        if of is not None and isinstance(of.targets, LabelStore):
            plan = of.targets.plan
            notes.append(f"labels of {plan.epochs:,} epochs ({plan.codes})")
    return Row(
        name=group.images.name,
        net=describe(first.net),
        regime=regime,
        accuracies=accuracies,
        validation=validation,
        mean=mean,
        std=std,
        ci95=ci95,
        n=len(accuracies),
        lr=first.train.lr,
        protocol=rules.name,
        nbytes=nbytes,
        seconds=sum(result["seconds"] for result in results),
        cpu_seconds=sum(result["cpu_seconds"] for result in results),
        peak_bytes=max(result["peak_bytes"] for result in results),
        note="; ".join(filter(None, notes)),
        compute=first.compute.describe(),
        marks=marks,
    )


def _regime(spec: EvalSpec) -> str:
    if spec.train.lesson is not None:
        return "online" if isinstance(spec.labels, Online) else "stored"
    return "soft" if spec.train.loss == "soft_ce" else "hard"


def _at_best(
    results: list[dict[str, Any]],
) -> tuple[tuple[tuple[int, float, float], ...], tuple[float, ...], float]:
    """Return the marks, and test accuracies and mean validation accuracy at the best of them.

    Best is the first of the highest mean on validation; without marks it is the last epoch.
    """
    moments = list(zip(*(result["marks"] for result in results), strict=True)) or [results]

    def mean(moment: Sequence[dict[str, Any]], part: str) -> float:
        return statistics.fmean(result[part] for result in moment)

    best = max(moments, key=lambda moment: mean(moment, "val"))
    marks = tuple(
        (moment[0]["epochs"], mean(moment, "val"), mean(moment, "test"))
        for moment in moments
        if moment is not results
    )
    return marks, tuple(result["test"] for result in best), mean(best, "val")


def shown(rows: Sequence[Row]) -> list[Row]:
    """Return the rows to show: of rows that differ in step only, the set's own and the best.

    The own one comes first and counts as best unless another is better on the validation part.
    """
    found: list[Row] = []
    for net, regime, name in dict.fromkeys((row.net, row.regime, row.name) for row in rows):
        same = [row for row in rows if (row.net, row.regime, row.name) == (net, regime, name)]
        if name not in BASELINES:
            found += same
            continue
        own, best = same[0], max(same, key=lambda row: row.validation)
        found.append(replace(own, name=f"{name}, own step"))
        if best is not own:
            found.append(replace(best, name=f"{name}, best step"))
    return found
