"""An encoder: a frozen network that gives features, as a folder and a record of its content.

The folder holds `encoder.safetensors` (weights and running statistics, without the last layer) and
`encoder.json` (the record). Equal weights have an equal name, whoever trained them, whatever head
they were trained with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from potstill.core.errors import InputError
from potstill.core.files import write_json
from potstill.core.spec import canonical, record, to_json
from potstill.core.state import load_tree, save_tree, tensor_digest
from potstill.data import MeanStd
from potstill.nets import NetSpec, build, filled, without_head
from potstill.nets.hidden import Projected
from potstill.teachers.files import load_weights, read_record

ENCODER, ENCODER_FACTS = "encoder.safetensors", "encoder.json"
"""The files of an encoder: weights with running statistics, and its record."""
Shape = tuple[int, int, int]


@record
@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A frozen network that gives features: which, of what images, and the hash of its weights."""

    net: NetSpec
    space: MeanStd
    """Normaliser of the images that it was trained on; its own, whatever that of a run is."""
    shape: Shape
    """Channels, height and width of an image."""
    width: int
    """Features of an image."""
    digest: str
    """SHA-256 of weights, running statistics and all of the above."""


def blank(net: NetSpec, shape: Shape) -> Projected:
    """Return a network that gives features, with any weights.

    Raises:
        InputError: as `build`, or if it does not end in a linear layer.
    """
    made = build(net, channels=shape[0], size=shape[1:], classes=2, seed=0)
    return without_head(made, name=net.name)


def keep_encoder(
    module: nn.Module,
    folder: Path,
    *,
    net: NetSpec,
    space: MeanStd,
    shape: Shape,
    facts: Mapping[str, Any] | None = None,
) -> Encoder:
    """Write a trained network into a folder, without its last layer, and return its record.

    Args:
        module: as `nets.build` makes it from `net`, or with a head in place of its last layer
            (`Projected`).
        folder: an existing one.
        net: the network, without the weights of a name such as torchvision:NAME@WEIGHTS.
        space: normaliser of its images.
        shape: channels, height and width of an image.
        facts: plain JSON data for people (losses, epochs).

    Raises:
        InputError: if the network does not end in a linear layer, or weights are not finite.
        WorkError: if the disk refuses.
    """
    encoder = without_head(module, name=net.name).eval()
    state = {k: part.detach().cpu().contiguous() for k, part in encoder.state_dict().items()}
    bad = [n for n, t in state.items() if t.is_floating_point() and not bool(t.isfinite().all())]
    if bad:
        raise InputError(f"The encoder's weights {bad[0]} hold NaN or infinity.")
    blank(net, shape).load_state_dict(state)  # so that it can be opened
    with torch.no_grad():
        some = next(encoder.parameters()).new_zeros(1, *shape)
        width = encoder(some).shape[1]
    net = filled(net)
    digest = _digest(state, net, space, shape, width)
    encoder_record = Encoder(net=net, space=space, shape=shape, width=width, digest=digest)
    save_tree(folder / ENCODER, state)
    told = {"encoder": to_json(encoder_record), "facts": dict(facts or {})}
    write_json(folder / ENCODER_FACTS, told)
    return encoder_record


def read_encoder(folder: Path) -> Encoder:
    """Return the record of the encoder in a folder; its weights are not read.

    Raises:
        InputError: if there is none, or it needs something that this version does not have.
    """
    return read_record(folder / ENCODER_FACTS, Encoder, "encoder")[0]


def encoder_facts(folder: Path) -> dict[str, Any]:
    """Return what was noted about the encoder in a folder.

    Raises:
        InputError: as `read_encoder`.
    """
    return read_record(folder / ENCODER_FACTS, Encoder, "encoder")[1]


def open_encoder(encoder: Encoder, folder: Path) -> nn.Module:
    """Return an encoder in evaluation mode, with frozen weights: images [B, C, H, W] -> [B, F].

    The images are normalised by `encoder.space`.

    Raises:
        InputError: if the folder holds other weights, or some are missing or too many.
    """
    state = load_tree(folder / ENCODER)
    if _digest(state, encoder.net, encoder.space, encoder.shape, encoder.width) != encoder.digest:
        raise InputError(f"{folder} holds another encoder than {encoder.digest[:12]}.")
    module = blank(encoder.net, encoder.shape)
    load_weights(module, state, name=str(folder), what="encoder")
    return module.eval().requires_grad_(False)


def _digest(state: Mapping[str, Tensor], *given: Any) -> str:
    return tensor_digest(state, canonical(given))
