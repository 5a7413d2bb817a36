"""What one encoder is pre-trained on, and how it is probed: all that its accuracies depend on."""

from __future__ import annotations

from dataclasses import dataclass

from potstill.core.compute import Compute
from potstill.core.spec import record
from potstill.data import DataRef, SpaceSpec
from potstill.evaluation.pretraining_rules import LabelBudget
from potstill.evaluation.specs import Distilled
from potstill.functional import TrainSpec
from potstill.nets import HeadSpec, NetSpec
from potstill.teachers.targets import TargetsSpec


@record
@dataclass(frozen=True, kw_only=True)
class RealTargets:
    """Learn the targets of these images of the training part."""

    indices: tuple[int, ...]
    targets: TargetsSpec
    """Finished work in the store context["store"]."""


@record
@dataclass(frozen=True, kw_only=True)
class RealViews:
    """Learn from two views of each of these images of the training part (`TrainSpec.pairs`)."""

    indices: tuple[int, ...]
    head: HeadSpec


@record
@dataclass(frozen=True, kw_only=True)
class DistilledViews:
    """Learn from two views of each image of a set, found by its digest (`TrainSpec.pairs`)."""

    digest: str
    head: HeadSpec


@record
@dataclass(frozen=True, kw_only=True)
class Untrained:
    """Learn nothing: the network keeps its initial weights."""


@record
@dataclass(frozen=True, kw_only=True)
class PretrainSpec:
    """One pre-trained encoder: everything that its features depend on."""

    what: Distilled | DistilledViews | RealTargets | RealViews | Untrained
    net: NetSpec
    outputs: int
    """Of the network while it learns: dimensions of the targets, or of embeddings of views."""
    train: TrainSpec | None
    """None for what is not trained."""
    seed: int
    data: DataRef
    """Where real images come from; their shape is that of the network's."""
    space: SpaceSpec
    compute: Compute
    revision: int = 1
    """Raised when the code changes what is learned, so that old encoders are not reused."""


@record
@dataclass(frozen=True, kw_only=True)
class FineTuneSpec:
    """One pre-trained encoder that learns the classes of one data set, with all labels."""

    pretrained: PretrainSpec
    """Finished work in the store context["store"]; its seed is that of the training, too."""
    data: DataRef
    space: SpaceSpec
    whole: bool
    """Whether it learns the validation part, too."""
    train: TrainSpec
    revision: int = 1
    """Raised when the code changes what is learned, so that old results are not reused."""


@record
@dataclass(frozen=True, kw_only=True)
class ProbeSpec:
    """All probes of one encoder on one data set."""

    pretrained: PretrainSpec
    """Finished work in the store context["store"]; its seed draws the labels."""
    data: DataRef
    space: SpaceSpec
    budgets: tuple[LabelBudget, ...]
    l2: float
    stratified: bool
    whole: bool
    """Whether the validation part gives labels too."""
    validated: bool
    """Whether probes are measured on the validation part."""
    revision: int = 1
    """Raised when the code changes what is measured, so that old results are not reused."""
