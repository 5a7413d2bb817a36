"""What `dsa` and `idc` do to images: how their numbers are drawn, and the operations.

The numbers are drawn on the CPU, apart from their use: every operation is a pure function of
images and numbers, one row of them for each image or one for all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.core.errors import InputError, unknown

if TYPE_CHECKING:
    from potstill.augment.dsa import DSA
    from potstill.augment.idc import IDC

Constants: TypeAlias = "DSA | IDC"
"""A policy, for its constants."""
COLUMNS = (
    *("brightness", "saturation", "contrast"),  # shift, factor, factor
    *("crop_y", "crop_x"),  # translation in whole pixels: row i shows row i + crop_y
    *("cutout_y", "cutout_x"),  # offset of the box in whole pixels
    "flip",  # 1 for a mirrored image, 0 else
    *("scale_y", "scale_x"),  # below 1 zooms in
    "angle",  # degrees
)
"""What the columns of `Params.values` mean for `dsa` and `idc`."""


@dataclass(frozen=True, kw_only=True)
class Params:
    """The parameters of one call: the operations, in order, and a row of numbers per image."""

    ops: tuple[str, ...]
    values: Tensor
    """float64 [n, columns], n = 1 for any number of images; the policy names the columns."""
    parts: tuple[Params, ...] = ()
    """Of a chain: the parameters of each policy."""

    def to(self, device: torch.device | str) -> Params:
        """Return the same parameters on a device."""
        values = self.values
        if values.device.type != torch.device(device).type:
            values = values.to(device, non_blocking=values.device.type == "cpu")
        return replace(self, values=values, parts=tuple(part.to(device) for part in self.parts))


def check(policy: Constants, ops: Iterable[str], known: Iterable[str]) -> None:
    """Refuse unknown operations and constants out of their range.

    Raises:
        InputError: for either.
    """
    known = tuple(known)
    for name in ops:
        if name not in known:
            raise unknown("operation of the augmentation strategy", name, known)
    for name in ("crop_pad", "cutout", "flip_prob"):
        if not 0 <= getattr(policy, name) <= 1:
            raise InputError(f"{name} lies between 0 and 1, not at {getattr(policy, name)}.")
    if policy.scale_ratio < 1:
        raise InputError(f"scale_ratio is at least 1, not {policy.scale_ratio}.")


def draw(policy: Constants, n: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Draw the numbers of n images of that height and width: float64 [n, columns] on the CPU.

    Image 0 gets the same numbers for every n.
    """
    u = torch.rand((n, len(COLUMNS)), generator=generator, dtype=torch.float64, device="cpu")
    minus, times, plus = _drawn(policy, size)
    values = (u - minus) * times
    values[:, _WHOLE] = values[:, _WHOLE].floor()
    values += plus
    values[:, _FLIP] = u[:, _FLIP] < policy.flip_prob
    return values


def apply(policy: Constants, x: Tensor, params: Params) -> Tensor:
    """Return the images after the operations, contiguous, of the shape [N, C, H, W] of x."""
    values = dict(zip(COLUMNS, params.values.to(x.device).unbind(1), strict=True))
    for name in params.ops:
        x = OPERATIONS[name](policy, x, values)
    return x.contiguous()


_WHOLE, _FLIP = slice(COLUMNS.index("crop_y"), COLUMNS.index("flip")), COLUMNS.index("flip")


@lru_cache(maxsize=64)
def _drawn(policy: Constants, size: tuple[int, int]) -> tuple[Tensor, ...]:
    """Return how numbers u in [0, 1) become columns: (u - minus) * times + plus, float64."""
    low, high = 1 / policy.scale_ratio, policy.scale_ratio
    rules: dict[str, tuple[float, float, float]] = {
        "brightness": (0.5, policy.brightness, 0),
        "saturation": (0, policy.saturation, 0),
        "contrast": (0, 1, policy.contrast),
        "flip": (0, 1, 0),
        "angle": (0.5, 2 * policy.rotate, 0),
    }
    for axis, side in zip("yx", size, strict=True):
        pad, box = _pixels(side, policy.crop_pad), _pixels(side, policy.cutout)
        rules[f"crop_{axis}"] = (0, 2 * pad + 1, -pad)
        rules[f"cutout_{axis}"] = (0, side + 1 - box % 2, 0)
        rules[f"scale_{axis}"] = (0, high - low, low)
    rows = torch.tensor([rules[name] for name in COLUMNS], dtype=torch.float64, device="cpu")
    return rows.unbind(1)


_Values = Mapping[str, Tensor]


