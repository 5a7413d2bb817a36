"""Real images of the outer loss: in epochs, or drawn by how hard they are.

How hard an image is = how many networks, trained on the distilled set, miss it. Source: the earlier
code of Feng, Vedantam, Kempe, ICLR 2024 (arXiv 2311.07025), off by default there. Differs: batches
by weight are drawn without replacement, anew each outer step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from potstill.augment import RAT, Policy
from potstill.core.keys import generator, integer
from potstill.core.ranges import at_least, one_of
from potstill.core.spec import record
from potstill.data import at_hand
from potstill.functional import TrainSpec, fit, predict
from potstill.methods.api import Context
from potstill.methods.start import labels_of
from potstill.methods.work import at_once

WEIGHTS: Mapping[str, Callable[[Tensor, int], Tensor]] = {
    "hard": lambda missed, _: (missed > 0).double(),
    "prob": lambda missed, _: missed.double() + 5,
    "quaprob": lambda missed, nets: nets / 2 - (missed.double() - nets / 2).abs() + 5,
}
"""From how many networks miss each image, and their number, to the weights of the images.

`hard`: those missed at all; `prob`: the more the likelier; `quaprob`: medium ones the likeliest.
"""


@record
@dataclass(frozen=True, kw_only=True)
class RealImages:
    """The real images of the outer loss."""

    batch: int | None = 5000
    """Images, at most all; none: as many as fit the memory budget at once."""
    sampling: Literal["uniform", "hard", "prob", "quaprob"] = "uniform"
    """uniform (epochs of all images), or by how many networks trained on the set miss them: hard
    (any), prob (the more the likelier), quaprob (medium ones the likeliest)."""
    rescore_every: int = 250
    """Outer steps between two such counts; until the first one all images are alike."""
    rescore_nets: int = 8
    """Networks of such a count."""
    augment: Policy | None = RAT()
    """Augmentation of the images."""

    def __post_init__(self) -> None:
        at_least(1, self, "batch", "rescore_every", "rescore_nets", prefix="real.")
        one_of(("uniform", *WEIGHTS), self, "sampling", prefix="real.")

    def size(self, ctx: Context) -> int:
        """Return the images of a batch."""
        return min(self.batch or at_once(ctx), len(ctx.data.train))

    def part(self, ctx: Context) -> int:
        """Return how many images of a batch go through the network at once."""
        return min(at_once(ctx), self.size(ctx))

    def counts_at(self, it: int) -> bool:
        """Return whether networks are trained on the set before outer step `it`."""
        return self.sampling != "uniform" and it > 0 and it % self.rescore_every == 0

    def scaled(self, *, smoke: bool, iterations: int) -> RealImages:
        """Return them with at most the counts of a scale, for so many outer steps."""
        batch = min(self.batch or 5000, 50 if smoke else 500)
        if self.sampling == "uniform":
            return replace(self, batch=batch)
        every, nets = min(self.rescore_every, max(1, iterations // 4)), min(self.rescore_nets, 2)
        return replace(self, batch=batch, rescore_every=every, rescore_nets=nets)

    def drawn(
        self, ctx: Context, missed: Tensor | None, it: int, task: int, *, like: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return images and labels of a batch on the device and of the type of `like`."""
        rows, chance = self.rows(ctx, missed, it, task), generator(ctx.seed, "augment", it, task)
        pixels, labels, prepare = at_hand(ctx.data, ctx.space, like.device.type)
        x = pixels.index_select(0, rows.to(pixels.device)).to(like.device)
        x = (x if prepare is None else prepare(x)).to(like.dtype)
        if self.augment is not None:
            shape = (ctx.data.channels, *ctx.data.size)
            x = self.augment.apply(x, self.augment.sample(len(x), shape, chance).to(x.device))
        return x, labels[rows.to(labels.device)]

    def rows(self, ctx: Context, missed: Tensor | None, it: int, task: int) -> Tensor:
        """Return which training images outer step `it` takes; the last of an epoch may be fewer."""
        n, size = len(ctx.data.train), self.size(ctx)
        if missed is not None:
            chance = generator(ctx.seed, "real", it, task)
            return weighted(WEIGHTS[self.sampling](missed, self.rescore_nets), size, chance)
        epoch, place = divmod(it, -(-n // size))
        order = torch.randperm(n, generator=generator(ctx.seed, "epoch", epoch, task))
        return order[place * size : (place + 1) * size]


def weighted(weights: Tensor, size: int, chance: torch.Generator) -> Tensor:
    """Return `size` different rows by weight [n], or all of weight above 0 if they are fewer.

    Without any weight above 0 all rows are alike.
    """
    weights = weights if weights.any() else torch.ones_like(weights)
    return torch.multinomial(weights, min(size, int(weights.count_nonzero())), generator=chance)


def missed(
    ctx: Context, images: Tensor, targets: Tensor, spec: TrainSpec, *, nets: int, it: int
) -> Tensor:
    """Return how many of some networks, trained on the set, miss each training image: int16 [n]."""
    assert ctx.nets is not None
    compute, labels = ctx.plan.window, ctx.data.train.labels
    pixels, _, prepare = at_hand(ctx.data, ctx.space, images.device.type)
    count = torch.zeros(len(labels), dtype=torch.int16)
    for k in range(nets):
        theta, key = ctx.nets.draw(integer(ctx.seed, "missed", it), k).theta, ("missed", it, k)
        with ctx.net.keeping_statistics():
            theta = fit(
                ctx.net,
                theta.to(images),
                images,
                targets,
                spec,
                seed=ctx.seed,
                key=key,
                places=labels_of(ctx),
                compute=compute,
            )
            logits = predict(ctx.net, theta, pixels, prepare=prepare, compute=compute)
        count += logits.argmax(1).cpu() != labels
    return count
