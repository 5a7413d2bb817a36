"""RandAugment: some of 14 changes of an image, at one strength.

Source: Cubuk et al., "RandAugment: Practical Automated Data Augmentation with a Reduced Search
Space", CVPR Workshops 2020 (arXiv 1909.13719), with the changes and strengths that torchvision
documents.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from potstill.augment.operations import Params
from potstill.core.errors import InputError
from potstill.core.spec import record
from potstill.core.vision import import_torchvision

Change = Callable[[Any, Tensor, float], Tensor]
"""From torchvision's functions, uint8 images [n, C, H, W] and a strength to changed images."""


def _moved(x: int, y: int) -> Change:
    def move(f: Any, image: Tensor, level: float) -> Tensor:
        far = 150 / 331 * level
        shift = [int(far * x * image.shape[3]), int(far * y * image.shape[2])]
        return f.affine(image, angle=0.0, translate=shift, scale=1.0, shear=[0.0, 0.0])

    return move


def _sheared(x: int, y: int) -> Change:
    def shear(f: Any, image: Tensor, level: float) -> Tensor:
        angle = math.degrees(math.atan(0.3 * level))
        still: dict[str, Any] = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "center": [0, 0]}
        return f.affine(image, shear=[angle * x, angle * y], **still)

    return shear


CHANGES: tuple[tuple[str, bool, Change], ...] = (
    ("identity", False, lambda f, image, level: image),
    ("shear_x", True, _sheared(1, 0)),
    ("shear_y", True, _sheared(0, 1)),
    ("move_x", True, _moved(1, 0)),
    ("move_y", True, _moved(0, 1)),
    ("rotate", True, lambda f, image, level: f.rotate(image, 30 * level)),
    ("brightness", True, lambda f, image, level: f.adjust_brightness(image, 1 + 0.9 * level)),
    ("color", True, lambda f, image, level: f.adjust_saturation(image, 1 + 0.9 * level)),
    ("contrast", True, lambda f, image, level: f.adjust_contrast(image, 1 + 0.9 * level)),
    ("sharpness", True, lambda f, image, level: f.adjust_sharpness(image, 1 + 0.9 * level)),
    ("posterize", False, lambda f, image, level: f.posterize(image, 8 - round(4 * level))),
    ("solarize", False, lambda f, image, level: f.solarize(image, 255 * (1 - level))),
    ("autocontrast", False, lambda f, image, level: f.autocontrast(image)),
    ("equalize", False, lambda f, image, level: f.equalize(image)),
)
"""Name, whether a change also goes the other way (a level below 0), and the change."""


@record
@dataclass(frozen=True, kw_only=True)
class RandAugment:
    """Do `count` changes, drawn with repetition, to each image; not differentiable.

    Strengths are `magnitude` of 0 to 30; a change that has two directions takes either. It is for
    pixels in [0, 1], not normalised, of 1 or 3 channels, and goes over whole levels of 8 bits.

    Raises:
        InputError: for a count below 1 or a magnitude outside 0 to 30.
    """

    count: int = 2
    """Changes of an image."""
    magnitude: int = 9

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.magnitude <= 30:
            raise InputError(
                f"RandAugment takes a count from 1 and a magnitude of 0 to 30, not {self.count} "
                f"and {self.magnitude}."
            )

    def sample(self, n: int, shape: tuple[int, int, int], generator: torch.Generator) -> Params:
        """Draw number and direction (1 or -1) of each change: float64 [n, 2 count].

        Image 0 gets the same numbers for every n.
        """
        u = torch.rand((n, 2, self.count), generator=generator, dtype=torch.float64, device="cpu")
        kind, way = (u[:, 0] * len(CHANGES)).floor(), torch.where(u[:, 1] < 0.5, 1.0, -1.0)
        return Params(ops=("randaugment",), values=torch.cat([kind, way], dim=1))

    def apply(self, x: Tensor, params: Params) -> Tensor:
        """Return the changed images, of the shape [N, C, H, W] and type of x.

        Parameters drawn for n = 1 are for any number of images.

        Raises:
            InputError: for images that are no pixels in [0, 1], or if torchvision is missing.
        """
        if not bool(((x >= 0) & (x <= 1)).all()):
            raise InputError("RandAugment is for pixels in [0, 1]: for data without a normaliser.")
        import_torchvision()
        from torchvision.transforms import functional

        pixels, level = (x.detach() * 255).round().to(torch.uint8), self.magnitude / 30
        rows = params.values.to(x.device).expand(len(x), -1)
        for kinds, ways in zip(*(half.unbind(1) for half in rows.chunk(2, dim=1)), strict=True):
            for k, (_, signed, change) in enumerate(CHANGES):
                for way in (1, -1) if signed else (1,):
                    chosen = (kinds == k) & ((ways == way) | (not signed))
                    if bool(chosen.any()):
                        pixels[chosen] = change(functional, pixels[chosen], way * level)
        return pixels.to(x.dtype) / 255
