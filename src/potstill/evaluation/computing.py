"""How the trainings of an evaluation are computed: chosen a network, from all that it will do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from potstill.artefact import DistilledSet
from potstill.core.compute import Compute, Wish, choose
from potstill.data import DataSet
from potstill.evaluation.images import Images
from potstill.evaluation.rules import Protocol
from potstill.evaluation.specs import Distilled, Mosaics, Patched, Real
from potstill.functional import TrainSpec
from potstill.nets import FlatNet, flops


def computed(
    wish: Wish,
    module: nn.Module,
    trainings: Iterable[tuple[int, int]],
    data: DataSet,
    *,
    predicted: int,
) -> Compute:
    """Return how trainings of one network, of so much work each, are computed together.

    A prediction counts a third of an image's step. Networks with parts from elsewhere, which might
    not compile, are compiled only if asked for.

    Args:
        wish: what the user asked for.
        module: the network, with any weights.
        trainings: steps of each, and images that it sees.
        data: gives the shape of an image.
        predicted: images that each trained network classifies.
    """
    trainings = list(trainings)
    seen = sum(images for _, images in trainings)
    return choose(
        wish,
        order=1,
        flops=flops(module, data.channels, data.size),
        images=seen + len(trainings) * predicted // 3,
        steps=sum(steps for steps, _ in trainings),
        compiles=FlatNet(module).known or wish.compile == "on",
    )


def trainings(
    images: Iterable[Images], data: DataSet, rules: Protocol, regimes: int
) -> list[tuple[int, int]]:
    """Return steps and seen images of each training of one network behind an evaluation."""
    return [
        work_of(train, count, () if item.of is None else item.of.ends)
        for item in images
        for counts in [[_count(what, item.of, data) for what in item.what]]
        for train in item.trains
        for count in (counts[k % len(counts)] for k in range(rules.seeds))
    ] * regimes


def work_of(train: TrainSpec, count: int, ends: Sequence[int] = ()) -> tuple[int, int]:
    """Return steps and seen images of a training (see `TrainSpec`)."""
    return train.steps(count, ends), train.seen(count, ends)


def _count(
    what: Distilled | Real | Mosaics | Patched, of: DistilledSet | None, data: DataSet
) -> int:
    """Return the number of training images; `of` is the set that a distilled one is like."""
    if isinstance(what, Real):
        return len(what.indices or data.train)
    if isinstance(what, Patched):
        return len(what.labels())
    if isinstance(what, Mosaics):
        return len(what.decode.index(what.labels(data.train)))
    assert of is not None
    return len(of.decode.index(of.targets.classes))
