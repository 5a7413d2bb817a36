"""A teacher from elsewhere: published weights, or those in a file, filed as trained ones are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from potstill.core.errors import InputError
from potstill.core.files import file_hash
from potstill.core.spec import record
from potstill.core.state import load_tree
from potstill.core.torchfile import kind_of, read_torch
from potstill.core.vision import import_torchvision
from potstill.data import DataRef, DataSet, MeanStd, reopen
from potstill.nets import NetSpec, build, filled
from potstill.nets.taps import Tapped
from potstill.teachers.check import names_of, teacher_accuracy
from potstill.teachers.files import (
    FACTS,
    WEIGHTS,
    keep_teacher,
    load_weights,
    open_teacher,
    read_teacher,
    teacher_facts,
)

LOOKED = 5000
"""Validation images, at most, on which the accuracy of such a teacher is measured."""
_PARTS = ("model", "state_dict", "model_state_dict")
"""Under what checkpoints keep the weights beside optimizer and epoch."""


@record
@dataclass(frozen=True, kw_only=True)
class TakeSpec:
    """A teacher that is there already: everything that what is filed depends on."""

    net: NetSpec
    """The network, without its weights."""
    weights: str
    """Name of published weights, or SHA-256 of the file."""
    data: DataRef
    """On whose validation part its accuracy is measured."""
    space: MeanStd
    """Normaliser of the images that it takes."""
    revision: int = 1
    """Raised when the code changes what is filed, so that old teachers are not reused."""


def take_spec(
    net: NetSpec, weights: str, data: DataSet, space: MeanStd
) -> tuple[TakeSpec, dict[str, str]]:
    """Return the spec of a teacher of a network with weights, and where these lie.

    Args:
        net: the network without weights.
        weights: a name that torchvision publishes, or a file of torch.save or safetensors, or a
            folder of a teacher that was kept before.
        data: the data, on whose validation part it is checked.
        space: the normaliser of its images.

    Raises:
        InputError: if there is no such file; if published weights have other classes, or are for
            images that are normalised otherwise.
    """
    names = published(net.name)
    if weights in names:
        _check_published(net.name, weights, names[weights], data, space)
        return TakeSpec(net=filled(net), weights=weights, data=data.ref, space=space), {}
    path = Path(weights)
    path = path / WEIGHTS if path.is_dir() else path
    if not path.is_file():
        known = f", and torchvision publishes only {', '.join(names)}" if names else ""
        raise InputError(f"There is no file {weights} with weights of {net.name}{known}.")
    digest = file_digest(path)
    spec = TakeSpec(net=filled(net), weights=digest, data=data.ref, space=space)
    return spec, {digest: str(path.absolute())}


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, read again only if it has changed."""
    changed = path.stat()
    return _digest(path.absolute(), changed.st_mtime_ns, changed.st_size)


@lru_cache(maxsize=16)
def _digest(path: Path, changed: int, size: int) -> str:
    return file_hash(path)


def published(name: str) -> Mapping[str, Any]:
    """Return the published weights of a network of torchvision, by name; of others none."""
    source, _, plain = name.partition(":")
    if source != "torchvision":
        return {}
    models: Any = import_torchvision().models
    if plain not in models.list_models(module=models):
        return {}
    return {weights.name: weights for weights in models.get_model_weights(plain)}


def _check_published(name: str, weights: str, found: Any, data: DataSet, space: MeanStd) -> None:
    classes, how = len(found.meta["categories"]), found.transforms()
    if classes != data.n_classes:
        raise InputError(
            f"{name}@{weights} knows {classes} classes, the data have {data.n_classes}; train a "
            "teacher on the data instead."
        )
    own = torch.tensor([how.mean, how.std])
    if not torch.allclose(own, torch.tensor([space.mean, space.std]), atol=1e-4):
        raise InputError(
            f"{name}@{weights} takes images normalised by mean {tuple(how.mean)}, std "
            f"{tuple(how.std)}, not by {space.describe()}; for ImageNet's add --normaliser "
            "imagenet@dc."
        )


