"""Coresets by scores: networks train on all images, and each class gives those of highest score.

The scores are in `potstill.coresets.scores`; other coresets are in `potstill.methods.coreset`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor

from potstill.core.errors import InputError, unknown
from potstill.core.keys import generator
from potstill.core.spec import record
from potstill.coresets import Score, highest, mean_scores, score_tasks
from potstill.experts import ExpertPlan
from potstill.methods.api import METHODS, Context, Cost, Done, Phase
from potstill.methods.chosen import (
    Pick,
    Use,
    begin,
    check,
    choose,
    cost_of,
    export,
    loop,
    scaled,
)

Keep = Literal["hardest", "easiest"]


def _cost(method: _ByScores, ctx: Context) -> Cost:
    """Return the bytes of the scores."""
    return cost_of(ctx, 8 * len(ctx.data.train) * method.training.count, method.training)


def _phases(method: _ByScores, ctx: Context, done: Done) -> Phase | None:
    """Train networks and score the images by them; then choose."""
    if "scores" in done:
        return loop(ctx, done)
    return score_tasks(
        method.score(),
        method.training,
        ctx.data,
        ctx.space,
        ctx.net_spec,
        seed=ctx.seed,
        compute=ctx.plan.tasks,
    )


def _pick(method: _ByScores, ctx: Context, label: int, rows: Tensor) -> Pick:
    """Return how to take the images of highest (or lowest) mean score; chance orders equal ones."""
    scores = mean_scores(tuple(ctx.done["scores"]))[rows]
    chance = generator(ctx.seed, "equal scores", label)
    return partial(highest, scores if method.keep == "hardest" else -scores, chance=chance)


def _settings(method: _ByScores) -> None:
    if method.keep not in ("hardest", "easiest"):
        raise unknown("keep", method.keep, ("hardest", "easiest"))
    if method.training.imported is not None:
        raise InputError(
            f"Scores are taken while networks train; training.imported cannot be "
            f"{method.training.imported!r}."
        )
    if method.score() == "forgetting" and method.training.epochs < 2:
        raise InputError(
            f"training.epochs must be at least 2 to forget, not {method.training.epochs}."
        )


@METHODS.add("forgetting")
@record
@dataclass(frozen=True, kw_only=True)
class Forgetting:
    """Choose images that training forgets most often (Toneva et al., ICLR 2019)."""

    keep: Keep = "hardest"
    """`hardest`: the most forgotten, never learned ones first, as published; `easiest`: the least
    forgotten, better for few images."""
    training: ExpertPlan = ExpertPlan(count=1, epochs=200, momentum=0.9, weight_decay=5e-4)
    """The networks that are trained on all images; their counts are averaged."""
    use: Use = Use()
    """How networks are trained on the images."""

    def score(self) -> Score:
        """Return the name of the score."""
        return "forgetting"

    __post_init__, check, cost, phases, pick = _settings, check, _cost, _phases, _pick
    init, step, export, scaled = begin, choose, export, scaled


@METHODS.add("el2n")
@record
@dataclass(frozen=True, kw_only=True)
class EL2N:
    """Choose images whose error is large early in training (Paul et al., NeurIPS 2021)."""

    keep: Keep = "hardest"
    """`hardest`: the largest errors, as published; `easiest`: the smallest, better for few images.
    """
    training: ExpertPlan = ExpertPlan(count=10, epochs=20, momentum=0.9, weight_decay=5e-4)
    """The networks whose errors after the last of these (few) epochs are averaged."""
    use: Use = Use()
    """How networks are trained on the images."""

    def score(self) -> Score:
        """Return the name of the score."""
        return "el2n"

    __post_init__, check, cost, phases, pick = _settings, check, _cost, _phases, _pick
    init, step, export, scaled = begin, choose, export, scaled


_ByScores = Forgetting | EL2N
