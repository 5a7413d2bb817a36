"""What is compared by probes: sets, real images under the same lesson, views, no pre-training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from potstill.artefact import DistilledSet, Embedding, load, set_digest
from potstill.core.errors import InputError
from potstill.core.keys import generator
from potstill.core.spec import from_json
from potstill.core.store import Store
from potstill.coresets import random_real
from potstill.coresets.sizes import budgets, histogram
from potstill.data import DataSet
from potstill.evaluation.images import Beside, check_data
from potstill.evaluation.pretraining_rules import DIRECT_HEAD, ProbeRules
from potstill.evaluation.pretraining_specs import (
    DistilledViews,
    RealTargets,
    RealViews,
    Untrained,
)
from potstill.evaluation.specs import Distilled
from potstill.experts import TARGETS
from potstill.functional import TrainSpec
from potstill.functional.checks import check_pairs
from potstill.functional.selfsup import BarlowTwins
from potstill.nets import VIEWS_HEAD
from potstill.teachers.targets import TargetsSpec

NONE = "no pre-training"
RANDOM = ("random, targets", "balanced random, targets")
"""Real images as many as the set has: of all training images, and as many of each class."""
VIEWED = ("random, views", "balanced random, views")
"""The same beside a set whose views are learned, by its recipe."""
ON_VIEWS = "trained on views"
LEFT_OUT = (
    "random real images with targets are not shown: the targets of the set's encoder are not in "
    "the store"
)
What = tuple[Distilled | DistilledViews | RealTargets | RealViews | Untrained, ...]


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """What one row's networks are pre-trained on: one choice for all seeds or one a seed."""

    name: str
    what: What
    trains: tuple[TrainSpec | None, ...]
    """One a step size; of several the best on the validation part is shown."""
    outputs: int
    count: int
    """Images."""
    nbytes: dict[str, int] = field(default_factory=dict)
    note: str = ""
    of: tuple[DistilledSet, ...] = ()
    """The sets, if there are any."""


def opened_set(s: DistilledSet | str | Path) -> DistilledSet:
    """Return a set for pre-training: its targets are features, or networks learn from its views.

    Raises:
        InputError: if it is for training on classes.
    """
    found = s if isinstance(s, DistilledSet) else load(s)
    if found.pretrains:
        return found
    which = repr(found) if isinstance(s, DistilledSet) else f"The set in {s}"
    raise InputError(
        f"{which} has labels of classes, not features of an encoder: `potstill evaluate` scores it "
        "(in Python evaluate), no probe."
    )


def beside_of(item: str | Path | Beside) -> Beside:
    """Return another set to compare with, whole, by the name of its folder.

    Raises:
        InputError: as `opened_set`.
    """
    if isinstance(item, Beside):
        for each in item.sets:
            opened_set(each)
        return item
    path = Path(item).expanduser().resolve()
    name = path.parent.name if path.name == "distilled" else path.name
    return Beside(name=name, sets=(opened_set(path),))


def found_targets(s: DistilledSet, store: Store) -> TargetsSpec | None:
    """Return the targets of all training images by the encoder of a set, if a store has them."""
    if not isinstance(s.targets, Embedding) or s.targets.by is None:
        return None
    for entry in store.entries(TARGETS):
        try:
            spec = from_json(entry.spec)
        except InputError:  # of another version
            continue
        if isinstance(spec, TargetsSpec) and not unlike(s, spec) and store.has(TARGETS, spec):
            return spec
    return None


def unlike(s: DistilledSet, targets: TargetsSpec) -> str:
    """Return in what targets differ from those of a set; empty if in nothing."""
    if not isinstance(s.targets, Embedding):
        return "are features, and it has none"
    if targets.data != s.ref:
        return "are of other data"
    if targets.encoder.width != s.targets.features.shape[1]:
        return f"have {targets.encoder.width} dimensions, not {s.targets.features.shape[1]}"
    by = s.targets.by
    if by is not None and targets.encoder.digest != by.digest:
        return "are of another encoder"
    return "" if by is None or targets.scale == by.scale else f"are {targets.scale}"


