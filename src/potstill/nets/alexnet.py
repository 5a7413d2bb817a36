"""The AlexNet for small images of DC, DSA and MTT.

Source: Krizhevsky, Sutskever and Hinton, NeurIPS 2012, in the form of Zhao, Mopuri and Bilen,
"Dataset Condensation with Gradient Matching", ICLR 2021 (arXiv:2006.05929).
"""

from __future__ import annotations

import math

from torch import nn

from potstill.nets.layers import Features, map_size, norm_of, padded, pool_of
from potstill.nets.spec import NETS, NetSpec, Network, Size


def alexnet(spec: NetSpec, channels: int, size: Size, classes: int) -> nn.Module:
    """Make five convolutions with ReLU, three poolings and one linear map; no dropout.

    At the published width 128 the maps have 128, 192, 256, 192 and 192 channels. A side of 28
    pixels is padded to 32; from 64 pixels on the first convolution has stride 2.

    Differs: RaT-BPTT's AlexNet is this one with norm "instance" and pool "avg".
    """
    assert spec.width is not None
    norm, pool = norm_of(spec.norm), pool_of(spec.pool)
    first = nn.Conv2d(
        channels, spec.width, 5, stride=2 if min(size) >= 64 else 1, padding=padded(size, 2)
    )
    w, v, u = spec.width, spec.width * 3 // 2, spec.width * 2
    layers = [first, norm(w), nn.ReLU(), pool()]
    layers += [nn.Conv2d(w, v, 5, padding=2), norm(v), nn.ReLU(), pool()]
    for before, after in ((v, u), (u, v), (v, v)):
        layers += [nn.Conv2d(before, after, 3, padding=1), norm(after), nn.ReLU()]
    layers.append(pool())
    classifier = nn.Linear(v * math.prod(map_size(layers, size)), classes)
    return Features(nn.Sequential(*layers), classifier)


for _name, _norm in (("alexnet", "none"), ("alexnet-bn", "batch")):
    NETS.add(_name)(
        Network(
            make=alexnet,
            help=f"AlexNet for small images, {'no' if _norm == 'none' else _norm} norm (DC, MTT)",
            own={"width": 128, "norm": _norm, "pool": "max"},
            least=8,
            padded=True,
        )
    )
