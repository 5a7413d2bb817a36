"""How much the images of a distilled set depend on one another: subsets against smaller sets.

For each number of images a class: random subsets, one a seed; greedy subsets, which grow by one
image a class at a time, always by that of a few random ones whose network is best on validation;
the first blocks of a boosted set; and sets that were distilled at that size. All are trained on by
their own recipes in one evaluation.

Source: Feng, Vedantam, Kempe, ICLR 2024 (arXiv 2311.07025), figure 10. Differs: how its greedy
subsets were found is not known; this rule is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill.artefact import DistilledSet, load
from potstill.core.errors import InputError
from potstill.core.keys import generator
from potstill.evaluation import Beside, Result, evaluate
from potstill.evaluation.images import STAGED, cut_to
from potstill.studies.kept import Study

KINDS = ("whole set", "directly distilled", "first blocks", "random subset", "greedy subset")
HEAD = ("images", "a class", "test accuracy %", "95 % interval", "n", "step size", "note")
Evaluate = Callable[..., Result]


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Sets of so many images a class that one row is about."""

    kind: str
    ipc: int
    beside: Beside


def correlation(
    s: DistilledSet,
    smaller: Sequence[str | Path] = (),
    *,
    sizes: Sequence[int] = (),
    seeds: int = 5,
    candidates: int = 4,
    evaluated: Evaluate = evaluate,
) -> Study:
    """Return accuracies of subsets of a set, of its first blocks, and of sets that are smaller.

    Args:
        s: the set.
        smaller: folders of sets of the same data that were distilled with fewer images a class.
        sizes: images a class of subsets; always also those of smaller sets and first blocks.
        seeds: n, networks a row; random subsets are as many.
        candidates: random images of each class among which greedy subsets choose; 0: no greedy.
        evaluated: `evaluate` with data, store and so on filled in.

    Raises:
        InputError: if there is no size, or one that is not below the set's.
    """
    ipc = min(s.ipc)
    parts = [*_direct(smaller), *_prefixes(s)]
    wanted = sorted({*sizes, *(part.ipc for part in parts)})
    if not wanted:
        raise InputError("Name smaller sets, or images a class with --sizes.")
    if wanted[0] < 1 or wanted[-1] >= ipc:
        bad = wanted[0] if wanted[0] < 1 else wanted[-1]
        raise InputError(
            f"Subsets of a set with {ipc} images a class have 1 to {ipc - 1}, not {bad}."
        )
    if seeds < 1 or candidates < 0:
        raise InputError(
            f"seeds must be at least 1 and candidates at least 0, not {seeds} and {candidates}."
        )
    parts += [
        _part(KINDS[3], n, *(s.taken(random_rows(s, n, k)) for k in range(seeds))) for n in wanted
    ]
    if candidates:
        trial = partial(evaluated, seeds=1, baselines=False)
        chosen = greedy_rows(s, wanted[-1], candidates, partial(_best, s, trial))
        parts += [_part(KINDS[4], n, s.taken(chosen[n - 1])) for n in wanted]
    found = evaluated(s, seeds=seeds, baselines=False, beside=[part.beside for part in parts])
    said = [(KINDS[0], ipc), *((part.kind, part.ipc) for part in parts)]
    shown = [row for row in found.to_json()["rows"] if row["name"] not in STAGED[1:]]
    rows = [
        {"kind": kind, "ipc": count, **row} for (kind, count), row in zip(said, shown, strict=True)
    ]
    rows.sort(key=lambda row: (row["ipc"], KINDS.index(row["kind"])))
    return Study(rows=tuple(rows), table=(HEAD, *map(_cells, rows)))


def _part(kind: str, ipc: int, *sets: DistilledSet) -> _Part:
    return _Part(kind=kind, ipc=ipc, beside=Beside(name=f"{kind}, {ipc} a class", sets=sets))


def _direct(smaller: Sequence[str | Path]) -> list[_Part]:
    sizes = [(path, len(s) // len(s.classes)) for path in smaller for s in [load(path)]]
    return [_Part(kind=KINDS[1], ipc=n, beside=cut_to(path, n)) for path, n in sizes]


def _prefixes(s: DistilledSet) -> list[_Part]:
    """Return the first blocks of a set of several."""
    nested = [s.prefix(k) for k in range(1, len(s.blocks))]
    return [_part(KINDS[2], len(each) // len(s.classes), each) for each in nested]


def random_rows(s: DistilledSet, ipc: int, seed: int) -> Tensor:
    """Return so many random rows of each class, ascending."""
    return _rows(s, generator(seed, "subset", ipc), [torch.tensor([], dtype=torch.int64)], ipc)[0]


def greedy_rows(
    s: DistilledSet, most: int, candidates: int, best: Callable[[list[Tensor]], int]
) -> list[Tensor]:
    """Return the greedy choice of 1 to `most` rows of each class; `best` says which rows are."""
    chosen = torch.tensor([], dtype=torch.int64)
    found = []
    for k in range(most):
        tried = _rows(s, generator(0, "greedy", k), [chosen] * candidates, 1)
        chosen = tried[best(tried)]
        found.append(chosen)
    return found


def _rows(
    s: DistilledSet, chance: torch.Generator, had: Sequence[Tensor], more: int
) -> list[Tensor]:
    """Return rows that are had, each time with so many other random ones of each class."""
    members = [(s.targets.classes == k).nonzero()[:, 0] for k in range(len(s.classes))]
    found = []
    for rows in had:
        left = [each[~torch.isin(each, rows)] for each in members]
        new = [each[torch.randperm(len(each), generator=chance)[:more]] for each in left]
        found.append(torch.cat([rows, *new]).sort().values)
    return found


def _best(s: DistilledSet, evaluated: Evaluate, tried: list[Tensor]) -> int:
    """Return which rows are best on validation, the first if several are."""
    first, *others = (s.taken(rows) for rows in tried)
    beside = [Beside(name=f"trial {k}", sets=(other,)) for k, other in enumerate(others)]
    values = [row.validation for row in evaluated(first, beside=beside).rows]
    return values.index(max(values))


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    spread = "" if row["std"] is None else f" ± {100 * row['std']:.2f}"
    half, interval = row["ci95"], "-"
    if half is not None:
        ends = max(0.0, row["mean"] - half), min(1.0, row["mean"] + half)
        interval = " to ".join(f"{100 * end:.2f}" for end in ends)
    name = f" ({row['name'].removesuffix(', whole')})" if row["kind"] == KINDS[1] else ""
    return (
        row["kind"] + name,
        str(row["ipc"]),
        f"{100 * row['mean']:.2f}{spread}",
        interval,
        str(row["n"]),
        f"{row['lr']:.4g}",
        row["note"],
    )
