"""Every training behind an evaluation: images, labels and step sizes of all networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from potstill.core.compute import Compute
from potstill.evaluation.asked import Asked
from potstill.evaluation.computing import computed, trainings
from potstill.evaluation.images import Images
from potstill.evaluation.regimes import is_stored, labels_of
from potstill.evaluation.rows import Group
from potstill.evaluation.specs import EvalSpec, Online, Stored, Taught
from potstill.functional import Softened, TrainSpec
from potstill.nets import NetSpec

LEFT_OUT = "real images beside it need labels by its teacher, which is not in the store"


@dataclass(frozen=True, kw_only=True)
class Labelling:
    """Whose labels images take under each regime."""

    taught: Mapping[str, Taught | Online]
    """By the regime, where a teacher gives them."""
    stored: Mapping[Any, Stored]
    """Of real images, by what they are."""


def groups_of(asked: Asked, images: Sequence[Images], labelling: Labelling) -> list[Group]:
    """Return all trainings, those of one possible row together, network by network."""
    rules, data = asked.rules, asked.data
    work = trainings(images, data, rules, len(asked.regimes))
    tested = (len(data.val) + len(data.test)) * (1 + len(rules.marks))
    return [
        group
        for net, module in asked.modules.items()
        for how in [computed(asked.wish, module, work, data, predicted=tested)]
        for regime in asked.regimes
        for item in images
        if _is_labelled(asked, item, regime, labelling)
        for group in _of(asked, item, regime, labelling, net, how)
    ]


def _is_labelled(asked: Asked, item: Images, regime: str, labelling: Labelling) -> bool:
    """Tell whether images have labels under a regime."""
    if is_stored(asked.s, regime) and item.of is None:
        return all(what in labelling.stored for what in item.what)
    return regime not in labelling.taught or item.name != "whole set"


def _of(
    asked: Asked, item: Images, regime: str, labelling: Labelling, net: NetSpec, compute: Compute
) -> list[Group]:
    """Return the trainings on some images under a regime, a group a step size."""
    s, rules = item.of or asked.s, asked.rules
    stored = is_stored(s, regime)

    def spec(train: TrainSpec, seed: int) -> EvalSpec:
        what = item.what[seed % len(item.what)]
        labels, loss = labels_of(item.of, regime, labelling.taught)
        lesson = None
        if stored:
            labels, lesson = "own", rules.lesson or train.lesson
            labels = labels if item.of is not None else labelling.stored[what]
        elif regime == "online":
            lesson = rules.lesson or train.lesson or Softened()
        return EvalSpec(
            what=what,
            labels=labels,
            net=net,
            train=replace(train, loss=loss, lesson=lesson),
            seed=seed,
            data=asked.s.ref,
            space=s.space.record(),
            compute=compute,
            marks=rules.marks if train.segments == rules.segments else (),
        )

    if stored and item.of is not None and rules.baselines and not labelling.stored:
        item = replace(item, note="; ".join(filter(None, [item.note, LEFT_OUT])))
    return [
        Group(images=item, regime=regime, specs=tuple(spec(train, d) for d in range(rules.seeds)))
        for train in item.trains
    ]
