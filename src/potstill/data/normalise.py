"""Normalisers: from pixels to what networks see and back, invertible and counted in bytes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.core.errors import InputError
from potstill.core.registry import Registry
from potstill.core.spec import record
from potstill.data.types import Split

STATISTICS: Registry[MeanStd] = Registry("statistics")


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
        if pixels.dtype == torch.uint8:
            scaled = pixels.to(torch.float32) / 255
        elif pixels.is_floating_point():
            scaled = pixels if pixels.dtype == torch.float64 else pixels.to(torch.float32)
        else:
            raise InputError(f"Images must be uint8 or floating, not {pixels.dtype}.")
        mean, std = self._like(scaled)
        return (scaled - mean) / std

    def inverse(self, x: Tensor) -> Tensor:
        """Return normalised images [N, C, H, W] in view space, black 0 and white 1, not clipped.

        Raises:
            InputError: if the channels differ.
        """
        mean, std = self._like(x)
        return x * std + mean

    def nbytes(self) -> int:
        """Return the bytes it takes to store this normaliser in float32."""
        return 4 * (len(self.mean) + len(self.std))

    def _like(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.ndim < 3 or x.shape[-3] != len(self.mean):
            raise InputError(
                f"This normaliser is for images of {len(self.mean)} channels, not for the shape "
                f"{tuple(x.shape)}."
            )
        mean = torch.tensor(self.mean, dtype=x.dtype, device=x.device)
        std = torch.tensor(self.std, dtype=x.dtype, device=x.device)
        return mean[:, None, None], std[:, None, None]


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
    values = range(256)
    means, stds = [], []
    for channel in range(split.pixels.shape[1]):
        counts = torch.bincount(split.pixels[:, channel].flatten(), minlength=256).tolist()
        n = sum(counts)
        first = sum(v * c for v, c in zip(values, counts, strict=True))
        second = sum(v * v * c for v, c in zip(values, counts, strict=True))
        means.append(first / (255 * n))
        stds.append((n * second - first * first) ** 0.5 / (255 * n) or 1.0)
    return MeanStd(mean=tuple(means), std=tuple(stds))


_CIFAR10 = MeanStd(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))
_CIFAR100 = MeanStd(mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761))
_IMAGENET = MeanStd(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

for _name, _stats in {
    "cifar10@mtt": _CIFAR10,
    "cifar100@mtt": _CIFAR10,  # as published: the CIFAR-10 numbers
    "tiny@mtt": _IMAGENET,
    "cifar10@kip": _CIFAR10,
    "cifar100@kip": _CIFAR100,
}.items():
    STATISTICS.add(_name)(_stats)
