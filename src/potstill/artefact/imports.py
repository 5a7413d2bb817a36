"""Distilled sets that other programs released, as distilled sets of ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from potstill.artefact.targets import Hard, Targets
from potstill.artefact.types import DistilledSet, Provenance
from potstill.core.errors import InputError
from potstill.core.files import file_hash
from potstill.core.registry import Registry
from potstill.core.spec import canonical
from potstill.core.version import __version__
from potstill.data import DataSet, Reading, Space, keep_space
from potstill.functional import TrainSpec
from potstill.nets import NetSpec, fitting


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a file holds: images [N, C, H, W], targets, and facts for people."""

    images: Tensor
    targets: Targets
    facts: dict[str, Any]


class Reader(Protocol):
    """Read a file of at most `most` images of that shape and number of classes."""

    def __call__(
        self, file: Path, *, shape: tuple[int, int, int], classes: int, most: int
    ) -> Found:
        """Return what the file holds; nothing in it is run, nothing outside it is read."""
        ...


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format of released sets: its reader, and the recipe for so many classes (hard labels)."""

    read: Reader
    recipe: Callable[[int], TrainSpec]
    help: str


FORMATS: Registry[Format] = Registry("import format")


def import_set(
    file: Path,
    *,
    format: str,  # noqa: A002 - as the flag is called
    data: DataSet,
    space: Space,
    net: NetSpec,
    reading: Reading | None = None,
) -> DistilledSet:
    """Return the set in a file, with the published recipe of its format.

    Args:
        file: the file.
        format: see `FORMATS`.
        data: the real images that it was distilled from; classes in the order of its labels.
        space: the normaliser in whose space the file's images are.
        net: the network that it was distilled with; `auto` for the ConvNet that fits.
        reading: how `data` was read.

    Raises:
        InputError: for an unknown format, a file that is missing, damaged or not of the format, or
            images and labels that do not fit the data.
    """
    kind = FORMATS.get(format)
    if not file.is_file():
        raise InputError(f"There is no file {file}.")
    shape = (data.channels, *data.size)
    found = kind.read(file, shape=shape, classes=data.n_classes, most=len(data.train))
    facts = {"type": f"imported {format}", "file": file.name, "sha256": file_hash(file)}
    try:
        made = DistilledSet(
            images=found.images,
            targets=found.targets,
            space=space,
            recipe=replace(
                kind.recipe(data.n_classes),
                loss="ce" if isinstance(found.targets, Hard) else "soft_ce",
            ),
            net=fitting(net, data.size),
            classes=data.classes,
            ref=data.ref,
            origin=Provenance(
                method=canonical({**facts, **found.facts}),
                data=data.source,
                identity=data.ref.identity,
                seed=0,
                version=__version__,
                selection="as released",
                reading=reading or Reading(),
            ),
        )
    except InputError as error:
        raise InputError(f"{file} is unsound: {error}") from error
    keep_space(space)
    return made
