"""RDED: the crops of real images that a teacher finds easiest, tiled into images.

Source: Sun et al., "On the Diversity and Realism of Distilled Dataset: An Efficient Dataset
Distillation Paradigm", CVPR 2024 (arXiv 2312.03526).

Differs: crops are cut from images as they were opened, not at their full resolution; they are
rounded to whole levels, where the original cuts the rest off, and lossless.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.augment.views import TRIES, boxes
from potstill.core.errors import InputError
from potstill.data import MeanStd
from potstill.data.normalise import unit_range

_PART = 256  # crops that the teacher sees at a time


def patch_boxes(
    count: int,
    crops: int,
    size: tuple[int, int],
    generator: torch.Generator,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
) -> Tensor:
    """Return top, left, height, width of `crops` square boxes of each image: [count, crops, 4].

    An area uniform in `scale`, anywhere; float64 whole numbers. Image 0 gets the same boxes for
    every count.
    """
    u = torch.rand(
        (count, crops, 2 * TRIES + 2), generator=generator, dtype=torch.float64, device="cpu"
    )
    u = u.flatten(0, 1)
    tries = u[:, : 2 * TRIES].view(-1, TRIES, 2)
    found = boxes(tries, u[:, 2 * TRIES :], size, scale=scale, ratio=(1.0, 1.0))
    return found.view(count, crops, 4)


def resize_matrix(start: Tensor, length: Tensor, side: int, out: int) -> Tensor:
    """Return matrices [n, out, side] that bring pixels start .. start + length to `out` pixels.

    Bilinear with antialiasing, as torch's `interpolate`: triangles as wide as the pixels that are
    made, or those that are taken if these are larger; weights sum to 1.
    """
    pixel = torch.arange(side, dtype=length.dtype, device=length.device)
    ratio = length / out
    centre = (torch.arange(out, dtype=length.dtype, device=length.device) + 0.5) * ratio[:, None]
    width = ratio.clamp(min=1)[:, None, None]
    place = pixel - start[:, None, None] + 0.5  # within the crop
    weight = (1 - (place - centre[:, :, None]).abs() / width).clamp(min=0)
    weight = weight * ((place > 0) & (place < length[:, None, None]))
    return weight / weight.sum(2, keepdim=True)


def cropped(pixels: Tensor, box: Tensor, side: int) -> Tensor:
    """Return the boxes [n, 4] of uint8 images [n, C, H, W] as uint8 [n, C, side, side]."""
    top, left, height, width = box.to(pixels.device).unbind(1)
    rows = resize_matrix(top, height, pixels.shape[2], side).float()
    columns = resize_matrix(left, width, pixels.shape[3], side).float()
    found = rows[:, None] @ pixels.float() @ columns[:, None].mT
    return found.round().clamp(0, 255).to(torch.uint8)


def patch_scores(
    teacher: nn.Module, space: MeanStd, patches: Tensor, label: int, size: tuple[int, int]
) -> Tensor:
    """Return the teacher's cross-entropy [n] of uint8 patches [n, C, s, s] of one class.

    A patch lies centred on an image of zeros (the mean colour, in the teacher's space), which is
    part of the method.
    """
    rest = [side - patches.shape[2 + k] for k, side in enumerate(size)]
    if min(rest) < 0:
        raise InputError(f"Patches of {list(patches.shape[2:])} do not fit into {list(size)}.")
    (down, right), found = (part // 2 for part in rest), []
    around = (right, rest[1] - right, down, rest[0] - down)
    with torch.no_grad():
        for part in patches.split(_PART):
            logits = teacher(F.pad(space.forward(unit_range(part)), around)).float()
            found.append(-logits.log_softmax(1)[:, label])
    return torch.cat(found)


def easiest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return which images and which crop of each, int64 [count] both, from scores [n, crops].

    Each image gives its easiest crop (the lowest score); the images with the easiest come first,
    equal ones in their order.

    Raises:
        InputError: if there are fewer images.
    """
    if len(scores) < count:
        raise InputError(f"{count} patches were asked for, of {len(scores)} images.")
    best = scores.min(1)
    images = best.values.argsort(stable=True)[:count]
    return images, best.indices[images]


def tiled(patches: Tensor, factor: int, size: tuple[int, int]) -> Tensor:
    """Return images [n, C, *size] of factor x factor cells, from patches [n factor^2, C, s, s].

    Cell k, row by row, of image q is patch k n + q, brought to the size of a cell by the nearest
    pixel; so every image has easy and less easy patches.

    Raises:
        InputError: if the patches are no whole number of images, or cells no whole pixels.
    """
    cells = factor**2
    if not len(patches) or len(patches) % cells or any(side % factor for side in size):
        raise InputError(
            f"{len(patches)} patches cannot be tiled {factor} x {factor} into images of "
            f"{size[0]} x {size[1]} pixels."
        )
    cell = [side // factor for side in size]
    small = F.interpolate(patches, cell, mode="nearest")
    grid = small.unflatten(0, (factor, factor, -1)).permute(2, 3, 0, 4, 1, 5)
    return grid.reshape(-1, patches.shape[1], *size)
