"""The curriculum of CDA: how small a random crop may be, from the first step to the last.

Source: Yin and Shen, "Dataset Distillation via Curriculum Data Synthesis in Large Data Era", TMLR
2024 (arXiv 2311.18838).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from potstill.core.errors import InputError, unknown
from potstill.core.spec import record

Kind = Literal["constant", "step", "linear", "cosine", "reverse"]


@record
@dataclass(frozen=True, kw_only=True)
class Curriculum:
    """The smallest share of the area that a crop has, by step t of T; T_c = milestone T.

    Before T_c: constant: `least`; step: `most`; linear and cosine: from `most` down to `least`;
    reverse: from `least` up to `most`, as a cosine. From T_c on: `least`, of reverse `most`. A
    cosine with milestone 1 is CDA, a constant SRe2L.

    Raises:
        InputError: for an unknown kind, shares that are not 0 < least <= most <= 1, a milestone
            outside (0, 1], or one or a `most` other than 1 of a constant.

    Differs: a milestone of 0, the default of the released CDA, which turns the curriculum off
        unnoticed, is refused; the formula of `reverse` is ours, the paper gives none.
    """

    kind: Kind = "cosine"
    milestone: float = 1.0
    """Part of the steps after which the curriculum ends."""
    least: float = 0.08
    most: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise unknown("curriculum", self.kind, get_args(Kind))
        if not 0 < self.least <= self.most <= 1:
            raise InputError(
                f"A curriculum needs 0 < least <= most <= 1, not {self.least} and {self.most}."
            )
        if not 0 < self.milestone <= 1:
            raise InputError(
                f"The milestone of a curriculum lies above 0 and at most at 1, not at "
                f"{self.milestone}; without a curriculum its kind is 'constant'."
            )
        if self.kind == "constant" and (self.milestone, self.most) != (1, 1):
            raise InputError("The curriculum 'constant' has no milestone and no most but 1.")

    def at(self, t: int, steps: int) -> float:
        """Return the smallest share at step t of `steps`, counted from 0."""
        done = t / (self.milestone * steps)  # 1 at the milestone
        if self.kind == "constant" or (done >= 1 and self.kind != "reverse"):
            return self.least
        down = {
            "step": 1.0,
            "linear": 1 - done,
            "cosine": (1 + math.cos(math.pi * done)) / 2,
            "reverse": (1 - math.cos(math.pi * min(done, 1.0))) / 2,
        }[self.kind]
        return min(self.least + (self.most - self.least) * down, self.most)
