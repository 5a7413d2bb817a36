"""Encoders trained by themselves, from two views of each image.

Sources: Barlow Twins, Zbontar et al., ICML 2021 (arXiv 2103.03230); SimCLR, Chen et al., ICML 2020
(arXiv 2002.05709); in the settings of mix-bt (arXiv 2312.02151), solo-learn (arXiv 2108.01775) and
SAS (arXiv 2302.09195).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from potstill.augment import Policy
from potstill.augment import ssl as views
from potstill.core.errors import InputError
from potstill.core.ranges import at_least, below_one, one_of
from potstill.core.spec import record
from potstill.functional import SGD, Adam, Segment, TrainSpec
from potstill.functional.cosine import cosine_segments
from potstill.functional.selfsup import BarlowTwins, PairLoss, SimCLR
from potstill.nets import HEADS


@record
@dataclass(frozen=True, kw_only=True)
class SelfSupervised:
    """How an encoder is trained, by default as mix-bt does on CIFAR.

    The step size rises on a line for some epochs, then falls on a cosine to a part of it, epoch by
    epoch; or stays. Views restore colours by the normaliser of the images.

    Raises:
        InputError: for numbers out of their range, an unknown head, a warm-up without a cosine.
    """

    loss: PairLoss = BarlowTwins(lam=1 / 128, mixup=4 / 128)
    """Barlow Twins or SimCLR, with its constants."""
    head: str = "mixbt"
    """Projector on the features: mixbt, sololearn, sas or toy."""
    epochs: int = 2000
    batch: int = 256
    """Images a step; each gives two views."""
    optimizer: Literal["adam", "sgd"] = "adam"
    lr: float = 0.01
    """Highest step size."""
    momentum: float = 0.9
    """Of sgd."""
    weight_decay: float = 1e-6
    cosine: bool = True
    """Whether the step size changes at all."""
    warmup: int = 10
    """Epochs in which it rises."""
    end: float = 0.001
    """Part of it to which the cosine falls."""
    augment: Policy | None = views.MIXBT
    """Augmentation of the first view."""
    second: Policy | None = None
    """That of the second view; none: the same."""

    def __post_init__(self) -> None:
        one_of(HEADS, self, "head", prefix="training.")
        one_of(("adam", "sgd"), self, "optimizer", prefix="training.")
        at_least(1, self, "epochs", prefix="training.")
        below_one(self, "end", prefix="training.")
        if self.optimizer == "adam" and self.momentum != SelfSupervised.momentum:
            raise InputError("An encoder's adam has no momentum.")
        if not self.cosine and (self.warmup or self.end != SelfSupervised.end):
            raise InputError("Without a cosine the step size has no warm-up and no end.")
        _ = self.spec  # its records refuse the rest

    @property
    def spec(self) -> TrainSpec:
        """Return the training."""
        decay = self.weight_decay
        sgd = SGD(momentum=self.momentum, weight_decay=decay)
        return TrainSpec(
            lr=self.lr,
            segments=self._segments(),
            batch=self.batch,
            optimizer=sgd if self.optimizer == "sgd" else Adam(weight_decay=decay),
            augment=self.augment,
            second=self.second,
            pairs=self.loss,
        )

    def _segments(self) -> tuple[Segment, ...]:
        if not self.cosine:
            return (Segment(epochs=self.epochs),)
        found = cosine_segments(self.epochs, warmup=self.warmup)
        falls = (replace(s, lr_scale=self.end + (1 - self.end) * s.lr_scale) for s in found)
        return found[: self.warmup] + tuple(falls)[self.warmup :]

    def scaled(self, scale: Literal["smoke", "cpu"]) -> SelfSupervised:
        """Return the training with at most the counts of a scale."""
        epochs, batch = (2, 20) if scale == "smoke" else (20, 256)
        epochs = min(self.epochs, epochs)
        warmup = self.warmup if epochs == self.epochs else min(self.warmup, max(1, epochs // 4))
        return replace(self, epochs=epochs, warmup=warmup, batch=min(self.batch, batch))


MIXBT_CIFAR = SelfSupervised()
"""mix-bt on CIFAR: network resnet18-bn, normaliser cifar10@mixbt. Differs: embeddings are not
divided by their length before the loss, as they are there; the step size changes epoch by epoch,
here and below."""
MIXBT_TINY = replace(
    MIXBT_CIFAR, loss=BarlowTwins(lam=1 / 1024, mixup=4 / 1024), augment=views.MIXBT_TINY
)
"""mix-bt on Tiny-ImageNet; normaliser tiny@mixbt. Differs: resnet18-bn has no max pooling, which
the network has there."""
SOLOLEARN_CIFAR = SelfSupervised(
    loss=BarlowTwins(lam=5e-3, scale=0.1, unbiased=False, eps=1e-5),
    head="sololearn",
    epochs=1000,
    lr=1e-3,
    weight_decay=1e-4,
    end=0.0,
    augment=views.SOLOLEARN,
    second=views.SOLOLEARN_SECOND,
)
"""A guess for the encoders of KRR-ST, whose training is not published, after solo-learn's settings
for CIFAR; network resnet18-sololearn, normaliser cifar100@sololearn. Differs: Adam for LARS, whose
step size has no counterpart."""
SAS_CIFAR = SelfSupervised(
    loss=SimCLR(temperature=0.5),
    head="sas",
    epochs=400,
    batch=512,
    lr=1e-3,
    cosine=False,
    warmup=0,
    augment=views.SAS,
)
"""SimCLR as in SAS on CIFAR; network resnet18-bn. Differs: its convolutions begin as those of
torch, not with normal weights by their outputs (fan-out)."""
SAS_TINY = replace(SAS_CIFAR, lr=2e-3)
"""The same on Tiny-ImageNet."""
TRAININGS = {
    "mixbt-cifar": MIXBT_CIFAR,
    "mixbt-tiny": MIXBT_TINY,
    "sololearn-cifar": SOLOLEARN_CIFAR,
    "sas-cifar": SAS_CIFAR,
    "sas-tiny": SAS_TINY,
}
"""All of them by name."""
