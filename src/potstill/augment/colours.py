"""Changes of colour, for each image its own: blends, turned hues, inverted bright pixels.

Pixels lie in [0, 1]. Sources: torchvision's documentation of `ColorJitter`, `RandomGrayscale` and
`RandomSolarize`; Pillow's of grey values (ITU-R 601-2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from potstill.augment.views import GREY

BRIGHTNESS, CONTRAST, SATURATION = range(3)
THRESHOLD = 0.5
"""Solarised pixels are inverted from here on: 128 of 255, and all that is rounded to it."""


def each(column: Tensor, x: Tensor) -> Tensor:
    """Return one number an image [n] so that it goes with images x, in their type."""
    return column.to(x.dtype)[:, None, None, None]


def grey(x: Tensor) -> Tensor:
    """Return the grey value [n, 1, H, W] of each pixel; images of one channel are grey."""
    return x if x.shape[1] == 1 else (x * x.new_tensor(GREY).view(3, 1, 1)).sum(1, keepdim=True)


def blended(x: Tensor, kind: Tensor, factor: Tensor) -> Tensor:
    """Return f x + (1 - f) y, clipped, of images [N, C, H, W], with kinds and factors f [n].

    y is black for BRIGHTNESS, the mean grey value for CONTRAST, the pixel's own for SATURATION.
    """
    m, kind = grey(x), each(kind, x)
    y = torch.where(kind == SATURATION, m, 0)
    y = torch.where(kind == CONTRAST, m.mean((2, 3), keepdim=True), y)
    return torch.lerp(y, x, each(factor, x)).clamp(0, 1)


def turned(x: Tensor, hue: Tensor) -> Tensor:
    """Return images [N, 3, H, W] with their hues turned by parts of the circle [n].

    Value V and chroma V - min stay, the hue h (in sixths) moves: each channel becomes V - chroma k,
    where k is min(a, 4 - a), clipped, of a = (h + 5, h + 3, h + 1) mod 6 for red, green, blue.
    """
    high, which = x.max(1, keepdim=True)
    chroma = high - x.amin(1, keepdim=True)
    red, green, blue = ((high - x) / torch.where(chroma > 0, chroma, 1)).split(1, dim=1)
    h = torch.where(which == 1, 2 + red - blue, 4 + green - red)
    h = torch.where(which == 0, blue - green, h)
    a = (h + 6 * each(hue, x) + x.new_tensor((5, 3, 1)).view(3, 1, 1)) % 6
    return torch.where(each(hue, x) == 0, x, high - chroma * torch.minimum(a, 4 - a).clamp(0, 1))


def solarised(x: Tensor, on: Tensor) -> Tensor:
    """Return images with bright pixels inverted, those of which `on` [n] is not 0."""
    return torch.where((each(on, x) != 0) & (x >= THRESHOLD), 1 - x, x)
