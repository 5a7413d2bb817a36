"""First images and labels of distilled sets, class-major in every block."""

from __future__ import annotations

import torch
from torch import Tensor

from potstill.core.errors import InputError
from potstill.core.keys import generator
from potstill.coresets import members_of, shuffled
from potstill.methods.api import Context


def first_images(ctx: Context, init: str) -> tuple[Tensor, ...]:
    """Return the images [C * ipc, ch, H, W] of each block before the first outer step.

    `real`: random normalised training images of the class, none twice in the set (with
    replacement each once before any twice); `noise`: standard normal. A block that brings its
    images keeps them.

    Raises:
        InputError: for a class with too few training images, or images that do not fit a block.
    """
    blocks, used = [], 0
    for k, block in enumerate(ctx.synth):
        shape = (ctx.data.n_classes * block.ipc, ctx.data.channels, *ctx.data.size)
        if block.images is not None:
            if block.images.shape != shape:
                raise InputError(
                    f"Block {k} needs images {list(shape)}, not {list(block.images.shape)}."
                )
            blocks.append(block.images)
        elif init == "noise":
            blocks.append(torch.randn(shape, generator=generator(ctx.seed, "noise", k)))
        else:
            index = _real(ctx, used, used + block.ipc)
            blocks.append(ctx.space.forward(ctx.data.train.pixels[index]))
        used += block.ipc
    return tuple(blocks)


def _real(ctx: Context, start: int, stop: int) -> Tensor:
    """Return the indices of places start .. stop-1 in a random order of each class."""
    train, classes = ctx.data.train, ctx.data.classes
    found = members_of(train, [stop] * len(classes), replacement=ctx.replacement, classes=classes)
    return torch.cat(
        [
            shuffled(members, stop, chance=generator(ctx.seed, "first images", label))[start:]
            for label, members in enumerate(found)
        ]
    )


def labels_of(ctx: Context) -> Tensor:
    """Return the labels [N] of all blocks: block by block, class-major."""
    classes = torch.arange(ctx.data.n_classes)
    return torch.cat([classes.repeat_interleave(block.ipc) for block in ctx.synth])