def _pixels(side: int, fraction: float) -> int:
    return math.floor(side * fraction + 0.5)


def _color(_: Constants, x: Tensor, v: _Values) -> Tensor:
    """Do brightness, saturation, contrast, in that order, as one affine map.

    With shift b, factors s and k, m the mean of x over channels and M over the whole image, the
    three formulas in a row give k s x + (k - k s) m + (1 - k) M + b.
    """
    b, s, k = (
        v[name].to(x.dtype)[:, None, None, None]
        for name in ("brightness", "saturation", "contrast")
    )
    m = x.mean(1, keepdim=True)
    return torch.addcmul((k - k * s) * m + (1 - k) * m.mean((2, 3), keepdim=True) + b, x, k * s)


def _crop(policy: Constants, x: Tensor, v: _Values) -> Tensor:
    return _moved(policy, x, v["crop_y"], v["crop_x"])


def _moved(policy: Constants, x: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Translate by whole pixels; what comes from outside is zero.

    A gather from the padded image: measured faster than index arithmetic by advanced indexing and
    than products with shift matrices, and each source pixel is read at most once, so the backward
    adds nothing up and is deterministic.
    """
    n, c, h, w = x.shape
    pad_y, pad_x = _pixels(h, policy.crop_pad), _pixels(w, policy.crop_pad)
    padded = F.pad(x, (pad_x, pad_x, pad_y, pad_y))
    rows = torch.arange(h, device=x.device) + down.long()[:, None] + pad_y
    columns = torch.arange(w, device=x.device) + right.long()[:, None] + pad_x
    index = (rows[:, :, None] * (w + 2 * pad_x) + columns[:, None, :]).view(-1, 1, h * w)
    return padded.flatten(2).gather(2, index.expand(n, c, h * w)).view(n, c, h, w)


def _cutout(policy: Constants, x: Tensor, v: _Values) -> Tensor:
    """Zero the box of rows (and columns) i + o - floor(k/2), i < k, as far as it lies inside.

    The original clamps these indices to the image; for every offset o that can be drawn the box
    touches the image, so clamping and truncating give the same rows.
    """

    def inside(side: int, offset: Tensor) -> Tensor:
        k = _pixels(side, policy.cutout)
        i = torch.arange(side, device=x.device) - offset[:, None] + k // 2
        return (i >= 0) & (i < k)

    rows, columns = inside(x.shape[2], v["cutout_y"]), inside(x.shape[3], v["cutout_x"])
    return x.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0)


def mirrored(x: Tensor, flip: Tensor) -> Tensor:
    """Return images [n, C, H, W], mirrored left to right where flip [n] is not 0."""
    columns = torch.arange(x.shape[3], device=x.device)
    index = torch.where(flip.bool()[:, None], columns.flip(0), columns)
    return x.gather(3, index[:, None, None, :].expand(x.shape))


def _sampled(x: Tensor, *theta: Tensor, align_corners: bool) -> Tensor:
    """Sample x at theta (x', y') for the four entries of theta, each [n], in row order."""
    matrix = F.pad(torch.stack(theta, dim=1).view(-1, 2, 2), (0, 1)).to(x.dtype)
    grid = F.affine_grid(matrix, [len(matrix), *x.shape[1:]], align_corners=align_corners)
    grid = grid.expand(len(x), -1, -1, -1)
    return F.grid_sample(
        x, grid, mode="bilinear", padding_mode="zeros", align_corners=align_corners
    )


def _scale(policy: Constants, x: Tensor, v: _Values) -> Tensor:
    zero = torch.zeros_like(v["scale_x"])
    return _sampled(x, v["scale_x"], zero, zero, v["scale_y"], align_corners=policy.aligned)


def rotated(x: Tensor, degrees: Tensor, *, align_corners: bool) -> Tensor:
    """Return images [n, C, H, W], each rotated by its angle [n]; zero comes in."""
    a = degrees.deg2rad()
    return _sampled(x, a.cos(), -a.sin(), a.sin(), a.cos(), align_corners=align_corners)


OPERATIONS: dict[str, Callable[[Constants, Tensor, _Values], Tensor]] = {
    "color": _color,
    "crop": _crop,
    "cutout": _cutout,
    "flip": lambda _, x, v: mirrored(x, v["flip"]),
    "scale": _scale,
    "rotate": lambda policy, x, v: rotated(x, v["angle"], align_corners=policy.aligned),
    "translate": lambda policy, x, v: _moved(policy, x, torch.zeros_like(v["crop_x"]), v["crop_x"]),
}
