"""Regimes of labels: the set's own, hard ones, or those of one teacher for all images.

The teacher labels each image once (soft), or every augmented batch (online), or it labelled views
of the images before (stored).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from potstill.artefact import DistilledSet, Hard, LabelStore, Soft
from potstill.core.compute import Wish
from potstill.core.errors import InputError, unknown
from potstill.data import DataSet
from potstill.evaluation.computing import computed, work_of
from potstill.evaluation.protocol import whole_recipe
from potstill.evaluation.rules import Protocol
from potstill.evaluation.specs import Online, Stored, Taught
from potstill.experts import ExpertSpec
from potstill.nets import build

REGIMES = ("hard", "soft", "online", "stored")
Labels = Taught | Online | Stored | Literal["own", "hard"]


def own_regime(s: DistilledSet) -> Literal["hard", "soft", "stored"]:
    """Return the regime of the labels that the set brings; its own number belongs to it."""
    if isinstance(s.targets, LabelStore):
        return "stored"
    return "hard" if isinstance(s.targets, Hard) else "soft"


def is_stored(s: DistilledSet, regime: str) -> bool:
    """Tell whether a regime, which may be "own", is that of the stored labels of a set."""
    return regime in ("own", "stored") and isinstance(s.targets, LabelStore)


def _fits(s: DistilledSet, rules: Protocol) -> bool:
    """Tell whether a protocol's views are those of which the set has labels."""
    train = rules.suited(s).train_spec(s.recipe)
    if not isinstance(s.targets, LabelStore) or train.balanced is not None:
        return False
    return (train.augment, train.mix) == (s.targets.plan.crops, s.targets.plan.mix)


def regimes_of(s: DistilledSet, wanted: Sequence[str], rules: Protocol) -> tuple[str, ...]:
    """Return the regimes to evaluate under, none twice; if none is named, the set's or protocol's.

    Raises:
        InputError: for an unknown regime, other labels than hard ones under a protocol of those,
            stored labels of a set that has none, or of other views than the protocol's.
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
    if "stored" in wanted and not isinstance(s.targets, LabelStore):
        raise InputError(f"{s!r} has no stored labels of views: leave out the regime 'stored'.")
    fits = _fits(s, rules)
    own = "own" if rules.lesson is None or fits else "online"
    found = tuple(dict.fromkeys(wanted)) or (own,)
    if not fits and any(is_stored(s, regime) for regime in found):
        raise InputError(
            f"Protocol {rules.name!r} makes other views of the images than those of which the set "
            "has labels: ask for the regime 'hard' or 'online', or use 'strict'."
        )
    return found


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
    brought_soft = s is not None and isinstance(s.targets, Soft)
    if regime == "soft" and not brought_soft:
        return taught[regime], "soft_ce"
    if regime == "hard" and brought_soft:
        return "hard", "ce"
    return "own", "soft_ce" if brought_soft else "ce"
