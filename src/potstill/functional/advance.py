"""Optimizer steps on resident tensors, the core of first-order training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from potstill.core import keys
from potstill.core.compute import Compute
from potstill.core.errors import InputError
from potstill.data import Pixels
from potstill.functional.kernels import gradient
from potstill.functional.losses import ce, soft_ce
from potstill.functional.optim import Adam, State
from potstill.functional.schedule import TrainSpec
from potstill.nets.flat import FlatNet

Prepare = Callable[[Tensor], Tensor]
Teach = Callable[[Tensor], Tensor]
"""From images as the network takes them [B, C, H, W] to a teacher's logits [B, K]."""


@dataclass(frozen=True)
class Job:
    """What stays the same during a training."""

    net: FlatNet
    images: Pixels
    targets: Tensor
    spec: TrainSpec
    prepare: Prepare | None
    compute: Compute | None
    classes: int
    """Logits of the network, or 0 if nobody asks."""
    teach: Teach | None

    @classmethod
    def of(
        cls,
        net: FlatNet,
        theta: Tensor,
        images: Pixels,
        targets: Tensor,
        spec: TrainSpec,
        prepare: Prepare | None,
        compute: Compute | None,
        teach: Teach | None = None,
    ) -> Job:
        """Return the job; where class numbers will be mixed, one image tells how many there are.

        Raises:
            InputError: for a lesson without a teacher, or a teacher without a lesson.
        """
        if (spec.lesson is None) != (teach is None):
            told = "needs a teacher (teach)" if teach is None else "has no lesson for its teacher"
            raise InputError(f"This training {told}.")
        classes = 0
        if spec.mix is not None and spec.loss == "ce" and teach is None:
            net.eval()
            with net.keeping_statistics(), keys.forked(0, "classes"), torch.no_grad():
                one = as_input(images[:1].to(theta.device), theta, prepare)
                classes = net(theta, one).shape[1]
            net.train()
        return cls(net, images, targets, spec, prepare, compute, classes, teach)

    def begin(self, theta: Tensor) -> State:
        """Return the optimizer state before step 0."""
        optimizer = self.spec.optimizer
        if not isinstance(optimizer, Adam) or optimizer.decays == "all":
            return optimizer.init(theta)
        sizes = [theta.new_full((math.prod(s),), float(len(s) > 1)) for s in self.net.shapes]
        return optimizer.init(theta, decayed=torch.cat(sizes))

    def batch(self, rows: Tensor, theta: Tensor, chance: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return augmented, mixed images and targets of these rows, on theta's device.

        With a teacher its logits of these images are the targets.
        """
        index = rows.to(self.images.device, non_blocking=True)
        pixels = self.images.index_select(0, index).to(theta.device, non_blocking=True)
        x = as_input(pixels, theta, self.prepare)
        y = self.targets.index_select(0, index.to(theta.device, non_blocking=True))
        augment, mix = self.spec.augment, self.spec.mix
        if augment is not None:
            c, h, w = x.shape[1:]
            x = augment.apply(x, augment.sample(len(x), (c, h, w), chance).to(x.device))
        if mix is not None:
            c, h, w = x.shape[1:]
            mixing = mix.sample(len(x), (c, h, w), chance)
            if self.teach is None:
                y = y if y.is_floating_point() else one_hot(y, self.classes).to(x.dtype)
                y = mix.targets(y, mixing)
            x = mix.images(x, mixing)
        if self.teach is not None:
            with torch.no_grad():
                y = self.teach(x).to(theta.dtype)
        return x, y

    def gradient(self, theta: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return loss and gradient; see `kernels.gradient`."""
        full = min(self.spec.batch, len(self.images))
        loss_of = self.spec.lesson or (soft_ce if y.is_floating_point() else ce)
        return gradient(self.net, theta, x, y, loss_of, compute=self.compute, batch=full)


def advance(
    job: Job,
    theta: Tensor,
    state: State,
    step: int,
    lr: Tensor,
    batches: Iterable[Tensor],
    chance: torch.Generator,
) -> tuple[Tensor, State, int, Tensor]:
    """Return theta, state, step count and mean loss (0-dim, not read) after a step on each batch.

    theta is not overwritten; `chance` gives the numbers of each batch in turn.
    """
    spec, net = job.spec, job.net
    total, count = torch.zeros((), dtype=theta.dtype, device=theta.device), 0
    for rows in batches:
        x, y = job.batch(rows, theta, chance)
        loss, grad = job.gradient(theta, x, y)
        if spec.sharpness is not None:
            with net.keeping_statistics():
                there = theta + spec.sharpness.perturbation(theta, grad)
                grad = spec.sharpness.combined(grad, job.gradient(there, x, y)[1])
        with torch.no_grad():
            theta, state = spec.optimizer.update(theta, grad, state, lr, step)
            total += loss * len(rows)
        step, count = step + 1, count + len(rows)
    return theta, state, step, total / count


def as_input(pixels: Tensor, theta: Tensor, prepare: Prepare | None) -> Tensor:
    """Return pixels as the network takes them: prepared, in theta's type."""
    return (pixels if prepare is None else prepare(pixels)).to(theta.dtype)
