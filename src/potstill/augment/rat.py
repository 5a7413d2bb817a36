"""The policy `rat`: mirror or rotate, as RaT-BPTT augments distilled and real images.

Source: Feng, Vedantam, Kempe, "Embarrassingly Simple Dataset Distillation", ICLR 2024
(arXiv 2311.07025), strategy flip_rotate. Applied in model-input space.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from potstill.augment.operations import Params, mirrored, rotated
from potstill.core.errors import InputError
from potstill.core.spec import record


@record
@dataclass(frozen=True, kw_only=True)
class RAT:
    """The policy `rat`: an own draw for every image of mirroring and of a small rotation.

    Mode "S" does one of the two, drawn uniformly for the whole batch at each call; mode "M" does
    both. Rotation is bilinear with zeros from outside and without aligned corners (which `dsa`
    aligns). The columns of `Params.values` are flip (1 or 0) and angle (degrees).

    Raises:
        InputError: for an unknown mode or a chance outside [0, 1].

    Differs: numbers come from the caller's generator; the original draws one of 10,001 seeds for
        the global one at each call.
    """

    mode: Literal["S", "M"] = "S"
    flip_prob: float = 0.5
    rotate: float = 15.0
    """Largest angle, in degrees."""

    def __post_init__(self) -> None:
        if self.mode not in ("S", "M"):
            raise InputError(f"The mode of augmentation is 'S' or 'M', not {self.mode!r}.")
        if not 0 <= self.flip_prob <= 1:
            raise InputError(f"flip_prob lies between 0 and 1, not at {self.flip_prob}.")

    def sample(self, n: int, shape: tuple[int, int, int], generator: torch.Generator) -> Params:
        """Draw the parameters for n images of shape (C, H, W) on the CPU.

        Image 0 gets the same numbers for every n.
        """
        ops = ("flip", "rotate")
        if self.mode == "S":
            ops = (ops[int(torch.randint(2, (), generator=generator, device="cpu"))],)
        u = torch.rand((n, 2), generator=generator, dtype=torch.float64, device="cpu")
        flip, angle = (u[:, 0] < self.flip_prob).double(), (2 * u[:, 1] - 1) * self.rotate
        return Params(ops=ops, values=torch.stack([flip, angle], dim=1))

    def apply(self, x: Tensor, params: Params) -> Tensor:
        """Return the augmented images, contiguous, of the shape [n, C, H, W] and type of x.

        Parameters drawn for n = 1 are for any number of images. Differentiable with respect to x:
        mirroring twice, rotation once.
        """
        flip, angle = params.values.to(x.device).unbind(1)
        if "flip" in params.ops:
            x = mirrored(x, flip)
        if "rotate" in params.ops:
            x = rotated(x, angle, align_corners=False)
        return x.contiguous()
