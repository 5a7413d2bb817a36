"""Real images of KRR-ST's outer steps, and what the encoder says of them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from potstill.augment import Policy
from potstill.core.keys import generator
from potstill.data import DataRef, MeanStd, at_hand
from potstill.experts import read_moments, read_targets
from potstill.methods.api import Context
from potstill.methods.moving import first_order
from potstill.nets import FlatNet
from potstill.teachers import Encoder, read_encoder
from potstill.teachers.targets import Scale, features_by
from potstill.teachers.targets import opened as opened_encoder


class OfReal(Protocol):
    """A method that looks at batches of real images."""

    @property
    def batch_real(self) -> int:
        """Return how many, all where there are fewer."""
        ...

    @property
    def augment(self) -> Policy | None:
        """Return how they are augmented."""
        ...

    @property
    def targets(self) -> Scale:
        """Return what is done to their features."""
        ...


def real_batch(method: OfReal, ctx: Context, turn: int) -> tuple[Tensor, Tensor]:
    """Return images X_r as the networks take them and their targets, of outer step `turn`.

    Images are augmented as pixels in [0, 1], so that a crop brings in black, and encoder and
    network see the same ones, each normalised as its own. Targets of images that are not augmented
    are looked up.
    """
    count, policy = len(ctx.data.train), method.augment
    rows = real_rows(count, min(method.batch_real, count), seed=ctx.seed, turn=turn)
    x = pictures(ctx, rows)
    folder, device = ctx.done["targets"][0], ctx.plan.window.device
    if policy is None:
        return ctx.space.forward(x), _stored(folder, ctx.data.ref)[rows].to(device)
    shape, chance = (ctx.data.channels, *ctx.data.size), generator(ctx.seed, "augment", turn)
    x = policy.apply(x, policy.sample(len(x), shape, chance).to(device))
    encoder, net, theta = _opened(ctx.done["encoders"][0], device)
    y = features_by(encoder, net, theta, x, compute=first_order(ctx))
    if method.targets == "standardised":
        mean, std = (each.to(device) for each in _moments(folder))
        y = (y - mean) / torch.where(std > 0, std, 1)
    return ctx.space.forward(x), y


def real_rows(count: int, size: int, *, seed: int, turn: int) -> Tensor:
    """Return which `size` of `count` images outer step `turn` takes, int64.

    Epoch after epoch, each in an order of its own; a batch may end one and begin the next.
    """
    first, parts = turn * size, list[Tensor]()
    for epoch in range(first // count, (first + size - 1) // count + 1):
        at = first - epoch * count
        parts.append(_order(count, seed, epoch)[max(0, at) : at + size])
    return torch.cat(parts)


@lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=generator(seed, "epoch", epoch))


def pictures(ctx: Context, rows: Tensor) -> Tensor:
    """Return training images as pixels in [0, 1], on the device of the outer steps."""
    space = MeanStd(mean=(0.0,) * ctx.data.channels, std=(1.0,) * ctx.data.channels)
    device = ctx.plan.window.device
    found = at_hand(ctx.data, space, device)
    return space.forward(found.pixels.index_select(0, rows.to(found.pixels.device)).to(device))


@lru_cache(maxsize=1)
def _opened(folder: Path, device: str) -> tuple[Encoder, FlatNet, Tensor]:
    encoder = read_encoder(folder)
    net = opened_encoder(encoder, folder)
    return encoder, net, net.theta0.to(device)


@lru_cache(maxsize=1)
def _stored(folder: Path, ref: DataRef) -> Tensor:
    return read_targets(folder, data=ref)


@lru_cache(maxsize=1)
def _moments(folder: Path) -> tuple[Tensor, Tensor]:
    return read_moments(folder)
