"""Matching of trajectories: what MTT and the methods built on it share.

    theta_{t+1} = theta_t - beta * grad loss(theta_t; X_I)                  t = 0 .. N-1
    L = |theta_N - target|^2 / |theta_0 - target|^2
    images X and step size beta follow the gradient of L through all N steps by SGD with momentum

Source: Cazenavette et al., CVPR 2022 (arXiv 2203.11932), algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor

from potstill.augment import Policy
from potstill.core.compute import Compute
from potstill.experts import Draw
from potstill.functional import SGD, Batch, Twice, unroll
from potstill.functional.steps import Loss, Prepare
from potstill.functional.strategy import Strategy
from potstill.methods.api import Metrics
from potstill.methods.shared import failed_again, gradients, leaves, unit

_LARGEST = math.log(2)  # of the change of log beta in one outer step
_SAFE_EVERY = 50  # outer steps between copies that the NaN guard can go back to


class State(TypedDict):
    """Images of each block, step size, their velocities; `safe` is where the NaN guard returns."""

    images: tuple[Tensor, ...]
    velocity: tuple[Tensor, ...]
    beta: Tensor
    beta_velocity: Tensor
    safe: tuple[tuple[Tensor, ...], Tensor]
    failed: int
    rolled_back: int


class Matched(NamedTuple):
    """L, dL/dX of each block (zero for a frozen one) and dL/dbeta."""

    loss: Tensor
    images: tuple[Tensor, ...]
    beta: Tensor


def at_rest(images: tuple[Tensor, ...], beta: Tensor) -> State:
    """Return the state before the first outer step: no velocity."""
    return State(
        images=images,
        velocity=tuple(torch.zeros_like(x) for x in images),
        beta=beta,
        beta_velocity=torch.zeros_like(beta),
        safe=(images, beta),
        failed=0,
        rolled_back=0,
    )


def minibatches(
    shape: Sequence[int],
    size: int | None,
    steps: int,
    augment: Policy | Twice | None,
    chance: torch.Generator,
) -> list[Batch]:
    """Draw a minibatch of images [N, C, H, W] and its augmentation for each student step.

    A permutation of all images is cut into chunks of `size` (None: one of all) that are taken
    from its end, so the smaller remainder comes first; then a new permutation. Nothing carries
    over to the next outer step.
    """
    count, channels, height, width = shape
    queue: list[Tensor] = []
    batches = []
    for _ in range(steps):
        if not queue:
            queue = list(torch.randperm(count, generator=chance).split(size or count))
        index = queue.pop()
        extra = augment and augment.sample(len(index), (channels, height, width), chance)
        batches.append(Batch(index=index, extra=extra))
    return batches


def match(
    loss: Loss,
    draw: Draw,
    images: tuple[Tensor, ...],
    targets: Tensor,
    beta: Tensor,
    batches: Sequence[Batch],
    *,
    prepare: Prepare | None,
    scales: Sequence[float],
    strategy: Strategy,
    compute: Compute,
) -> Matched:
    """Train a student from draw.theta on the union of the blocks; return L and its gradient.

    `loss(theta, (x, y))` is the student's loss on a minibatch of images and targets, prepared (see
    `unroll`); a block whose scale is 0 is frozen and takes no part in differentiation. The student
    is trained on the device of `compute`; all else is and stays where it is.
    """
    blocks = leaves(images, scales)
    return follow(
        loss,
        draw,
        blocks,
        (torch.cat(blocks), targets),
        beta,
        batches,
        prepare=prepare,
        strategy=strategy,
        compute=compute,
    )


def follow(
    loss: Loss,
    draw: Draw,
    moving: Sequence[Tensor],
    data: tuple[Tensor, Tensor],
    beta: Tensor,
    batches: Sequence[Batch],
    *,
    prepare: Prepare | None,
    strategy: Strategy,
    compute: Compute,
    weights: Tensor | None = None,
) -> Matched:
    """Train a student on data made of leaves; return L and its gradient by these and by beta.

    As `match`, for images and targets that may both move. `weights` [P] are those of the
    parameters in L; None: all count alike.
    """
    assert draw.target is not None
    device = torch.device(compute.device)
    theta, target = draw.theta.to(device), draw.target.to(device)
    x, y = data
    beta = beta.detach().requires_grad_()
    theta_n = unroll(
        loss,
        theta,
        (x.to(device), y.to(device)),
        beta.to(device),
        [_moved(batch, device) for batch in batches],
        optimizer=SGD(),
        prepare=prepare,
        strategy=strategy,
        compiled=compute.compiled,
    )
    far, start = (theta_n - target).square(), (theta - target).square()
    if weights is not None:
        far, start = (each * weights.to(each) for each in (far, start))
    distance = far.sum() / start.sum()
    *grads, beta_grad = gradients(distance, [*moving, beta])
    return Matched(distance.detach().to(beta), tuple(grads), beta_grad)


def _moved(batch: Batch, device: torch.device) -> Batch:
    extra = None if batch.extra is None else batch.extra.to(device)
    return Batch(batch.index.to(device), extra)


def descend(
    state: State,
    matched: Matched,
    it: int,
    *,
    scales: Sequence[float],
    lr_img: float,
    lr_lr: float,
    momentum: float,
) -> State | None:
    """Return the state after the step along the gradient, or None if it would not be finite.

    Differs: beta moves by a factor exp(-lr_lr * velocity / beta), equal to the published step to
    first order, always positive and at most a doubling or halving, and a velocity beyond that is
    cut to it; the published beta can become negative, and without the bound ours could fall to
    1e-24 in one step and not come back.
    """
    pairs = zip(state["velocity"], matched.images, strict=True)
    velocity = tuple(momentum * v + g for v, g in pairs)
    beta_velocity = momentum * state["beta_velocity"] + matched.beta
    images = tuple(
        x - lr_img * scale * v if scale else x
        for x, v, scale in zip(state["images"], velocity, scales, strict=True)
    )
    wanted = -lr_lr * beta_velocity / state["beta"]
    change = wanted.clamp(-_LARGEST, _LARGEST)
    bounded = -change * state["beta"] / max(lr_lr, 1e-30)
    beta_velocity = torch.where(change == wanted, beta_velocity, bounded)
    beta = state["beta"] * torch.exp(change)
    sound = torch.stack([matched.loss, beta, *(x.sum() for x in images)])
    if not bool(torch.isfinite(sound).all()) or float(beta) <= 0:
        return None
    return State(
        images=images,
        velocity=velocity,
        beta=beta,
        beta_velocity=beta_velocity,
        safe=(state["images"], state["beta"]) if it % _SAFE_EVERY == 0 else state["safe"],
        failed=0,
        rolled_back=state["rolled_back"],
    )


def roll_back(state: State, it: int, *, advice: str) -> State:
    """Return the last safe images and beta, without velocity.

    Raises:
        WorkError: after 20 failures in a row; ends with the advice.
    """
    failed, back = failed_again(state["failed"], it, advice=advice), at_rest(*state["safe"])
    back["failed"], back["rolled_back"] = failed, state["rolled_back"] + 1
    return back


def advanced(
    method: Any, state: State, found: Matched, draw: Draw, it: int, *, scales: Sequence[float]
) -> tuple[State, Metrics]:
    """Return the state after the step and its numbers; one not finite is undone (`roll_back`).

    The method has lr_img, lr_lr, lr_init, momentum and outer.
    """
    if method.outer == "rms":
        found = found._replace(images=tuple(map(unit, found.images)))
    rates = {name: getattr(method, name) for name in ("lr_img", "lr_lr", "momentum")}
    new = descend(state, found, it, scales=scales, **rates)
    if new is None:
        advice = (
            f"lower lr_img (now {method.lr_img:g}), lr_lr (now {method.lr_lr:g}) or lr_init "
            f"(now {method.lr_init:g})"
        )
        back = roll_back(state, it, advice=advice)
        numbers = {"rolled_back": float(back["rolled_back"]), "beta": float(back["beta"])}
        return back, {**numbers, "undone": 1.0}
    numbers = {"loss": float(found.loss), "beta": float(new["beta"])}
    return new, {**numbers, "expert": draw.expert, "epoch": draw.epoch}
