"""A part of a run's units, done by hand: on another machine, or beside others."""

from __future__ import annotations

import re
from dataclasses import replace

from potstill.core.errors import InputError, PartDone
from potstill.engine import Tasks
from potstill.methods.api import Context, name_of
from potstill.run.config import Run


def units_from(text: str) -> tuple[int, int]:
    """Return the first unit and the one after the last of a text such as 0:50.

    Raises:
        InputError: if it is another text.
    """
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if found is None:
        raise InputError(f"units must be two numbers such as 0:50 (units 0 to 49), not {text!r}.")
    return int(found[1]), int(found[2])


def check_part(run: Run, ctx: Context, units: tuple[int, int] | None) -> None:
    """Refuse units that the method does not have, and processes of torchrun.

    Raises:
        InputError: saying what there is.
    """
    if units is None:
        return
    parts = getattr(run.method, "parts", None)
    if parts is None:
        raise InputError(
            f"units are for methods that recover images unit by unit (sre2l, cda); "
            f"{name_of(run.method)} has none."
        )
    (first, end), (_, count) = units, parts(ctx)
    if not first < end <= count:
        raise InputError(
            f"units must be a range within 0:{count} that is not empty, not {first}:{end}."
        )
    if ctx.ranks.world > 1:
        raise InputError("A part of the units is done by one process; leave out torchrun.")


def part_of(run: Run, ctx: Context, phase: Tasks, units: tuple[int, int] | None) -> Tasks:
    """Return the part of a phase that was asked for; the whole of one without such units."""
    if units is None or phase.phase != run.method.parts(ctx)[0]:
        return phase
    return replace(phase, specs=phase.specs[slice(*units)])


def part_done(units: tuple[int, int], count: int) -> PartDone:
    """Return what ends a run whose part is finished."""
    return PartDone(
        f"units {units[0]} to {units[1] - 1} of {count} (counted from 0) are finished; when all "
        "are in one store, start the run without --units."
    )
