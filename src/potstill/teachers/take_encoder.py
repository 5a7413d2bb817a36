"""An encoder from elsewhere: published weights, or those in a file, filed as trained ones are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from potstill.core.compute import Compute
from potstill.core.errors import InputError
from potstill.core.spec import record
from potstill.core.state import load_tree
from potstill.data import DataRef, DataSet, MeanStd, reopen
from potstill.nets import NetSpec, build, filled
from potstill.nets.hidden import head_of
from potstill.teachers.encoders import (
    ENCODER,
    ENCODER_FACTS,
    Encoder,
    blank,
    keep_encoder,
    open_encoder,
    read_encoder,
)
from potstill.teachers.files import FACTS, WEIGHTS, Teacher, load_weights, read_teacher
from potstill.teachers.take import counted, file_digest, published, read_weights
from potstill.teachers.train_encoder import neighbours

BACKBONES = ("", "backbone.", "encoder.")
"""Under what checkpoints of self-supervised training keep the network that gives features."""
HEADED = ("projector", "predictor", "classifier", "critic", "head", "fc")
"""Names of what they may hold beside it without such a prefix."""


@record
@dataclass(frozen=True, kw_only=True)
class TakeEncoderSpec:
    """An encoder that is there already: everything that what is filed depends on."""

    net: NetSpec
    """The network, without its weights."""
    weights: str
    """Name of published weights, or SHA-256 of the file."""
    space: MeanStd
    data: DataRef
    """Of what images it is, and on whose validation part its neighbours are looked at."""
    compute: Compute
    revision: int = 1
    """Raised when the code changes what is filed, so that old encoders are not reused."""


def take_encoder_spec(
    net: NetSpec, weights: str, data: DataSet, space: MeanStd | None, *, compute: Compute
) -> tuple[TakeEncoderSpec, dict[str, str]]:
    """Return the spec of an encoder of a network with weights, and where these lie.

    Args:
        net: the network without weights.
        weights: a name that torchvision publishes, or a file of torch.save or safetensors, or a
            folder of an encoder or teacher that was kept before.
        data: the data, whose images it will encode.
        space: the normaliser of its images; None if the weights bring it.
        compute: how the images are encoded, of which the nearest are looked at.

    Raises:
        InputError: if there is no such file, if nobody knows how its images are normalised, or if
            the weights are for other images.
    """
    told, shape = f"{net.name}@{weights}", (data.channels, *data.size)
    known, where, names = None, {}, published(net.name)
    if weights in names:
        how = names[weights].transforms()
        known = MeanStd(mean=tuple(how.mean), std=tuple(how.std))
    else:
        path = _file(Path(weights), told, names)
        made, weights = _made(path), file_digest(path)
        where = {weights: str(path.absolute())}
        if made is not None:
            known = made.space
            if (made.net, made.shape) != (filled(net), shape):
                raise InputError(
                    f"{path.parent} holds {made.net.name} for images {made.shape}, not {net.name} "
                    f"for {shape} as asked for, or with other settings."
                )
    space = _agreed(told, known, space)
    if space.channels != data.channels:
        raise InputError(f"{told} takes images of {space.channels} channels, not {data.channels}.")
    spec = TakeEncoderSpec(
        net=filled(net), weights=weights, space=space, data=data.ref, compute=compute
    )
    return spec, where


def _file(path: Path, told: str, names: Iterable[str]) -> Path:
    """Return the file of weights that a path names, or that its folder holds."""
    if path.is_dir():
        path = next((path / n for n in (ENCODER, WEIGHTS) if (path / n).is_file()), path / ENCODER)
    if not path.is_file():
        others = ", ".join(names)
        known = f", and torchvision publishes only {others}" if others else ""
        raise InputError(f"There is no file {path} with the weights of {told}{known}.")
    return path


def _made(path: Path) -> Encoder | Teacher | None:
    """Return the record of weights that potstill filed, or None."""
    if path.name == ENCODER and (path.parent / ENCODER_FACTS).is_file():
        return read_encoder(path.parent)
    if path.name == WEIGHTS and (path.parent / FACTS).is_file():
        return read_teacher(path.parent)
    return None


def _agreed(told: str, known: MeanStd | None, asked: MeanStd | None) -> MeanStd:
    """Return the normaliser that weights bring or that was asked for; they must not differ."""
    if known is None and asked is None:
        raise InputError(
            f"Nobody knows how the images of {told} are normalised: name its statistics (space), "
            "such as cifar100@sololearn."
        )
    if known is None or asked is None:
        return known or asked  # pyrefly: ignore[bad-return]
    own, other = (torch.tensor([space.mean, space.std]) for space in (known, asked))
    if own.shape != other.shape or not torch.allclose(own, other, atol=1e-4):
        raise InputError(
            f"{told} takes images normalised by {known.describe()}, not by {asked.describe()}."
        )
    return known


def take_encoder(spec: TakeEncoderSpec, context: dict[str, str], folder: Path) -> None:
    """Read an encoder's weights, file them, and measure its k-NN accuracy on validation images.

    context[weights] is the path of weights from a file. What a checkpoint holds beside the network
    (projectors, the last layer) is left out, and named in the facts.

    Raises:
        InputError: if the file is damaged or holds no weights of this network: one is missing, too
            many, or of another shape.
        WorkError: if published weights cannot be had.
    """
    data, path = reopen(spec.data), context.get(spec.weights)
    shape, net = (data.channels, *data.size), spec.net
    if path is None:
        net = replace(net, name=f"{net.name}@{spec.weights}")
    module, left = blank(net, shape), list[str]()
    if path is not None:
        held = load_tree(Path(path)) if _made(Path(path)) else read_weights(Path(path))
        state, left = network_in(held, module.encoder, head=_head(net, shape))
        state = counted(state, module.encoder)
        load_weights(module.encoder, state, name=path, what="encoder")
    own: dict[str, Any] = {"net": spec.net, "space": spec.space, "shape": shape}
    encoder = keep_encoder(module, folder, **own)
    with torch.no_grad():
        x = spec.space.forward(data.val.pixels[:2])
        if not torch.equal(module.eval()(x), open_encoder(encoder, folder)(x)):
            raise InputError(f"{net.name} does more with its images than {spec.net.name} does.")
    facts = {
        "source": context.get("source"),
        "weights": Path(path).name if path else net.name,
        "left_out": left,
        **neighbours(encoder, folder, data, compute=spec.compute),
    }
    keep_encoder(module, folder, **own, facts=facts)


def _head(net: NetSpec, shape: tuple[int, int, int]) -> str:
    """Return the name of the last layer of a network."""
    module = build(net, channels=shape[0], size=shape[1:], classes=2, seed=0)
    last = head_of(module, name=net.name)
    return next(name for name, part in module.named_modules() if part is last)


def network_in(
    held: Mapping[str, Tensor], encoder: nn.Module, *, head: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the weights of an encoder among those of a checkpoint, and what was left out.

    The network may be under "backbone." or "encoder.", and then all that is not is left out; else
    its last layer, called `head`, and projectors and the like are. Other names stay, so that
    `load_weights` refuses them.
    """
    own = encoder.state_dict().keys()
    for prefix in BACKBONES:
        inside = {n.removeprefix(prefix): t for n, t in held.items() if n.startswith(prefix)}
        if not own.isdisjoint(inside):
            break
    else:
        prefix, inside = "", dict(held)
    left = {name.partition(".")[0] for name in held if not name.startswith(prefix)}
    kept = {}
    for name, value in inside.items():
        top = name.partition(".")[0]
        if name not in own and (top in HEADED or name.startswith(f"{head}.")):
            left.add(top)
        else:
            kept[name] = value
    return kept, sorted(left)
