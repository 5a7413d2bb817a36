"""Differentiable siamese augmentation: colour, crop, cutout, flip, scale and rotate.

Source: Zhao and Bilen, "Dataset Condensation with Differentiable Siamese Augmentation", ICML 2021
(arXiv:2102.08259). A step can be replayed exactly from its parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from potstill.augment.operations import Params, apply, check, draw
from potstill.core.errors import InputError
from potstill.core.spec import record

NAMES = ("color", "crop", "cutout", "flip", "scale", "rotate")


@record
@dataclass(frozen=True, kw_only=True)
class DSA:
    """The policy `dsa`; every method of the family uses these formulas.

    Mode "S" does one operation of the strategy per call, drawn uniformly for the whole batch;
    mode "M" does all, in the order of the strategy. With `siamese` all images take the parameters
    of image 0, so that two batches of any sizes share them if their generators are equal.

    Raises:
        InputError: for an unknown operation or mode, or a constant out of its range.

    Differs: the original's noise ratio (.05) is left out, since no operation reads it; siamese
        batches share by equal generators, not by a running seed of the global one.
    """

    strategy: str = "color_crop_cutout_flip_scale_rotate"
    mode: Literal["S", "M"] = "S"
    siamese: bool = False
    brightness: float = 1.0
    """Width of the range of shifts: [-b/2, b/2]."""
    saturation: float = 2.0
    """Largest factor; the smallest is 0."""
    contrast: float = 0.5
    """Smallest factor; the largest is 1 more."""
    crop_pad: float = 0.125
    """Largest translation, as a fraction of the side."""
    cutout: float = 0.5
    """Side of the box, as a fraction of the side of the image."""
    flip_prob: float = 0.5
    scale_ratio: float = 1.2
    """Factors lie between 1/ratio and ratio."""
    rotate: float = 15.0
    """Largest angle, in degrees."""
    aligned: ClassVar[bool] = True
    """Whether scale and rotate sample with aligned corners."""

    def __post_init__(self) -> None:
        check(self, self.ops, NAMES)
        if self.mode not in ("S", "M"):
            raise InputError(f"The mode of augmentation is 'S' or 'M', not {self.mode!r}.")

    @property
    def ops(self) -> tuple[str, ...]:
        """Return the operations of the strategy, in order."""
        return tuple(self.strategy.split("_"))

    def sample(self, n: int, shape: tuple[int, int, int], generator: torch.Generator) -> Params:
        """Draw the parameters for n images of shape (C, H, W) on the CPU.

        The numbers drawn do not depend on the strategy, and image 0 gets the same for every n.
        """
        ops = self.ops
        if self.mode == "S":
            ops = (ops[int(torch.randint(len(ops), (), generator=generator, device="cpu"))],)
        values = draw(self, 1 if self.siamese else n, shape[1:], generator)
        return Params(ops=ops, values=values.expand(n, -1))

    def apply(self, x: Tensor, params: Params) -> Tensor:
        """Return the augmented images, contiguous, of the shape [n, C, H, W] and type of x.

        Parameters drawn for n = 1 are for any number of images. Differentiable with respect to x:
        twice for all operations but scale and rotate.
        """
        return apply(self, x, params)
