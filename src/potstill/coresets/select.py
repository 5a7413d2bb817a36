"""Matched real images: random ones and k-means medoids, as many a class as a distilled set has."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from potstill.artefact import DistilledSet, Hard
from potstill.core.errors import InputError
from potstill.core.keys import generator, integer
from potstill.data import MeanStd, Split
from potstill.nets import FlatNet

CLASS_CAP = 2000
"""Images of a class that k-means looks at; of a larger class a keyed random part."""


@dataclass(frozen=True)
class Features:
    """Features in which images are compared: a name for the record and pixels -> [n, F].

    `fn` takes uint8 images [n, C, H, W].
    """

    name: str
    fn: Callable[[Tensor], Tensor]


def pixel_features(space: MeanStd) -> Features:
    """Return the normalised pixels themselves."""
    return Features("normalised pixels", lambda pixels: space.forward(pixels).flatten(1))


def net_features(net: FlatNet, theta: Tensor, space: MeanStd, *, name: str) -> Features:
    """Return the input of the last linear layer of a trained network (an expert, a teacher).

    Raises:
        InputError: if the network has no linear layer.
    """
    module = net.load(theta).eval()
    heads = [part for part in module.modules() if isinstance(part, nn.Linear)]
    if not heads:
        raise InputError(f"The network for features {name!r} has no linear layer.")

    def features(pixels: Tensor) -> Tensor:
        kept: list[Tensor] = []
        hook = heads[-1].register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
        try:
            with torch.no_grad():
                for part in pixels.split(512):
                    module(space.forward(part))
        finally:
            hook.remove()
        return torch.cat(kept).flatten(1)

    return Features(name, features)


def counts_of(s: DistilledSet) -> tuple[int, ...]:
    """Return images per class; soft-labelled sets count as spread evenly over the classes."""
    if isinstance(s.targets, Hard):
        return s.ipc
    each, rest = divmod(len(s), len(s.classes))
    return tuple(each + (label < rest) for label in range(len(s.classes)))


def random_real(split: Split, counts: Sequence[int], *, seed: int) -> tuple[int, ...]:
    """Return indices of counts[c] random images of each class c, class by class.

    Raises:
        InputError: if a class has fewer images.
    """
    chosen: list[int] = []
    for label, members in enumerate(_members(split, counts)):
        order = torch.randperm(len(members), generator=generator(seed, "random real", label))
        chosen += members[order[: counts[label]]].tolist()
    return tuple(chosen)


def medoid_real(
    split: Split, counts: Sequence[int], features: Features, *, seed: int = 0
) -> tuple[int, ...]:
    """Return indices of counts[c] k-means medoids of each class c, class by class.

    K-means with k = counts[c] on the features of the class (at most 2,000 keyed random images of
    it); of each cluster the member nearest to the centre. "K-Center" in DC-BENCH (Cui et al.,
    arXiv 2207.09639).

    Raises:
        InputError: if a class has fewer images.
    """
    chosen: list[int] = []
    for label, members in enumerate(_members(split, counts)):
        if counts[label] == 0:
            continue
        chance = generator(seed, "medoid part", label)
        members = members[torch.randperm(len(members), generator=chance)]
        members = members[: max(CLASS_CAP, counts[label])]
        points = features.fn(split.pixels[members]).double()
        near = medoids(points, counts[label], seed=integer(seed, "k-means", label) % 2**31)
        chosen += members[near].tolist()
    return tuple(chosen)


def medoids(points: Tensor, k: int, *, seed: int) -> list[int]:
    """Return for each of k clusters of points [n, F] the member nearest to its centre.

    Clusters that equal points leave empty are filled with the first points not chosen yet.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = KMeans(n_clusters=k, n_init=3, random_state=seed).fit(points.numpy())
    centres = torch.as_tensor(model.cluster_centers_)
    labels = torch.as_tensor(model.labels_)
    distance = torch.linalg.vector_norm(points - centres[labels], dim=1)
    chosen: list[int] = []
    for cluster in range(k):
        inside = torch.nonzero(labels == cluster)[:, 0]
        if len(inside):
            chosen.append(int(inside[distance[inside].argmin()]))
    taken = set(chosen)
    free = (place for place in range(len(points)) if place not in taken)
    return chosen + [next(free) for _ in range(k - len(chosen))]


def _members(split: Split, counts: Sequence[int]) -> list[Tensor]:
    found = [torch.nonzero(split.labels == label)[:, 0] for label in range(len(counts))]
    for label, (members, count) in enumerate(zip(found, counts, strict=True)):
        if len(members) < count:
            raise InputError(
                f"Class {label} has {len(members)} real training images; {count} are needed to "
                "match the distilled set."
            )
    return found
