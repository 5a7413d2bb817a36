"""Which network: a small record, the table of networks, and the one way to build."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from potstill.core.errors import InputError, WorkError, unknown
from potstill.core.keys import Part, forked
from potstill.core.registry import Registry
from potstill.core.spec import record
from potstill.nets.external import EXTERNAL
from potstill.nets.flat import FlatNet
from potstill.nets.trial import Size, complaint, first_line, sides_that_fit


@record
@dataclass(frozen=True, kw_only=True)
class NetSpec:
    """Name a network and its variant; a setting that is None is the network's published value."""

    name: str = "convnet3"
    """Exact name of the network (see `potstill nets`)."""
    width: int | None = None
    """Channels of the first block; those of the others keep their proportion."""
    norm: str | None = None
    """Normalisation: none, batch, layer, instance or group."""
    act: str | None = None
    """Activation of a ConvNet: relu, sigmoid, leaky or swish."""
    pool: str | None = None
    """Pooling of ConvNet, AlexNet and VGG: none, max or avg."""


SETTINGS = ("width", "norm", "act", "pool")
Factory = Callable[[NetSpec, int, Size, int], nn.Module]
"""(spec, channels, (height, width), classes) -> network with its initial weights."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network: how it is made, its published settings, and the images that it takes."""

    make: Factory
    help: str
    """One line for people."""
    own: Mapping[str, Any] = field(default_factory=dict)
    """The settings that it has, at their published values."""
    least: int = 1
    """The smallest side of an image; a side of 28 counts as 32 where it is padded so."""
    padded: bool = False
    """Whether a side of 28 is padded to 32."""
    step: int = 1
    """Widths must be multiples of it."""

    @property
    def width(self) -> int | None:
        """The published width; None for a network without this setting."""
        return self.own.get("width")


NETS: Registry[Network] = Registry("network")
AUTO, OWN = "auto", "own"
NET_POOLS: Mapping[str, tuple[str, ...]] = {
    "mtt": (OWN, "resnet18", "vgg11", "alexnet"),
    "dc": (OWN, "mlp", "lenet", "alexnet", "vgg11", "resnet18"),
    "dc-bench": (OWN, "mlp", "resnet18", "resnet152", "vit"),
    "idc": (OWN, "resnet10-idc", "densenet-idc"),
}
"""Networks that the papers transfer to; `own` is the network that the set was made with.

Sources: MTT and FTD (its table 3); pool M of DC; DC-BENCH, as far as known; IDC on CIFAR-10.
"""


def find(name: str) -> Network:
    """Return the network of a name: a registered one, or one from outside (`EXTERNAL`).

    Raises:
        InputError: for an unknown name, with the nearest known one.
    """
    source, colon, rest = name.partition(":")
    if not colon:
        return NETS.get(name)
    if source not in EXTERNAL:
        raise unknown("source of networks", source, EXTERNAL)
    outside = EXTERNAL[source]
    return Network(make=lambda _, c, size, k: outside.make(rest, c, size, k), help=outside.help)


def filled(spec: NetSpec) -> NetSpec:
    """Return the spec with every setting that its network has at a value, others at None.

    Raises:
        InputError: for an unknown network, or a setting that it does not have.
    """
    own = find(spec.name).own
    given = {name: getattr(spec, name) for name in SETTINGS}
    for name, value in given.items():
        if value is not None and name not in own:
            has = f"has only {', '.join(own)}" if own else "has no settings"
            raise InputError(f"{spec.name} has no setting {name} ({value!r}); it {has}.")
    return replace(spec, **{n: own[n] for n, value in given.items() if value is None and n in own})


def fitting(spec: NetSpec, size: Size) -> NetSpec:
    """Return the spec filled, with the name `auto` replaced by the ConvNet that ends at ~4x4."""
    if spec.name == AUTO:
        depth = max(1, min(8, round(math.log2(min(size) / 4))))
        spec = replace(spec, name=f"convnet{depth}")
    return filled(spec)


