"""The distance between distilled and real images, class by class, and its gradient.

L_c = d(m(theta; A(S)), m(theta; A(R))),   S = decoded distilled images of c,  R = real ones

Differs: DM puts all classes through the network at once, so that batch norms see them together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from potstill.core.keys import generator
from potstill.functional import ce
from potstill.functional.kernels import gradient
from potstill.functional.matched import (
    DISTANCES,
    Matched,
    chosen,
    match_gradients,
    matched,
    mean_features,
    taken,
)
from potstill.methods.api import Context
from potstill.methods.match_settings import Settings
from potstill.methods.moving import first_order, real_images
from potstill.methods.shared import gradients, leaves
from potstill.methods.start import class_rows
from potstill.methods.work import at_once


class Found(NamedTuple):
    """The mean distance over classes, and dL/dX of each block (zero for a frozen one)."""

    loss: Tensor
    images: tuple[Tensor, ...]


def distances(
    method: Settings, ctx: Context, theta: Tensor, images: Sequence[Tensor], it: int
) -> Found:
    """Return the distance for these weights, and the gradient of its sum over the classes.

    `images` [C * ipc, ch, H, W] are those of each block, class-major.
    """
    grads, total = [torch.zeros_like(x) for x in images], torch.zeros_like(theta[0])
    scales = [block.lr_scale for block in ctx.synth]
    for label in range(ctx.data.n_classes):
        rows = [slice(label * block.ipc, (label + 1) * block.ipc) for block in ctx.synth]
        own = leaves([x[part] for x, part in zip(images, rows, strict=True)], scales)
        loss, bars = _of_class(method, ctx, theta, own, label, it)
        total += loss
        for grad, part, bar in zip(grads, rows, bars, strict=True):
            grad[part] = bar
    return Found(total / ctx.data.n_classes, tuple(grads))


def _of_class(
    method: Settings, ctx: Context, theta: Tensor, own: Sequence[Tensor], label: int, it: int
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the distance of one class and its gradient by each block's images."""
    chance = generator(ctx.seed, "match", it, label)
    decoder = method.cut(ctx.space)
    rows = real_rows(class_rows(ctx.data)[label], method.batch_real, it, (ctx.seed, "real", label))
    real = real_images(ctx, rows, like=theta)
    index = decoder.index(torch.full((sum(map(len, own)),), label))
    if method.batch_syn is not None and len(index) > method.batch_syn:
        index = index[torch.randperm(len(index), generator=chance)[: method.batch_syn]]
    with torch.enable_grad():
        syn = decoder.take(torch.cat(list(own)), index)
        if method.augment is not None:
            params = method.augment.sample(1, (ctx.data.channels, *ctx.data.size), chance)
            params = params.to(theta.device)
            real, syn = (method.augment.apply(x, params) for x in (real, syn))
    found = _matched(method, ctx, theta, real, syn.detach(), label)
    return found.loss, gradients(syn, own, found.images)


def _matched(
    method: Settings, ctx: Context, theta: Tensor, real: Tensor, syn: Tensor, label: int
) -> Matched:
    """Return the distance of augmented images of one class, and its gradient by the distilled."""
    y = torch.full((max(len(real), len(syn)),), label, device=theta.device)
    part = at_once(ctx) if ctx.net.separable else len(syn)
    if method.match.of == "features":
        features, distance = mean_features(ctx.net, theta), DISTANCES["mse"]
        target = features(real, y[: len(real)], graph=False)
        return matched(features, syn, y[: len(syn)], target, distance, part=part)
    _, grad = gradient(
        ctx.net,
        theta,
        real,
        y[: len(real)],
        ce,
        compute=first_order(ctx),
        batch=method.batch_real,
    )
    names = chosen(ctx.net, method.match.layers)
    return match_gradients(
        ctx.net,
        theta,
        names,
        syn,
        y[: len(syn)],
        taken(ctx.net, grad, names),
        method.match.distance,
        part=part,
        compute=ctx.plan.window,
    )


def real_rows(members: Tensor, batch: int, it: int, key: tuple[int, str, int]) -> Tensor:
    """Return which rows of a class image step `it` takes: epochs of whole batches.

    Differs: DC, DSA and DM draw each batch from all images of the class anew.
    """
    epoch, place = divmod(it, len(members) // batch)
    order = torch.randperm(len(members), generator=generator(*key, epoch))
    return members[order[place * batch : (place + 1) * batch]]
