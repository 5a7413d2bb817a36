"""Networks that move on, on real images, between the outer steps that look at them.

A path is what a network does while images are matched to it: it starts from fresh weights, or
after some epochs, and takes some steps on real images between two matchings. It never sees the
distilled images, so it can be walked once and used by any number of runs (`network_pool`).

Source: Kim et al., Dataset Condensation via Efficient Synthetic-Data Parameterization, ICML 2022
(arXiv 2205.14959), algorithm 1 and appendix.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.augment import IDC, CutMix, Policy
from potstill.core.compute import Compute
from potstill.core.keys import generator
from potstill.core.ranges import a_part, at_least
from potstill.core.spec import record
from potstill.data import Pixels
from potstill.functional import SGD, Segment, TrainSpec, take_steps
from potstill.functional.optim import State
from potstill.functional.train import Prepare
from potstill.nets import FlatNet


@record
@dataclass(frozen=True, kw_only=True)
class NetworkPath:
    """How a network moves on, on real images, between two matchings.

    Differs: IDC's own code cuts boxes out of these images, too, where nothing is mixed.
    """

    images: int = 2000
    """Real images that it is trained on between two matchings; 0 = it stays as it is."""
    early: int = 0
    """Epochs of real images before the first matching."""
    batch: int = 64
    """Images a step."""
    lr: float = 0.01
    """Step size."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """Weight decay of SGD."""
    augment: Policy | None = IDC(strategy="color_crop")
    """Augmentation of the real images."""
    cutmix: float = 0.5
    """Part of the steps whose images are mixed by CutMix."""

    def __post_init__(self) -> None:
        at_least(0, self, "images", "early")
        a_part(self, "cutmix")
        _ = self.train  # its records refuse a bad step size, batch, momentum or decay

    @property
    def train(self) -> TrainSpec:
        """Return how each step is taken."""
        return TrainSpec(
            lr=self.lr,
            segments=(Segment(epochs=max(1, self.early)),),
            batch=self.batch,
            optimizer=SGD(momentum=self.momentum, weight_decay=self.weight_decay),
            augment=self.augment,
            mix=CutMix(prob=self.cutmix) if self.cutmix else None,
        )

    def steps(self, place: int, count: int) -> int:
        """Return the steps, on `count` real images, from a path's start to matching `place`."""
        return self.early * -(-count // self.batch) + place * -(-self.images // self.batch)


@dataclass(frozen=True, kw_only=True)
class Walker:
    """Walks paths on the training images of a data set."""

    net: FlatNet
    path: NetworkPath
    images: Pixels
    labels: Tensor
    prepare: Prepare | None
    seed: int
    compute: Compute

    def start(self, theta: Tensor, network: int) -> tuple[Tensor, State]:
        """Return weights and optimizer state of a network before its first matching."""
        state = self.path.train.optimizer.init(theta)
        return self.onward(theta, state, network, 0)

    def onward(self, theta: Tensor, state: State, network: int, place: int) -> tuple[Tensor, State]:
        """Return both before matching `place` from what they were before the one before it.

        Images come in epochs of all, in an order of the network's own; the last batch of an epoch
        may be smaller. Differs: so many steps as make up `images` in full batches; the original
        counts images, which is a step more where an epoch ends in between.
        """
        count = len(self.labels)
        first = self.path.steps(place - 1, count) if place else 0
        last = self.path.steps(place, count)
        if first == last:
            return theta, state
        with self.net.keeping_statistics():
            return take_steps(
                self.net,
                theta,
                state,
                self.images,
                self.labels,
                self.path.train,
                self._batches(network, first, last),
                step=first,
                seed=self.seed,
                key=("path", network, place),
                prepare=self.prepare,
                compute=self.compute,
            )

    def _batches(self, network: int, first: int, last: int) -> list[Tensor]:
        count, size = len(self.labels), self.path.batch
        epoch_steps = -(-count // size)
        batches: list[Tensor] = []
        for epoch in range(first // epoch_steps, -(-last // epoch_steps)):
            chance = generator(self.seed, "path", network, "epoch", epoch)
            begin = epoch * epoch_steps
            parts = torch.randperm(count, generator=chance).split(size)
            batches += parts[max(0, first - begin) : last - begin]
        return batches
