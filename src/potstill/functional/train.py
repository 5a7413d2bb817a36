"""First-order training on resident tensors: one fast loop for experts, students and evaluation.

Nothing here is differentiated through; see `potstill.functional.unroll` for that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from potstill.augment.dsa import DSA
from potstill.core import keys
from potstill.core.errors import InputError, unknown
from potstill.core.spec import record
from potstill.data import Pixels
from potstill.functional.losses import ce, gradient, soft_ce
from potstill.functional.optim import SGD, Adam, State
from potstill.functional.sharpness import GSAM
from potstill.nets.flat import FlatNet

Prepare = Callable[[Tensor], Tensor]
OnEpoch = Callable[[int, Tensor, float], None]


@record
@dataclass(frozen=True, kw_only=True)
class Segment:
    """Some epochs at one step size, lr_scale times that of the `TrainSpec`.

    optimizer: start with "new" optimizer state or with that "carried" from the segment before.

    Raises:
        InputError: for fewer than 1 epoch, an lr_scale of at most 0, another optimizer word.
    """

    epochs: int
    lr_scale: float = 1.0
    optimizer: Literal["new", "carried"] = "new"

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise InputError(f"A segment needs at least 1 epoch, not {self.epochs}.")
        if not self.lr_scale > 0:
            raise InputError(f"A segment's lr_scale must be above 0, not {self.lr_scale}.")
        if self.optimizer not in ("new", "carried"):
            raise unknown("segment optimizer", self.optimizer, ("new", "carried"))


@record
@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """How to train a network on a set of images.

    lr: step size; segments: consecutive parts of the training; batch: images a step, the last
    batch of an epoch may be smaller; loss: "ce" takes class numbers, "soft_ce" probabilities;
    augment: applied to every batch, or None; sharpness: see `GSAM`, or None.

    Raises:
        InputError: for an lr of at most 0, a batch below 1, no segments, an unknown loss.
    """

    lr: float
    segments: tuple[Segment, ...]
    batch: int = 256
    optimizer: SGD | Adam = field(default_factory=lambda: SGD(momentum=0.9, weight_decay=5e-4))
    loss: Literal["ce", "soft_ce"] = "ce"
    augment: DSA | None = field(default_factory=DSA)
    sharpness: GSAM | None = None

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise InputError(f"The step size lr must be above 0, not {self.lr}.")
        if self.batch < 1:
            raise InputError(f"The batch must hold at least 1 image, not {self.batch}.")
        if not self.segments:
            raise InputError("A training needs at least one segment.")
        if self.loss not in ("ce", "soft_ce"):
            raise unknown("loss", self.loss, ("ce", "soft_ce"))

    @property
    def epochs(self) -> int:
        """The number of epochs of all segments."""
        return sum(segment.epochs for segment in self.segments)


def mtt_segments(epochs: int = 1000) -> tuple[Segment, ...]:
    """Return the schedule by which MTT evaluates: epochs + 1 in all, the last part at lr / 10.

    The step size falls and the optimizer starts anew after epoch index epochs // 2 + 1; nominal
    1000 gives 502 epochs at lr and 499 at lr / 10.

    Source: Cazenavette et al., CVPR 2022, arXiv:2203.11932, as its authors' code counts epochs.
    """
    first = epochs // 2 + 2
    parts = ((min(first, epochs + 1), 1.0), (epochs + 1 - first, 0.1))
    return tuple(Segment(epochs=n, lr_scale=scale) for n, scale in parts if n > 0)


def fit(
    net: FlatNet,
    theta: Tensor,
    images: Pixels,
    targets: Tensor,
    spec: TrainSpec,
    *,
    seed: int,
    key: tuple[str | int, ...] = (),
    prepare: Prepare | None = None,
    on_epoch: OnEpoch | None = None,
) -> Tensor:
    """Return the weights after training from theta by the spec.

    Epoch e draws all its numbers from the key (seed, *key, "epoch", e): one permutation, then the
    augmentation of each batch; dropout draws from the same key with "net". The global generator
    is not moved, and equal arguments give equal bytes at an equal number of threads.

    Args:
        net: the network as a function of theta; left in training mode.
        theta: starting weights [P]; not changed.
        images: [N, C, H, W] on theta's device; floating, or anything that prepare takes.
        targets: class numbers int64 [N] for "ce", probabilities [N, K] for "soft_ce".
        spec: see `TrainSpec`.
        seed: of the training.
        key: names the training among others with the same seed.
        prepare: applied to each batch before augmentation, e.g. a normaliser's `forward`.
        on_epoch: called as (epoch index, theta, mean loss) after each epoch; theta is never
            overwritten afterwards.

    Raises:
        InputError: if images and targets differ in number or do not suit the spec.
    """
    _check(images, targets, spec, prepare)
    theta, state, step, epoch = theta.detach().clone(), (), 0, 0
    for segment in spec.segments:
        if epoch == 0 or segment.optimizer == "new":
            state, step = spec.optimizer.init(theta), 0
        lr = torch.tensor(spec.lr * segment.lr_scale, dtype=theta.dtype, device=theta.device)
        for _ in range(segment.epochs):
            net.train()
            with keys.forked(seed, *key, "epoch", epoch, "net"):
                generator = keys.generator(seed, *key, "epoch", epoch)
                theta, state, step, mean = _epoch(
                    net, theta, state, step, lr, images, targets, spec, generator, prepare
                )
            if on_epoch is not None:
                on_epoch(epoch, theta, float(mean))
            epoch += 1
    return theta


def _epoch(
    net: FlatNet,
    theta: Tensor,
    state: State,
    step: int,
    lr: Tensor,
    images: Pixels,
    targets: Tensor,
    spec: TrainSpec,
    generator: torch.Generator,
    prepare: Prepare | None,
) -> tuple[Tensor, State, int, Tensor]:
    """Return theta, state, step count and mean loss (0-dim, not read) after one pass."""
    loss_of = ce if spec.loss == "ce" else soft_ce
    order = torch.randperm(len(images), generator=generator).to(images.device)
    total = torch.zeros((), dtype=theta.dtype, device=theta.device)
    for index in order.split(spec.batch):
        x = _input(images.index_select(0, index), theta, prepare)
        y = targets.index_select(0, index)
        if spec.augment is not None:
            c, h, w = x.shape[1:]
            parameters = spec.augment.sample(len(x), (c, h, w), generator)
            x = spec.augment.apply(x, parameters.to(x.device))
        loss, grad = gradient(net, theta, x, y, loss_of)
        if spec.sharpness is not None:
            with net.keeping_statistics():
                there = theta + spec.sharpness.perturbation(theta, grad)
                grad = spec.sharpness.combined(grad, gradient(net, there, x, y, loss_of)[1])
        with torch.no_grad():
            theta, state = spec.optimizer.update(theta, grad, state, lr, step)
            total += loss * len(index)
        step += 1
    return theta, state, step, total / len(images)


def predict(
    net: FlatNet,
    theta: Tensor,
    images: Pixels,
    *,
    batch: int = 64,
    prepare: Prepare | None = None,
) -> Tensor:
    """Return the logits [N, K] of images [N, C, H, W] in evaluation mode, without a graph.

    The network is left in evaluation mode. Batches of 64 stay in the caches of a CPU: 2.5 times
    as fast as batches of 512 (ConvNet-3 of width 32, 32 px).

    Raises:
        InputError: if there is no image.
    """
    if not len(images):
        raise InputError("There is no image to predict.")
    net.eval()
    with torch.no_grad():
        return torch.cat([net(theta, _input(x, theta, prepare)) for x in images.split(batch)])


def accuracy(
    net: FlatNet,
    theta: Tensor,
    images: Pixels,
    labels: Tensor,
    *,
    batch: int = 64,
    prepare: Prepare | None = None,
) -> float:
    """Return the fraction of images whose largest logit is at their label; as `predict`."""
    hits = predict(net, theta, images, batch=batch, prepare=prepare).argmax(1) == labels
    return float(hits.double().mean())


def _input(pixels: Tensor, theta: Tensor, prepare: Prepare | None) -> Tensor:
    return (pixels if prepare is None else prepare(pixels)).to(theta.dtype)


def _check(images: Pixels, targets: Tensor, spec: TrainSpec, prepare: Prepare | None) -> None:
    if not len(images) or len(images) != len(targets):
        raise InputError(f"There are {len(images)} images and {len(targets)} targets.")
    if prepare is None and not images.is_floating_point():
        raise InputError(f"Images of type {images.dtype} need a normaliser (prepare).")
    shape, dtype = list(targets.shape), targets.dtype
    if spec.loss == "ce" and (targets.dim() != 1 or dtype != torch.int64):
        raise InputError(f"Loss 'ce' takes class numbers int64 [N], not {dtype} {shape}.")
    if spec.loss == "soft_ce" and (targets.dim() != 2 or not targets.is_floating_point()):
        raise InputError(f"Loss 'soft_ce' takes probabilities [N, K], not {dtype} {shape}.")
