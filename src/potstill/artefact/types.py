"""The distilled set."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from potstill.artefact.blocks import prefix, staged, taken
from potstill.artefact.checks import check_set, check_use
from potstill.artefact.decode import Decoder, Identity
from potstill.artefact.records import Block, Provenance
from potstill.artefact.stored import LabelStore
from potstill.artefact.targets import Embedding, Hard, Soft, Targets
from potstill.artefact.use import Deployed, Loader, pretrained, trained
from potstill.core.errors import InputError
from potstill.data.normalise import unit_range
from potstill.data.space import Space, prepared
from potstill.data.types import DataRef
from potstill.functional.advance import Prepare
from potstill.functional.schedule import Segment, TrainSpec
from potstill.nets.spec import NetSpec, variant


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class DistilledSet:
    """A few images, their targets, and all that is needed to train on them.

    `images` is floating [N, C, H, W] in the space of `space` (model input), stored as `decode`
    takes them, or uint8 pixels still to be normalised by it; `inputs` has them as model input.
    `recipe` holds the learned step size; `net` is the network that the set was made with.

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
        check_set(self)

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

    def view(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """Return stored images, or some rows, for looking: [N, C, H, W], clipped to [0, 1]."""
        images = self.images[rows]
        if not images.is_floating_point():
            return unit_range(images)
        return self.space.inverse(images).clamp(0, 1)

    @property
    def pretrains(self) -> bool:
        """Return whether it is for pre-training: of features, or by views of its images."""
        return isinstance(self.targets, Embedding) or self.recipe.pairs is not None

    @property
    def inputs(self) -> Tensor:
        """Return the stored images as model input, floating [N, C, H, W]."""
        return self.images if self.images.is_floating_point() else self.space.forward(self.images)

    def decoded(self) -> tuple[Tensor, Tensor]:
        """Return the training images (normalised) and their targets, one row each."""
        index = self.decode.index(self.targets.classes)
        return self.decode.take(self.inputs, index), self.targets.values[index[:, 0]]

    def prepared(self) -> tuple[Tensor, Tensor, Prepare | None]:
        """Return what `decoded` does; pixels as they are, with what normalises a batch of them."""
        if self.images.is_floating_point():
            return *self.decoded(), None
        images, prepare = prepared(self.space, self.images)
        assert isinstance(images, Tensor)
        return images, self.targets.values, prepare

    def places(self) -> Tensor | None:
        """Return the class of each training image, int64, where targets have one beside them."""
        own = self.targets.own if isinstance(self.targets, Soft | Embedding) else None
        return None if own is None else own[self.decode.index(own)[:, 0]]

    @property
    def ends(self) -> tuple[int, ...]:
        """Return how many training images the first 1, 2, ... blocks have."""
        classes = self.targets.classes
        return tuple(len(self.decode.index(classes[: block.stop])) for block in self.blocks)

    @property
    def training(self) -> TrainSpec:
        """Return how a network is trained on the set: in stages where its blocks say how."""
        return self.staged() if self.blocks and self.blocks[0].train else self.recipe

    def staged(self, stage: tuple[Segment, ...] | None = None) -> TrainSpec:
        """Return the recipe of a training on the first block, on the first two, and so on.

        Each stage has its block's step size and its `train`, or all have the segments `stage`; the
        state of the optimizer is carried through all of them.

        Source: Chen et al., PDD, ICLR 2024, arXiv:2310.06982, by its released evaluation.

        Raises:
            InputError: if the set has no blocks, blocks that do not follow one another, or blocks
                that do not say how to train on them while no `stage` is given.
        """
        return staged(self, stage)

    def prefix(self, blocks: int) -> DistilledSet:
        """Return the set of the first so many blocks, to be used like any other (see `taken`).

        Raises:
            InputError: if it has no blocks, fewer, or blocks that do not follow one another.
        """
        return prefix(self, blocks)

    def cut(self, ipc: int) -> DistilledSet:
        """Return the set of the first so many images of each class (see `taken`).

        Raises:
            InputError: if a class has fewer.
        """
        if not 1 <= ipc <= min(self.ipc):
            raise InputError(f"A cut leaves 1 to {min(self.ipc)} images a class, not {ipc}.")
        of_each = [(self.targets.classes == k).nonzero()[:ipc, 0] for k in range(len(self.classes))]
        return self.taken(torch.cat(of_each).sort().values)

    def taken(self, rows: Tensor) -> DistilledSet:
        """Return the set of some of its images, int64 rows, without blocks.

        Labels of views, which are of all images together, give way to classes.
        """
        return taken(self, rows)

    def hardened(self) -> DistilledSet:
        """Return the set with the class of each image as its label, without teacher or pairs.

        Raises:
            InputError: if the set holds features and no classes.
        """
        if isinstance(self.targets, Embedding) and self.targets.own is None:
            raise InputError("The set does not tell the classes of its images.")
        recipe = replace(self.recipe, loss="ce", lesson=None, pairs=None, second=None)
        return replace(self, targets=Hard(self.targets.classes), recipe=recipe)

    def loader(self, *, batch_size: int = 256, shuffle: bool = True, seed: int = 0) -> Loader:
        """Return batches (images, targets) for a training loop of one's own.

        Images are normalised and decoded but not augmented; each pass has its own order.
        """
        images, targets = self.decoded()
        return Loader(images, targets, batch_size=batch_size, shuffle=shuffle, seed=seed)

    def train(self, net: str | NetSpec | None = None, *, seed: int = 0) -> Deployed:
        """Train a fresh network by the recipe of the set, on the device of its images.

        A set with stages is trained on in stages (see `staged`), one with labels of views on these.

        The default is the network that the set was made with; a ConvNet of another depth takes
        its width and so on, as in `potstill.evaluate`. Returns a module that takes pictures:
        uint8, or float in [0, 1], of the channels and size of the data set.

        Raises:
            InputError: for a set for pre-training (see `pretrain`).
        """
        check_use(self, pretrains=False)
        net = self._net(net)
        images, targets, prepare = self.prepared()
        stored = self.targets if isinstance(self.targets, LabelStore) else None

        def view(blocks: int) -> tuple[Tensor, Tensor, Tensor | None]:
            first = self.prefix(blocks)
            return *first.prepared()[:2], first.places()

        return trained(
            net,
            self.training,
            self.space,
            images,
            targets,
            places=self.places(),
            prepare=prepare,
            view=view,
            replay=None if stored is None else stored.replay(self.shape),
            classes=len(self.classes),
            seed=seed,
        )

    def pretrain(self, net: str | NetSpec | None = None, *, seed: int = 0) -> Deployed:
        """Pre-train a fresh network to give the targets, and return it without its last layer.

        By the recipe of the set, on views if it has `pairs`, on the device of its images; the
        default network is that of `train`. Returns a module that takes pictures as that of `train`
        does and gives features [N, F]: what the last layer was given.

        Raises:
            InputError: for a set of classes (see `train`), or a network that does not end in a
                linear layer.
        """
        check_use(self, pretrains=True)
        images, targets, prepare = self.prepared()
        given = (self._net(net), self.recipe, self.space, images, targets)
        return pretrained(*given, places=self.places(), prepare=prepare, seed=seed)

    def _net(self, net: str | NetSpec | None) -> NetSpec:
        """Return the network that is meant."""
        return variant(net or "own", self.net) if net is None or isinstance(net, str) else net

    def save(self, path: str | Path) -> None:
        """Write the set as a folder; see `potstill.artefact.files.save`."""
        from potstill.artefact.files import save

        save(self, path)

    def nbytes(self) -> dict[str, int]:
        """Return the bytes of images, targets and normaliser, and of labels of views."""
        own = self.targets
        targets = own.kept if isinstance(own, Embedding) else own.values
        found = {"images": self.images.nbytes, "targets": targets.nbytes}
        if isinstance(self.targets, LabelStore):
            found["labels"] = self.targets.nbytes
        return {**found, "normaliser": self.space.nbytes()}
