"""Protocols as data: how a distilled set is trained on and how accuracies become one number."""

from __future__ import annotations

from dataclasses import dataclass, replace

from potstill.core.errors import InputError
from potstill.core.registry import Registry
from potstill.core.spec import record
from potstill.functional import SGD, Adam, Segment, TrainSpec, mtt_segments


@record
@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a set is evaluated; None means "as the recipe inside the artefact says"."""

    name: str
    help: str = ""
    """One line for people."""
    segments: tuple[Segment, ...] | None = None
    """Epochs, step-size factors and optimizer resets."""
    optimizer: SGD | Adam | None = None
    batch: int | None = None
    hard_only: bool = False
    """Whether sets with soft targets are refused."""
    seeds: int = 5
    """Networks a row, seeds 0, 1, ...; the report is of the last epoch."""
    ddof: int = 1
    """Std over networks: 1 = of the sample, 0 = of the population."""
    baselines: bool = True
    """Whether matched real images are shown beside the set."""
    lr_grid: tuple[float, ...] = ()
    """Step sizes that matched real images may take instead of the set's own one."""

    def train_spec(self, recipe: TrainSpec) -> TrainSpec:
        """Return the recipe of a set with this protocol's parts in place.

        Raises:
            InputError: if the protocol knows hard labels only and the recipe is for soft ones.
        """
        if self.hard_only and recipe.loss != "ce":
            raise InputError(
                f"Protocol {self.name!r} trains on hard labels; this set has soft ones: "
                "use 'strict'."
            )
        return replace(
            recipe,
            segments=self.segments or recipe.segments,
            optimizer=self.optimizer or recipe.optimizer,
            batch=self.batch or recipe.batch,
        )


PROTOCOLS: Registry[Protocol] = Registry("protocol")

STRICT = PROTOCOLS.add("strict")(
    Protocol(
        name="strict",
        help="the set's own recipe, last epoch, t-interval; baselines may choose their step",
        lr_grid=(0.001, 0.01, 0.1),
    )
)
"""The set's own recipe, last epoch, t-interval; baselines also choose their step size."""

MTT = PROTOCOLS.add("mtt")(
    Protocol(
        name="mtt",
        help="MTT's 1,001 epochs with one step-size drop and reset, std of the population",
        segments=mtt_segments(),
        optimizer=SGD(momentum=0.9, weight_decay=5e-4),
        batch=256,
        hard_only=True,
        ddof=0,
    )
)
"""1,001 epochs; after epoch index 501 a tenth of the step size and a new optimizer (MTT's
evaluation, arXiv 2203.11932). Differs: the original reports the best test accuracy over outer
iterations; here a set is measured once."""
