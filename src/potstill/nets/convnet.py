"""ConvNet-D: D blocks of convolution, normalisation, activation and pooling, then one linear map.

Source: Gidaris and Komodakis, CVPR 2018 (arXiv:1804.09458), in the form of Zhao, Mopuri and
Bilen, "Dataset Condensation with Gradient Matching", ICLR 2021 (arXiv:2006.05929). Those of KRR-ST
(Lee et al., ICLR 2024, arXiv 2310.06511) widen from block to block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

from torch import nn

from potstill.nets.fused import Blocks
from potstill.nets.layers import ACTS, MAP_NORMS, POOLS, Features, map_size, padded, pick
from potstill.nets.spec import NETS, NetSpec, Network, Size, too_small

MAX_DEPTH = 8


def _norms(height: int, width: int) -> Mapping[str, Callable[[int], nn.Module] | None]:
    return {**MAP_NORMS, "layer": lambda c: nn.LayerNorm([c, height, width])}


def _check_size(depth: int, size: Size) -> None:
    """Refuse images whose feature map would vanish; a side of 28 counts as 32."""
    shortest = min(32 if side == 28 else side for side in size)
    if shortest >> depth == 0:
        deepest = shortest.bit_length() - 1
        hint = f"; the deepest that fits is convnet{deepest}" if deepest > 0 else ""
        raise too_small(f"convnet{depth} with pooling", 2**depth, size, hint)


def convnet(
    spec: NetSpec, channels: int, size: Size, classes: int, *, depth: int, growth: int = 1
) -> nn.Module:
    """Make a ConvNet of `depth` blocks, each `growth` times as wide as the one before it.

    Convolutions are 3x3 with bias and padding 1; in the first, a side of 28 pixels is padded by 3
    and so becomes 32. "instance" is GroupNorm with one channel a group, affine; "group" has 4
    groups; "layer" is affine over channels, rows and columns.

    Raises:
        InputError: for an unknown norm, act or pool, a width that 4 groups do not divide, or
            images so small that pooling would leave nothing.

    Differs: the original pads by 3 for every 1-channel image, which breaks its classifier at
        sides other than 28; here the side alone decides, and the classifier fits any size.
    """
    assert spec.width is not None
    act, pool = pick("act", spec.act, ACTS), pick("pool", spec.pool, POOLS)
    if pool:
        _check_size(depth, size)
    layers: list[nn.Module] = []
    for block in range(depth):
        padding, width = padded(size, 1) if block == 0 else 1, spec.width * growth**block
        layers.append(nn.Conv2d(channels, width, 3, padding=padding))
        channels = width
        norm = pick("norm", spec.norm, _norms(*map_size(layers, size)))
        layers += [norm(channels), act()] if norm else [act()]
        layers += [pool()] if pool else []
    inputs = channels * math.prod(map_size(layers, size))
    return Features(Blocks(*layers), nn.Linear(inputs, classes))


_OWN = {"width": 128, "norm": "instance", "act": "relu", "pool": "avg"}
for _depth in range(1, MAX_DEPTH + 1):
    NETS.add(f"convnet{_depth}")(
        Network(
            make=partial(convnet, depth=_depth),
            help=f"ConvNet-{_depth}: {_depth} x (convolution 3x3, norm, activation, pooling)",
            own=_OWN,
        )
    )
for _depth, _width in ((3, 128), (4, 64), (5, 32)):
    NETS.add(f"convnet{_depth}-krrst")(
        Network(
            make=partial(convnet, depth=_depth, growth=2),
            help=f"KRR-ST's ConvNet-{_depth}: batch norm, each block twice as wide as the last",
            own={**_OWN, "width": _width, "norm": "batch"},
        )
    )
