"""First-order training on resident tensors: one fast loop for experts, students and evaluation.

Nothing here is differentiated through; see `potstill.functional.unroll` for that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.core import keys
from potstill.core.compute import Compute
from potstill.core.errors import InputError
from potstill.core.threads import using_threads
from potstill.data import Pixels
from potstill.functional.kernels import gradient, logits
from potstill.functional.losses import ce, soft_ce
from potstill.functional.optim import State
from potstill.functional.sampling import Sampler, sampler
from potstill.functional.schedule import TrainSpec
from potstill.nets.flat import FlatNet

Prepare = Callable[[Tensor], Tensor]
OnEpoch = Callable[[int, Tensor, float], None]


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
    compute: Compute | None = None,
) -> Tensor:
    """Return the weights after training from theta by the spec.

    Epoch e draws all its numbers from the key (seed, *key, "epoch", e): its images (a permutation,
    or see `TrainSpec.balanced`), then the augmentation of each batch; dropout draws from the same
    key with "net". The global generator is not moved, and equal arguments give equal bytes at an
    equal number of threads. Without `on_epoch` nothing is read back from a GPU.

    Args:
        net: the network as a function of theta; left in training mode.
        theta: starting weights [P]; not changed.
        images: [N, C, H, W]; floating, or anything that prepare takes; on theta's device, or on the
            CPU, from where batches then come.
        targets: class numbers int64 [N] for "ce", probabilities [N, K] for "soft_ce".
        spec: see `TrainSpec`.
        seed: of the training.
        key: names the training among others with the same seed.
        prepare: applied to each batch before augmentation, e.g. a normaliser's `forward`.
        on_epoch: called as (epoch index, theta, mean loss) after each epoch; theta is never
            overwritten afterwards.
        compute: how; by default in eager float32 on theta's device, by torch's threads.

    Raises:
        InputError: if images and targets differ in number or do not suit the spec, or theta is not
            on the device of `compute`.
    """
    _check(images, targets, spec, prepare)
    _check_last(net, theta, images, spec, prepare)
    job = _Job(net, images, targets, spec, prepare, compute)
    drawn = sampler(targets, spec)
    theta, state, step, epoch = theta.detach().clone(), (), 0, 0
    with _computing(compute, theta):
        for segment in spec.segments:
            if epoch == 0 or segment.optimizer == "new":
                state, step = spec.optimizer.init(theta), 0
            lr = torch.tensor(spec.lr * segment.lr_scale, dtype=theta.dtype, device=theta.device)
            for _ in range(segment.epochs):
                if not net.training:  # whoever listens may have predicted
                    net.train()
                with keys.forked(seed, *key, "epoch", epoch, "net", device=theta.device):
                    chance = keys.generator(seed, *key, "epoch", epoch)
                    theta, state, step, mean = _epoch(job, theta, state, step, lr, drawn, chance)
                if on_epoch is not None:
                    on_epoch(epoch, theta, float(mean))
                epoch += 1
    return theta


@dataclass(frozen=True)
class _Job:
    """What stays the same during a training."""

    net: FlatNet
    images: Pixels
    targets: Tensor
    spec: TrainSpec
    prepare: Prepare | None
    compute: Compute | None

    def batch(self, rows: Tensor, theta: Tensor, chance: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return augmented images and targets of these rows, on theta's device."""
        index = rows.to(self.images.device, non_blocking=True)
        pixels = self.images.index_select(0, index).to(theta.device, non_blocking=True)
        x = _input(pixels, theta, self.prepare)
        y = self.targets.index_select(0, index.to(theta.device, non_blocking=True))
        augment = self.spec.augment
        if augment is not None:
            c, h, w = x.shape[1:]
            x = augment.apply(x, augment.sample(len(x), (c, h, w), chance).to(x.device))
        return x, y

    def gradient(self, theta: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return loss and gradient; see `kernels.gradient`."""
        full = min(self.spec.batch, len(self.images))
        loss_of = ce if self.spec.loss == "ce" else soft_ce
        return gradient(self.net, theta, x, y, loss_of, compute=self.compute, batch=full)


def _epoch(
    job: _Job,
    theta: Tensor,
    state: State,
    step: int,
    lr: Tensor,
    drawn: Sampler,
    chance: torch.Generator,
) -> tuple[Tensor, State, int, Tensor]:
    """Return theta, state, step count and mean loss (0-dim, not read) after one pass."""
    spec, net = job.spec, job.net
    total, count = torch.zeros((), dtype=theta.dtype, device=theta.device), 0
    for rows in drawn(chance):
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


def predict(
    net: FlatNet,
    theta: Tensor,
    images: Pixels,
    *,
    batch: int = 64,
    prepare: Prepare | None = None,
    compute: Compute | None = None,
) -> Tensor:
    """Return the logits [N, K] of images [N, C, H, W] in evaluation mode, without a graph.

    The network is left in evaluation mode. Images may be on the CPU while theta is on a GPU;
    `compute` is as in `fit`. Batches of 64 stay in the caches of a CPU: 2.5 times
    as fast as batches of 512 (ConvNet-3 of width 32, 32 px).

    Raises:
        InputError: if there is no image, or theta is not on the device of `compute`.
    """
    if not len(images):
        raise InputError("There is no image to predict.")
    net.eval()
    with _computing(compute, theta), torch.no_grad():
        parts = (_input(x.to(theta.device), theta, prepare) for x in images.split(batch))
        return torch.cat([logits(net, theta, x, compute=compute, batch=batch) for x in parts])


def accuracy(
    net: FlatNet,
    theta: Tensor,
    images: Pixels,
    labels: Tensor,
    *,
    batch: int = 64,
    prepare: Prepare | None = None,
    compute: Compute | None = None,
) -> float:
    """Return the fraction of images whose largest logit is at their label; as `predict`."""
    found = predict(net, theta, images, batch=batch, prepare=prepare, compute=compute)
    return float((found.argmax(1) == labels.to(found.device)).double().mean())


def _input(pixels: Tensor, theta: Tensor, prepare: Prepare | None) -> Tensor:
    return (pixels if prepare is None else prepare(pixels)).to(theta.dtype)


@contextmanager
def _computing(compute: Compute | None, theta: Tensor) -> Iterator[None]:
    """Use the threads of a `Compute`, which must name theta's device."""
    if compute is None:
        yield
        return
    if compute.device != theta.device.type:
        raise InputError(f"Weights on {theta.device} cannot be used on {compute.device!r}.")
    with using_threads(compute.threads):
        yield


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


def _check_last(
    net: FlatNet, theta: Tensor, images: Pixels, spec: TrainSpec, prepare: Prepare | None
) -> None:
    """Refuse a last batch of one image where batch norm (of 1x1 maps) cannot train on it."""
    net.train()
    if net.separable or spec.balanced or len(images) % spec.batch != 1:
        return
    try:
        with net.keeping_statistics(), keys.forked(0, "last batch"), torch.no_grad():
            net(theta, _input(images[:1].to(theta.device), theta, prepare))
    except ValueError as error:
        raise InputError(
            f"{len(images)} images in batches of {spec.batch} leave a batch of one, of which batch "
            "norm can take no statistics in this network; choose another batch or number of images."
        ) from error
