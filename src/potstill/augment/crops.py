"""Random resized crops, mirroring and circular shifts, as two matrices an image.

A resized crop, a flip and a roll are one separable linear map z = A_y x A_x^T: each matrix holds
the interpolation of one side, its rows reordered by flip and roll. So shapes are static, nothing
is read back from a GPU, and an own box for each image costs about as much as one for all.

Sources: `RandomResizedCrop` as torchvision documents it; the recovery of SRe2L (Yin, Xing and Shen,
NeurIPS 2023, arXiv 2306.13092) and CDA (Yin and Shen, TMLR 2024, arXiv 2311.18838).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.augment.operations import Params
from potstill.augment.views import TRIES, boxes, crop_matrix
from potstill.core.errors import InputError
from potstill.core.spec import record

COLUMNS = (
    *("top", "left", "height", "width"),  # of the crop, in whole pixels
    "flip",  # 1 for a mirrored image, 0 else
    *("down", "right"),  # shift of the enlarged crop in whole pixels
)
"""What the columns of `Params.values` mean for `Crops`."""


@record
@dataclass(frozen=True, kw_only=True)
class Crops:
    """RandomResizedCrop to the image's own size, then a flip, then a circular shift.

    A scale of (1, 1) leaves images whole: of ten tries none fits but the whole image, which is
    what torchvision falls back to, too (of images that are not square: to a central crop).

    Raises:
        InputError: for a number out of its range.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the area that a crop has."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width over height of a crop."""
    flip_prob: float = 0.5
    """Chance of an image to be mirrored."""
    roll: float = 0.0
    """Largest shift, as a fraction of the side (1/7: 32 of 224 pixels), the same both ways."""
    two_sided: bool = False
    """Shifts lie in -J..J pixels; else in 0..J."""
    shared: bool = False
    """One box, flip and shift for all images of a call; else for each its own."""

    def __post_init__(self) -> None:
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if not 0 < low <= high:
                raise InputError(f"{name} must be two numbers above 0, the smaller one first.")
        if self.scale[1] > 1:
            raise InputError(f"The largest share of a crop (scale) is 1, not {self.scale[1]}.")
        for name in ("flip_prob", "roll"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} lies between 0 and 1, not at {getattr(self, name)}.")
        if self.two_sided and not self.roll:
            raise InputError("two_sided has no effect without a roll.")

    def sample(self, n: int, shape: tuple[int, int, int], generator: torch.Generator) -> Params:
        """Draw the parameters for n images of shape (C, H, W) on the CPU: n rows, one if shared.

        Image 0 gets the same numbers for every n.
        """
        count = 1 if self.shared else n
        u = torch.rand(
            (count, 2 * TRIES + 5), generator=generator, dtype=torch.float64, device="cpu"
        )
        tries, place, flip, shift = u.split((2 * TRIES, 2, 1, 2), dim=1)
        tries = tries.view(count, TRIES, 2)
        box = boxes(tries, place, shape[1:], scale=self.scale, ratio=self.ratio)
        reach = torch.tensor([round(self.roll * side) for side in shape[1:]], dtype=u.dtype)
        least = -reach if self.two_sided else torch.zeros_like(reach)
        shifts = (shift * (reach - least + 1)).floor() + least
        values = torch.cat([box, (flip < self.flip_prob).double(), shifts], dim=1)
        return Params(ops=("crops",), values=values)

    def apply(self, x: Tensor, params: Params) -> Tensor:
        """Return the images after all three, contiguous, of the shape [N, C, H, W] and type of x.

        Parameters drawn for n = 1 are for any number of images. Differentiable with respect to x
        to any order. Half-precision images are computed in float32; call it outside autocast.
        """
        half = x.dtype in (torch.bfloat16, torch.float16)
        dtype = torch.float32 if half else x.dtype
        rows, columns = matrices(params.values.to(x.device), (x.shape[2], x.shape[3]), dtype)
        z = x.to(dtype)
        if len(rows) == 1:
            z = rows[0] @ (z @ columns[0].mT)
        else:
            z = rows[:, None] @ z @ columns[:, None].mT
        return z.to(x.dtype).contiguous()


def matrices(
    values: Tensor, size: tuple[int, int], dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Return A_y [n, H, H] and A_x [n, W, W] of rows of `Params.values` [n, 7]: z = A_y x A_x^T."""
    v = dict(zip(COLUMNS, values.unbind(1), strict=True))
    none = torch.zeros_like(v["flip"])
    rows = _moved(crop_matrix(v["top"], v["height"], size[0]), none, v["down"])
    columns = _moved(crop_matrix(v["left"], v["width"], size[1]), v["flip"], v["right"])
    return rows.to(dtype), columns.to(dtype)


def _moved(matrix: Tensor, flip: Tensor, shift: Tensor) -> Tensor:
    """Return matrices [n, S, S] whose outputs are mirrored where flip is 1, then shifted."""
    side = matrix.shape[1]
    at = (torch.arange(side, device=shift.device) - shift.long()[:, None]) % side
    at = torch.where(flip.bool()[:, None], side - 1 - at, at)
    return matrix.gather(1, at[:, :, None].expand_as(matrix))
