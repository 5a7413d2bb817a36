"""First images and labels of distilled sets, class-major in every block."""

from __future__ import annotations

import torch
from torch import Tensor

from potstill.core.errors import InputError
from potstill.core.keys import generator
from potstill.methods.api import Context


def first_images(ctx: Context, init: str) -> tuple[Tensor, ...]:
    """Return the images [C * ipc, ch, H, W] of each block before the first outer step.

    `real`: random normalised training images of the class, none twice in the set;
    `noise`: standard normal. A block that brings its images keeps them.
    """
    wanted = sum(block.ipc for block in ctx.synth)
    orders = []
    for c in range(ctx.data.n_classes):
        members = (ctx.data.train.labels == c).nonzero().flatten()
        if len(members) < wanted:
            raise InputError(
                f"Class {ctx.data.classes[c]!r} has {len(members)} training images (a part is "
                f"kept for validation); ipc {wanted} needs at least that many."
            )
        chance = generator(ctx.seed, "first images", c)
        orders.append(members[torch.randperm(len(members), generator=chance)])
    blocks, used = [], 0
    for k, block in enumerate(ctx.synth):
        index = torch.cat([order[used : used + block.ipc] for order in orders])
        used += block.ipc
        real = ctx.space.forward(ctx.data.train.pixels[index])
        if block.images is not None:
            blocks.append(block.images)
        elif init == "noise":
            blocks.append(torch.randn(real.shape, generator=generator(ctx.seed, "noise", k)))
        else:
            blocks.append(real)
    return tuple(blocks)


def labels_of(ctx: Context) -> Tensor:
    """Return the labels [N] of all blocks: block by block, class-major."""
    classes = torch.arange(ctx.data.n_classes)
    return torch.cat([classes.repeat_interleave(block.ipc) for block in ctx.synth])
