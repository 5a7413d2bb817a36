"""Distilled sets that other programs released, as distilled sets of ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from potstill.artefact.decode import Decoder, Identity
from potstill.artefact.records import Block, Provenance
from potstill.artefact.targets import Hard, Soft, Targets
from potstill.artefact.types import DistilledSet
from potstill.core.errors import InputError
from potstill.core.files import file_hash
from potstill.core.registry import Registry
from potstill.core.spec import canonical
from potstill.core.torchfile import kind_of
from potstill.core.version import __version__
from potstill.data import DataSet, Reading, Space, keep_space
from potstill.functional import TrainSpec
from potstill.nets import NetSpec, fitting


@dataclass(frozen=True, kw_only=True)
class Told:
    """What the user says of a file because it does not say it; None: nothing."""

    factor: int | None = None
    """Cells a side into which each image is cut; 1 = not cut."""
    decoder: Literal["single", "multi", "bound"] | None = None
    """How they are cut (see `MultiFormation`); single by default."""
    experiment: int | None = None
    """Which of the sets in the file, from 0; the last by default."""
    augment: str | None = None
    """Augmentation of training on the set (see `potstill.augment.policy_of`)."""
    cutmix: float | None = None
    """Part of the training steps that CutMix mixes."""
    stages: int | None = None
    """Stages that the set was made in."""
    labels: Path | None = None
    """Folder of labels of augmented images."""


@dataclass(frozen=True, kw_only=True)
class Images:
    """What images fit the real data: their shape, number of classes, and how many at most."""

    shape: tuple[int, int, int]
    classes: int
    most: int


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a file holds: images [N, C, H, W], targets, and facts for people.

    blocks: the stages of the set, whose last step size is that of its recipe; files: what was read,
    if it is not the file alone; recipe: how to train on it, if the targets decide that.
    """

    images: Tensor
    targets: Targets
    facts: dict[str, Any] = field(default_factory=dict)
    blocks: tuple[Block, ...] = ()
    files: tuple[Path, ...] = ()
    recipe: TrainSpec | None = None


class Reader(Protocol):
    """Read images that fit the data from a file, given what the user says of it."""

    def __call__(self, file: Path, *, wanted: Images, told: Told) -> Found:
        """Return what the file holds; nothing in it is run, nothing outside it is read."""
        ...


def as_stored(told: Told, space: Space) -> Decoder:
    """Return the decoder of formats whose stored images are the training images."""
    return Identity()


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format of released sets: its reader, and the recipe for such images (hard labels)."""

    read: Reader
    recipe: Callable[[Told, Images], TrainSpec]
    help: str
    protocol: str
    """By which its sets were published."""
    large: str | None = None
    """By which those of images above 64 px were, if by another one."""
    takes: tuple[str, ...] = ()
    """What the user may say (see `Told`)."""
    needs: tuple[str, ...] = ()
    """What the user has to say."""
    raw: bool = False
    """Whether its images are pixels in about [0, 1], not yet normalised."""
    folder: bool = False
    """Whether its sets are folders."""
    decoder: Callable[[Told, Space], Decoder] = as_stored
    """From what the user says and the normaliser to the decoder of normalised images."""

    def published_by(self, shape: tuple[int, int, int]) -> str:
        """Return the protocol by which sets of images of a shape were published."""
        return self.large if self.large and max(shape[1:]) > 64 else self.protocol


FORMATS: Registry[Format] = Registry("import format")


def import_set(
    file: Path,
    *,
    format: str,  # noqa: A002 - as the flag is called
    data: DataSet,
    space: Space,
    net: NetSpec,
    told: Told | None = None,
    reading: Reading | None = None,
) -> DistilledSet:
    """Return the set in a file, with the published recipe of its format.

    Args:
        file: the file, of some formats a folder.
        format: see `FORMATS`.
        data: the real images that it was distilled from; classes in the order of its labels.
        space: the normaliser in whose space the file's images are, or with which training on them
            begins if they are pixels.
        net: the network that it was distilled with; `auto` for the ConvNet that fits.
        told: what the file does not say.
        reading: how `data` was read.

    Raises:
        InputError: as `checked`, for a file that is missing, damaged or not of the format, and for
            images and labels that do not fit the data.
    """
    kind = checked(format, told := told or Told())
    if not (file.is_dir() if kind.folder else file.is_file()):
        raise InputError(f"There is no {'folder' if kind.folder else 'file'} {file}.")
    shape = (data.channels, *data.size)
    wanted = Images(shape=shape, classes=data.n_classes, most=len(data.train))
    decode, recipe = kind.decoder(told, space), kind.recipe(told, wanted)
    found = kind.read(file, wanted=wanted, told=told)
    digest, floating = file_hash(*(found.files or (file,))), found.images.is_floating_point()
    facts = {"type": f"imported {format}", "file": file.absolute().name, "sha256": digest}
    try:
        made = DistilledSet(
            images=space.forward(found.images) if floating and kind.raw else found.images,
            targets=found.targets,
            space=space,
            decode=decode,
            recipe=_completed(recipe, found),
            net=fitting(net, data.size),
            classes=data.classes,
            ref=data.ref,
            blocks=found.blocks,
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


def _completed(recipe: TrainSpec, found: Found) -> TrainSpec:
    """Return a recipe with the loss for the targets and the step size of the last block."""
    lr = found.blocks[-1].lr if found.blocks else None
    loss = "soft_ce" if isinstance(found.targets, Soft) else "ce"
    return found.recipe or replace(recipe, lr=lr or recipe.lr, loss=loss)


def checked(name: str, told: Told) -> Format:
    """Return the format of that name, for which the user said what is told.

    Raises:
        InputError: for an unknown one, and for something told too much or too little.
    """
    kind = FORMATS.get(name)
    for part in fields(told):
        said = getattr(told, part.name) is not None
        if said and part.name not in kind.takes:
            raise InputError(f"Files of the format {name} have no {part.name}: leave it out.")
        if not said and part.name in kind.needs:
            raise InputError(
                f"Files of the format {name} do not say their {part.name}: name it with "
                f"--{part.name}."
            )
    return kind


def labelled(images: object, labels: object, where: str, wanted: Images) -> Found:
    """Return images and class numbers that were read as tensors, in float32 and int64.

    Raises:
        InputError: if they are not such, or do not fit the data; `where` begins the sentence.
    """
    for name, thing in (("images", images), ("labels", labels)):
        if not isinstance(thing, Tensor) or thing.layout != torch.strided or thing.is_meta:
            raise InputError(f"{where}: the {name} are {kind_of(thing)}, not a plain tensor.")
    assert isinstance(images, Tensor)
    assert isinstance(labels, Tensor)
    if not images.is_floating_point() or images.shape[1:] != wanted.shape:
        raise InputError(
            f"{where}: the images are {images.dtype} {list(images.shape)}; expected are floats "
            f"[N, {', '.join(map(str, wanted.shape))}], as of these data."
        )
    if not 0 < len(images) <= wanted.most:
        raise InputError(f"{where} holds {len(images)} images; expected are 1 to {wanted.most}.")
    if labels.is_floating_point() or labels.is_complex() or labels.shape != images.shape[:1]:
        raise InputError(
            f"{where}: the labels are {labels.dtype} {list(labels.shape)}; expected are class "
            f"numbers [{len(images)}]."
        )
    pixels = images.detach().to(torch.float32, copy=True).contiguous()
    return Found(images=pixels, targets=Hard(labels.to(torch.int64, copy=True)))
