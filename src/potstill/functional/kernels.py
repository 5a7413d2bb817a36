"""Gradient and logits of a network, computed as a `Compute` asks: eager, or compiled.

Compiled code is for one shape. A batch goes through in equal parts, the last one filled up with
images of weight 0, so that any number of images is computed by the same code. What is compiled is
kept in the process for all networks of one recipe. On a CPU images are in channels-last order,
which compiled code likes best (eager code does not).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from potstill.core.compute import Compute
from potstill.functional import losses
from potstill.functional.compiling import compiled
from potstill.functional.losses import LossOf, casting
from potstill.functional.selfsup import Blend, PairLoss, Views, pair_loss
from potstill.nets.flat import FlatNet
from potstill.nets.instance import channels_last

Statistics = Mapping[str, Tensor]


def gradient(
    net: FlatNet,
    theta: Tensor,
    x: Tensor,
    y: Tensor,
    loss_of: LossOf,
    *,
    compute: Compute | None = None,
    batch: int,
) -> tuple[Tensor, Tensor]:
    """Return loss (0-dim) and gradient [P] at theta [P], both without a graph.

    `loss_of` is `ce`, `soft_ce` or a `Softened`; `batch` the images of a full batch, of which x
    [B, C, H, W] may have fewer. Networks with statistics of the batch take it whole, and a smaller
    one in eager mode. By default in eager float32.
    """
    if compute is None or not compute.compiled:
        precision = "float32" if compute is None else compute.precision
        return losses.gradient(net, theta, x, y, loss_of, precision=precision)
    separable = net.separable
    if not separable and len(x) < batch:
        return losses.gradient(net, theta, x, y, loss_of, precision=compute.precision)
    size = batch
    if separable and compute.device == "cpu":  # equal parts of at most PART
        size = -(-batch // -(-batch * x[0, 0].numel() // losses.PART))
    kernel = _gradient(_Kind.of(net, theta, x, size), loss_of, compute)
    leaf, statistics = theta.detach().requires_grad_(), net.statistics(theta)
    weights = torch.full((size,), 1 / len(x), dtype=theta.dtype, device=theta.device)
    loss, grad = torch.zeros_like(theta[0]), torch.zeros_like(theta)
    with torch.enable_grad():
        for images, labels in zip(x.split(size), y.split(size), strict=True):
            known = len(images)
            if known < size:
                images, labels = _filled(images, size), _filled(labels, size)
                weights = weights * (torch.arange(size, device=theta.device) < known)
            share = kernel(leaf, statistics, channels_last(images), labels, weights)
            loss += share.detach()
            grad += torch.autograd.grad(share, leaf)[0]
    return loss, grad


def pair_gradient(
    net: FlatNet,
    theta: Tensor,
    views: Views,
    loss_of: PairLoss,
    *,
    compute: Compute | None = None,
    batch: int,
) -> tuple[Tensor, Tensor]:
    """Return loss (0-dim) and gradient [P] of pairs of views; as `gradient`, batches whole.

    Each view goes through the network by itself: batch norm takes the statistics of each and moves
    its running ones on by each.
    """
    leaf, blend = theta.detach().requires_grad_(), views.blend
    with torch.enable_grad():
        if compute is None or not compute.compiled or len(views.images[0]) < batch:
            with casting(theta.device, "float32" if compute is None else compute.precision):
                z = [net(leaf, x).to(theta.dtype) for x in views.images]
            loss = pair_loss(loss_of, z, blend)
        else:
            kernel = _pair_gradient(_Kind.of(net, theta, views.images[0], batch), loss_of, compute)
            images = [channels_last(x) for x in views.images]
            loss = kernel(leaf, net.statistics(theta), images, blend)
        (grad,) = torch.autograd.grad(loss, leaf)
    return loss.detach().clone(), grad.clone()  # the next call may overwrite both


def logits(
    net: FlatNet, theta: Tensor, x: Tensor, *, compute: Compute | None = None, batch: int
) -> Tensor:
    """Return the logits [B, K] of at most `batch` images x [B, C, H, W], without a graph.

    The mode of the network is the caller's; by default in eager float32.
    """
    with torch.no_grad():
        if compute is None or not compute.compiled or not (net.separable or len(x) == batch):
            with casting(x.device, "float32" if compute is None else compute.precision):
                return net(theta, x).to(theta.dtype)
        kernel = _logits(_Kind.of(net, theta, x, batch), compute)
        filled = channels_last(_filled(x, batch))
        return kernel(theta.detach(), net.statistics(theta), filled)[: len(x)].clone()


def _filled(x: Tensor, size: int) -> Tensor:
    """Return x with its first row repeated up to `size` rows."""
    return torch.cat([x, x[:1].expand(size - len(x), *x.shape[1:])]) if len(x) < size else x


@dataclass(frozen=True)
class _Kind:
    """What compiled code depends on beside `Compute`; equal for networks of one recipe."""

    recipe: Any
    training: bool
    shape: tuple[int, ...]
    dtype: torch.dtype
    net: FlatNet = field(compare=False)

    @classmethod
    def of(cls, net: FlatNet, theta: Tensor, x: Tensor, size: int) -> _Kind:
        recipe = net if net.recipe is None else net.recipe
        return cls(recipe, net.training, (size, *x.shape[1:]), theta.dtype, net)

    def run(self, compute: Compute) -> Callable[[Tensor, Statistics, Tensor], Tensor]:
        """Return logits(theta, statistics, x) of a copy of the network."""
        net, dtype, device = copy.deepcopy(self.net), self.dtype, torch.device(compute.device)

        def run(theta: Tensor, statistics: Statistics, x: Tensor) -> Tensor:
            with casting(device, compute.precision):
                return net.run(theta, statistics, x).to(dtype)

        return run


@lru_cache(maxsize=32)
def _gradient(kind: _Kind, loss_of: LossOf, compute: Compute) -> Callable[..., Tensor]:
    """Return the compiled weighted sum of losses, with which its gradient is compiled too."""
    run = kind.run(compute)

    def loss(
        theta: Tensor, statistics: Statistics, x: Tensor, y: Tensor, weights: Tensor
    ) -> Tensor:
        return (losses.each(loss_of, run(theta, statistics, x), y) * weights).sum()

    return compiled(loss, graphs=compute.device == "cuda")


@lru_cache(maxsize=32)
def _pair_gradient(kind: _Kind, loss_of: PairLoss, compute: Compute) -> Callable[..., Tensor]:
    run = kind.run(compute)

    def loss(
        theta: Tensor, statistics: Statistics, images: Sequence[Tensor], blend: Blend | None
    ) -> Tensor:
        return pair_loss(loss_of, [run(theta, statistics, x) for x in images], blend)

    return compiled(loss, graphs=compute.device == "cuda")


@lru_cache(maxsize=32)
def _logits(kind: _Kind, compute: Compute) -> Callable[..., Tensor]:
    return compiled(kind.run(compute), graphs=compute.device == "cuda")
