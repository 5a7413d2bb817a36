"""The small DenseNet that IDC transfers to on CIFAR ("DenseNet-121" in its tables).

Source: Huang, Liu, van der Maaten and Weinberger, CVPR 2017 (arXiv:1608.06993), the form with
bottlenecks and compression for 32 pixels, with the sizes of IDC (arXiv:2205.14959).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from potstill.nets.layers import Features, norm_of
from potstill.nets.spec import NETS, NetSpec, Network, Size

BLOCKS = (6, 12, 24, 16)


class Dense(nn.Module):
    """Norm, ReLU, 1x1 to four growths, norm, ReLU, 3x3 to one growth; appended to the input."""

    def __init__(self, inputs: int, growth: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.new = nn.Sequential(
            norm(inputs),
            nn.ReLU(),
            nn.Conv2d(inputs, 4 * growth, 1, bias=False),
            norm(4 * growth),
            nn.ReLU(),
            nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return maps [B, inputs + growth, H, W]."""
        return torch.cat([x, self.new(x)], 1)


def densenet(spec: NetSpec, channels: int, size: Size, classes: int) -> nn.Module:
    """Make a DenseNet of 6, 12, 24 and 16 layers; `width` is its growth.

    Between the blocks a 1x1 convolution halves the channels and an average pooling the sides.
    """
    assert spec.width is not None
    norm, inputs = norm_of(spec.norm), 2 * spec.width
    layers: list[nn.Module] = [nn.Conv2d(channels, inputs, 3, padding=1, bias=False)]
    for k, count in enumerate(BLOCKS):
        for _ in range(count):
            layers.append(Dense(inputs, spec.width, norm))
            inputs += spec.width
        layers += [norm(inputs), nn.ReLU()]
        if k + 1 < len(BLOCKS):
            layers += [nn.Conv2d(inputs, inputs // 2, 1, bias=False), nn.AvgPool2d(2)]
            inputs //= 2
    layers.append(nn.AdaptiveAvgPool2d(1))
    return Features(nn.Sequential(*layers), nn.Linear(inputs, classes))


NETS.add("densenet-idc")(
    Network(
        make=densenet,
        help="DenseNet of growth 12 and blocks 6, 12, 24, 16, batch norm (IDC on CIFAR)",
        own={"width": 12, "norm": "batch"},
        least=16,
    )
)
