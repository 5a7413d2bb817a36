"""What the students of MTT learn: classes, or, as their experts, from pairs of views.

    z_1, z_2 = embeddings of two views A_1(X_I), A_2(X_I) of the distilled images of a minibatch
    a step of the student follows the gradient of the experts' loss of z_1, z_2

Source of the latter: Joshi, Ni and Mirzasoleiman, ICLR 2025 (arXiv 2410.02116), appendix F: MTT as
it is, applied to self-supervised trajectories, which is what MKDT improves on. Views are made by
the method's own augmentation, drawn twice; it is differentiable by the images.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from potstill.augment import Policy
from potstill.core.errors import InputError
from potstill.core.keys import generator
from potstill.experts import PAIRS
from potstill.functional import PairLoss, Twice, augmented, ce, training_loss, views_loss
from potstill.functional.restoring import restoring
from potstill.functional.steps import Loss, Prepare
from potstill.methods.api import Context
from potstill.methods.start import first_images, labels_of
from potstill.nets import VIEWS_HEAD, FlatNet, NetSpec, projected


@dataclass(frozen=True)
class Learning:
    """What students learn in a run of a method with experts, image_init, augment, batch_syn."""

    method: Any
    ctx: Context

    @property
    def pairs(self) -> PairLoss | None:
        """Return the loss of two views; None where classes are learned."""
        return PAIRS.get(self.method.experts.objective)

    @property
    def net(self) -> FlatNet:
        """Return the student, with the experts' head in place of its last layer for views.

        Raises:
            InputError: if it does not end in a linear layer.
        """
        data = self.ctx.data
        if self.pairs is None:
            return self.ctx.net
        return _projected(self.ctx.net_spec, data.channels, data.size)

    @property
    def count(self) -> int:
        """Return the images of the set."""
        return len(self.labels)

    @property
    def batch(self) -> int:
        """Return the distilled images of a student step."""
        if self.pairs is not None:
            return self.method.batch_syn or self.ctx.count
        classes = self.ctx.data.n_classes
        moving = sum(classes * block.ipc for block in self.ctx.synth if block.lr_scale)
        return self.method.batch_syn or moving

    @property
    def passes(self) -> int:
        """Return how often a step sees each of its images."""
        return 1 if self.pairs is None else 2

    @property
    def scales(self) -> list[float]:
        """Return the part of the step size of each block of images."""
        return [block.lr_scale for block in self.ctx.synth] if self.pairs is None else [1.0]

    @property
    def labels(self) -> Tensor:
        """Return the class of each image, int64 [N].

        Where views are learned it is that of the real image that it began as (of noise each class
        in turn), which nobody learns.
        """
        if self.pairs is None:
            return labels_of(self.ctx)
        if self.method.image_init == "noise":
            return torch.arange(self.ctx.count) % self.ctx.data.n_classes
        return self.ctx.data.train.labels[self._rows]

    @property
    def images(self) -> tuple[Tensor, ...]:
        """Return the images of each block before the first outer step.

        Where views are learned these are one block of random images of all classes together.
        """
        ctx = self.ctx
        if self.pairs is None:
            return first_images(ctx, self.method.image_init)
        if self.method.image_init == "noise":
            shape = (ctx.count, ctx.data.channels, *ctx.data.size)
            return (torch.randn(shape, generator=generator(ctx.seed, "noise")),)
        return (ctx.space.forward(ctx.data.train.pixels[self._rows]),)

    @property
    def policy(self) -> Policy | None:
        """Return the augmentation, in the colours of the run's images.

        Raises:
            InputError: if these have no such colours.
        """
        shape = (self.ctx.data.channels, *self.ctx.data.size)
        return restoring(self.method.augment, self.ctx.space.record(), shape)

    def lesson(self) -> tuple[Loss, Policy | Twice | None, Prepare | None]:
        """Return the students' loss, and what draws and prepares their minibatches."""
        policy, precision = self.policy, self.ctx.plan.window.precision
        if self.pairs is None or policy is None:
            return training_loss(self.net, ce, precision=precision), policy, augmented(policy)
        views = Twice(policy)
        return views_loss(self.net, self.pairs, precision=precision), views, views.prepare

    def check(self, whole: int) -> None:
        """Refuse batches larger than the set, or that leave one image, which makes no pairs.

        `whole` are the images of a step in training on the set.

        Raises:
            InputError: for these; as `policy`.
        """
        count, own = self.count, self.method.batch_syn
        if own is not None and own > count:
            raise InputError(f"batch_syn must be at most the {count} images of the set, not {own}.")
        alone = [b for b in (self.batch, whole) if b == 1 or count % b == 1]
        if self.pairs is not None and alone:
            raise InputError(
                f"{count} images in batches of {alone[0]} leave a batch of one, which has no pairs "
                "to compare; choose another number of images, or batch_syn."
            )
        _ = self.policy

    @property
    def _rows(self) -> Tensor:
        chance = generator(self.ctx.seed, "first images")
        return torch.randperm(len(self.ctx.data.train), generator=chance)[: self.ctx.count]


@lru_cache(maxsize=2)
def _projected(spec: NetSpec, channels: int, size: tuple[int, int]) -> FlatNet:
    return projected(spec, VIEWS_HEAD, channels=channels, size=size, seed=0, key=("student",))
