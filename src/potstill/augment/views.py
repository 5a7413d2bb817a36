"""Random views of large images: a resized crop, mirroring, colour jitter, lighting.

Sources: crop and jitter as torchvision documents `RandomResizedCrop` and `ColorJitter`; lighting,
Krizhevsky et al., NeurIPS 2012, section 4.1, with the usual components of ImageNet's colours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor

from potstill.augment.operations import Params
from potstill.core.errors import InputError
from potstill.core.spec import record

COLUMNS = (
    *("top", "left", "height", "width"),  # of the crop, in whole pixels
    "flip",  # 1 for a mirrored image, 0 else
    *("own", "grey", "mean"),  # weights of a pixel, its grey value and the mean grey value
    *("red", "green", "blue"),  # added
)
"""What the columns of `Params.values` mean for `Views`."""
TRIES, GREY = 10, (0.299, 0.587, 0.114)
SPREAD = (0.2175, 0.0188, 0.0045)
AXES = (  # rows are channels, columns principal components
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)


@record
@dataclass(frozen=True, kw_only=True)
class Views:
    """An own view for each image: RandomResizedCrop to its size, flip, jitter, lighting.

    Brightness, saturation and contrast change by own factors, in random order; lighting adds the
    principal components of ImageNet's colours. Both are meant for pixels in [0, 1], which `mean`
    and `std` restore from normalised images.

    Raises:
        InputError: for a constant out of its range.

    Differs: colours are not clipped to [0, 1] after each change.
    """

    scale: tuple[float, float] = (0.5, 1.0)
    """Smallest and largest share of the area that a crop has."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width over height of a crop."""
    flip_prob: float = 0.5
    jitter: float = 0.4
    """Largest change of a factor of brightness, saturation or contrast from 1."""
    lighting: float = 0.1
    """Standard deviation of the weights of the principal components."""
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    """Mean that was subtracted from the images, per channel."""
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    """What they were divided by then."""

    def __post_init__(self) -> None:
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if not 0 < low <= high:
                raise InputError(f"{name} must be two numbers above 0, the smaller one first.")
        if self.scale[1] > 1:
            raise InputError(f"The largest share of a crop (scale) is 1, not {self.scale[1]}.")
        if not 0 <= self.flip_prob <= 1:
            raise InputError(f"flip_prob lies between 0 and 1, not at {self.flip_prob}.")
        if not 0 <= self.jitter <= 1 or not self.lighting >= 0:
            raise InputError("jitter lies between 0 and 1, and lighting is at least 0.")
        if len(self.mean) != 3 or len(self.std) != 3:
            raise InputError("Views are of colour images: mean and std have 3 numbers each.")

    def sample(self, n: int, shape: tuple[int, int, int], generator: torch.Generator) -> Params:
        """Draw the parameters for n images of shape (3, H, W) on the CPU.

        Image 0 gets the same numbers for every n.

        Raises:
            InputError: for another number of channels.
        """
        if shape[0] != 3:
            raise InputError(f"Views are of images with 3 channels, not {shape[0]}.")
        u = torch.rand((n, 2 * TRIES + 10), generator=generator, dtype=torch.float64, device="cpu")
        tries, place, flip, order, factors, lights = u.split((2 * TRIES, 2, 1, 1, 3, 3), dim=1)
        box = boxes(tries.view(n, TRIES, 2), place, shape[1:], scale=self.scale, ratio=self.ratio)
        flips = (flip < self.flip_prob).double()
        jitter = _jitter(order[:, 0], 1 + self.jitter * (2 * factors - 1))
        normal = torch.special.ndtri(lights.clamp(min=2.0**-54))
        spread, axes = (torch.tensor(numbers, dtype=torch.float64) for numbers in (SPREAD, AXES))
        light = (normal * self.lighting * spread) @ axes.T
        return Params(ops=("views",), values=torch.cat([box, flips, jitter, light], dim=1))

    def apply(self, x: Tensor, params: Params) -> Tensor:
        """Return the views, contiguous, of the shape [N, 3, H, W] and type of x.

        Parameters drawn for n = 1 are for any number of images. Differentiable with respect to x
        twice.
        """
        values = params.values.to(x.device)
        v = dict(zip(COLUMNS, values.unbind(1), strict=True))
        rows = crop_matrix(v["top"], v["height"], x.shape[2]).to(x.dtype)
        columns = crop_matrix(v["left"], v["width"], x.shape[3]).to(x.dtype)
        columns = torch.where(v["flip"].bool()[:, None, None], columns.flip(1), columns)
        x = rows[:, None] @ x @ columns[:, None].mT
        mean, std, grey = (x.new_tensor(c).view(3, 1, 1) for c in (self.mean, self.std, GREY))
        x = x * std + mean
        m = (x * grey).sum(1, keepdim=True)
        own, part, whole = values[:, 5:8, None, None, None].to(x.dtype).unbind(1)
        light = values[:, 8:, None, None].to(x.dtype)
        x = own * x + part * m + whole * m.mean((2, 3), keepdim=True) + light
        return ((x - mean) / std).contiguous()


