"""What is compared by probes: sets, real images under the same targets, views, no pre-training."""

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
from potstill.evaluation.pretraining_specs import RealTargets, RealViews, Untrained
from potstill.evaluation.specs import Distilled
from potstill.experts import TARGETS
from potstill.functional import TrainSpec
from potstill.functional.selfsup import BarlowTwins
from potstill.teachers.targets import TargetsSpec

NONE = "no pre-training"
RANDOM = ("random, targets", "balanced random, targets")
"""Real images as many as the set has: of all training images, and as many of each class."""
LEFT_OUT = (
    "random real images with targets are not shown: the targets of the set's encoder are not in "
    "the store"
)
What = tuple[Distilled | RealTargets | RealViews | Untrained, ...]


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
    """Return a set whose targets are features.

    Raises:
        InputError: if they are classes.
    """
    found = s if isinstance(s, DistilledSet) else load(s)
    if isinstance(found.targets, Embedding):
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
    assert isinstance(s.targets, Embedding)
    if s.targets.by is None:
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
    assert isinstance(s.targets, Embedding)
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
        InputError: for sets or targets that do not belong to the data.
    """
    for each in (s, *(one for item in beside for one in item.sets)):
        check_data(each, data)
    if targets is not None and (why := unlike(s, targets)):
        raise InputError(f"The targets of real images must be like those of the set; they {why}.")
    found = [_of_sets(item, rules) for item in (Beside(name="distilled", sets=(s,)), *beside)]
    width, count = found[0].outputs, len(s)
    if not baselines:
        return found
    draws = [_random(data, count, seed) for seed in range(rules.seeds)]
    if targets is not None:
        even = budgets([len(data.train)] * data.n_classes, count)
        same = [random_real(data.train, even, seed=seed) for seed in range(rules.seeds)]
        for name, rows in zip(RANDOM, (draws, same), strict=True):
            what = tuple(RealTargets(indices=own, targets=targets) for own in rows)
            nbytes = {**_pixel_bytes(data, count), "targets": 2 * width * count}
            trains = rules.real_specs(s.recipe)
            given = {"outputs": width, "count": count, "nbytes": nbytes}
            found.append(Entrant(name=name, what=what, trains=trains, **given))
    if direct is not None:
        name = "Barlow Twins" if isinstance(direct.pairs, BarlowTwins) else "SimCLR"
        found.append(
            Entrant(
                name=f"random, {name}",
                what=tuple(RealViews(indices=own, head=DIRECT_HEAD) for own in draws),
                trains=(direct,),
                outputs=DIRECT_HEAD.widths[-1],
                count=count,
                nbytes=_pixel_bytes(data, count),
                note=f"trained on views, {direct.steps(count):,} steps",
            )
        )
    nothing = Entrant(name=NONE, what=(Untrained(),), trains=(None,), outputs=width, count=0)
    return [*found, nothing]


def _of_sets(item: Beside, rules: ProbeRules) -> Entrant:
    s = item.sets[0]
    assert isinstance(s.targets, Embedding)
    notes = [item.note]
    if s.origin.rows and s.targets.own is not None:
        counts = histogram(s.targets.classes, torch.arange(len(s)), len(s.classes))
        notes.append(f"real images, {counts.text()}")
    return Entrant(
        name=item.name,
        what=tuple(Distilled(digest=set_digest(each)) for each in item.sets),
        trains=(rules.train_spec(s.recipe),),
        outputs=s.targets.features.shape[1],
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
