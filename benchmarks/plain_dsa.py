"""DSA as a plain program has it: one operation a batch, its numbers drawn by need, no trick.

Source: Zhao and Bilen, "Dataset Condensation with Differentiable Siamese Augmentation", ICML 2021
(arXiv:2102.08259); scale and rotate make their matrices image by image, as published.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BATCH = 256
Numbers = dict[str, Tensor]


@dataclass(frozen=True)
class Batch:
    """One step: which images, which one operation of DSA, and its numbers, [n] each."""

    index: Tensor
    op: str
    numbers: Numbers


def drawn(count: int, side: int, chance: torch.Generator) -> Iterator[Batch]:
    """Yield the batches of one epoch in random order, each with one operation of DSA."""
    for index in torch.randperm(count, generator=chance).split(BATCH):
        op = tuple(_OPS)[int(torch.randint(len(_OPS), (), generator=chance))]
        yield Batch(index, op, _numbers(op, len(index), side, chance))


def _numbers(op: str, n: int, side: int, chance: torch.Generator) -> Numbers:
    """Draw the numbers of an operation for n images."""

    def real(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=chance)

    def whole(low: int, high: int) -> Tensor:
        return torch.randint(low, high + 1, (n,), generator=chance)

    pad, box = _pixels(side, 1 / 8), _pixels(side, 1 / 2)
    if op == "color":
        pairs = {"brightness": (-0.5, 0.5), "saturation": (0.0, 2.0), "contrast": (0.5, 1.5)}
        return {name: real(low, high) for name, (low, high) in pairs.items()}
    if op == "crop":
        return {"crop_y": whole(-pad, pad), "crop_x": whole(-pad, pad)}
    if op == "cutout":
        last = side - box % 2
        return {"cutout_y": whole(0, last), "cutout_x": whole(0, last)}
    if op == "flip":
        return {"flip": (real(0, 1) < 0.5).float()}
    if op == "scale":
        return {"scale_y": real(1 / 1.2, 1.2), "scale_x": real(1 / 1.2, 1.2)}
    return {"angle": real(-15, 15)}


def augmented(x: Tensor, batch: Batch) -> Tensor:
    """Return images [n, C, H, W] after the operation of the batch; an empty name is none."""
    if not batch.op:
        return x
    return _OPS[batch.op](x, batch.numbers).contiguous()


def _pixels(side: int, fraction: float) -> int:
    return math.floor(side * fraction + 0.5)


def _color(x: Tensor, v: Numbers) -> Tensor:
    shift, saturation, contrast = (
        v[name].to(x.dtype).view(-1, 1, 1, 1) for name in ("brightness", "saturation", "contrast")
    )
    x = x + shift
    mean = x.mean(1, keepdim=True)
    x = (x - mean) * saturation + mean
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean) * contrast + mean


def _crop(x: Tensor, v: Numbers) -> Tensor:
    side = x.shape[2]
    pad = _pixels(side, 1 / 8)
    padded = F.pad(x, (pad, pad, pad, pad)).permute(0, 2, 3, 1)
    here, at = torch.arange(len(x)).view(-1, 1, 1), torch.arange(side) + pad
    rows = at.view(1, -1, 1) + v["crop_y"].long().view(-1, 1, 1)
    columns = at.view(1, 1, -1) + v["crop_x"].long().view(-1, 1, 1)
    return padded[here, rows, columns].permute(0, 3, 1, 2)


def _cutout(x: Tensor, v: Numbers) -> Tensor:
    side = x.shape[2]
    box = _pixels(side, 1 / 2)
    here, at = torch.arange(len(x)).view(-1, 1, 1), torch.arange(box) - box // 2
    rows = at.view(1, -1, 1) + v["cutout_y"].long().view(-1, 1, 1)
    columns = at.view(1, 1, -1) + v["cutout_x"].long().view(-1, 1, 1)
    mask = x.new_ones(len(x), side, side)
    mask[here, rows.clamp(0, side - 1), columns.clamp(0, side - 1)] = 0
    return x * mask.unsqueeze(1)


def _flip(x: Tensor, v: Numbers) -> Tensor:
    return torch.where(v["flip"].bool().view(-1, 1, 1, 1), x.flip(3), x)


def _sampled(x: Tensor, theta: list[list[list[float]]]) -> Tensor:
    matrices = torch.tensor(theta, dtype=x.dtype)
    grid = F.affine_grid(matrices, list(x.shape), align_corners=True)
    return F.grid_sample(x, grid, align_corners=True)


def _scale(x: Tensor, v: Numbers) -> Tensor:
    pairs = zip(v["scale_x"].tolist(), v["scale_y"].tolist(), strict=True)
    return _sampled(x, [[[sx, 0, 0], [0, sy, 0]] for sx, sy in pairs])


def _rotate(x: Tensor, v: Numbers) -> Tensor:
    turns = [(math.cos(a), math.sin(a)) for a in v["angle"].deg2rad().tolist()]
    return _sampled(x, [[[c, -s, 0], [s, c, 0]] for c, s in turns])


_OPS: dict[str, Callable[[Tensor, Numbers], Tensor]] = {
    "color": _color,
    "crop": _crop,
    "cutout": _cutout,
    "flip": _flip,
    "scale": _scale,
    "rotate": _rotate,
}
