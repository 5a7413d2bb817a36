"""Random views for self-supervised training: a resized crop, a flip, colours, each image its own.

Sources: the views of SimCLR (Chen et al., ICML 2020, arXiv 2002.05709, appendix A) and BYOL (Grill
et al., NeurIPS 2020, arXiv 2006.07733, appendix B), as torchvision documents its transforms.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import permutations

import torch
from torch import Tensor

from potstill.augment.colours import blended, each, grey, solarised, turned
from potstill.augment.operations import Params
from potstill.augment.views import TRIES, boxes, crop_matrix
from potstill.core.errors import InputError
from potstill.core.spec import record

COLUMNS = (
    *("top", "left", "height", "width"),  # of the crop, in whole pixels
    "flip",  # 1 for a mirrored image, 0 else
    *("first", "second", "third"),  # which blend, as `colours` numbers them
    "before",  # how many of the three are done before hue
    *("brightness", "contrast", "saturation"),  # factors, 1 for none
    "hue",  # part of a turn around the circle of hues
    *("grey", "solarise"),  # 1 for a grey, a solarised image
)
"""What the columns of `Params.values` mean for `SSL`."""


@record
@dataclass(frozen=True, kw_only=True)
class SSL:
    """An own view for each image: RandomResizedCrop to its size, flip, jitter, grey, solarised.

    Jitter changes brightness, contrast, saturation and hue in random order. Colours are meant for
    pixels in [0, 1], which `mean` and `std` restore from normalised images; after each change they
    are clipped to it, and so is what an image has outside before the first.

    Raises:
        InputError: for a number out of its range.

    Differs: pixels are not rounded to 1/255 after each change, and those of a bicubic crop are
        clipped once, not after rows and columns each.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the area that a crop has."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width over height of a crop."""
    bicubic: bool = False
    """Enlarge crops by cubic instead of linear interpolation."""
    flip_prob: float = 0.5
    """Chance of an image to be mirrored."""
    jitter_prob: float = 0.8
    """Chance of an image to be jittered."""
    brightness: float = 0.4
    """Largest change of the factor from 1; a factor is at least 0."""
    contrast: float = 0.4
    """The same of the distance to the mean grey value."""
    saturation: float = 0.4
    """The same of the distance of each pixel to its grey value."""
    hue: float = 0.1
    """Largest turn of the hues, as a part of their circle."""
    grey_prob: float = 0.2
    """Chance of an image to become grey."""
    solarise_prob: float = 0.0
    """Chance of an image to have its bright pixels inverted."""
    crop_last: bool = False
    """Whether the crop follows the colours."""
    mean: tuple[float, ...] = (0.0,)
    """Mean that was subtracted from the images, per channel or one for all."""
    std: tuple[float, ...] = (1.0,)
    """What they were divided by then."""

    def __post_init__(self) -> None:
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if not 0 < low <= high:
                raise InputError(f"{name} must be two numbers above 0, the smaller one first.")
        if self.scale[1] > 1:
            raise InputError(f"The largest share of a crop (scale) is 1, not {self.scale[1]}.")
        for name in ("flip_prob", "jitter_prob", "grey_prob", "solarise_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} lies between 0 and 1, not at {getattr(self, name)}.")
        if min(self.brightness, self.contrast, self.saturation) < 0 or not 0 <= self.hue <= 0.5:
            raise InputError(
                "brightness, contrast and saturation of SSL are at least 0, its hue between 0 and "
                "0.5."
            )
        if len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise InputError("mean and std of SSL have equally many numbers, std only above 0.")

    @property
    def _jitters(self) -> bool:
        strengths = (self.brightness, self.contrast, self.saturation, self.hue)
        return bool(self.jitter_prob and any(strengths))

    @property
    def _colours(self) -> bool:
        return bool(self._jitters or self.grey_prob or self.solarise_prob)

    def sample(self, n: int, shape: tuple[int, int, int], generator: torch.Generator) -> Params:
        """Draw the parameters for n images of shape (C, H, W) on the CPU.

        Image 0 gets the same numbers for every n.

        Raises:
            InputError: if images with so many channels have no such colours, or not so many means.
        """
        self._check(shape[0])
        u = torch.rand((n, 2 * TRIES + 12), generator=generator, dtype=torch.float64, device="cpu")
        parts = u.split((2 * TRIES, 2, 1, 1, 1, 1, 3, 1, 2), dim=1)
        tries, place, flip, jitter, order, before, factors, hue, last = parts
        tries = tries.view(n, TRIES, 2)
        box = boxes(tries, place, shape[1:], scale=self.scale, ratio=self.ratio)
        orders = torch.tensor(list(permutations(range(3))), dtype=u.dtype)[(6 * order[:, 0]).long()]
        on = jitter < self.jitter_prob
        change = u.new_tensor((self.brightness, self.contrast, self.saturation))
        least = (1 - change).clamp(min=0)
        factors = torch.where(on, least + (1 + change - least) * factors, 1)
        hue = torch.where(on, self.hue * (2 * hue - 1), 0)
        last = (last < u.new_tensor((self.grey_prob, self.solarise_prob))).double()
        flips = (flip < self.flip_prob).double()
        values = [box, flips, orders, (4 * before).floor(), factors, hue, last]
        return Params(ops=("ssl",), values=torch.cat(values, dim=1))

    def apply(self, x: Tensor, params: Params) -> Tensor:
        """Return the views, contiguous, of the shape [N, C, H, W] and type of x.

        Parameters drawn for n = 1 are for any number of images. Differentiable with respect to x.
        """
        v = dict(zip(COLUMNS, params.values.to(x.device).unbind(1), strict=True))
        if not self._colours:
            return self._cropped(x, v).contiguous()
        mean, std = (x.new_tensor(c).view(-1, 1, 1) for c in (self.mean, self.std))
        x = x * std + mean
        if not self.crop_last:
            x = self._cropped(x, v)
        x = x.clamp(0, 1)
        if self._jitters:
            x = self._jittered(x, v)
        if self.grey_prob:
            x = torch.where(each(v["grey"], x) != 0, grey(x), x)
        if self.solarise_prob:
            x = solarised(x, v["solarise"])
        if self.crop_last:
            x = self._cropped(x, v).clamp(0, 1)
        return ((x - mean) / std).contiguous()

    def _check(self, channels: int) -> None:
        """Refuse images that have no colours to change, or other channels than `mean`."""
        coloured = self._jitters and (self.saturation or self.hue)
        if channels == 1 and (self.grey_prob or coloured):
            raise InputError(
                "Images with 1 channel have no colours: saturation, hue and grey_prob of SSL must "
                "be 0, or the augmentation another one, such as crops."
            )
        if self._colours and channels not in (1, 3):
            raise InputError(f"SSL changes colours of images with 3 channels, not {channels}.")
        if self._colours and len(self.mean) not in (1, channels):
            raise InputError(
                f"mean and std of SSL have {len(self.mean)} numbers, the images {channels} "
                "channels."
            )

    def _cropped(self, x: Tensor, v: dict[str, Tensor]) -> Tensor:
        """Return each image's crop, enlarged and mirrored."""
        matrix = cubic_matrix if self.bicubic else crop_matrix
        rows = matrix(v["top"], v["height"], x.shape[2]).to(x.dtype)
        columns = matrix(v["left"], v["width"], x.shape[3]).to(x.dtype)
        columns = torch.where(v["flip"].bool()[:, None, None], columns.flip(1), columns)
        return rows[:, None] @ x @ columns[:, None].mT

    def _jittered(self, x: Tensor, v: dict[str, Tensor]) -> Tensor:
        """Do the three blends of each image in its order, hue in its place between them.

        All images go through two rounds of three blends, one before and one after hue; in one of
        them a blend has factor 1, which changes nothing. So nothing is read back from a GPU.
        """
        kinds = torch.stack([v["first"], v["second"], v["third"]], dim=1).long()
        factors = torch.stack([v["brightness"], v["contrast"], v["saturation"]], dim=1)
        factors = factors.gather(1, kinds)
        early = torch.arange(3, device=x.device) < v["before"][:, None]
        rounds = (early, ~early) if self.hue else (torch.ones_like(early),)
        for number, now in enumerate(rounds):
            if number:
                x = turned(x, v["hue"])
            for kind, factor in zip(kinds.T, torch.where(now, factors, 1).T, strict=True):
                x = blended(x, kind, factor)
        return x


