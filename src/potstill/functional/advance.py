"""Optimizer steps on resident tensors, the core of first-order training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from potstill.core import keys
from potstill.core.compute import Compute
from potstill.core.errors import InputError
from potstill.data import Pixels
from potstill.engine import Ranks
from potstill.functional.kernels import gradient, pair_gradient
from potstill.functional.losses import ce, mse, soft_ce
from potstill.functional.optim import Adam, State
from potstill.functional.parts import updated
from potstill.functional.sampling import Sampler
from potstill.functional.schedule import TrainSpec
from potstill.functional.selfsup import Views, views_of
from potstill.nets.flat import FlatNet

Prepare = Callable[[Tensor], Tensor]
Teach = Callable[[Tensor], Tensor]
"""From images as the network takes them [B, C, H, W] to a teacher's logits [B, K]."""
Inputs = Callable[[Tensor], Tensor]
"""From rows, int64 [n] on the CPU, to these images as the network takes them, on its device."""
Slope = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From theta [P] to loss (0-dim) and gradient [P] on one batch."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Replayed:
    """One epoch whose views of the images were labelled before."""

    order: Tensor
    """Rows in the order of training, int64 [N] on the CPU."""
    batch: Callable[[Tensor, Inputs], tuple[Tensor, Tensor]]
    """From rows and what gives their images to their views [n, C, H, W] and logits [n, K]."""


