"""Labels of augmented images: what was done to an image follows from seeds, its label is kept.

Epoch e of a plan gives every image one view: its own crop, flip and shift, and a box of the view of
another image (CutMix), or a part of all of it (MixUp). A teacher labels the views, and whoever
trains sees the same views again, in batches of any size, because what belongs to an image is drawn
by its row.

Source: Shen and Xing, "A Fast Knowledge Distillation Framework for Visual Recognition", ECCV 2022
(arXiv 2112.01528), as SRe2L uses it (arXiv 2306.13092).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from potstill.artefact.quantise import Codes, row_bytes
from potstill.augment import Crops, CutMix, Mix, Params
from potstill.core.errors import InputError, unknown
from potstill.core.keys import generator
from potstill.core.spec import record


@record
@dataclass(frozen=True, kw_only=True)
class LabelPlan:
    """Which views of a set's images have labels, and how these are kept.

    Raises:
        InputError: for a number below 1, an unknown scope or form, crops that images share.

    Differs: the original stores the numbers of every view, and its training has to take the batches
        of its labelling.
    """

    epochs: int = 300
    """Epochs with views of their own; a longer training begins again with the first."""
    batch: int = 1024
    """Images that share a box or weight, and among which partners are drawn (scope `batch`)."""
    codes: Codes = "uint8"
    """How logits are kept."""
    crops: Crops = Crops()
    """Crop, flip and shift of a view."""
    mix: Mix | None = CutMix(prob=1.0)
    """What puts boxes of other views, or parts of them, into a view."""
    mix_scope: Literal["batch", "image"] = "batch"
    """One box or weight for a batch (as published), or for every image its own."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 1:
            raise InputError(
                f"Labels need epochs and a batch of at least 1, not {self.epochs} and {self.batch}."
            )
        if self.mix_scope not in ("batch", "image"):
            raise unknown("mix_scope", self.mix_scope, ("batch", "image"))
        if self.crops.shared:
            raise InputError("Views are of one image each: their crops cannot be shared.")
        row_bytes(self.codes, 1)  # refuses unknown ones

    def nbytes(self, count: int, classes: int) -> int:
        """Return the bytes of the labels of `count` images."""
        return self.epochs * count * row_bytes(self.codes, classes)


@dataclass(frozen=True, eq=False, kw_only=True)
class Epoch:
    """The views of all N images in one epoch, by the row of the image."""

    order: Tensor
    """Rows in the order of training, int64 [N]."""
    crops: Tensor
    """A row of `Params.values` each, float64 [N, 7]."""
    partner: Tensor
    """The row whose view fills the box, int64 [N]."""
    box: Tensor
    """First and last row, first and last column of the box (the last excluded), int64 [N, 4]."""
    own: Tensor | None = None
    """Weight of an image's own pixels within the box, float64 [N]; None: 0."""


def epoch_of(plan: LabelPlan, epoch: int, count: int, shape: tuple[int, int, int]) -> Epoch:
    """Return the views of `count` images of shape (C, H, W) in an epoch of training from 0 on."""
    epoch %= plan.epochs

    def chance(*name: str | int) -> torch.Generator:
        return generator(plan.seed, "labels", epoch, *name)

    order = torch.randperm(count, generator=chance("order"))
    crops = plan.crops.sample(count, shape, chance("crops")).values
    partner, box = torch.arange(count), torch.zeros(count, 4, dtype=torch.int64)
    own = torch.zeros(count, dtype=torch.float64)
    if plan.mix is not None:
        alone, mix = plan.mix_scope == "image", chance("mix")
        if alone:
            partner = torch.randperm(count, generator=chance("partner"))
        for rows in order.split(1 if alone else plan.batch):
            mixing = plan.mix.sample(len(rows), shape, mix)
            if mixing is None:
                continue
            high, wide = mixing.rows, mixing.columns
            box[rows] = torch.tensor([high.start, high.stop, wide.start, wide.stop])
            own[rows] = mixing.own
            if not alone:
                partner[rows] = rows[mixing.partner]
    weights = own if own.any() else None
    return Epoch(order=order, crops=crops, partner=partner, box=box, own=weights)


def views(
    plan: LabelPlan, epoch: Epoch, rows: Tensor, images: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return the views [n, C, H, W] of some images; they do not depend on which are seen together.

    Args:
        plan: the plan of the epoch.
        epoch: see `epoch_of`.
        rows: int64 [n] on the CPU.
        images: from rows to the model input of these images, floating [n, C, H, W].
    """

    def cropped(some: Tensor) -> Tensor:
        x = images(some)
        return plan.crops.apply(x, Params(ops=("crops",), values=epoch.crops[some]))

    x, box = cropped(rows), epoch.box[rows]
    mixed = (box[:, 0] < box[:, 1]) & (box[:, 2] < box[:, 3])
    if not bool(mixed.any()):
        return x
    other = cropped(epoch.partner[rows])
    if epoch.own is not None:
        own = epoch.own[rows, None, None, None]
        other = own.to(x) * x + (1 - own).to(x) * other
    box = box.to(x.device)
    high, wide = (_between(box[:, k : k + 2], x.shape[2 + k // 2]) for k in (0, 2))
    return torch.where(high[:, None, :, None] & wide[:, None, None, :], other, x)


def _between(ends: Tensor, side: int) -> Tensor:
    """Return which places of a side lie between two ends [n, 2]: bool [n, side]."""
    place = torch.arange(side, device=ends.device)
    return (ends[:, :1] <= place) & (place < ends[:, 1:])
