"""Regimes of labels: the set's own, hard ones, or those of one teacher for all images.

The teacher labels each image once (soft), or every augmented batch (online).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from potstill.artefact import DistilledSet, Hard
from potstill.core.compute import Wish
from potstill.core.errors import InputError, unknown
from potstill.data import DataSet
from potstill.evaluation.computing import computed, work_of
from potstill.evaluation.protocol import whole_recipe
from potstill.evaluation.rules import Protocol
from potstill.evaluation.specs import Online, Taught
from potstill.experts import ExpertSpec
from potstill.nets import build

REGIMES = ("hard", "soft", "online")
Labels = Taught | Online | Literal["own", "hard"]


def own_regime(s: DistilledSet) -> Literal["hard", "soft"]:
    """Return the regime of the labels that the set brings; its own number belongs to it."""
    return "hard" if isinstance(s.targets, Hard) else "soft"


def regimes_of(s: DistilledSet, wanted: Sequence[str], rules: Protocol) -> tuple[str, ...]:
    """Return the regimes to evaluate under, none twice; if none is named, the set's or protocol's.

    Raises:
        InputError: for an unknown regime, or other labels than hard ones under a protocol of those.
    """
    wanted = [wanted] if isinstance(wanted, str) else wanted
    for name in wanted:
        if name not in REGIMES:
            raise unknown("regime", name, REGIMES)
    hard = set(wanted) <= {"hard"} if wanted else isinstance(s.targets, Hard)
    if rules.hard_only and not hard:
        raise InputError(
            f"Protocol {rules.name!r} trains on hard labels only: ask for the regime 'hard', or "
            "use 'strict'."
        )
    return tuple(dict.fromkeys(wanted)) or ("own" if rules.lesson is None else "online",)


def teacher_of(s: DistilledSet, data: DataSet, wish: Wish) -> ExpertSpec:
    """Return the teacher for sets that bring none: their own network trained on the real images."""
    size, classes, lesson = data.size, data.n_classes, [work_of(whole_recipe(), len(data.train))]
    module = build(s.net, channels=data.channels, size=size, classes=classes, seed=0)
    return ExpertSpec(
        data=s.ref,
        space=s.space.record(),
        net=s.net,
        train=whole_recipe(),
        seed=0,
        index=0,
        compute=computed(wish, module, lesson, data, predicted=len(data.val)),
    )


def labels_of(
    s: DistilledSet | None, regime: str, taught: Mapping[str, Taught | Online]
) -> tuple[Labels, Literal["ce", "soft_ce"]]:
    """Return whose labels the images of a set, or real ones, take under a regime, and the loss.

    `taught` has the teachers' labels under the regimes that need some; the loss of those online is
    the lesson, whatever is returned.
    """
    if regime == "online":
        return taught[regime], "ce"
    brought_soft = s is not None and not isinstance(s.targets, Hard)
    if regime == "soft" and not brought_soft:
        return taught[regime], "soft_ce"
    if regime == "hard" and brought_soft:
        return "hard", "ce"
    return "own", "soft_ce" if brought_soft else "ce"
