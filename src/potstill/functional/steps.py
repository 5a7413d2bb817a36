"""First and second derivatives of a student's loss, as unrolled steps need them.

For theta, the rows r of one minibatch and an adjoint v of the gradient:

    gradient(theta, r)           = grad_theta loss(theta, r)
    product(theta, r, v, moving) = grad_{theta, r_i} <grad_theta loss(theta, r), v>,  i in moving
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad
from torch.nn.attention import SDPBackend, sdpa_kernel

from potstill.augment import Params, Policy
from potstill.functional import compiling
from potstill.functional.losses import LossOf, Precision, casting
from potstill.functional.selfsup import PairLoss, pair_loss
from potstill.nets.flat import FlatNet, like

Rows = tuple[Tensor, ...]
Loss = Callable[[Tensor, Rows], Tensor]
Prepare = Callable[[Rows, Any], Rows]


class Derivatives(NamedTuple):
    """The two derivatives of one loss, without a graph."""

    gradient: Callable[[Tensor, Rows], Tensor]
    product: Callable[[Tensor, Rows, Tensor, tuple[int, ...]], tuple[Tensor, ...]]


@lru_cache(maxsize=4)
def training_loss(net: FlatNet, loss_of: LossOf, *, precision: Precision = "float32") -> Loss:
    """Return loss(theta, (x, y)) = loss_of(net(theta, x), y) in training mode.

    A pure function of tensors: running statistics stay as they are. Equal arguments give the same
    function, so that what was compiled for it is found again.
    """
    run = _training(net, precision)

    def loss(theta: Tensor, rows: Rows) -> Tensor:
        x, y = rows
        return loss_of(run(theta, x), y)

    return loss


@lru_cache(maxsize=4)
def views_loss(net: FlatNet, loss_of: PairLoss, *, precision: Precision = "float32") -> Loss:
    """Return loss(theta, (a, b)) of two views of each image, as `training_loss` does.

    Each view goes through the network by itself: batch norm takes the statistics of each.
    """
    run = _training(net, precision)

    def loss(theta: Tensor, rows: Rows) -> Tensor:
        return pair_loss(loss_of, [run(theta, x) for x in rows], None)

    return loss


def _training(net: FlatNet, precision: Precision) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the output of a network in training mode as a pure function of theta and images."""
    net = copy.deepcopy(net)
    net.train()
    buffers = net.statistics(net.theta0)

    def run(theta: Tensor, x: Tensor) -> Tensor:
        own = {name: like(each, theta).clone() for name, each in buffers.items()}
        with casting(x.device, precision):
            out = net.run(theta, own, x)
        return out.to(theta.dtype)

    return run


def augmented(policy: Policy | None) -> Prepare | None:
    """Return what augments the first tensor of a minibatch's rows; None without a policy."""
    if policy is None:
        return None

    def prepare(rows: Rows, params: Params) -> Rows:
        x, *rest = rows
        return policy.apply(x, params), *rest

    return prepare


@dataclass(frozen=True)
class Twice:
    """Two views of each image by one policy: what draws them, as a policy does, and makes them."""

    policy: Policy

    def sample(self, n: int, shape: tuple[int, int, int], generator: torch.Generator) -> Both:
        """Draw the parameters of both views, one after the other; see `Policy`."""
        first, second = (self.policy.sample(n, shape, generator) for _ in range(2))
        return Both(first, second)

    def prepare(self, rows: Rows, params: Both) -> Rows:
        """Return two views of the first tensor of a minibatch's rows, and nothing else."""
        return self.policy.apply(rows[0], params.first), self.policy.apply(rows[0], params.second)


@dataclass(frozen=True)
class Both:
    """The parameters of two views."""

    first: Params
    second: Params

    def to(self, device: torch.device | str) -> Both:
        """Return the same parameters on a device."""
        return Both(self.first.to(device), self.second.to(device))


def gradient(loss: Loss, theta: Tensor, rows: Rows, *, graph: bool) -> Tensor:
    """Return grad_theta loss(theta, rows), with `graph` differentiable itself."""
    # torch's fused attention has no second derivative
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        return torch.autograd.grad(loss(theta, rows), theta, create_graph=graph)[0]


def eager(loss: Loss) -> Derivatives:
    """Return the derivatives by autograd."""

    def plain(theta: Tensor, rows: Rows) -> Tensor:
        return gradient(loss, theta.detach().requires_grad_(), rows, graph=False)

    def product(
        theta: Tensor, rows: Rows, v: Tensor, moving: tuple[int, ...]
    ) -> tuple[Tensor, ...]:
        leaf = theta.detach().requires_grad_()
        rows = tuple(row.detach().requires_grad_(i in moving) for i, row in enumerate(rows))
        leaves = [leaf, *(rows[i] for i in moving)]
        g = gradient(loss, leaf, rows, graph=True)
        if not g.requires_grad:  # the loss is linear in theta and blind to the rows
            return tuple(torch.zeros_like(each) for each in leaves)
        return torch.autograd.grad(g, leaves, v, allow_unused=True, materialize_grads=True)

    return Derivatives(plain, product)


def compiled(loss: Loss) -> Derivatives:
    """Return the derivatives by torch.func, compiled once for each shape of the rows.

    Stock operators only: functions with derivatives written out are silently wrong there. On CUDA
    a call is launched as one CUDA graph (not tried on a GPU yet), and its results are copied before
    the next call overwrites them.

    Raises:
        WorkError: at the first call, if torch cannot compile the loss.
    """

    def call(
        moving: tuple[int, ...] | None, theta: Tensor, rows: Rows, *v: Tensor
    ) -> tuple[Tensor, ...]:
        shapes = tuple((each.shape, each.dtype, each.device) for each in (theta, *rows))
        kernel = _kernel(loss, moving, shapes, torch.get_num_threads())
        theta, *given = (each.detach().contiguous() for each in (theta, *v, *rows))
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            out = kernel(theta, tuple(given[len(v) :]), *given[: len(v)])
        return tuple(each.clone() for each in out) if theta.is_cuda else out

    return Derivatives(
        lambda theta, rows: call(None, theta, rows)[0],
        lambda theta, rows, v, moving: call(moving, theta, rows, v),
    )


@lru_cache(maxsize=32)
def _kernel(
    loss: Loss, moving: tuple[int, ...] | None, shapes: tuple[Any, ...], threads: int
) -> Callable[..., tuple[Tensor, ...]]:
    """Return the compiled product, or the gradient if `moving` is None, for these shapes."""

    def plain(theta: Tensor, rows: Rows) -> tuple[Tensor, ...]:
        return (grad(loss)(theta, rows),)

    def product(theta: Tensor, rows: Rows, v: Tensor) -> tuple[Tensor, ...]:
        def along(theta: Tensor, *moved: Tensor) -> Tensor:
            mixed = list(rows)
            for i, row in zip(moving or (), moved, strict=True):
                mixed[i] = row
            return (grad(loss)(theta, tuple(mixed)) * v).sum()

        leaves = [rows[i] for i in moving or ()]
        return grad(along, argnums=tuple(range(1 + len(leaves))))(theta, *leaves)

    cuda = shapes[0][2].type == "cuda"
    return compiling.compiled(plain if moving is None else product, graphs=cuda)