def entrants_of(
    s: DistilledSet,
    data: DataSet,
    rules: ProbeRules,
    *,
    beside: Sequence[Beside],
    baselines: bool,
    targets: TargetsSpec | None,
    direct: TrainSpec | None,
) -> list[Entrant]:
    """Return what is compared, in the order of the rows.

    Raises:
        InputError: for sets or targets that do not belong to the data, two sets of one name, a set
            of which one image is alone in a batch of `direct`, or `direct` without baselines.
    """
    if direct is not None and not baselines:
        raise InputError("Training on views (direct) is one of the baselines; leave these in.")
    names = ["distilled", *(item.name for item in beside)]
    if twice := next((name for k, name in enumerate(names) if name in names[:k]), None):
        raise InputError(f"Two rows would be called {twice!r}; rename the folder of one of them.")
    for each in (s, *(one for item in beside for one in item.sets)):
        check_data(each, data)
    if targets is not None and (why := unlike(s, targets)):
        raise InputError(f"The targets of real images must be like those of the set; they {why}.")
    every, lr = (Beside(name="distilled", sets=(s,)), *beside), s.recipe.lr
    found = [_of_sets(item, rules, lr) for item in every]
    width, count = found[0].outputs, len(s)
    if not baselines:
        return found
    draws = [_random(data, count, seed) for seed in range(rules.seeds)]
    if targets is not None or s.recipe.pairs is not None:
        found += _of_real(s, data, rules, targets, draws, width)
    if direct is not None:
        check_pairs(count, direct)
        name = "Barlow Twins" if isinstance(direct.pairs, BarlowTwins) else "SimCLR"
        found.append(
            Entrant(
                name=f"random, {name}",
                what=tuple(RealViews(indices=own, head=DIRECT_HEAD) for own in draws),
                trains=(direct,),
                outputs=DIRECT_HEAD.widths[-1],
                count=count,
                nbytes=_pixel_bytes(data, count),
                note=ON_VIEWS,
            )
        )
    nothing = Entrant(name=NONE, what=(Untrained(),), trains=(None,), outputs=width, count=0)
    return [*found, nothing]


def _of_real(
    s: DistilledSet,
    data: DataSet,
    rules: ProbeRules,
    targets: TargetsSpec | None,
    draws: list[tuple[int, ...]],
    width: int,
) -> list[Entrant]:
    """Return random real images under what the set teaches: targets, or views by its recipe."""
    even = budgets([len(data.train)] * data.n_classes, len(s))
    same = [random_real(data.train, even, seed=seed) for seed in range(rules.seeds)]
    names, trains, found = VIEWED, (rules.train_spec(s.recipe),), []
    nbytes, note = _pixel_bytes(data, len(s)), ON_VIEWS
    if targets is not None:
        names, trains, note = RANDOM, rules.real_specs(s.recipe), ""
        nbytes |= {"targets": 2 * width * len(s)}
    for name, rows in zip(names, (draws, same), strict=True):
        what = tuple(
            RealViews(indices=own, head=VIEWS_HEAD)
            if targets is None
            else RealTargets(indices=own, targets=targets)
            for own in rows
        )
        given = {"outputs": width, "count": len(s), "nbytes": nbytes, "note": note}
        found.append(Entrant(name=name, what=what, trains=trains, **given))
    return found


def _of_sets(item: Beside, rules: ProbeRules, lr: float) -> Entrant:
    """Return sets as an entrant; real images and their targets choose a step size as others do.

    `lr` is the step size of the set that all are compared with.
    """
    s, own = item.sets[0], item.sets[0].targets
    trains, notes = (rules.train_spec(s.recipe),), [item.note]
    if isinstance(own, Embedding):
        trains = rules.real_specs(s.recipe, lr) if s.origin.rows else trains
        what: What = tuple(Distilled(digest=set_digest(x)) for x in item.sets)
        width = own.features.shape[1]
        if s.origin.rows and own.own is not None:
            counts = histogram(own.classes, torch.arange(len(s)), len(s.classes))
            notes.append(f"real images, {counts.text()}")
    else:
        width = VIEWS_HEAD.widths[-1]
        what = tuple(DistilledViews(digest=set_digest(x), head=VIEWS_HEAD) for x in item.sets)
        notes.append(ON_VIEWS)
    return Entrant(
        name=item.name,
        what=what,
        trains=trains,
        outputs=width,
        count=len(s),
        nbytes=s.nbytes(),
        note="; ".join(filter(None, notes)),
        of=item.sets,
    )


def _random(data: DataSet, count: int, seed: int) -> tuple[int, ...]:
    """Return `count` random training images of all classes together."""
    if count > len(data.train):
        raise InputError(f"The set has {count} images, the training part only {len(data.train)}.")
    chance = generator(seed, "random rows")
    return tuple(torch.randperm(len(data.train), generator=chance)[:count].tolist())


def _pixel_bytes(data: DataSet, count: int) -> dict[str, int]:
    """Return the bytes of real images in uint8."""
    height, width = data.size
    return {"images": count * data.channels * height * width}
