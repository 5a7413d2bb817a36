"""Which network: a small record, the table of names, and the one way to build."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from potstill.core.errors import InputError
from potstill.core.keys import Part, forked
from potstill.core.registry import Registry
from potstill.core.spec import record


@record
@dataclass(frozen=True, kw_only=True)
class NetSpec:
    """Name a network and its variant; the defaults are the ConvNet-D3 of the DC/DSA/MTT papers."""

    name: str = "convnet3"
    """Exact name of the network (see `potstill nets`)."""
    width: int = 128
    """Channels of each block."""
    norm: str = "instance"
    """Normalisation: none, batch, layer, instance or group."""
    act: str = "relu"
    """Activation: relu, sigmoid or leaky."""
    pool: str = "avg"
    """Pooling: none, max or avg."""


def variant(name: str, own: NetSpec) -> NetSpec:
    """Return the network of a name: a ConvNet takes its options from `own`, others are as named."""
    return replace(own, name=name) if name.startswith("convnet") else NetSpec(name=name)


Factory = Callable[[NetSpec, int, tuple[int, int], int], nn.Module]
"""(spec, channels, (height, width), classes) -> network with PyTorch's default initialisation."""

NETS: Registry[Factory] = Registry("network")


def build(
    spec: NetSpec,
    *,
    channels: int,
    size: tuple[int, int],
    classes: int,
    seed: int,
    key: tuple[Part, ...] = (),
) -> nn.Module:
    """Build a network [B, channels, *size] -> [B, classes]; equal (seed, *key), equal weights.

    The caller's global generator is left as it was.

    Raises:
        InputError: for an unknown network or variant, or an image size that does not fit.
    """
    factory = NETS.get(spec.name)
    for name, count in (("width", spec.width), ("channels", channels), ("classes", classes)):
        if count < 1:
            raise InputError(f"A network needs {name} of at least 1, not {count}.")
    with forked(seed, *key):
        return factory(spec, channels, size, classes)
