"""The constants of recovery: SRe2L and CDA are one loop with other numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from potstill.augment import Crops, Curriculum
from potstill.core.errors import InputError, unknown
from potstill.core.spec import record
from potstill.functional import Adam
from potstill.functional.statistics import NormOf

Start = Literal["noise", "real", "patches"]
Codec = Literal["exact", "jpeg75"]


@record
@dataclass(frozen=True, kw_only=True)
class Recovery:
    """How images are recovered from a teacher; by default as CDA does for ImageNet-1K.

    Raises:
        InputError: for a number out of its range, or an unknown word.
    """

    iterations: int = 4000
    """Steps of an image."""
    lr: float = 0.25
    """First step size; it falls to 0 on a cosine."""
    optimizer: Adam = Adam(betas=(0.5, 0.9))
    bn: float = 0.01
    """Weight of the batch-norm statistics beside the cross-entropy."""
    first: float = 10.0
    """Weight of the first batch norm among them."""
    norm: NormOf = "l2"
    """`l2` as published, whose `bn` depends on the teacher; `relative`: free of scale."""
    curriculum: Curriculum = Curriculum()
    """Smallest crops, by step; constant at 1: no crops."""
    flip_prob: float = 0.5
    """Chance to mirror the images of a step."""
    roll: float = 1 / 7
    """Largest circular shift, as a fraction of the side."""
    two_sided: bool = False
    """Shifts go both ways."""
    sharing: Literal["batch", "image"] = "batch"
    """Whether all images of a unit share crop, flip and shift (as published), or none do."""
    start: Start = "noise"
    """First images: normal noise, random real images of the class, or RDED's images of it."""
    snapshots: tuple[int, ...] = ()
    """Steps after which the images are kept, too; 0 = the first images."""
    codec: Codec = "exact"
    """Images are rounded and lossless; jpeg75: as released, cut to whole levels and through JPEG of
    quality 75, 4:2:0."""
    log_every: int = 100
    """Steps between two lines of losses."""

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.log_every < 1:
            raise InputError("iterations and log_every must be at least 1.")
        if not 0 < self.lr < math.inf:
            raise InputError(f"The step size lr must be above 0, not {self.lr}.")
        if not (self.bn >= 0 and self.first >= 0):
            raise InputError("The weights bn and first must be at least 0.")
        if not self.bn and (self.norm, self.first) != ("l2", 10.0):
            raise InputError("norm and first say nothing without the statistics (bn 0).")
        if self.optimizer.decays == "weights":
            raise InputError("optimizer.decays 'weights' is for networks; images take 'all'.")
        for name, allowed in (("norm", NormOf), ("start", Start), ("codec", Codec)):
            if getattr(self, name) not in get_args(allowed):
                raise unknown(name, getattr(self, name), get_args(allowed))
        if self.sharing not in ("batch", "image"):
            raise unknown("sharing", self.sharing, ("batch", "image"))
        if any(not 0 <= step <= self.iterations for step in self.snapshots):
            raise InputError(
                f"Snapshots lie at steps 0 to {self.iterations}, not at {self.snapshots}."
            )
        if sorted(set(self.snapshots)) != list(self.snapshots):
            raise InputError(f"Snapshots must ascend, unlike {self.snapshots}.")
        self.crops(0)  # its record refuses the rest

    def crops(self, step: int) -> Crops:
        """Return what is done to the images of a step, counted from 0."""
        return Crops(
            scale=(self.curriculum.at(step, self.iterations), 1.0),
            flip_prob=self.flip_prob,
            roll=self.roll,
            two_sided=self.two_sided,
            shared=self.sharing == "batch",
        )

    def step_sizes(self) -> list[float]:
        """Return the step size of every step: lr (1 + cos(pi t / T)) / 2."""
        part = math.pi / self.iterations
        return [self.lr * (1 + math.cos(part * t)) / 2 for t in range(self.iterations)]
