"""LeNet and the multi-layer perceptron of the pools of DC and MTT."""

from __future__ import annotations

import math

from torch import nn

from potstill.nets.layers import Features, map_size, padded
from potstill.nets.spec import NETS, NetSpec, Network, Size


def lenet(spec: NetSpec, channels: int, size: Size, classes: int) -> nn.Module:
    """Make a LeNet-5 with ReLU and max pooling: 5x5 to 6 and 16 channels, then 120, 84, classes.

    A side of 28 pixels is padded to 32; from 64 pixels on the first convolution has stride 2.
    """
    layers = [
        nn.Conv2d(
            channels,
            6,
            5,
            stride=2 if min(size) >= 64 else 1,
            padding=padded(size, 0),
        ),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
    ]
    inputs = 16 * math.prod(map_size(layers, size))
    head = (nn.Linear(inputs, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU())
    return Features(nn.Sequential(*layers), nn.Sequential(*head, nn.Linear(84, classes)))


def mlp(spec: NetSpec, channels: int, size: Size, classes: int) -> nn.Module:
    """Make a perceptron with two hidden layers of `width` units and ReLU."""
    assert spec.width is not None
    hidden = (nn.Flatten(), nn.Linear(channels * math.prod(size), spec.width), nn.ReLU())
    head = (nn.Linear(spec.width, spec.width), nn.ReLU(), nn.Linear(spec.width, classes))
    return nn.Sequential(*hidden, *head)


NETS.add("lenet")(
    Network(
        make=lenet,
        help="LeNet-5: 5x5 convolutions to 6 and 16 channels, hidden layers of 120 and 84 (DC)",
        least=16,
        padded=True,
    )
)
NETS.add("mlp")(
    Network(
        make=mlp, help="perceptron with two hidden layers of 128 units (DC)", own={"width": 128}
    )
)
