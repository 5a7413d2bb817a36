"""The distilled set and the records that travel with it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill.artefact.decode import Decoder, Identity
from potstill.artefact.targets import Hard, Soft, Targets, check_images, check_targets
from potstill.artefact.use import Deployed, Loader, trained
from potstill.core.errors import InputError
from potstill.core.spec import record
from potstill.data.space import Space
from potstill.data.types import DataRef, Reading
from potstill.functional.schedule import TrainSpec
from potstill.nets.spec import NetSpec, variant


@record
@dataclass(frozen=True, kw_only=True)
class Block:
    """A named run of images, `start` to `stop` (excluded): a stage or a prefix of the set.

    `lr` is the step size of the recipe when the block was done, if later blocks learned another.
    """

    name: str
    start: int
    stop: int
    lr: float | None = None


@record
@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a distilled set comes from.

    `method`, `cost` and `accuracy` are JSON objects as text (`core.spec.canonical`), so a set can
    be read where the code of its method is absent. `data` is the source as the user wrote it,
    `reading` how images were read from it, `identity` their hash, `iteration` the outer iteration
    taken, `selection` the rule that took it; the runner fills in what the method does not know.

    Raises:
        InputError: if one of the three is not the text of a JSON object.
    """

    method: str
    recipe: str | None = None
    data: str
    identity: str
    seed: int
    version: str
    iteration: int = 0
    cost: str = "{}"
    accuracy: str = "{}"
    parents: tuple[str, ...] = ()
    selection: str = "last"
    reading: Reading = Reading()
    rows: tuple[int, ...] = ()
    """For a set of real images: which of the training part (`DataSet.train`) they are."""

    def __post_init__(self) -> None:
        for name in ("method", "cost", "accuracy"):
            text = getattr(self, name)
            try:
                sound = isinstance(json.loads(text), dict)
            except (TypeError, ValueError):
                sound = False
            if not sound:
                raise InputError(f"{name} must be the text of a JSON object, not {text!r}.")

    @property
    def method_spec(self) -> dict[str, Any]:
        """Return the spec of the method as plain JSON data."""
        return json.loads(self.method)

    @property
    def costs(self) -> dict[str, Any]:
        """Return what making the set took, by name."""
        return json.loads(self.cost)

    @property
    def measured(self) -> dict[str, Any]:
        """Return the accuracy measured when the set was made; empty if none was."""
        return json.loads(self.accuracy)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class DistilledSet:
    """A few images, their targets, and all that is needed to train on them.

    `images` is floating [N, C, H, W] in the space of `space` (model input), stored as `decode`
    takes them; `recipe` holds the learned step size; `net` is the network that the set was made
    with.

    Raises:
        InputError: for images, targets, decoder, loss or blocks that do not fit together or are not
            finite.
    """

    images: Tensor
    targets: Targets
    space: Space
    recipe: TrainSpec
    net: NetSpec
    classes: tuple[str, ...]
    ref: DataRef
    origin: Provenance
    decode: Decoder = Identity()
    blocks: tuple[Block, ...] = ()

    def __post_init__(self) -> None:
        check_images(self.images, self.space)
        check_targets(self.targets, len(self.images), len(self.classes))
        self.decode.check(self.shape)
        self.decode.index(self.targets.classes)
        wanted = "ce" if isinstance(self.targets, Hard) else "soft_ce"
        if self.recipe.loss != wanted:
            kind = type(self.targets).__name__
            raise InputError(f"{kind} targets need loss {wanted!r}, not {self.recipe.loss!r}.")
        for block in self.blocks:
            if not 0 <= block.start < block.stop <= len(self):
                raise InputError(f"{block} does not lie within the {len(self)} images.")

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.shape))
        made = self.origin.method_spec.get("type", "?")
        return f"<DistilledSet: {len(self)} images {shape} of {self.origin.data!r} by {made}>"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return channels, height and width of a stored image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def ipc(self) -> tuple[int, ...]:
        """Return the number of images of each class, in the order of `classes`."""
        counts = torch.bincount(self.targets.classes.cpu(), minlength=len(self.classes))
        return tuple(counts.tolist())

    def view(self) -> Tensor:
        """Return the stored images for looking: [N, C, H, W], clipped to [0, 1]."""
        return self.space.inverse(self.images).clamp(0, 1)

    def decoded(self) -> tuple[Tensor, Tensor]:
        """Return the training images (normalised) and their targets, one row each."""
        index = self.decode.index(self.targets.classes)
        return self.decode.take(self.images, index), self.targets.values[index[:, 0]]

    def places(self) -> Tensor | None:
        """Return the class of each training image, int64, where soft targets have one beside."""
        own = self.targets.own if isinstance(self.targets, Soft) else None
        return None if own is None else own[self.decode.index(own)[:, 0]]

    def prefix(self, blocks: int) -> DistilledSet:
        """Return the set of the first so many blocks, to be used like any other.

        Raises:
            InputError: if it has no blocks, fewer, or blocks that do not follow one another.
        """
        starts = [0, *(block.stop for block in self.blocks[:-1])]
        if not self.blocks or [block.start for block in self.blocks] != starts:
            raise InputError("The set has no blocks that follow one another, so it has no prefix.")
        if not 1 <= blocks <= len(self.blocks):
            raise InputError(
                f"The set has {len(self.blocks)} block{'s'[: len(self.blocks) != 1]}; a prefix "
                f"takes the first 1 to {len(self.blocks)}, not {blocks}."
            )
        last = self.blocks[blocks - 1]
        recipe = self.recipe if last.lr is None else replace(self.recipe, lr=last.lr)
        taken = self.taken(torch.arange(last.stop))
        return replace(taken, blocks=self.blocks[:blocks], recipe=recipe)

    def cut(self, ipc: int) -> DistilledSet:
        """Return the set of the first so many images of each class, to be used like any other.

        Raises:
            InputError: if a class has fewer.
        """
        if not 1 <= ipc <= min(self.ipc):
            raise InputError(f"A cut leaves 1 to {min(self.ipc)} images a class, not {ipc}.")
        of_each = [(self.targets.classes == k).nonzero()[:ipc, 0] for k in range(len(self.classes))]
        return self.taken(torch.cat(of_each).sort().values)

    def taken(self, rows: Tensor) -> DistilledSet:
        """Return the set of some of its images, int64 rows, without blocks."""
        own = tuple(self.origin.rows[k] for k in rows.tolist()) if self.origin.rows else ()
        return replace(
            self,
            images=self.images[rows],
            targets=self.targets.taken(rows),
            blocks=(),
            origin=replace(self.origin, accuracy="{}", rows=own),
        )

    def loader(self, *, batch_size: int = 256, shuffle: bool = True, seed: int = 0) -> Loader:
        """Return batches (images, targets) for a training loop of one's own.

        Images are normalised and decoded but not augmented; each pass has its own order.
        """
        images, targets = self.decoded()
        return Loader(images, targets, batch_size=batch_size, shuffle=shuffle, seed=seed)

    def train(self, net: str | NetSpec | None = None, *, seed: int = 0) -> Deployed:
        """Train a fresh network by the recipe of the set, on the device of its images.

        The default is the network that the set was made with; a ConvNet of another depth takes
        its width and so on, as in `potstill.evaluate`. Returns a module that takes pictures:
        uint8, or float in [0, 1], of the channels and size of the data set.
        """
        net = self.net if net is None else variant(net, self.net) if isinstance(net, str) else net
        images, targets = self.decoded()
        return trained(
            net,
            self.recipe,
            self.space,
            images,
            targets,
            places=self.places(),
            classes=len(self.classes),
            seed=seed,
        )

    def save(self, path: str | Path) -> None:
        """Write the set as a folder; see `potstill.artefact.files.save`."""
        from potstill.artefact.files import save

        save(self, path)

    def nbytes(self) -> dict[str, int]:
        """Return the bytes of images, targets and normaliser."""
        return {
            "images": self.images.nbytes,
            "targets": self.targets.values.nbytes,
            "normaliser": self.space.nbytes(),
        }
