"""A teacher as a folder, and the record that names it by its content.

The folder holds `teacher.safetensors` (weights and running statistics) and `teacher.json` (the
record). Whoever trained it, equal weights have an equal name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from potstill.core.errors import InputError
from potstill.core.files import read_json, write_json
from potstill.core.spec import canonical, from_json, record, to_json
from potstill.core.state import load_tree, save_tree, tensor_digest
from potstill.data import MeanStd
from potstill.nets import NetSpec, build, filled

R = TypeVar("R")
WEIGHTS, FACTS = "teacher.safetensors", "teacher.json"
"""The files of a teacher: weights with running statistics, and its record."""


@record
@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A trained network: which, of what images and classes, and the hash of its weights."""

    net: NetSpec
    space: MeanStd
    """Normaliser of the images that it was trained on."""
    shape: tuple[int, int, int]
    """Channels, height and width of an image."""
    classes: int
    names: str | None = None
    """Hash of the class names in their order (`names_of`); None if they are not known."""
    digest: str
    """SHA-256 of weights, running statistics and all of the above."""


def keep_teacher(
    module: nn.Module,
    folder: Path,
    *,
    net: NetSpec,
    space: MeanStd,
    shape: tuple[int, int, int],
    classes: int,
    names: str | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Teacher:
    """Write a trained network into a folder and return its record.

    Args:
        module: as `nets.build` makes it from `net`.
        folder: an existing one.
        net: the network, without the weights of a name such as torchvision:NAME@WEIGHTS.
        space: normaliser of its images.
        shape: channels, height and width of an image.
        classes: logits of the network.
        names: see `Teacher`.
        facts: plain JSON data for people (accuracy, epochs).

    Raises:
        InputError: if weights are not finite.
        WorkError: if the disk refuses.
    """
    state = {name: part.detach().cpu().contiguous() for name, part in module.state_dict().items()}
    bad = [n for n, t in state.items() if t.is_floating_point() and not bool(t.isfinite().all())]
    if bad:
        raise InputError(f"The teacher's weights {bad[0]} hold NaN or infinity.")
    net = filled(net)
    digest = _digest(state, net, space, shape, classes, names)
    teacher = Teacher(
        net=net, space=space, shape=shape, classes=classes, names=names, digest=digest
    )
    save_tree(folder / WEIGHTS, state)
    write_json(folder / FACTS, {"teacher": to_json(teacher), "facts": dict(facts or {})})
    return teacher


def read_teacher(folder: Path) -> Teacher:
    """Return the record of the teacher in a folder; its weights are not read.

    Raises:
        InputError: if there is none, or it needs something that this version does not have.
    """
    return read_record(folder / FACTS, Teacher, "teacher")[0]


def teacher_facts(folder: Path) -> dict[str, Any]:
    """Return what was noted about the teacher in a folder.

    Raises:
        InputError: as `read_teacher`.
    """
    return read_record(folder / FACTS, Teacher, "teacher")[1]


def read_record(file: Path, kind: type[R], name: str) -> tuple[R, dict[str, Any]]:
    """Return the record of a network that is in a file under its name, and what was noted of it.

    Raises:
        InputError: if there is none, or it needs something that this version does not have.
    """
    wrong = InputError(f"{file} does not describe {'an' if name[0] in 'aeiou' else 'a'} {name}.")
    try:
        found = read_json(file)
        made, facts = from_json(found[name]), found["facts"]
    except (KeyError, TypeError) as error:
        raise wrong from error
    if not isinstance(made, kind):
        raise wrong
    return made, facts


def open_teacher(teacher: Teacher, folder: Path) -> nn.Module:
    """Return a teacher in evaluation mode, with frozen weights.

    Raises:
        InputError: if the folder holds other weights, or some are missing or too many.
    """
    state = load_tree(folder / WEIGHTS)
    given = (teacher.net, teacher.space, teacher.shape, teacher.classes, teacher.names)
    if _digest(state, *given) != teacher.digest:
        raise InputError(f"{folder} holds another teacher than {teacher.digest[:12]}.")
    channels, *size = teacher.shape
    module = build(
        teacher.net, channels=channels, size=(size[0], size[1]), classes=teacher.classes, seed=0
    )
    load_weights(module, state, name=str(folder))
    return module.eval().requires_grad_(False)


def load_weights(
    module: nn.Module, state: Mapping[str, Tensor], *, name: str, what: str = "teacher"
) -> None:
    """Put weights and running statistics into a network; nothing is ever left out.

    Raises:
        InputError: naming one that is missing, too many, or of another shape.
    """
    own = module.state_dict()
    missing, strange = own.keys() - state.keys(), state.keys() - own.keys()
    if missing or strange:
        which, does = (missing, "lacks") if missing else (strange, "has, unlike the network,")
        count = f"{len(which)} weight{'s'[: len(which) != 1]}"
        raise InputError(f"The {what} {name} {does} {count} such as {min(which)}.")
    for key, value in own.items():
        if value.shape != state[key].shape:
            raise InputError(
                f"The {what} {name} has {key} of shape {list(state[key].shape)}; the network's is "
                f"{list(value.shape)}."
            )
    with torch.no_grad():
        module.load_state_dict(dict(state), strict=True)


def _digest(state: Mapping[str, Tensor], *given: Any) -> str:
    return tensor_digest(state, canonical(given))
