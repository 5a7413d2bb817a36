"""State of gradient matching, and the network that its image steps look at.

A network is drawn, matched `matches` times, and moves on in between: on real images along its
`path`, or for some epochs on the distilled set. Networks of a pool of paths lie ready in the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TypedDict

import torch
from torch import Tensor

from potstill.core.compute import Compute
from potstill.core.keys import generator
from potstill.data import at_hand
from potstill.experts import Walker
from potstill.functional import SGD, Segment, TrainSpec, fit
from potstill.methods.api import Context
from potstill.methods.match_settings import Settings
from potstill.methods.shared import failed_again
from potstill.methods.start import class_rows

Decoded = tuple[Tensor, Tensor]


class State(TypedDict):
    """Images and velocity of each block; weights of the network and moments of its optimizer."""

    images: tuple[Tensor, ...]
    velocity: tuple[Tensor, ...]
    theta: Tensor | None
    moments: tuple[Tensor, ...]
    failed: int


def at_rest(images: tuple[Tensor, ...]) -> State:
    """Return the state before the first image step: no velocity, no network."""
    velocity = tuple(torch.zeros_like(x) for x in images)
    return State(images=images, velocity=velocity, theta=None, moments=(), failed=0)


def on_device(state: State, device: str) -> State:
    """Return the state with its tensors on a device."""

    def moved(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(each.to(device) for each in tensors)

    theta = state["theta"]
    return {
        **state,
        "images": moved(state["images"]),
        "velocity": moved(state["velocity"]),
        "theta": None if theta is None else theta.to(device),
        "moments": moved(state["moments"]),
    }


def undone(state: State, it: int, *, advice: str) -> State:
    """Return the state after an image step that was not finite: as before, without velocity.

    Raises:
        WorkError: after 20 such steps in a row; ends with the advice.
    """
    failed = failed_again(state["failed"], it, advice=advice)
    still = tuple(torch.zeros_like(v) for v in state["velocity"])
    return {**state, "velocity": still, "failed": failed}


def walked(ctx: Context) -> bool:
    """Return whether the source gives a network for every image step, not for every path."""
    return getattr(ctx.nets, "walked", False)


def network_at(method: Settings, ctx: Context, state: State, it: int) -> State:
    """Return the state with the network of image step `it`; a new one where one is due."""
    assert ctx.nets is not None
    turn, place = divmod(it, method.matches)
    device = ctx.plan.window.device
    if walked(ctx):
        return {**state, "theta": ctx.nets.draw(ctx.seed, it).theta.to(device)}
    if place and state["theta"] is not None:
        return state
    theta = ctx.nets.draw(ctx.seed, turn).theta.to(device)
    theta, moments = walker(method, ctx).start(theta, turn)
    return {**state, "theta": theta, "moments": moments}


def moved_on(
    method: Settings, ctx: Context, state: State, it: int, decoded: Callable[[], Decoded]
) -> State:
    """Return the state with its network ready for image step it + 1.

    `decoded` makes the decoded images and labels, for networks that are trained on them.
    """
    turn, place = divmod(it + 1, method.matches)
    theta = state["theta"]
    assert theta is not None
    if not place or walked(ctx):  # the next one is drawn
        return state
    if method.inner_epochs:
        theta = fit(
            ctx.net,
            theta,
            *decoded(),
            _inner(method),
            seed=ctx.seed,
            key=("inner", it),
            compute=first_order(ctx),
        )
        return {**state, "theta": theta}
    theta, moments = walker(method, ctx).onward(theta, state["moments"], turn, place)
    return {**state, "theta": theta, "moments": moments}


def first_order(ctx: Context) -> Compute:
    """Return how all that is differentiated once is computed."""
    window = ctx.plan.window
    return replace(ctx.plan.tasks, device=window.device, threads=window.threads)


def walker(method: Settings, ctx: Context) -> Walker:
    """Return what moves networks along the path of a method."""
    found = at_hand(ctx.data, ctx.space, ctx.plan.window.device)
    return Walker(
        net=ctx.net,
        path=method.path,
        images=found.pixels,
        labels=found.labels,
        prepare=found.prepare,
        seed=ctx.seed,
        compute=first_order(ctx),
    )


def _inner(method: Settings) -> TrainSpec:
    """Return how networks are trained on the distilled set between two image steps."""
    return TrainSpec(
        lr=method.inner_lr,
        segments=(Segment(epochs=method.inner_epochs),),
        batch=method.inner_batch,
        optimizer=SGD(),
        augment=method.inner_augment,
    )


@contextmanager
def settled(method: Settings, ctx: Context, theta: Tensor, it: int) -> Iterator[None]:
    """Match with batch norms that have the statistics of some real images of all classes.

    Without `settle`, or for networks that take no statistics of a batch, in training mode. Differs:
    DC's running statistics go on from one image step to the next; here they are those images' own.
    """
    ctx.net.train()
    if method.settle and not ctx.net.separable:
        rows = torch.cat(
            [
                members[torch.randperm(len(members), generator=chance)[: method.settle]]
                for label, members in enumerate(class_rows(ctx.data))
                for chance in [generator(ctx.seed, "settle", it, label)]
            ]
        )
        ctx.net.measure(theta, real_images(ctx, rows, like=theta))
        ctx.net.eval()
    try:
        yield
    finally:
        ctx.net.train()


def real_images(ctx: Context, rows: Tensor, *, like: Tensor) -> Tensor:
    """Return training images, normalised, on the device and in the type of `like`."""
    pixels, _, prepare = at_hand(ctx.data, ctx.space, like.device.type)
    x = pixels.index_select(0, rows.to(pixels.device)).to(like.device)
    return (x if prepare is None else prepare(x)).to(like.dtype)
