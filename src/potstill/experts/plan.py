"""How many experts are trained, how, and what they learn.

Source: Cazenavette et al., CVPR 2022 (arXiv 2203.11932), section 3.2, for classes; MKDT, Joshi, Ni
and Mirzasoleiman, ICLR 2025 (arXiv 2410.02116), for features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from potstill.augment import DSA, Policy
from potstill.core.errors import InputError
from potstill.core.ranges import at_least, one_of
from potstill.core.spec import later, record
from potstill.core.store import Store, default_cache
from potstill.experts.pools import find_pool
from potstill.functional import GSAM, SGD, Segment, TrainSpec
from potstill.functional.selfsup import BarlowTwins, PairLoss, SimCLR

Objective = Literal["ce", "kd_mse", "bt", "simclr"]
PAIRS: Mapping[str, PairLoss] = {"bt": BarlowTwins(lam=1 / 128), "simclr": SimCLR(temperature=0.5)}
"""The losses of objectives that compare two views of each image."""


@record
@dataclass(frozen=True, kw_only=True)
class ExpertPlan:
    """How many experts are trained, and how."""

    count: int = 100
    """Number of experts."""
    epochs: int = 50
    """Epochs of real data an expert sees."""
    lr: float = 0.01
    """Step size."""
    momentum: float = 0.0
    """Momentum of SGD."""
    weight_decay: float = 0.0
    """Weight decay of SGD."""
    batch: int = 256
    """Images a step; the last, partial batch of an epoch is kept."""
    augment: Policy | None = DSA()
    """Augmentation of the real images."""
    gsam: GSAM = GSAM(rho=0.0, alpha=0.0)
    """Experts in flat regions (FTD): GSAM around SGD; a rho of 0 means plain SGD."""
    imported: str | None = None
    """Train none: take `count` experts of this pool (see `potstill experts import`)."""
    objective: Objective = later("ce")
    """What an expert learns: ce, the class; kd_mse, what an encoder says of the image (mean square
    error); bt, simclr: by itself, from two views of each image (Barlow Twins, SimCLR)."""

    def __post_init__(self) -> None:
        at_least(1, self, "count", "epochs", prefix="experts' ")
        one_of(get_args(Objective), self, "objective", prefix="experts' ")
        if self.imported is not None and self.objective != "ce":
            raise InputError(f"Imported experts learned classes; objective is {self.objective!r}.")
        if not self.gsam.rho and (self.gsam.alpha or not self.gsam.adaptive):
            raise InputError("gsam.alpha and gsam.adaptive have no effect without a gsam.rho.")
        _ = self.train  # its records refuse a bad step size, batch, momentum or decay

    @property
    def train(self) -> TrainSpec:
        """Return how each expert is trained."""
        return TrainSpec(
            lr=self.lr,
            segments=(Segment(epochs=self.epochs),),
            batch=self.batch,
            optimizer=SGD(momentum=self.momentum, weight_decay=self.weight_decay),
            augment=self.augment,
            sharpness=self.gsam if self.gsam.rho else None,
            loss="mse" if self.objective == "kd_mse" else "ce",
            pairs=PAIRS.get(self.objective),
        )


def epochs_of(plan: ExpertPlan, store: Store | None = None) -> int:
    """Return the epochs that the experts of a plan have: its own, or those of an imported pool.

    Raises:
        InputError: if the store lacks the imported pool.
    """
    if plan.imported is None:
        return plan.epochs
    return find_pool(store or Store(default_cache()), plan.imported).last_epoch()
