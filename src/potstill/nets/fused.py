"""Blocks of convolution, instance norm, ReLU and average pooling, fast where differentiated twice.

For eager mode; the parts are in `bilinear` and `instance`. On a CPU all maps are in channels-last
order. Never for compiled steps, where functions with derivatives written out are silently wrong:
these use stock layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from potstill.nets.bilinear import Pair, convolve
from potstill.nets.instance import channels_last, normed

LEAST = 2**14
"""Numbers in an image's first map from which on this is faster than stock operators.

Below, the time goes into calls, of which stock operators need fewer. The batch does not count, so
that one network is always computed in one way.
"""


class Blocks(nn.Sequential):
    """Layers one after another; those of large maps that `block` can compute go through it."""

    def forward(self, x: Tensor) -> Tensor:  # pyrefly: ignore[bad-override]
        """Return the output of the last layer for images x [B, C, H, W]."""
        layers, k = [*self, None, None, None], 0
        large = not torch.compiler.is_compiling() and _large(x, layers[0])
        while (layer := layers[k]) is not None:
            conv, norm, act, pool = layers[k : k + 4]
            if large and usable(x, conv, norm, act):
                assert isinstance(conv, nn.Conv2d)
                assert isinstance(norm, nn.GroupNorm)
                pooled = is_pool(pool)
                x = block(x, conv, norm, pool=pooled, first=k == 0)
                k += 3 + pooled
            else:
                x = layer(x)
                k += 1
        return x


def _large(x: Tensor, first: nn.Module | None) -> bool:
    if x.dim() != 4 or not len(x) or not isinstance(first, nn.Conv2d):
        return False
    return first.out_channels * x.shape[2] * x.shape[3] >= LEAST


def usable(
    x: Tensor, conv: nn.Module | None, norm: nn.Module | None, act: nn.Module | None
) -> bool:
    """Return whether `block` computes in eager mode what these layers would of x [B, C, H, W]."""
    if type(conv) is not nn.Conv2d or type(norm) is not nn.GroupNorm or type(act) is not nn.ReLU:
        return False
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return False
    if norm.weight is None or norm.bias is None or norm.num_groups != norm.num_channels:
        return False
    if _watched(conv, norm, act):
        return False
    if torch.is_autocast_enabled(x.device.type):
        return False
    types = {x.dtype, conv.weight.dtype, norm.weight.dtype}
    return len(types) == 1 and x.dtype in (torch.float32, torch.float64)


def block(
    x: Tensor, conv: nn.Conv2d, norm: nn.GroupNorm, *, pool: bool, first: bool = False
) -> Tensor:
    """Return norm(conv(x)) after ReLU and, with `pool`, average pooling 2x2, of x [B, C, H, W].

    Differentiable twice; a third derivative raises RuntimeError. The bias of the convolution
    cancels in the norm: it is left out, and its gradient is exactly zero (torch's is rounding).
    `first`: x are images, whose gradient a step leaves out where only weights need theirs.
    """
    form = (_pair(conv.stride), _pair(conv.padding), _pair(conv.dilation), conv.groups)
    z = convolve(channels_last(x), conv.weight, form, split=first)
    return normed(z, norm.weight, norm.bias, shift=conv.bias, eps=norm.eps, pool=pool)


def is_pool(layer: nn.Module | None) -> bool:
    """Return whether a layer is the average pooling that `block` takes in."""
    if layer is None or type(layer) is not nn.AvgPool2d or _watched(layer):
        return False
    sides = (_pair(layer.kernel_size), _pair(layer.stride), _pair(layer.padding))
    plain = not layer.ceil_mode and layer.divisor_override is None
    return plain and sides == ((2, 2), (2, 2), (0, 0))


def _watched(*layers: nn.Module) -> bool:
    """Return whether someone listens to or has changed the calls of these layers."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(
        "forward" in vars(layer) or any(getattr(layer, name) for name in hooks) for layer in layers
    )


def _pair(value: Any) -> Pair:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))
