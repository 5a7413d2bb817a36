"""Where the differentiated window of a student's training lies: placements by name.

A student makes `start` plain steps and then `length` differentiated ones. A placement decides both
anew every turn: every epoch of real data, or every outer step.

Sources: Feng, Vedantam, Kempe, ICLR 2024 (arXiv 2311.07025), and the options of its code; the start
guided by gradient norms: AT-BPTT (arXiv 2510.04838). Differs: no placement stops a run early; the
original stops windows that do not move at a plateau.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypedDict

import torch
from torch import Tensor

from potstill.core.errors import InputError
from potstill.core.keys import generator
from potstill.core.ranges import at_least
from potstill.core.registry import Registry
from potstill.core.spec import record

Norms = Callable[[int], Tensor]
"""From a number of plain steps of a fresh student to the norms of their gradients [steps]."""


@record
@dataclass(frozen=True, kw_only=True)
class Window:
    """The differentiated window of a student's training."""

    length: int = 60
    """M: differentiated steps."""
    total: int = 200
    """T: the most steps of a student, those before the window included; `zero` has no use of it."""
    place: str = "random"
    """random, fixed (at the end), moving, zero (at the beginning), random-length, adaptive."""
    redraw: Literal["epoch", "step"] = "epoch"
    """Place it anew every epoch of real data, or every outer step."""
    least: int = 0
    """Fewest plain steps before it (random, moving, adaptive)."""

    def __post_init__(self) -> None:
        at_least(1, self, "length", prefix="window.")
        if self.length > self.total:
            raise InputError(
                f"window.length must be at most window.total ({self.total}), not {self.length}."
            )
        if not 0 <= self.least <= self.last:
            raise InputError(
                "window.least must lie between 0 and window.total - window.length "
                f"({self.last}), not {self.least}."
            )
        if self.redraw not in ("epoch", "step"):
            raise InputError(f"window.redraw must be 'epoch' or 'step', not {self.redraw!r}.")
        if not PLACEMENTS.get(self.place).free and self.least:
            raise InputError(f"window.least ({self.least}) says nothing to {self.place!r}.")

    @property
    def last(self) -> int:
        """Return the last possible start, T - M."""
        return self.total - self.length

    def within(self, length: int, total: int) -> Window:
        """Return the window with at most so many steps."""
        length, total = min(self.length, length), min(self.total, total)
        return replace(self, length=length, total=total, least=min(self.least, total - length))

    @property
    def constant(self) -> bool:
        """Return whether all turns have the same window."""
        how = PLACEMENTS.get(self.place)
        return not (how.free or how.grows)

    @property
    def longest(self) -> int:
        """Return the most steps that are differentiated in one turn."""
        return self.total if PLACEMENTS.get(self.place).grows else self.length


class Placed(NamedTuple):
    """Plain steps before the window, and differentiated steps in it."""

    start: int
    length: int


class Turn(TypedDict):
    """A window in use; `seen` are sum and number of its outer losses, `memory` what it learned."""

    number: int
    start: int
    length: int
    seen: tuple[float, int]
    memory: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A way to place windows.

    place: `place(window, memory, chance, norms)` -> (start, length); memory is a JSON object.
    learn: `learn(window, memory, loss)` -> memory, after a turn whose mean outer loss is given.
    free: whether starts are free from window.least on; grows: whether lengths reach window.total.
    """

    help: str
    """One line for people."""
    place: Callable[[Window, dict[str, Any], torch.Generator, Norms], Placed]
    learn: Callable[[Window, dict[str, Any], float], dict[str, Any]] = lambda _w, memory, _l: memory
    free: bool = False
    grows: bool = False


PLACEMENTS: Registry[Placement] = Registry("placement")
PATIENCE = 60
"""Turns in a row without a better outer loss after which a moving window moves."""


def first_turn() -> Turn:
    """Return the turn before the first one."""
    return Turn(number=-1, start=0, length=0, seen=(0.0, 0), memory={})


def turned(window: Window, turn: Turn, number: int, *, seed: int, norms: Norms) -> Turn:
    """Return the turn of this number: the one given, or the next with its window placed anew.

    The window follows from seed, number and what was learned, so every rank draws the same one.
    """
    if number == turn["number"]:
        return turn
    how, memory, (total, count) = PLACEMENTS.get(window.place), turn["memory"], turn["seen"]
    if count:
        memory = how.learn(window, memory, total / count)
    chance = generator(seed, "window", number)
    start, length = how.place(window, memory, chance, norms)
    return Turn(number=number, start=start, length=length, seen=(0.0, 0), memory=memory)


def witnessed(turn: Turn, loss: float) -> Turn:
    """Return the turn after an outer step of that loss."""
    total, count = turn["seen"]
    return {**turn, "seen": (total + loss, count + 1)}


def _random(window: Window, _: dict[str, Any], chance: torch.Generator, __: Norms) -> Placed:
    start = torch.randint(window.least, window.last + 1, (), generator=chance)
    return Placed(int(start), window.length)


def _random_length(window: Window, _: dict[str, Any], chance: torch.Generator, __: Norms) -> Placed:
    return Placed(0, int(torch.randint(window.length, window.total + 1, (), generator=chance)))


def _moved(window: Window, memory: dict[str, Any], *_: Any) -> Placed:
    return Placed(memory.get("start", window.least), window.length)


def _patient(window: Window, memory: dict[str, Any], loss: float) -> dict[str, Any]:
    """Move on by M once the loss has not improved for PATIENCE turns.

    Differs: the outer loss decides, not the loss of test networks, and training does not stop when
    the end is reached.
    """
    start, waited = memory.get("start", window.least), memory.get("waited", 0) + 1
    if loss < memory.get("best", math.inf):
        return {"start": start, "best": loss, "waited": 0}
    if waited < PATIENCE:
        return {**memory, "start": start, "waited": waited}
    return {"start": min(start + window.length, window.last), "waited": 0}


def _adaptive(window: Window, _: dict[str, Any], chance: torch.Generator, norms: Norms) -> Placed:
    """Draw the start by softmax of the gradients' norms along a plain training.

    Differs: of the three stages of AT-BPTT only the start of the first, among starts whose window
    ends by T; the window keeps its length.
    """
    found = norms(window.last + 1)[window.least :].double().cpu()
    chances = (found - found.max()).exp().nan_to_num(1.0)
    return Placed(
        window.least + int(torch.multinomial(chances, 1, generator=chance)), window.length
    )


for _name, _placement in {
    "random": Placement(
        help="uniform start in [least, T - M] (RaT-BPTT)", place=_random, free=True
    ),
    "fixed": Placement(
        help="the last M of T steps (T-BPTT, the authors' stabilised mode)",
        place=lambda window, *_: Placed(window.last, window.length),
    ),
    "zero": Placement(
        help="the first M steps (BPTT)", place=lambda window, *_: Placed(0, window.length)
    ),
    "moving": Placement(
        help="from `least` on by M whenever the outer loss stays put",
        place=_moved,
        learn=_patient,
        free=True,
    ),
    "random-length": Placement(
        help="from the first step on, uniform length in [M, T] (R-BPTT)",
        place=_random_length,
        grows=True,
    ),
    "adaptive": Placement(
        help="start by the norms of the student's gradients (AT-BPTT)", place=_adaptive, free=True
    ),
}.items():
    PLACEMENTS.add(_name)(_placement)
