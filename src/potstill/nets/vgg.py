"""VGG-11 for small images, as DC, DSA and MTT transfer to it.

Source: Simonyan and Zisserman, ICLR 2015 (arXiv:1409.1556), in the form of Zhao, Mopuri and
Bilen, "Dataset Condensation with Gradient Matching", ICLR 2021 (arXiv:2006.05929).
"""

from __future__ import annotations

import math

from torch import nn

from potstill.nets.layers import Features, map_size, norm_of, padded, pool_of
from potstill.nets.spec import NETS, NetSpec, Network, Size

STAGES = ((1,), (2,), (4, 4), (8, 8), (8, 8))
"""Channels of the convolutions before each of the five poolings, in widths."""


def vgg11(spec: NetSpec, channels: int, size: Size, classes: int) -> nn.Module:
    """Make eight 3x3 convolutions with norm and ReLU, five poolings and one linear map.

    A side of 28 pixels is padded to 32. From 64 pixels on a last average pooling of 2x2 follows.

    Differs: the classifier fits any size; the originals take 32 pixels only, DATM's also 64.
    """
    assert spec.width is not None
    norm, pool = norm_of(spec.norm), pool_of(spec.pool)
    layers: list[nn.Module] = []
    padding: int | tuple[int, int] = padded(size, 1)
    for stage in STAGES:
        for times in stage:
            width = spec.width * times
            layers += [nn.Conv2d(channels, width, 3, padding=padding), norm(width), nn.ReLU()]
            channels, padding = width, 1
        layers.append(pool())
    if min(size) >= 64:
        layers.append(nn.AvgPool2d(2))
    classifier = nn.Linear(channels * math.prod(map_size(layers, size)), classes)
    return Features(nn.Sequential(*layers), classifier)


for _name, _norm in (("vgg11", "instance"), ("vgg11-bn", "batch")):
    NETS.add(_name)(
        Network(
            make=vgg11,
            help=f"VGG-11 for small images, {_norm} norm (DC, MTT)",
            own={"width": 64, "norm": _norm, "pool": "max"},
            least=32,
            padded=True,
        )
    )
