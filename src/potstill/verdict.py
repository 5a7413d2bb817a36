"""A finished run beside the published number of its recipe."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from potstill.artefact import DistilledSet, load
from potstill.core.spec import differences, to_json
from potstill.evaluation import PROBES
from potstill.evaluation.regimes import own_regime
from potstill.job import eval_rows
from potstill.nets import describe
from potstill.recipes import Recipe
from potstill.run import Run, recorded_plan

ALWAYS = (
    "Always different here: a validation part is kept from training and selection reads it, never "
    "the test part; learned step sizes stay positive."
)
LOW = "Experts were trained in bfloat16 (autocast), published ones in float32."
LOW_PREFIX = "Plain student steps were in bfloat16 (autocast), published ones in float32."
FREE = ("seed", "memory", "strategy", "threads", "device", "compile")
"""Settings of a run in which it does not depart from its recipe."""


def verdict(recipe: Recipe, run: Run, path: Path) -> str:
    """Compare a run with the published number: met, below, or not comparable (reasons).

    A run is comparable if it has the recipe's settings and images of its shape and classes, the
    recipe departs in nothing that counts from what was published, and the number is verified.
    """
    s, (protocol, regime) = load(path), rules_of(recipe, run)
    own = {"name": "distilled", "net": describe(s.net), "prefix": None}
    own |= {"target": s.origin.data} if s.pretrains else {"regime": regime or own_regime(s)}
    rows = [r for r in eval_rows(path) if all(r.get(key) == own[key] for key in own)]
    if s.pretrains:
        row, given, other = _of_probe(recipe, rows, protocol)
    else:
        given, other = "", []
        row = max((r for r in rows if r["protocol"] == protocol), key=lambda r: r["n"])
    spread = "" if row["std"] is None else f" ± {100 * row['std']:.2f}"
    got = f"{100 * row['mean']:.2f}{spread} %{given} (n = {row['n']})"
    if (published := recipe.published) is None:
        return f"no published number is known, here {got}. {ALWAYS}"
    unsure = [] if published.verified else ["the published number is not verified"]
    reasons = [*_changes(recipe, run, s), *other, *recipe.differs, *unsure]
    if reasons:
        outcome = f"not comparable ({'; '.join(reasons)})"
    elif 100 * row["mean"] >= published.accuracy - (published.std or 0.0):
        outcome = "met"
    else:
        outcome = f"below (the published number is {published.kind})"
    plan = recorded_plan(path)
    low = {LOW: plan.tasks.precision, LOW_PREFIX: plan.prefix}
    small = [f"Of less weight: {'; '.join(recipe.notes)}."] if recipe.notes else []
    notes = " ".join([ALWAYS, *small, *(text for text, kind in low.items() if kind == "bfloat16")])
    what = f", {published.kind}" if published.labels else ""
    return f"published {published}{what}, here {got}: {outcome}. {notes}"


def _of_probe(
    recipe: Recipe, rows: list[dict[str, Any]], protocol: str
) -> tuple[dict[str, Any], str, list[str]]:
    """Return the row of a probe to compare, its labels in words, how they are not as published.

    Where no row has the published part of the labels it is that of the most labels.
    """
    wanted = recipe.published and recipe.published.labels
    ours = [r for r in rows if r["protocol"].partition(",")[0] == protocol]
    row = max(ours, key=lambda r: (r["labels"] == wanted, r["n"], r["count"]))
    given = row["labels"] + (" of the labels" if row["labels"].endswith("%") else " a class")
    draw = row["protocol"] == protocol
    other = [] if draw else ["labels were drawn class by class, so that no class is left out"]
    if wanted not in (None, row["labels"]):
        other += [f"probes were given {given}, not {wanted} of all labels"]
    return row, f" with {given}", other


def rules_of(recipe: Recipe, run: Run) -> tuple[str, str | None]:
    """Return protocol and regime that a run is scored by; smaller scales by the set's own recipe.

    The regime None is that of the set. Sets for pre-training are probed at any scale by the
    protocol of the published number, if that is one of probes.
    """
    published = recipe.published
    if getattr(run.method, "unlabelled", False):
        named = "" if published is None else published.protocol
        return named if named in PROBES.names() else "recommended", None
    if published is None or run.scale != "full":
        return "strict", None
    return published.protocol, published.regime


def _changes(recipe: Recipe, run: Run, s: DistilledSet) -> list[str]:
    """Return in what a run departs from its recipe."""
    if run.scale != "full":
        return [f"scale {run.scale}: smaller counts"]
    free = (*FREE, "precision") if run.precision == "float32" else FREE
    own = {name: getattr(run, name) for name in free}
    wanted = dataclasses.replace(recipe.make(run.data), **own)
    found = differences(to_json(wanted), to_json(run))
    if (shape := s.shape) != recipe.shape or len(s.classes) != recipe.classes:
        found.append(f"{len(s.classes)} classes of images {shape} are not {recipe.data}")
    return found
