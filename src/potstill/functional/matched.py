"""Distances between means over images, and what they say about the images.

    m(X) = mean_i s(theta; x_i, y_i)      s: gradients of the loss by some weights, or features
    L = d(m(S), m(R));   dL/dS

Because m is a mean, dL/dS is exact in parts of S: first m(S) without a graph and v = dL/dm(S), then
d<v, s(x_i)>/dx_i part by part.

Sources: Zhao, Mopuri, Bilen, ICLR 2021 (arXiv 2006.05929), for gradients and `cos`; Zhao, Bilen,
WACV 2023 (arXiv 2110.04181), for features; Kim et al., ICML 2022 (arXiv 2205.14959), for `mse`,
`l1` and convolutions alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.func import grad, grad_and_value
from torch.nn.attention import SDPBackend, sdpa_kernel

from potstill.core.compute import Compute
from potstill.functional import compiling
from potstill.functional.losses import Precision, casting, ce
from potstill.nets.flat import FlatNet

Means = tuple[Tensor, ...]
Distance = Callable[[Means, Means], Tensor]
_EPS = 1e-6


class Statistic(Protocol):
    """The mean over images of something that a network says of each."""

    def __call__(self, x: Tensor, y: Tensor, *, graph: bool) -> Means:
        """Return m of images x [B, C, H, W] with labels y [B], with `graph` differentiable by x."""
        ...


class Matched(NamedTuple):
    """L (0-dim) and dL/dS [B, C, H, W]."""

    loss: Tensor
    images: Tensor


def _cos(x: Means, y: Means) -> Tensor:
    """Sum over rows of 1 - cos of their angle; a row is what feeds one output; vectors count 0."""
    pairs = [(a.flatten(1), b.flatten(1)) for a, b in zip(x, y, strict=True) if a.dim() > 1]
    cosines = [(a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + _EPS) for a, b in pairs]
    return torch.stack([(1 - cosine).sum() for cosine in cosines]).sum()


def _cos_all(x: Means, y: Means) -> Tensor:
    """1 - cos of the angle of all numbers as one vector."""
    a, b = (torch.cat([each.flatten() for each in means]) for means in (x, y))
    return 1 - (a * b).sum() / (a.norm() * b.norm() + _EPS)


def _mse(x: Means, y: Means) -> Tensor:
    return torch.stack([(a - b).square().sum() for a, b in zip(x, y, strict=True)]).sum()


def _l1(x: Means, y: Means) -> Tensor:
    return torch.stack([(a - b).abs().sum() for a, b in zip(x, y, strict=True)]).sum()


def _l1_mean(x: Means, y: Means) -> Tensor:
    """Sum over outputs of the mean absolute difference of what feeds each."""
    parts = [(a - b).abs().reshape(len(a), -1).mean(1) for a, b in zip(x, y, strict=True)]
    return torch.stack([part.sum() for part in parts]).sum()


DISTANCES: Mapping[str, Distance] = {
    "mse": _mse,
    "l1": _l1,
    "l1_mean": _l1_mean,
    "cos": _cos,
    "cos_all": _cos_all,
}
"""Distances of two tuples of tensors: mse (a sum of squares, as published under this name), l1 (a
sum), l1_mean, cos (of the weights of each output), cos_all (of all weights as one vector)."""

LAYERS: Mapping[str, Callable[[Tensor], bool]] = {
    "conv": lambda weight: weight.dim() > 2,
    "weights": lambda weight: weight.dim() > 1,
    "all": lambda _: True,
}
"""Weights whose gradients are matched: conv (all but those of 1 or 2 dimensions: kernels, and the
affine maps of layer norms), weights (linear layers too), all."""


def chosen(net: FlatNet, layers: str) -> tuple[str, ...]:
    """Return the names of the weights that `LAYERS` says."""
    views = net.views(net.theta0)
    return tuple(name for name, view in views.items() if LAYERS[layers](view))


def taken(net: FlatNet, gradient: Tensor, names: tuple[str, ...]) -> Means:
    """Return the parts of a gradient [P] that belong to these weights."""
    views = net.views(gradient)
    return tuple(views[name] for name in names)


def weight_gradients(
    net: FlatNet, theta: Tensor, names: tuple[str, ...], *, precision: Precision = "float32"
) -> Statistic:
    """Return the gradient of the mean cross-entropy by these weights of theta [P]."""

    def of(x: Tensor, y: Tensor, *, graph: bool) -> Means:
        # torch's fused attention has no second derivative
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            views = {name: view.detach() for name, view in net.views(theta).items()}
            for name in names:  # no leaves: `nets.bilinear` then knows which gradients are wanted
                views[name] = views[name].requires_grad_().view_as(views[name])
            weights = [views[name] for name in names]
            with casting(x.device, precision):
                logits = net.applied(views, net.statistics(theta), x)
            loss = ce(logits.to(theta.dtype), y)
            return torch.autograd.grad(loss, weights, create_graph=graph)

    return of


def mean_features(net: FlatNet, theta: Tensor) -> Statistic:
    """Return the mean of the inputs [D] of the last linear layer of a network with theta [P]."""

    def of(x: Tensor, y: Tensor, *, graph: bool) -> Means:
        with torch.set_grad_enabled(graph):
            return (net.features(theta.detach(), x).mean(0),)

    return of


def matched(
    statistic: Statistic,
    x: Tensor,
    y: Tensor,
    target: Means,
    distance: Distance,
    *,
    part: int,
) -> Matched:
    """Return the distance of m(x) to a target, and its gradient by x [B, C, H, W].

    No more than `part` images go through the network at once, which must then treat each image by
    itself; the gradient is that of all at once, but for rounding.
    """
    if len(x) <= part:
        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            loss = distance(statistic(leaf, y, graph=True), target)
        return Matched(loss.detach(), torch.autograd.grad(loss, leaf)[0])
    pieces = list(zip(x.detach().split(part), y.split(part), strict=True))
    shares = [len(labels) / len(y) for _, labels in pieces]
    found = [statistic(images, labels, graph=False) for images, labels in pieces]
    sums = zip(*found, strict=True)
    means = tuple(
        torch.stack([s * each for s, each in zip(shares, of_one, strict=True)])
        .sum(0)
        .requires_grad_()
        for of_one in sums
    )
    with torch.enable_grad():
        loss = distance(means, target)
    v = torch.autograd.grad(loss, means, allow_unused=True, materialize_grads=True)
    grads = []
    for (images, labels), share in zip(pieces, shares, strict=True):
        leaf = images.requires_grad_()
        with torch.enable_grad():
            own = statistic(leaf, labels, graph=True)
        grads.append(torch.autograd.grad(own, leaf, tuple(share * each for each in v))[0])
    return Matched(loss.detach(), torch.cat(grads))


def match_gradients(
    net: FlatNet,
    theta: Tensor,
    names: tuple[str, ...],
    x: Tensor,
    y: Tensor,
    target: Means,
    distance: str,
    *,
    part: int,
    compute: Compute,
) -> Matched:
    """Return the distance of gradients by these weights to a target; as `matched`.

    Compiled, as `compute` says, for the shape of x, with stock operators only, where all of x goes
    through at once.

    Raises:
        WorkError: at the first call, if torch cannot compile it.
    """
    if not compute.compiled or len(x) > part:
        statistic = weight_gradients(net, theta, names, precision=compute.precision)
        return matched(statistic, x, y, target, DISTANCES[distance], part=part)
    recipe = net if net.recipe is None else net.recipe
    shape = (tuple(x.shape), x.dtype, x.device, torch.get_num_threads())
    kernel = _kernel(_Kind(recipe, net.training, names, distance, shape, compute.precision, net))
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        loss, bar = kernel(theta.detach(), net.statistics(theta), x.detach(), y, target)
    return Matched(loss.clone(), bar.clone()) if x.is_cuda else Matched(loss, bar)


@dataclass(frozen=True)
class _Kind:
    """What compiled code depends on; equal for networks of one recipe."""

    recipe: Any
    training: bool
    names: tuple[str, ...]
    distance: str
    shape: tuple[Any, ...]
    precision: Precision
    net: FlatNet = field(compare=False)


@lru_cache(maxsize=8)
def _kernel(kind: _Kind) -> Callable[..., tuple[Tensor, Tensor]]:
    net, names, distance = copy.deepcopy(kind.net), kind.names, DISTANCES[kind.distance]

    def match(
        theta: Tensor, statistics: Mapping[str, Tensor], x: Tensor, y: Tensor, target: Means
    ) -> tuple[Tensor, Tensor]:
        weights = net.views(theta)

        def apart(images: Tensor) -> Tensor:
            def loss(chosen: Means) -> Tensor:
                moved = dict(zip(names, chosen, strict=True))
                own = {name: each.clone() for name, each in statistics.items()}
                with casting(images.device, kind.precision):
                    logits = net.applied({**weights, **moved}, own, images)
                return ce(logits.to(theta.dtype), y)

            return distance(grad(loss)(tuple(weights[name] for name in names)), target)

        bar, value = grad_and_value(apart)(x)
        return value, bar

    return compiling.compiled(match, graphs=kind.shape[2].type == "cuda")
