"""A finished run beside the published number of its recipe."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from potstill.artefact import DistilledSet, Embedding, load
from potstill.core.spec import differences, to_json
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
    if isinstance(s.targets, Embedding):
        return _of_probes(recipe, path)
    own = {"name": "distilled", "net": describe(s.net), "regime": regime or own_regime(s)}
    own |= {"protocol": protocol, "prefix": None}
    rows = [r for r in eval_rows(path) if all(r.get(key) == own[key] for key in own)]
    row = max(rows, key=lambda r: r["n"])
    spread = "" if row["std"] is None else f" ± {100 * row['std']:.2f}"
    got = f"{100 * row['mean']:.2f}{spread} % (n = {row['n']})"
    if (published := recipe.published) is None:
        return f"no published number is known, here {got}. {ALWAYS}"
    unsure = [] if published.verified else ["the published number is not verified"]
    reasons = [*_changes(recipe, run, s), *recipe.differs, *unsure]
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
    return f"published {published}, here {got}: {outcome}. {notes}"


def _of_probes(recipe: Recipe, path: Path) -> str:
    """Return how a set for pre-training is compared with the published number, if there is one."""
    published = recipe.published
    if published is None:
        return f"no published number is known; `potstill probe {path}` finds one here. {ALWAYS}"
    reasons = "; ".join((*recipe.differs, *recipe.notes))
    return (
        f"published {published}, {published.kind}: `potstill probe {path} --protocol "
        f"{published.protocol}` finds it here, not comparable without care ({reasons})."
    )


def rules_of(recipe: Recipe, run: Run) -> tuple[str, str | None]:
    """Return protocol and regime that a run is scored by; smaller scales by the set's own recipe.

    The regime None is that of the set.
    """
    published = recipe.published
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
