"""What one network of an evaluation is trained on, and how: all that its accuracy depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from potstill.artefact import MultiFormation
from potstill.core.compute import Compute
from potstill.core.spec import later, record
from potstill.coresets.patch_tasks import PatchSpec
from potstill.data import DataRef, SpaceSpec, Split
from potstill.experts import ExpertSpec, ImportedExpert
from potstill.functional import TrainSpec
from potstill.nets import NetSpec
from potstill.recover import RelabelSpec
from potstill.teachers import Teacher


@record
@dataclass(frozen=True, kw_only=True)
class Distilled:
    """Train on the distilled set of this digest (its folder is context[digest])."""

    digest: str


@record
@dataclass(frozen=True, kw_only=True)
class Real:
    """Train on these images of the training part; None means all."""

    indices: tuple[int, ...] | None


@record
@dataclass(frozen=True, kw_only=True)
class Mosaics:
    """Train on mosaics of these images of the training part (see `MultiFormation.mosaic`)."""

    indices: tuple[int, ...]
    """All pictures of the first cell, of the second ...; a mosaic is of one class."""
    decode: MultiFormation

    def labels(self, part: Split) -> Tensor:
        """Return the class of each mosaic, int64 [n]."""
        return part.labels[torch.tensor(self.indices[: len(self.indices) // self.decode.cells])]


@record
@dataclass(frozen=True, kw_only=True)
class Patched:
    """Train on RDED's images: crops of real ones that a teacher finds easiest."""

    specs: tuple[PatchSpec, ...]
    """Finished work in the store context["store"], one spec a block of classes."""

    def labels(self) -> Tensor:
        """Return the class of each image, int64 [n]."""
        return torch.tensor(
            [c for each in self.specs for c in each.classes for _ in range(each.ipc)]
        )


Teachers = tuple[Teacher, ...] | tuple[ExpertSpec | ImportedExpert]
"""Teachers by content (the folder of each is context[digest]), or an expert after its last epoch;
in evaluation mode."""


@record
@dataclass(frozen=True, kw_only=True)
class Taught:
    """Take soft labels: the softmax of the mean of what teachers say of the images."""

    teachers: Teachers


@record
@dataclass(frozen=True, kw_only=True)
class Online:
    """Learn what teachers say of every augmented, mixed batch: the mean of their logits."""

    teachers: Teachers


@record
@dataclass(frozen=True, kw_only=True)
class Stored:
    """Learn stored labels of views of real images."""

    first: RelabelSpec
    """Finished work in the store context["store"]: the labels of epoch 0, those of other epochs
    beside them."""


@record
@dataclass(frozen=True, kw_only=True)
class EvalSpec:
    """One trained network: everything that its accuracy depends on."""

    what: Distilled | Real | Mosaics | Patched
    labels: Taught | Online | Stored | Literal["own", "hard"] = "own"
    """As the images bring them, the likeliest class of each, or those of a teacher."""
    net: NetSpec
    train: TrainSpec
    seed: int
    data: DataRef
    space: SpaceSpec
    compute: Compute
    revision: int = 4
    """Raised when the code changes what is measured, so that old results are not reused."""
    marks: tuple[int, ...] = ()
    """Epochs after which the network is measured too."""
    seen: tuple[int, ...] | None = later(None)
    """Classes, ascending, whose images alone it is trained on, and between which alone it has to
    choose for test images of them; None: all."""


def among(labels: Tensor, classes: tuple[int, ...]) -> Tensor:
    """Return the rows of labels, int64 [N], that are of some classes: int64 [n]."""
    return torch.isin(labels.cpu(), torch.tensor(classes)).nonzero()[:, 0]
