"""Mean and standard deviation a channel: measured, or published under the name of a recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from potstill.core.errors import InputError
from potstill.core.registry import Registry
from potstill.core.spec import record
from potstill.data.types import Split

STATISTICS: Registry[MeanStd] = Registry("statistics")


def unit_range(pixels: Tensor) -> Tensor:
    """Return uint8 or floating images as float32 in [0, 1]; float64 stays float64.

    Raises:
        InputError: for another type.
    """
    if pixels.dtype == torch.uint8:
        return pixels.to(torch.float32) / 255
    if not pixels.is_floating_point():
        raise InputError(f"Images must be uint8 or floating, not {pixels.dtype}.")
    return pixels if pixels.dtype == torch.float64 else pixels.to(torch.float32)


@record
@dataclass(frozen=True, kw_only=True)
class MeanStd:
    """Subtract a mean and divide by a standard deviation, per channel, of pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise InputError(
                f"A normaliser needs one mean and one std a channel, not {len(self.mean)} and "
                f"{len(self.std)}."
            )
        if not all(s > 0 for s in self.std):
            raise InputError(f"Each std must be above 0, not {self.std}.")

    def forward(self, pixels: Tensor) -> Tensor:
        """Return normalised images [N, C, H, W]; float32, or float64 if `pixels` is float64.

        `pixels` is uint8, or floating in [0, 1]; differentiable in the latter case.

        Raises:
            InputError: if the channels differ or the type is another integer.
        """
        x = unit_range(pixels)
        self.check(x.shape)
        return self.apply(x, self.parts(x.dtype, x.device))

    @staticmethod
    def apply(x: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
        """Normalise floating images in [0, 1] with what `parts` returned."""
        return (x - parts["mean"]) / parts["std"]

    def inverse(self, x: Tensor) -> Tensor:
        """Return normalised images [N, C, H, W] in view space, black 0 and white 1, not clipped.

        Raises:
            InputError: if the channels differ.
        """
        self.check(x.shape)
        parts = self.parts(x.dtype, x.device)
        return x * parts["std"] + parts["mean"]

    def parts(self, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        """Return the tensors that `apply` takes: `mean` and `std` [C, 1, 1]."""
        return {
            "mean": column(self.mean, dtype, device),
            "std": column(self.std, dtype, device),
        }

    def check(self, shape: tuple[int, ...]) -> None:
        """Refuse images of other channels.

        Raises:
            InputError: naming the channels and the shape.
        """
        if len(shape) < 3 or shape[-3] != self.channels:
            raise InputError(
                f"This normaliser is for images of {self.channels} channels, not for the shape "
                f"{tuple(shape)}."
            )

    @property
    def channels(self) -> int:
        """Return the number of colour channels."""
        return len(self.mean)

    def nbytes(self) -> int:
        """Return the bytes it takes to store this normaliser in float32."""
        return 4 * (len(self.mean) + len(self.std))

    def record(self) -> MeanStd:
        """Return the record for specs: itself."""
        return self

    def describe(self) -> str:
        """Return the numbers in one short line."""
        mean, std = (" ".join(f"{v:.4g}" for v in values) for values in (self.mean, self.std))
        return f"mean {mean}, std {std}"


@lru_cache(maxsize=64)
def column(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return numbers as [C, 1, 1], copied to a device once."""
    with torch.inference_mode(False):  # else it could serve no gradient later
        return torch.tensor(values, dtype=dtype, device=device)[:, None, None]


def named_stats(name: str) -> MeanStd:
    """Return published statistics; they belong to a recipe (`cifar100@mtt`), not to a data set.

    Raises:
        InputError: for an unknown name.
    """
    return STATISTICS.get(name)


def measure_stats(split: Split) -> MeanStd:
    """Return mean and standard deviation (over all n pixels, divisor n) of each channel.

    Exact: from the counts of the 256 values. A channel of one value gets the std 1.
    """
    channels, values = split.pixels.shape[1], range(256)
    counts = torch.zeros(channels, 256, dtype=torch.int64)
    for part in split.pixels.split(max(1, 2**19 // math.prod(split.pixels.shape[2:]))):
        for channel in range(channels):
            counts[channel] += torch.bincount(part[:, channel].flatten(), minlength=256)
    means, stds = [], []
    for row in counts.tolist():
        n = sum(row)
        first = sum(v * c for v, c in zip(values, row, strict=True))
        second = sum(v * v * c for v, c in zip(values, row, strict=True))
        means.append(first / (255 * n))
        stds.append((n * second - first * first) ** 0.5 / (255 * n) or 1.0)
    return MeanStd(mean=tuple(means), std=tuple(stds))


_CIFAR10 = MeanStd(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))
_CIFAR100_DC = MeanStd(mean=(0.5071, 0.4866, 0.4409), std=(0.2673, 0.2564, 0.2762))
_CIFAR100_KIP = MeanStd(mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761))
_SVHN = MeanStd(mean=(0.4377, 0.4438, 0.4728), std=(0.1980, 0.2010, 0.1970))
_MNIST = MeanStd(mean=(0.1307,), std=(0.3081,))
_FASHION = MeanStd(mean=(0.2861,), std=(0.3530,))
_IMAGENET = MeanStd(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
_UNIT = MeanStd(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
_TINY_SRE2L = MeanStd(mean=(0.4802, 0.4481, 0.3975), std=(0.2302, 0.2265, 0.2262))

_CIFAR10_SOLO = MeanStd(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
_CIFAR100_SOLO = MeanStd(mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762))
_TINY_MIXBT = MeanStd(mean=(0.480, 0.448, 0.398), std=(0.277, 0.269, 0.282))

for _names, _stats in {
    "cifar10@mtt cifar10@dc cifar10@idc cifar10@kip": _CIFAR10,
    "cifar100@mtt cifar100@idc": _CIFAR10,  # as published: the CIFAR-10 numbers
    "cifar100@dc": _CIFAR100_DC,
    "cifar100@kip": _CIFAR100_KIP,
    "svhn@dc svhn@idc": _SVHN,
    "mnist@dc mnist@idc": _MNIST,
    "fashion@dc fashion@idc": _FASHION,
    "imagenet@dc imagenet@idc tiny@dc tiny@mtt": _IMAGENET,
    "tiny@sre2l": _TINY_SRE2L,
    "cifar10@mixbt cifar100@mixbt": _CIFAR10,  # as published: one for both
    "cifar10@sololearn": _CIFAR10_SOLO,
    "cifar100@sololearn": _CIFAR100_SOLO,
    "tiny@mixbt tiny@sololearn": _TINY_MIXBT,
    "imagenet21k@cda": _UNIT,  # as published: pixels in [0, 1]
}.items():
    for _name in _names.split():
        STATISTICS.add(_name)(_stats)