def cubic_matrix(start: Tensor, length: Tensor, side: int) -> Tensor:
    """Return the matrices [n, side, side] that enlarge pixels start .. start + length to a side.

    Keys' cubic filter with a = -1/2; weights that fall outside the crop are left out and the others
    scaled to sum 1: Pillow's `BICUBIC`.
    """
    j = torch.arange(side, dtype=length.dtype, device=length.device)
    at = start[:, None] + (j + 0.5) * (length / side)[:, None] - 0.5
    d = (at[:, :, None] - j).abs()
    near, far = (1.5 * d - 2.5) * d * d + 1, ((-0.5 * d + 2.5) * d - 4) * d + 2
    weights = torch.where(d < 1, near, torch.where(d < 2, far, 0))
    inside = (j >= start[:, None]) & (j < (start + length)[:, None])
    weights = weights * inside[:, None, :]
    return weights / weights.sum(2, keepdim=True)


SOLOLEARN = SSL(saturation=0.2)
"""solo-learn's first view for Barlow Twins on CIFAR; a guess for the teacher of KRR-ST."""
SOLOLEARN_SECOND = replace(SOLOLEARN, solarise_prob=0.2)
MIXBT = SSL()
"""Both views of the teachers of mix-bt (arXiv 2312.02151) on CIFAR."""
MIXBT_TINY = SSL(scale=(0.2, 1.0), bicubic=True, grey_prob=0.1, crop_last=True)
"""The same on Tiny-ImageNet."""
SAS = SSL(bicubic=True)
"""Both views of SimCLR, the teacher of SAS (arXiv 2302.09195)."""
TOY = SSL(scale=(0.2, 1.0), ratio=(1.0, 1.0), jitter_prob=1.0, saturation=0.0, hue=0.0)
"""Both views of the study of variances: square crops, brightness, contrast, grey."""
