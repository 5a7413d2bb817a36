"""Step sizes that rise and fall once, step by step.

Source: Smith and Topin, "Super-Convergence", 2017 (arXiv 1708.07120), as torch's `OneCycleLR`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from potstill.core.errors import InputError
from potstill.core.spec import record


@record
@dataclass(frozen=True, kw_only=True)
class OneCycle:
    """From `first` of the step size to the whole on a cosine, then down to `last` on another.

    Raises:
        InputError: for a number outside (0, 1).
    """

    rise: float = 0.1
    """Part of the steps in which the step size rises."""
    first: float = 1 / 20
    last: float = 1 / (20 * 1e4)

    def __post_init__(self) -> None:
        for name in ("rise", "first", "last"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(f"{name} of OneCycle lies in (0, 1), not {getattr(self, name)}.")

    def at(self, step: int, steps: int) -> float:
        """Return the part of the step size at a step from 0 on of so many."""
        top, end = max(self.rise * steps - 1, 0.0), steps - 1
        if step <= top:
            return _between(self.first, 1.0, step / top if top else 1.0)
        return _between(1.0, self.last, min((step - top) / (end - top), 1.0))


def _between(start: float, end: float, part: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * part)) / 2
