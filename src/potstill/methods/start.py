"""First images and labels of distilled sets, class-major in every block."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from potstill.artefact import Decoder, MultiFormation
from potstill.core.errors import InputError
from potstill.core.keys import generator
from potstill.coresets import members_of, shuffled
from potstill.data import DataSet
from potstill.experts import Fresh, NetworkSource
from potstill.methods.api import Context

INITS = ("real", "noise", "unit-noise", "cluster")
"""Ways to begin."""


def beginnings(ctx: Context) -> NetworkSource:
    """Return where networks come from: fresh ones, or those that earlier blocks have trained."""
    if ctx.after is not None and (found := ctx.after.source) is not None:
        return found
    return Fresh(ctx.net_spec, ctx.data.channels, ctx.data.size, ctx.data.n_classes)


def first_images(ctx: Context, init: str, decoder: Decoder | None = None) -> tuple[Tensor, ...]:
    """Return the images [C * ipc, ch, H, W] of each block before the first outer step.

    `real`: random normalised training images of the class, none twice in the set (with
    replacement each once before any twice); `noise`: standard normal; `unit-noise`: the same, each
    image scaled to norm 1; `cluster`: unit norm, normal around class means, which are normal and
    four times as far apart at the nearest as images scatter. With a decoder that cuts images,
    `real` are mosaics of as many real images as it cuts out. A block that brings its images keeps
    them. Where a filter leaves a class too few images, some come twice, and so may images that
    earlier stages began with. Differs: IDC takes the first images of each class.

    Raises:
        InputError: for a class with too few training images, or images that do not fit a block.
    """
    blocks, used = [], 0
    filtered = ctx.after is not None and bool(ctx.after.rows)
    for k, block in enumerate(ctx.synth):
        shape = (ctx.data.n_classes * block.ipc, ctx.data.channels, *ctx.data.size)
        if block.images is not None:
            if block.images.shape != shape:
                raise InputError(
                    f"Block {k} needs images {list(shape)}, not {list(block.images.shape)}."
                )
            blocks.append(block.images)
            used -= block.ipc if filtered else 0
        elif init != "real":
            noise = torch.randn(shape, generator=generator(ctx.seed, "noise", k))
            blocks.append(noise if init == "noise" else _of_norm_one(ctx, noise, init))
        else:
            blocks.append(ctx.space.forward(_mosaics(ctx, decoder, used, used + block.ipc)))
        used += block.ipc
    return tuple(blocks)


def scarce(ctx: Context, init: str, decoder: Decoder) -> tuple[str, ...]:
    """Return a note where classes have too few real images for the first mosaics."""
    if init == "noise" or not isinstance(decoder, MultiFormation):
        return ()
    fewest, wanted = min(map(len, class_rows(ctx.data))), ctx.ipc * decoder.cells
    if fewest >= wanted:
        return ()
    return (
        f"Note: {wanted} real images make the first mosaics of a class, and one has {fewest}, "
        "so some come twice.",
    )


def _of_norm_one(ctx: Context, noise: Tensor, init: str) -> Tensor:
    """Return normal noise [C * ipc, ch, H, W], for `cluster` moved to class means, at norm 1."""
    rows = noise.flatten(1)
    if init == "cluster":
        chance = generator(ctx.seed, "class means")
        means = torch.randn(ctx.data.n_classes, rows.shape[1], generator=chance)
        scatter = torch.nn.functional.pdist(means).min() / 4
        rows = means.repeat_interleave(len(rows) // len(means), dim=0) + scatter * rows
    return (rows / rows.norm(dim=1, keepdim=True)).view_as(noise)


def _mosaics(ctx: Context, decoder: Decoder | None, start: int, stop: int) -> Tensor:
    """Return pictures of places start .. stop-1 in a random order of each class, or their mosaics.

    A mosaic takes the pictures of as many places as it has cells; where a class has too few, each
    is taken once before any twice.
    """
    train, classes = ctx.data.train, ctx.data.classes
    cells = decoder.cells if isinstance(decoder, MultiFormation) else 1
    counts = [stop * cells] * len(classes)
    filtered = ctx.after is not None and bool(ctx.after.rows)
    again = ctx.replacement or cells > 1 or filtered
    found = members_of(train, counts, replacement=again, classes=classes)
    parts = []
    for label, members in enumerate(found):
        order = shuffled(members, stop * cells, chance=generator(ctx.seed, "first images", label))
        pictures = train.pixels[order[start * cells :]]
        parts.append(decoder.mosaic(pictures) if isinstance(decoder, MultiFormation) else pictures)
    return torch.cat(parts)


@lru_cache(maxsize=2)
def class_rows(data: DataSet) -> tuple[Tensor, ...]:
    """Return the training rows of each class, int64, ascending."""
    labels = data.train.labels
    counts = torch.bincount(labels, minlength=data.n_classes).tolist()
    return tuple(labels.argsort(stable=True).split(counts))


def labels_of(ctx: Context) -> Tensor:
    """Return the labels [N] of all blocks: block by block, class-major."""
    classes = torch.arange(ctx.data.n_classes)
    return torch.cat([classes.repeat_interleave(block.ipc) for block in ctx.synth])
