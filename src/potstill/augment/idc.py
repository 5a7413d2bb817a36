"""The policy `idc`: colour, one geometric operation, cutout.

Source: Kim et al., "Dataset Condensation via Efficient Synthetic-Data Parameterization", ICML 2022
(arXiv 2205.14959). Applied in model-input space, so that zeros from outside are the mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from potstill.augment.operations import Params, apply, check, draw
from potstill.core.spec import record

ONE_OF = ("crop", "scale", "rotate", "translate")


@record
@dataclass(frozen=True, kw_only=True)
class IDC:
    """The policy `idc`: what the strategy names of flip, colour, one of `ONE_OF`, and cutout.

    They are done in this order. Which of crop, scale, rotate and translate (as far as named) is
    drawn uniformly, once for the whole batch at each call; the numbers are of each image its own.
    `sample(1, ...)` draws for a matching pair, whose images all share one row. Formulas and
    constants are those of `DSA`, but scale and rotate sample without aligned corners; translate
    moves along the width only.

    Raises:
        InputError: for an unknown operation, or a constant out of its range.

    Differs: numbers come from the caller's generator; the original moves the global ones.
    """

    strategy: str = "color_crop_cutout"
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
    aligned: ClassVar[bool] = False
    """Whether scale and rotate sample with aligned corners."""

    def __post_init__(self) -> None:
        check(self, self.named, ("flip", "color", *ONE_OF, "cutout"))

    @property
    def named(self) -> tuple[str, ...]:
        """Return the operations that the strategy names."""
        return tuple(self.strategy.split("_"))

    def sample(self, n: int, shape: tuple[int, int, int], generator: torch.Generator) -> Params:
        """Draw the parameters for n images of shape (C, H, W) on the CPU.

        The numbers drawn do not depend on the strategy, and image 0 gets the same for every n.
        """
        which = [name for name in self.named if name in ONE_OF]
        u = float(torch.rand((), generator=generator, dtype=torch.float64, device="cpu"))
        one = which[int(u * len(which))] if which else ""
        ops = tuple(name for name in ("flip", "color", one, "cutout") if name in self.named)
        return Params(ops=ops, values=draw(self, n, shape[1:], generator))

    def apply(self, x: Tensor, params: Params) -> Tensor:
        """Return the augmented images, contiguous, of the shape [N, C, H, W] and type of x.

        Parameters drawn for n = 1 are for any number of images. Differentiable with respect to x:
        twice for all operations but scale and rotate.
        """
        return apply(self, x, params)
