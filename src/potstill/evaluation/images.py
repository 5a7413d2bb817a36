"""What an evaluation trains on: the distilled set and real images of the same number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from potstill.artefact import DistilledSet, load
from potstill.core.errors import InputError
from potstill.coresets import (
    CLASS_CAP,
    Features,
    counts_of,
    medoid_real,
    pixel_features,
    random_real,
)
from potstill.data import DataSet
from potstill.evaluation.protocol import Protocol
from potstill.evaluation.tasks import Distilled, Real, set_digest
from potstill.functional import TrainSpec

BASELINES = ("random real", "k-means medoid")


@dataclass(frozen=True, kw_only=True)
class Images:
    """Images to train on: one choice for all seeds, or one a seed; at each of some step sizes."""

    name: str
    what: tuple[Distilled | Real, ...]
    trains: tuple[TrainSpec, ...]
    nbytes: dict[str, int]
    note: str = ""
    of: DistilledSet | None = None
    """The set that they are of, or are like in all but pixels; None: real images."""


@dataclass(frozen=True, kw_only=True)
class Beside:
    """Other distilled sets, one for all seeds or one a seed, of one recipe; one row shows them."""

    name: str
    sets: tuple[DistilledSet, ...]
    note: str = ""


def cut_to(path: str | Path, ipc: int) -> Beside:
    """Return the set in a folder, cut to its first so many images of each class.

    Raises:
        InputError: if it has fewer.
    """
    path = Path(path).expanduser().resolve()
    s, name = load(path), path.parent.name if path.name == "distilled" else path.name
    have = len(s) // len(s.classes)
    if have < ipc:
        raise InputError(f"{name!r} has fewer images a class ({have}) than the set ({ipc}).")
    if have == ipc:
        return Beside(name=f"{name}, whole", sets=(s,))
    return Beside(name=f"{name}, first {ipc} a class", sets=(s.cut(ipc),))


def check_data(s: DistilledSet, data: DataSet) -> None:
    """Refuse data that are not those of the set.

    Raises:
        InputError: if identity, validation part, limit, classes or shape differ.
    """
    if data.ref.identity != s.ref.identity:
        raise InputError(
            f"{data.source!r} (identity {data.ref.identity[:12]}) is not the data set of this "
            f"distilled set ({s.origin.data!r}, identity {s.ref.identity[:12]})."
        )
    if data.ref.validation != s.ref.validation:
        raise InputError(
            f"The set was distilled with a validation part of {s.ref.validation:g} of the training "
            f"images, not {data.ref.validation:g}; open the data with the same."
        )
    if data.ref.limit != s.ref.limit:
        raise InputError(
            f"The set was distilled with limit={s.ref.limit} training images a class, not "
            f"limit={data.ref.limit}; open the data with the same."
        )
    shape, own = (data.channels, *data.size), tuple(s.decode(s.images).shape[1:])
    if data.n_classes != len(s.classes) or own != shape:
        raise InputError(
            f"The distilled set has {len(s.classes)} classes of images {own}, "
            f"the data set {data.n_classes} of {shape}."
        )


def images_of(
    s: DistilledSet,
    data: DataSet,
    rules: Protocol,
    whole: TrainSpec | None,
    features: Features | None,
    note: str = "",
    beside: Sequence[Beside] = (),
) -> list[Images]:
    """Return what is trained on, in the order of the rows; `note` says which part of a set s is."""
    recipe, seeds = rules.train_spec(s.recipe), range(rules.seeds)
    found = [
        Images(
            name=item.name,
            what=tuple(Distilled(digest=set_digest(each)) for each in item.sets),
            trains=(rules.train_spec(item.sets[0].recipe),),
            nbytes=item.sets[0].nbytes(),
            note=item.note,
            of=item.sets[0],
        )
        for item in (Beside(name="distilled", sets=(s,), note=note), *beside)
    ]
    if rules.baselines:
        counts, points, train = counts_of(s), features or pixel_features(s.space), data.train
        steps = dict.fromkeys((recipe.lr, *rules.lr_grid))
        trains = tuple(replace(recipe, lr=lr) for lr in steps)
        draws = tuple(
            Real(indices=random_real(train, counts, seed=d, replacement=True)) for d in seeds
        )
        medoid = (Real(indices=medoid_real(train, counts, points, replacement=True)),)
        have = torch.bincount(train.labels, minlength=len(counts)).tolist()
        part = f", {CLASS_CAP:,} images of each larger class" if max(have) > CLASS_CAP else ""
        scarce = any(n < count for n, count in zip(have, counts, strict=True))
        again = "; small classes give images twice" if scarce else ""
        nbytes = _real_bytes(data, sum(counts), s)
        for name, what, note in (
            (BASELINES[0], draws, again[2:]),
            (BASELINES[1], medoid, f"k-means on {points.name}{part}{again}"),
        ):
            found.append(Images(name=name, what=what, trains=trains, nbytes=nbytes, note=note))
    if whole is not None:
        nbytes = _real_bytes(data, len(data.train), s)
        found.append(
            Images(name="whole set", what=(Real(indices=None),), trains=(whole,), nbytes=nbytes)
        )
    return found


def _real_bytes(data: DataSet, count: int, s: DistilledSet) -> dict[str, int]:
    """Return the bytes of real images (uint8 pixels, int64 labels) and of the set's normaliser."""
    height, width = data.size
    return {
        "images": count * data.channels * height * width,
        "targets": 8 * count,
        "normaliser": s.space.nbytes(),
    }