def narrowed(spec: NetSpec, part: float) -> NetSpec:
    """Return the spec at that part of its published width, if it has a width and is wider."""
    net = find("convnet3" if spec.name == AUTO else spec.name)
    if net.width is None:
        return spec
    width = _scaled(net, part)
    return replace(spec, width=min(spec.width or width, width))


def variant(name: str, own: NetSpec) -> NetSpec:
    """Return the network of a name as a companion of `own`, filled.

    A ConvNet (convnetD) takes the options of another one. Every other network has its published
    settings and the width in the same proportion: `own` at width 32 of 128 makes resnet18 width 16
    of 64. The name `own` means own.
    """
    own = filled(own)
    if name in (OWN, own.name):
        return own
    if all(each.startswith("convnet") and "-" not in each for each in (name, own.name)):
        return filled(replace(own, name=name))
    net, base = find(name), find(own.name).width
    if net.width is None or base is None or own.width is None:
        return filled(NetSpec(name=name))
    return filled(NetSpec(name=name, width=_scaled(net, own.width / base)))


def _scaled(net: Network, part: float) -> int:
    assert net.width is not None
    return max(1, round(net.width * part / net.step)) * net.step


def describe(spec: NetSpec) -> str:
    """Return the name and the settings that differ from the published ones, for people."""
    own = {} if spec.name == AUTO else find(spec.name).own
    values = {name: getattr(spec, name) for name in SETTINGS}
    other = [f"{n} {v}" for n, v in values.items() if v is not None and v != own.get(n)]
    return " ".join([spec.name, *other])


def build(
    spec: NetSpec,
    *,
    channels: int,
    size: Size,
    classes: int,
    seed: int,
    key: tuple[Part, ...] = (),
) -> nn.Module:
    """Build a network [B, channels, *size] -> [B, classes]; equal (seed, *key), equal weights.

    The caller's global generator is left as it was.

    Raises:
        InputError: for an unknown network or variant, or images that do not fit.
    """
    spec, net = filled(spec), find(spec.name)
    for name, count in (("width", spec.width), ("channels", channels), ("classes", classes)):
        if count is not None and count < 1:
            raise InputError(f"A network needs {name} of at least 1, not {count}.")
    if spec.width is not None and spec.width % net.step:
        raise InputError(f"{spec.name} needs a width divisible by {net.step}, not {spec.width}.")
    if min(32 if net.padded and side == 28 else side for side in size) < net.least:
        raise too_small(spec.name, net.least, size)
    with forked(seed, *key):
        return _tried(spec, net, channels, size, classes)


def flat(
    spec: NetSpec,
    *,
    channels: int,
    size: Size,
    classes: int,
    seed: int,
    key: tuple[Part, ...] = (),
) -> FlatNet:
    """Return the network that `build` makes, with its errors, as a function of one vector.

    It has no recipe if it comes from a function of the user's: nobody knows what that gives next.
    """
    module = build(spec, channels=channels, size=size, classes=classes, seed=seed, key=key)
    recipe = (filled(spec), channels, tuple(size), classes)
    return FlatNet(module, recipe=None if spec.name.startswith("module:") else recipe)


def _tried(spec: NetSpec, net: Network, channels: int, size: Size, classes: int) -> nn.Module:
    """Make a network and try it on two empty images."""
    try:
        module = net.make(spec, channels, size, classes)
        problem = complaint(module, channels, size, classes)
        if not problem:
            return module
    except (InputError, WorkError):
        raise
    except Exception as error:  # whatever the network's author lets happen
        problem = first_line(error)
    bare = find(spec.name.split("@")[0])  # weights do not decide which sizes fit
    sides = sides_that_fit(lambda size: bare.make(spec, channels, size, classes), channels, classes)
    hint = f"; squares of {', '.join(map(str, sides))} pixels would do" if sides else ""
    raise InputError(
        f"{spec.name} does not work on images of {channels}x{size[0]}x{size[1]} and {classes} "
        f"classes ({problem}){hint}."
    )


def too_small(name: str, least: int, size: Size, hint: str = "") -> InputError:
    """Return the error for images smaller than a network takes."""
    return InputError(
        f"{name} needs images of at least {least}x{least} pixels, not {size[0]}x{size[1]}{hint}."
    )