def boxes(
    tries: Tensor,
    place: Tensor,
    size: tuple[int, int],
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Tensor:
    """Return top, left, height, width [n, 4] of crops, as torchvision's RandomResizedCrop.

    An area uniform in `scale` and a width over height log-uniform in `ratio` are tried until they
    fit; if none of the tries does, the largest central crop within `ratio` is taken.

    Args:
        tries: numbers in [0, 1), float64 [n, T, 2].
        place: numbers in [0, 1), float64 [n, 2].
        size: height and width of the images.
        scale: smallest and largest share of the area.
        ratio: smallest and largest width over height.
    """
    high, wide = size
    area = high * wide * (scale[0] + (scale[1] - scale[0]) * tries[..., 0])
    low, top = math.log(ratio[0]), math.log(ratio[1])
    aspect = (low + (top - low) * tries[..., 1]).exp()
    sides = torch.stack([(area / aspect).sqrt(), (area * aspect).sqrt()], dim=2).round()
    whole = torch.tensor(size).double()
    fits = ((sides > 0) & (sides <= whole)).all(2)
    first = fits.double().argmax(1)
    found = sides[torch.arange(len(sides)), first]
    within = min(max(wide / high, ratio[0]), ratio[1])
    last = torch.tensor([min(high, round(wide / within)), min(wide, round(high * within))])
    free = whole - found + 1
    corner = torch.minimum((place * free).floor(), free - 1)
    central = torch.cat([(whole - last) // 2, last.double()])
    drawn = torch.cat([corner, found], dim=1)
    return torch.where(fits.any(1, keepdim=True), drawn, central)


def crop_matrix(start: Tensor, length: Tensor, side: int) -> Tensor:
    """Return the matrices [n, side, side] that enlarge pixels start .. start + length to a side.

    Bilinear, pixel centres at one half (align_corners False), edges repeated: what resizing a crop
    does, with antialiasing or without, since a crop is no larger than its image.
    """
    i = torch.arange(side, dtype=length.dtype, device=length.device)
    at = (i + 0.5) * (length / side)[:, None] - 0.5
    at = start[:, None] + torch.minimum(at.clamp(min=0), length[:, None] - 1)
    return (1 - (at[:, :, None] - i).abs()).clamp(min=0)


def _jitter(order: Tensor, factors: Tensor) -> Tensor:
    """Return weights [n, 3] of pixel, grey value and mean grey value after three changes.

    Brightness scales all, saturation leaves the grey value, contrast its mean over the image; each
    is such a sum itself, and so are three in a row. `order` [n] in [0, 1) chooses theirs.
    """
    f, one, zero = factors, torch.ones_like(order), torch.zeros_like(order)
    own, grey, mean = one, zero, zero
    changes = torch.stack(
        [
            torch.stack([f[:, 0], zero, zero], dim=1),
            torch.stack([f[:, 1], 1 - f[:, 1], zero], dim=1),
            torch.stack([f[:, 2], zero, 1 - f[:, 2]], dim=1),
        ],
        dim=1,
    )
    orders = torch.tensor(list(permutations(range(3))))[(order * 6).long()]
    for which in orders.unbind(1):
        a, b, c = changes[torch.arange(len(order)), which].unbind(1)
        own, grey, mean = (
            a * own,
            a * grey + b * (own + grey),
            a * mean + b * mean + c * (own + grey + mean),
        )
    return torch.stack([own, grey, mean], dim=1)