Replay = Callable[[int], Replayed]
"""From the number of an epoch of training, from 0 on, to that epoch."""


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
    replay: Replay | None
    replayed: Replayed | None = None
    """The epoch that is replayed now."""
    ranks: Ranks = Ranks()
    """Which process this is, of those that share each batch."""

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
        replay: Replay | None = None,
        ranks: Ranks | None = None,
    ) -> Job:
        """Return the job; where it matters, one image tells how many outputs there are.

        Raises:
            InputError: for a lesson without a teacher, a teacher without a lesson, or two of them;
                for features of another width.
        """
        teachers = (teach is not None) + (replay is not None)
        if (spec.lesson is not None) != teachers:
            told = ("needs a teacher (teach)", "has no lesson for its teacher", "has two teachers")
            raise InputError(f"This training {told[teachers]}.")
        classes, vectors = 0, spec.loss == "mse" and spec.pairs is None
        soft = spec.mix is not None or spec.smoothing
        if vectors or (soft and spec.loss == "ce" and not teachers):
            net.eval()
            with net.keeping_statistics(), keys.forked(0, "classes"), torch.no_grad():
                one = as_input(images[:1].to(theta.device), theta, prepare)
                classes = net(theta, one).shape[1]
            net.train()
        if vectors and classes != targets.shape[1]:
            raise InputError(
                f"The network has {classes} outputs, its targets {targets.shape[1]} dimensions."
            )
        if spec.pairs is not None and ranks is not None and ranks.world > 1:
            raise InputError("Pairs of views are compared with all others: one process trains.")
        given = (net, images, targets, spec, prepare, compute, classes, teach, replay)
        return cls(*given, ranks=ranks or Ranks())

    def at(
        self, epoch: int, drawn: Sampler, chance: torch.Generator
    ) -> tuple[Job, Sequence[Tensor]]:
        """Return the job in an epoch of training from 0 on, and the rows of its batches."""
        if self.replay is None:
            return self, drawn(chance)
        replayed = self.replay(epoch)
        return replace(self, replayed=replayed), replayed.order.split(self.spec.batch)

    def begin(self, theta: Tensor) -> State:
        """Return the optimizer state before step 0."""
        optimizer = self.spec.optimizer
        if not isinstance(optimizer, Adam) or optimizer.decays == "all":
            return optimizer.init(theta)
        sizes = [theta.new_full((math.prod(s),), float(len(s) > 1)) for s in self.net.shapes]
        return optimizer.init(theta, decayed=torch.cat(sizes))

    def batch(self, rows: Tensor, theta: Tensor, chance: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return augmented, mixed images and targets of these rows, on theta's device.

        With a teacher its logits of these images are the targets, replayed ones those of views.
        """
        if self.replayed is not None:
            x, y = self.replayed.batch(rows, lambda some: self.inputs(some, theta))
            return x, y.to(theta, non_blocking=True)
        x = self.inputs(rows, theta)
        y = self.targets.index_select(0, rows.to(theta.device, non_blocking=True))
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
        if self.spec.smoothing:
            y = y if y.is_floating_point() else one_hot(y, self.classes).to(x.dtype)
            y = (1 - self.spec.smoothing) * y + self.spec.smoothing / y.shape[1]
        if self.teach is not None:
            with torch.no_grad():
                y = self.teach(x).to(theta.dtype)
        return x, y

    def slope(self, rows: Tensor, theta: Tensor, chance: torch.Generator) -> Slope:
        """Return loss and gradient on a batch of these rows as a function of theta."""
        if self.spec.pairs is None:
            x, y = self.batch(rows, theta, chance)
            return lambda at: self.gradient(at, x, y)
        x, first = self.inputs(rows, theta), self.spec.augment
        assert first is not None
        mixed = getattr(self.spec.pairs, "mixup", 0) > 0
        views = views_of(x, first, self.spec.second or first, chance, mixed=mixed)
        return lambda at: self.pair_gradient(at, views)

    def pair_gradient(self, theta: Tensor, views: Views) -> tuple[Tensor, Tensor]:
        """Return loss and gradient of pairs of views; see `kernels.pair_gradient`."""
        full, loss_of = min(self.spec.batch, len(self.images)), self.spec.pairs
        assert loss_of is not None
        return pair_gradient(self.net, theta, views, loss_of, compute=self.compute, batch=full)

    def inputs(self, rows: Tensor, theta: Tensor) -> Tensor:
        """Return the images of these rows as the network takes them, on theta's device."""
        index = rows.to(self.images.device, non_blocking=True)
        pixels = self.images.index_select(0, index).to(theta.device, non_blocking=True)
        return as_input(pixels, theta, self.prepare)

    def gradient(self, theta: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return loss and gradient; see `kernels.gradient`.

        Processes that share the batch compute a part of it each, of which batch norm takes its
        statistics; all return the mean over all images.
        """
        full = -(-min(self.spec.batch, len(self.images)) // self.ranks.world)
        loss_of = self.spec.lesson or (soft_ce if y.is_floating_point() else ce)
        if self.spec.loss == "mse":
            loss_of = mse
        own, labels = self.ranks.part(x), self.ranks.part(y)
        loss, grad = theta.new_zeros(()), torch.zeros_like(theta)
        if len(own):
            loss, grad = gradient(
                self.net, theta, own, labels, loss_of, compute=self.compute, batch=full
            )
        if self.ranks.world == 1:
            return loss, grad
        row = torch.cat([loss[None], grad]) * len(own)
        mean = self.ranks.gathered(row[None]).sum(0) / len(x)
        return mean[0], mean[1:]


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
    steps = spec.steps(len(job.images)) if spec.cycle else 0
    total, count = torch.zeros((), dtype=theta.dtype, device=theta.device), 0
    for rows in batches:
        slope = job.slope(rows, theta, chance)
        loss, grad = slope(theta)
        if spec.sharpness is not None:
            with net.keeping_statistics():
                there = theta + spec.sharpness.perturbation(theta, grad)
                grad = spec.sharpness.combined(grad, slope(there)[1])
        now = lr if spec.cycle is None else lr * spec.cycle.at(step, steps)
        with torch.no_grad():
            theta, state = updated(spec.optimizer, theta, grad, state, now, step)
            total += loss * len(rows)
        step, count = step + 1, count + len(rows)
    return theta, state, step, total / count


def as_input(pixels: Tensor, theta: Tensor, prepare: Prepare | None) -> Tensor:
    """Return pixels as the network takes them: prepared, in theta's type."""
    return (pixels if prepare is None else prepare(pixels)).to(theta.dtype)
