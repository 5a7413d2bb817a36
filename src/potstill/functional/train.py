"""First-order training on resident tensors: one fast loop for experts, students and evaluation.

Nothing here is differentiated through; see `potstill.functional.unroll` for that.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from potstill.core import keys
from potstill.core.errors import InputError
from potstill.data import Pixels
from potstill.functional.losses import ce, gradient, soft_ce
from potstill.functional.optim import State
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
    _check_last(net, theta, images, spec, prepare)
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


def _check_last(
    net: FlatNet, theta: Tensor, images: Pixels, spec: TrainSpec, prepare: Prepare | None
) -> None:
    """Refuse a last batch of one image where batch norm (of 1x1 maps) cannot train on it."""
    if net.separable or len(images) % spec.batch != 1:
        return
    net.train()
    try:
        with net.keeping_statistics(), keys.forked(0, "last batch"), torch.no_grad():
            net(theta, _input(images[:1], theta, prepare))
    except ValueError as error:
        raise InputError(
            f"{len(images)} images in batches of {spec.batch} leave a batch of one, of which batch "
            "norm can take no statistics in this network; choose another batch or number of images."
        ) from error
