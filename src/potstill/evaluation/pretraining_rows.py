"""Rows of an evaluation by probes."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from potstill.evaluation.pretraining_asked import ProbesAsked
from potstill.evaluation.pretraining_entrants import Entrant
from potstill.evaluation.pretraining_result import ProbeRow
from potstill.evaluation.pretraining_specs import FineTuneSpec, PretrainSpec, ProbeSpec
from potstill.evaluation.result import spread
from potstill.nets import NetSpec, describe

Found = dict[PretrainSpec | ProbeSpec | FineTuneSpec, dict[str, Any]]
"""What each task found."""
TUNED = "all, fine-tuned"
"""The labels of rows of whole networks that learned the classes."""
Shown = dict[tuple[int, NetSpec], tuple[PretrainSpec, ...]]
"""The networks that are shown, a seed each, by place of the entrant and network."""


def rows_of(asked: ProbesAsked, found: Found, shown: Shown) -> Iterator[ProbeRow]:
    """Yield the rows: by network, entrant, data set, label budget; fine-tuned ones follow these."""
    for (place, _), group in shown.items():
        for at in range(len(asked.data)):
            given = asked, asked.entrants[place], group, found, at
            probes = [found[asked.probe(spec, at)] for spec in group]
            for k, budget in enumerate(asked.budgets):
                yield _row(*given, k, budget.text(), probes)
            if asked.rules.finetune is not None:
                yield _row(*given, 0, TUNED, [found[asked.finetuning(x, at)] for x in group])


def _row(
    asked: ProbesAsked,
    item: Entrant,
    group: tuple[PretrainSpec, ...],
    found: Found,
    at: int,
    k: int,
    labels: str,
    probes: list[dict[str, Any]],
) -> ProbeRow:
    """Return the row of some networks on one data set with one label budget."""
    rules, first = asked.rules, group[0]
    steps = 0 if first.train is None else first.train.steps(item.count)
    lines = [probe["budgets"][k] for probe in probes]
    accuracies = tuple(line["test"] for line in lines)
    mean, std, ci95 = spread(accuracies, ddof=rules.ddof)
    diverged = sum(probe["diverged"] for probe in probes)
    notes = [item.note, f"{steps:,} step{'' if steps == 1 else 's'}" if steps else ""]
    notes.append(f"best of {len(item.trains)} step sizes" if len(item.trains) > 1 else "")
    notes.append(f"{diverged} of {len(group)} diverged and count as 0" if diverged else "")
    val, near = ([line[name] for line in lines if name in line] for name in ("val", "knn"))
    return ProbeRow(
        name=item.name,
        net=describe(first.net),
        target=asked.names[at],
        labels=labels,
        count=lines[0]["labels"],
        accuracies=accuracies,
        mean=mean,
        std=std,
        ci95=ci95,
        n=len(group),
        knn=statistics.fmean(near) if near else None,
        validation=statistics.fmean(val) if val else None,
        lr=None if first.train is None else first.train.lr,
        protocol=rules.name,
        nbytes=item.nbytes,
        seconds=sum(found[spec]["seconds"] for spec in group),
        cpu_seconds=sum(found[spec]["cpu_seconds"] for spec in group),
        note="; ".join(filter(None, notes)),
        compute=first.compute.describe(),
    )
