"""Matched real images: random ones and k-means medoids, as many a class as a distilled set has."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from potstill.artefact import DistilledSet, Soft
from potstill.core.errors import InputError
from potstill.core.keys import generator, integer
from potstill.coresets.features import Features
from potstill.coresets.rules import medoids, repeated
from potstill.data import Split

CLASS_CAP = 2000
"""Images of a class that k-means looks at; of a larger class a keyed random part."""


def counts_of(s: DistilledSet) -> tuple[int, ...]:
    """Return images per class; soft labels without places count as spread evenly over classes."""
    if not isinstance(s.targets, Soft) or s.targets.own is not None:
        return s.ipc
    each, rest = divmod(len(s), len(s.classes))
    return tuple(each + (label < rest) for label in range(len(s.classes)))


def members_of(
    split: Split,
    counts: Sequence[int],
    *,
    replacement: bool = False,
    classes: Sequence[str] | None = None,
) -> list[Tensor]:
    """Return the rows of each class c, of which counts[c] are to be chosen; `classes` are names.

    Raises:
        InputError: if a class has fewer images and may not give any twice, or has none.
    """
    sizes = torch.bincount(split.labels, minlength=len(counts)).tolist()
    found = list(split.labels.argsort(stable=True).split(sizes))
    for label, (members, count) in enumerate(zip(found, counts, strict=True)):
        if len(members) < count and not (replacement and len(members)):
            name = classes[label] if classes else label
            raise InputError(
                f"Class {name!r} has {len(members)} real training images (a part is kept for "
                f"validation), fewer than ipc {count}: lower ipc or add --replacement."
            )
    return found


def shuffled(members: Tensor, count: int, *, chance: torch.Generator) -> Tensor:
    """Return `count` random rows of members, each once before any twice; more begin with fewer."""
    places = repeated(
        lambda m: torch.randperm(len(members), generator=chance)[:m].tolist(), len(members), count
    )
    return members[places]


def random_real(
    split: Split, counts: Sequence[int], *, seed: int, replacement: bool = False
) -> tuple[int, ...]:
    """Return indices of counts[c] random images of each class c, class by class.

    With `replacement` a class with fewer images gives each once before any twice.

    Raises:
        InputError: as `members_of`.
    """
    chosen: list[int] = []
    for label, members in enumerate(members_of(split, counts, replacement=replacement)):
        if counts[label]:
            chance = generator(seed, "random real", label)
            chosen += shuffled(members, counts[label], chance=chance).tolist()
    return tuple(chosen)


def medoid_real(
    split: Split,
    counts: Sequence[int],
    features: Features,
    *,
    seed: int = 0,
    replacement: bool = False,
) -> tuple[int, ...]:
    """Return indices of counts[c] k-means medoids of each class c, class by class.

    K-means with k = counts[c] on the features of the class (at most 2,000 keyed random images of
    it); of each cluster the member nearest to the centre. "K-Center" in DC-BENCH (Cui et al.,
    arXiv 2207.09639). With `replacement` a class with fewer images gives each once before any
    twice.

    Raises:
        InputError: as `members_of`.
    """
    chosen: list[int] = []
    for label, members in enumerate(members_of(split, counts, replacement=replacement)):
        if counts[label] == 0:
            continue
        chance = generator(seed, "medoid part", label)
        part = shuffled(members, min(len(members), max(CLASS_CAP, counts[label])), chance=chance)
        points = features.fn(split.pixels[part]).double()
        pick = partial(medoids, points, seed=cluster_seed(seed, label))
        chosen += part[repeated(pick, len(part), counts[label])].tolist()
    return tuple(chosen)


def cluster_seed(seed: int, label: int) -> int:
    """Return the seed of k-means on one class."""
    return integer(seed, "k-means", label) % 2**31
