"""What is wrong with some settings of a progressive run."""

from __future__ import annotations

from typing import Any

from potstill.core.errors import InputError
from potstill.experts import ImportedExpert
from potstill.methods.api import Context

POOLS = {"full": 10, "cpu": 5, "smoke": 2}
"""Networks that go from stage to stage unless others are asked for, by scale."""


def check_filter(method: Any, ctx: Context) -> None:
    """Refuse bands of forgetting that cannot be reached, or experts that saw all images.

    Raises:
        InputError: with what to do about it.
    """
    which, stages = method.filter, method.stages
    if which.rule != "forgetting":
        return
    epochs, last = which.training.epochs, (stages - 1) * which.interval
    if (epochs - 1) // 2 < last:
        raise InputError(
            f"Stage {stages} would see images forgotten {last} times or more, which {epochs} "
            f"epochs of filter.training do not count to; lower filter.interval (now "
            f"{which.interval})."
        )
    if any(isinstance(each, ImportedExpert) for each in method.base.firsts(ctx)):
        raise InputError(
            "Imported experts have seen all real images, so filter.rule 'forgetting' is not for "
            "them; train experts of your own, or take 'correct'."
        )


def refuse_idle(method: Any, ctx: Context) -> None:
    """Refuse settings that say nothing beside others, unless they are defaults of some scale.

    Raises:
        InputError: naming the first one.
    """
    method.filter.refuse_idle(method.stages)
    if method.pool not in POOLS.values() and method.base.firsts(ctx):
        raise InputError(
            f"pool ({method.pool}) says nothing to a method that has networks of its own: leave it "
            "out."
        )
    idle = {
        "conditioning_epochs": method.conditioning_epochs is not None,
        "union": method.union != "dilute",
        "filter.rule": method.filter.rule in ("correct", "both"),
    }
    for setting, given in idle.items():
        if given and method.stages == 1:
            raise InputError(f"{setting} says nothing to a run of one stage: leave it out.")


def check_filtered(method: Any, at: Context, stage: int) -> None:
    """Refuse what the base method refuses of the real images that a filter left.

    Raises:
        InputError: with the reason, and what to do about it.
    """
    try:
        method.base.check(at)
    except InputError as error:
        raise InputError(
            f"{error} So few are left in stage {stage} by filter.rule {method.filter.rule!r}: "
            "raise filter.keep or filter.interval, or lower what needs them."
        ) from error
