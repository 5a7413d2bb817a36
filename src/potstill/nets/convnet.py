"""ConvNet-D: D blocks of convolution, normalisation, activation and pooling, then one linear map.

Source: Gidaris and Komodakis, CVPR 2018 (arXiv:1804.09458), in the form of Zhao, Mopuri and
Bilen, "Dataset Condensation with Gradient Matching", ICLR 2021 (arXiv:2006.05929).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

from torch import Tensor, nn

from potstill.core.errors import InputError, unknown
from potstill.nets.spec import NETS, NetSpec

T = TypeVar("T")
MAX_DEPTH = 8


def _group(groups: int, width: int) -> nn.Module:
    if width % groups:
        raise InputError(f"The norm 'group' needs a width divisible by {groups}, not {width}.")
    return nn.GroupNorm(groups, width)


NORMS: Mapping[str, Callable[[int, int, int], nn.Module] | None] = {
    "none": None,
    "batch": lambda c, h, w: nn.BatchNorm2d(c),
    "layer": lambda c, h, w: nn.LayerNorm([c, h, w]),
    "instance": lambda c, h, w: _group(c, c),
    "group": lambda c, h, w: _group(4, c),
}
ACTS: Mapping[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "leaky": partial(nn.LeakyReLU, 0.01),
}
POOLS: Mapping[str, Callable[[], nn.Module] | None] = {
    "none": None,
    "max": partial(nn.MaxPool2d, 2),
    "avg": partial(nn.AvgPool2d, 2),
}


def _pick(kind: str, name: str, table: Mapping[str, T]) -> T:
    if name not in table:
        raise unknown(kind, name, table)
    return table[name]


def _check_size(depth: int, size: tuple[int, int]) -> None:
    """Refuse images whose feature map would vanish; a side of 28 counts as 32."""
    shortest = min(32 if side == 28 else side for side in size)
    if shortest >> depth == 0:
        least, deepest = 2**depth, shortest.bit_length() - 1
        fits = f"; the deepest that fits is convnet{deepest}" if deepest > 0 else ""
        raise InputError(
            f"convnet{depth} with pooling needs images of at least {least}x{least} pixels, "
            f"not {size[0]}x{size[1]}{fits}."
        )


class ConvNet(nn.Module):
    """Blocks of convolution, norm, activation and pooling, then a linear classifier."""

    def __init__(self, features: nn.Sequential, classifier: nn.Linear) -> None:
        super().__init__()
        self.features = features
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [B, classes] of images [B, C, H, W]."""
        return self.classifier(self.features(x).flatten(1))


def convnet(
    spec: NetSpec, channels: int, size: tuple[int, int], classes: int, *, depth: int
) -> nn.Module:
    """Make a ConvNet of `depth` blocks.

    Convolutions are 3x3 with bias and padding 1; in the first, a side of 28 pixels is padded by 3
    and so becomes 32. "instance" is GroupNorm with one channel a group, affine; "group" has 4
    groups; "layer" is affine over channels, rows and columns.

    Raises:
        InputError: for an unknown norm, act or pool, a width that 4 groups do not divide, or
            images so small that pooling would leave nothing.

    Differs: the original pads by 3 for every 1-channel image, which breaks its classifier at
        sides other than 28; here the side alone decides, and the classifier fits any size.
    """
    norm = _pick("norm", spec.norm, NORMS)
    act = _pick("act", spec.act, ACTS)
    pool = _pick("pool", spec.pool, POOLS)
    if pool:
        _check_size(depth, size)
    layers: list[nn.Module] = []
    height, width = size
    for block in range(depth):
        pad_h, pad_w = (3 if block == 0 and side == 28 else 1 for side in size)
        layers.append(nn.Conv2d(channels, spec.width, 3, padding=(pad_h, pad_w)))
        channels, height, width = spec.width, height + 2 * pad_h - 2, width + 2 * pad_w - 2
        if norm:
            layers.append(norm(channels, height, width))
        layers.append(act())
        if pool:
            layers.append(pool())
            height, width = height // 2, width // 2
    classifier = nn.Linear(channels * height * width, classes)
    return ConvNet(nn.Sequential(*layers), classifier)


for _depth in range(1, MAX_DEPTH + 1):
    NETS.add(f"convnet{_depth}")(partial(convnet, depth=_depth))
