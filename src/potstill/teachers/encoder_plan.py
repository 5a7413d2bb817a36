"""Which encoder a run has: trained by itself on its data, or there already."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from potstill.core.compute import Compute
from potstill.core.errors import InputError
from potstill.core.spec import later, record
from potstill.data import DataSet, MeanStd, make_space, named_stats
from potstill.engine import Tasks
from potstill.nets import NetSpec, filled, variant
from potstill.teachers.selfsup import MIXBT_CIFAR, SelfSupervised
from potstill.teachers.take_encoder import TakeEncoderSpec, take_encoder, take_encoder_spec
from potstill.teachers.train_encoder import EncoderSpec, encoder_spec, train_encoder

ENCODERS = "encoders"
"""Under what the store files them."""


@record
@dataclass(frozen=True, kw_only=True)
class EncoderPlan:
    """The encoder whose features are learned."""

    net: str = "own"
    """own: the run's network; another network's name: that one; both are trained on the data.
    NAME@WEIGHTS: finished weights, torchvision:resnet18@IMAGENET1K_V1 or from a file,
    resnet18-sololearn@FILE; or from the folder of an earlier encoder or teacher."""
    training: SelfSupervised = MIXBT_CIFAR
    """How one without weights is trained."""
    space: str | None = None
    """Its own normaliser, such as cifar100@sololearn or measured (None); weights from a file need
    its name, others know theirs."""
    width: int | None = later(None)
    """Its width, if another than that which goes with the run's network."""

    def __post_init__(self) -> None:
        name, at, weights = self.net.partition("@")
        if not name or (at and not weights):
            raise InputError(f"An encoder is a network or NAME@WEIGHTS, not {self.net!r}.")
        if at and self.training not in _STATED:
            raise InputError(f"{self.net} is not trained, so its training has no settings.")
        if at and self.width is not None:
            raise InputError(f"{self.net} has the width of its weights, not {self.width}.")

    @property
    def batch(self) -> int:
        """Return the images of a step of training; 0 if no encoder is trained."""
        return 0 if "@" in self.net else self.training.batch

    def of(self, own: NetSpec) -> NetSpec:
        """Return the network; one with weights has its published settings, but `own` those."""
        name, at, _ = self.net.partition("@")
        if at and name != "own":
            return filled(NetSpec(name=name))
        found = variant(name, own)
        return found if self.width is None else filled(replace(found, width=self.width))

    def anew(self) -> EncoderPlan:
        """Return the plan for data that no weights are for: then the run's network is trained."""
        return replace(self, net="own", space=None, width=None) if "@" in self.net else self

    def scaled(self, scale: Literal["smoke", "cpu"]) -> EncoderPlan:
        """Return the plan with at most the counts of a scale."""
        return replace(self, training=self.training.scaled(scale))


_STATED = (MIXBT_CIFAR, MIXBT_CIFAR.scaled("smoke"), MIXBT_CIFAR.scaled("cpu"))


def encoder_phase(
    plan: EncoderPlan, data: DataSet, own: NetSpec, *, seed: int, compute: Compute
) -> Tasks:
    """Return the one task that makes the encoder of a plan.

    Raises:
        InputError: if weights are not there, or nobody knows how their images are normalised; if a
            network cannot be an encoder, or images have no colours that are augmented.
    """
    net, context = plan.of(own), {"source": data.source}
    _, at, weights = plan.net.partition("@")
    if at:
        asked = None if plan.space is None else named_stats(plan.space)
        spec, where = take_encoder_spec(net, weights, data, asked, compute=compute)
        context |= where
    else:
        space = make_space(plan.space or "measured", data)
        if not isinstance(space, MeanStd):
            raise InputError(f"An encoder's images are not whitened ({plan.space}).")
        spec = encoder_spec(plan.training, data, space, net, seed=seed, compute=compute)
    return Tasks(kind=ENCODERS, fn=make_encoder, specs=(spec,), context=context, label="encoder")


def make_encoder(
    spec: EncoderSpec | TakeEncoderSpec, context: dict[str, str], folder: Path
) -> None:
    """Train an encoder, or take it from where it is.

    Raises:
        InputError: as `take_encoder`.
        WorkError: as `train_encoder` and `take_encoder`.
    """
    if isinstance(spec, TakeEncoderSpec):
        take_encoder(spec, context, folder)
    else:
        train_encoder(spec, context, folder)
