"""The meta-gradient of one student: what RaT-BPTT and schedules over it share.

    theta_0 fresh; `start` plain steps on constant U; M differentiable steps on U   -> theta_N
    L = cross-entropy of theta_N on real images;  dL/dU, dL/dy, dL/d(log lr) through the M steps

Source: Feng, Vedantam, Kempe, ICLR 2024 (arXiv 2311.07025), algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from potstill.core.compute import Compute
from potstill.engine import Ranks
from potstill.functional import SGD, Adam, Batch, ce, run_prefix, unroll
from potstill.functional.kernels import gradient
from potstill.functional.optim import Bars, Optimizer, State
from potstill.functional.steps import Loss, Prepare
from potstill.functional.strategy import Strategy
from potstill.methods.shared import gradients, leaves
from potstill.nets import FlatNet


class Found(NamedTuple):
    """L, and its gradient by images and learned labels of each block (0 if frozen) and log lr."""

    loss: Tensor
    images: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]
    lr: Tensor


@dataclass(frozen=True, kw_only=True)
class Student:
    """How students are trained, and how their outer loss is computed."""

    net: FlatNet
    plain: Loss
    """Loss of the plain steps."""
    loss: Loss
    """Loss of the differentiated steps."""
    before: SGD | Adam
    """Optimizer of the plain steps."""
    inside: SGD | Adam
    """Optimizer of the differentiated steps; it goes on from the state of the other."""
    prepare: Prepare | None
    strategy: Strategy
    compute: Compute
    part: int
    """Real images that go through the network at once."""


def meta_gradient(
    student: Student,
    theta: Tensor,
    images: Sequence[Tensor],
    targets: Sequence[Tensor],
    lr: Tensor,
    batches: Sequence[Batch],
    real: tuple[Tensor, Tensor],
    *,
    start: int,
    scales: Sequence[float],
) -> Found:
    """Train a student from theta on all blocks; return its loss on real images and the gradient.

    Only the batches from `start` on are differentiated. Targets of blocks are class numbers, or
    floating and then learned. A block whose scale is 0 is frozen: nothing is differentiated by it.
    """
    soft = targets[0].is_floating_point()
    blocks = leaves(images, scales)
    labels = leaves(targets, scales if soft else [0] * len(targets))
    lr = lr.detach().requires_grad_()
    data = torch.cat(blocks), torch.cat(labels)
    theta, state = run_prefix(
        student.plain,
        theta,
        tuple(each.detach() for each in data),
        lr.detach(),
        batches[:start],
        optimizer=student.before,
        prepare=student.prepare,
        compiled=student.compute.compiled,
    )
    theta = unroll(
        student.loss,
        theta,
        data,
        lr,
        batches[start:],
        optimizer=student.inside,
        prepare=student.prepare,
        state=state,
        first_step=start,
        strategy=student.strategy,
        compiled=student.compute.compiled,
    )
    loss, bar = outer_gradient(student, theta.detach(), *real)
    grads = gradients(theta, [*blocks, *(labels if soft else ()), lr], bar)
    n = len(blocks)
    return Found(loss, grads[:n], grads[n:-1], grads[-1] * lr.detach())


def outer_gradient(student: Student, theta: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean cross-entropy on real images and its gradient at theta, part by part.

    Equal to that of all images at once, but for rounding; networks with statistics of the batch
    take it whole.
    """
    part = student.part if student.net.separable else len(x)
    loss, bar = torch.zeros_like(theta[0]), torch.zeros_like(theta)
    for images, labels in zip(x.split(part), y.split(part), strict=True):
        mean, grad = gradient(
            student.net, theta, images, labels, ce, compute=student.compute, batch=part
        )
        loss, bar = loss + mean * (len(labels) / len(y)), bar + grad * (len(labels) / len(y))
    return loss, bar


def gradient_norms(
    student: Student,
    theta: Tensor,
    data: tuple[Tensor, Tensor],
    lr: Tensor,
    batches: Sequence[Batch],
) -> Tensor:
    """Return the norms of the gradients of plain steps from theta, one a batch [steps]."""
    watch = _Watch(student.before, [])
    run_prefix(
        student.plain,
        theta,
        data,
        lr,
        batches,
        optimizer=watch,
        prepare=student.prepare,
        compiled=student.compute.compiled,
    )
    return torch.stack(watch.norms)


@dataclass(frozen=True)
class _Watch:
    """An optimizer that notes the norms of the gradients that it is given."""

    optimizer: Optimizer
    norms: list[Tensor]

    def init(self, theta: Tensor) -> State:
        return self.optimizer.init(theta)

    def update(
        self, theta: Tensor, grad: Tensor, state: State, lr: Tensor, step: int
    ) -> tuple[Tensor, State]:
        self.norms.append(torch.linalg.vector_norm(grad))
        return self.optimizer.update(theta, grad, state, lr, step)

    def pullback(
        self, theta: Tensor, grad: Tensor, state: State, lr: Tensor, step: int, after: Bars
    ) -> Bars:
        return self.optimizer.pullback(theta, grad, state, lr, step, after)


def averaged(found: Sequence[Found], ranks: Ranks | None = None) -> Found:
    """Return the mean over the students of an outer step, those of other processes included.

    Every process takes the same mean of the same rows: the bytes do not depend on their number.
    """
    ranks = ranks or Ranks()
    if len(found) * ranks.world == 1:
        return found[0]
    like = [found[0].loss, *found[0].images, *found[0].labels, found[0].lr]
    rows = [torch.cat([x.flatten() for x in (f.loss, *f.images, *f.labels, f.lr)]) for f in found]
    parts = ranks.gathered(torch.stack(rows)).mean(0).split([x.numel() for x in like])
    loss, *grads, lr = (part.view_as(x).to(x.dtype) for part, x in zip(parts, like, strict=True))
    n = len(found[0].images)
    return Found(loss, tuple(grads[:n]), tuple(grads[n:]), lr)
