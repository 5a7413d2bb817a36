"""Projectors: small heads on the features of a network, for self-supervised training.

Sources: Zbontar et al., "Barlow Twins", ICML 2021 (arXiv 2103.03230); Chen et al., SimCLR, ICML
2020 (arXiv 2002.05709); in the forms that solo-learn, mix-bt and SAS give them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from potstill.core.errors import InputError
from potstill.core.keys import Part, forked
from potstill.core.spec import record
from potstill.nets.flat import FlatNet
from potstill.nets.hidden import Projected, head_of
from potstill.nets.spec import NetSpec, build, filled
from potstill.nets.trial import Size, complaint


@record
@dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """Linear layers of these widths; all but the last are followed by batch norm and ReLU.

    Raises:
        InputError: for no widths, or one below 1.
    """

    widths: tuple[int, ...]
    """Outputs of each linear layer."""
    bias: bool = False
    """Whether the hidden layers have a bias, which their batch norm takes away again."""
    last_bias: bool = True
    last_norm: bool = False
    """Whether a batch norm without weights ends the head."""

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise InputError(f"A head needs widths of at least 1, not {list(self.widths)}.")


HEADS: Mapping[str, HeadSpec] = {
    "sololearn": HeadSpec(widths=(2048, 2048, 2048), bias=True),
    "mixbt": HeadSpec(widths=(512, 1024)),
    "sas": HeadSpec(widths=(512, 128), last_bias=False, last_norm=True),
    "toy": HeadSpec(widths=(512, 128)),
}
"""By the training that uses them: Barlow Twins of solo-learn (biases are a guess) and of mix-bt,
SimCLR of SAS, the study of variances."""
VIEWS_HEAD = HEADS["toy"]
"""In place of the last layer of experts, students and networks on sets that learn from views."""


def projector(spec: HeadSpec, inputs: int) -> nn.Sequential:
    """Make a head that takes features [B, inputs]."""
    layers: list[nn.Module] = []
    *hidden, last = spec.widths
    for width in hidden:
        layers += [nn.Linear(inputs, width, bias=spec.bias), nn.BatchNorm1d(width), nn.ReLU()]
        inputs = width
    layers.append(nn.Linear(inputs, last, bias=spec.last_bias))
    if spec.last_norm:
        layers.append(nn.BatchNorm1d(last, affine=False))
    return nn.Sequential(*layers)


def encoder_of(module: nn.Module, *, name: str) -> tuple[nn.Module, int]:
    """Return a copy of a network without its last linear layer, and how many features it gives.

    The network is called `name` in sentences.

    Raises:
        InputError: if there is no linear layer.
    """
    head = head_of(module, name=name)
    path = next(path for path, part in module.named_modules() if part is head)
    if not path:
        return nn.Flatten(), head.in_features
    encoder = copy.deepcopy(module)
    parent, _, leaf = path.rpartition(".")
    setattr(encoder.get_submodule(parent), leaf, nn.Identity())
    return encoder, head.in_features


def without_head(module: nn.Module, *, name: str) -> Projected:
    """Return a network without its last layer, which gives features [B, F] of images.

    Of a `Projected` that is its encoder, the same one, else a copy; the network is called `name`
    in sentences.

    Raises:
        InputError: if it does not end in a linear layer.
    """
    encoder = module.encoder if isinstance(module, Projected) else encoder_of(module, name=name)[0]
    return Projected(encoder, nn.Identity())


def projected(
    spec: NetSpec,
    head: HeadSpec,
    *,
    channels: int,
    size: Size,
    seed: int,
    key: tuple[Part, ...] = (),
) -> FlatNet:
    """Return a network with a head in place of its last layer, as a function of one vector.

    The encoder's weights are those of `build` with as many classes as the head has outputs and the
    same key; the head draws from the key with "head".

    Raises:
        InputError: as `build`, or if the network does not end in a linear layer.
    """
    module = build(spec, channels=channels, size=size, classes=head.widths[-1], seed=seed, key=key)
    encoder, inputs = encoder_of(module, name=spec.name)
    with forked(seed, *key, "head"):
        whole = Projected(encoder, projector(head, inputs))
    if problem := complaint(whole, channels, size, head.widths[-1]):
        raise InputError(f"{spec.name} takes no other head ({problem}).")
    recipe = (filled(spec), head, channels, tuple(size))
    return FlatNet(whole, recipe=None if spec.name.startswith("module:") else recipe)
