"""Parts that several networks share: norms, activations, pools, sizes of maps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TypeVar

from torch import Tensor, nn

from potstill.core.errors import InputError, unknown

T = TypeVar("T")


def _group(groups: int, width: int) -> nn.Module:
    if width % groups:
        raise InputError(f"The norm 'group' needs a width divisible by {groups}, not {width}.")
    return nn.GroupNorm(groups, width)


MAP_NORMS: Mapping[str, Callable[[int], nn.Module] | None] = {
    "none": None,
    "batch": nn.BatchNorm2d,
    "instance": lambda c: _group(c, c),
    "group": lambda c: _group(4, c),
}
"""Norms of maps of c channels. "instance" is GroupNorm with one channel a group, affine."""
ACTS: Mapping[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "leaky": partial(nn.LeakyReLU, 0.01),
    "swish": nn.SiLU,
}
POOLS: Mapping[str, Callable[[], nn.Module] | None] = {
    "none": None,
    "max": partial(nn.MaxPool2d, 2),
    "avg": partial(nn.AvgPool2d, 2),
}


def pick(kind: str, name: str | None, table: Mapping[str, T]) -> T:
    """Return the entry of a table of settings.

    Raises:
        InputError: for an unknown name, with the nearest known one.
    """
    if name not in table:
        raise unknown(kind, str(name), table)
    return table[name]


def norm_of(name: str | None) -> Callable[[int], nn.Module]:
    """Return how the norm of that name is made for c channels; "none" is the identity."""
    return pick("norm", name, MAP_NORMS) or (lambda _: nn.Identity())


def pool_of(name: str | None) -> Callable[[], nn.Module]:
    """Return how the pooling of that name is made; "none" is the identity."""
    return pick("pool", name, POOLS) or nn.Identity


def padded(size: tuple[int, int], padding: int) -> tuple[int, int]:
    """Return the padding of a first convolution: 2 more on a side of 28, which so becomes 32."""
    height, width = (padding + 2 * (side == 28) for side in size)
    return height, width


def map_size(layers: Iterable[nn.Module], size: tuple[int, int]) -> tuple[int, int]:
    """Return rows and columns of the map that convolutions and pools make of an image."""
    sides = list(size)
    for layer in layers:
        if isinstance(layer, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)):
            for k in range(2):
                kernel, stride, padding = (
                    int(value if isinstance(value, int) else value[k])
                    for value in (layer.kernel_size, layer.stride, layer.padding)
                )
                sides[k] = (sides[k] + 2 * padding - kernel) // stride + 1
    return sides[0], sides[1]


class Features(nn.Module):
    """Layers that make a map of an image, and a classifier of the flat map."""

    def __init__(self, features: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [B, classes] of images [B, C, H, W]."""
        return self.classifier(self.features(x).flatten(1))