def take_teacher(spec: TakeSpec, context: dict[str, str], folder: Path) -> None:
    """Read a teacher's weights, file them, and measure its accuracy on validation images.

    Of more than 5,000 images so many, evenly spaced, are looked at. context[weights] is the path of
    weights from a file.

    Raises:
        InputError: if the file is damaged or no weights of this network: a weight is missing or too
            many, or of another shape, or a network without batch norm.
        WorkError: if published weights cannot be had.
    """
    data, path = reopen(spec.data), context.get(spec.weights)
    shape, net = (data.channels, *data.size), spec.net
    if path is None:
        net = replace(net, name=f"{net.name}@{spec.weights}")
    module = build(net, channels=data.channels, size=data.size, classes=data.n_classes, seed=0)
    if path is not None:
        of = (spec, shape, data.n_classes, names_of(data.classes))
        load_weights(module, _state(Path(path), *of, module), name=path)
    Tapped(module)  # refuses one without batch norm
    options: dict[str, Any] = {"net": spec.net, "space": spec.space, "shape": shape}
    options |= {"classes": data.n_classes, "names": names_of(data.classes)}
    kept = open_teacher(keep_teacher(module, folder, **options), folder)
    with torch.no_grad():
        x = spec.space.forward(data.val.pixels[:2])
        if not torch.equal(module.eval()(x), kept(x)):
            raise InputError(f"{net.name} does more with its images than {spec.net.name} does.")
    some = torch.linspace(0, len(data.val) - 1, min(len(data.val), LOOKED)).round().long()
    facts = {
        "source": context.get("source"),
        "weights": Path(path).name if path else net.name,
        "validation_images": len(some),
        "recorded_accuracy": _recorded(spec, path),
        "validation_accuracy": teacher_accuracy(
            spec.space, kept, replace(data, val=data.val.take(some))
        ),
    }
    keep_teacher(module, folder, **options, facts=facts)


def _recorded(spec: TakeSpec, path: str | None) -> float | None:
    """Return the accuracy that weights are known for: a teacher's, or that on ImageNet-1K."""
    if path is None:
        metrics = published(spec.net.name)[spec.weights].meta.get("_metrics", {})
        known = metrics.get("ImageNet-1K", {}).get("acc@1")
        return None if known is None else known / 100
    if Path(path).name == WEIGHTS and (Path(path).parent / FACTS).is_file():
        return teacher_facts(Path(path).parent).get("validation_accuracy")
    return None


def _state(
    file: Path,
    spec: TakeSpec,
    shape: tuple[int, ...],
    classes: int,
    names: str,
    module: nn.Module,
) -> dict[str, Tensor]:
    """Return the weights in a file under the names of the network.

    Differs from the file: batch norms without a count of their batches, as old versions of torch
    write them, get the count 0, which nothing in a teacher reads.
    """
    if file.name == WEIGHTS and (file.parent / FACTS).is_file():
        made = read_teacher(file.parent)
        if (made.net, made.space, made.shape, made.classes) != (
            spec.net, spec.space, shape, classes,
        ):  # fmt: skip
            raise InputError(
                f"The teacher in {file.parent} is {made.net.name} for {made.classes} classes of "
                f"images {made.shape} with {made.space.describe()}, not what is asked for."
            )
        if made.names not in (None, names):
            raise InputError(
                f"The classes of the teacher in {file.parent} have other names than those of the "
                "data, or come in another order."
            )
        return load_tree(file)
    return counted(read_weights(file), module)


def counted(state: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a network with counts of batches, 0 if they have none at all."""
    counts = {n: t for n, t in module.state_dict().items() if n.endswith("num_batches_tracked")}
    if counts.keys().isdisjoint(state):
        state |= {name: torch.zeros_like(count) for name, count in counts.items()}
    return state


def read_weights(file: Path) -> dict[str, Tensor]:
    """Return the weights in a file of torch.save or safetensors, by name; nothing in it is run.

    A checkpoint may hold them beside other things, under "model", "state_dict" or
    "model_state_dict", and settings as an argparse.Namespace, which are not read. The prefix
    "module." of networks that several GPUs trained is left out.

    Raises:
        InputError: if the file is damaged, asks for more than tensors, or holds no weights.
    """
    held: Any = _safe(file) if file.suffix == ".safetensors" else read_torch(file, settings=True)
    if isinstance(held, dict):
        part = next((name for name in _PARTS if isinstance(held.get(name), dict)), None)
        held = held if part is None else held[part]
    if not isinstance(held, dict) or not held or not all(map(torch.is_tensor, held.values())):
        raise InputError(f"{file} holds {kind_of(held)}, not the weights of a network by name.")
    if all(str(name).startswith("module.") for name in held):
        held = {str(name).removeprefix("module."): value for name, value in held.items()}
    return {str(name): value for name, value in held.items()}


def _safe(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is damaged or not a file of safetensors.") from error
