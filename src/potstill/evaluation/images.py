"""What an evaluation trains on: the distilled set and real images of the same number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from potstill.artefact import DistilledSet, MultiFormation, load, set_digest
from potstill.core.errors import InputError
from potstill.coresets import (
    CLASS_CAP,
    Features,
    counts_of,
    medoid_real,
    pixel_features,
    random_real,
)
from potstill.data import DataSet, Split
from potstill.evaluation.rules import Protocol
from potstill.evaluation.specs import Distilled, Mosaics, Patched, Real
from potstill.functional import TrainSpec, within

STAGED = ("distilled", "distilled, matched budget", "distilled, flat union")
"""Rows of a set with stages."""
BASELINES = ("random real", "k-means medoid", "random mosaics", "RDED")
What = tuple[Distilled | Real | Mosaics | Patched, ...]


@dataclass(frozen=True, kw_only=True)
class Images:
    """Images to train on: one choice for all seeds, or one a seed; at each of some step sizes."""

    name: str
    what: What
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
    first = s.decode.index(s.targets.classes)[:1]
    shape, own = (data.channels, *data.size), tuple(s.decode.take(s.images, first).shape[1:])
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
    patched: Patched | None = None,
) -> list[Images]:
    """Return what is trained on, in the order of the rows; `note` says which part of a set s is.

    `patched` are RDED's images by the set's teacher, shown with the real ones.

    Raises:
        InputError: if the protocol is for sets with blocks and s has none.
    """
    recipe, staged = _recipes(s, rules)
    if rules.stage and staged is None:
        raise InputError(f"Protocol {rules.name!r} trains in stages; the set has no blocks for it.")
    own = Beside(name=STAGED[0], sets=(s,), note=note)
    if staged is None:
        found = [_distilled(own, recipe)]
    else:
        every = (staged, within(staged, recipe, s.ends), recipe)
        rows = zip(STAGED, every, strict=True)
        ours = "its own stages" if rules.segments and not rules.stage else ""
        found = [
            _distilled(replace(own, name=name), train, told=True, stages=ours, flat=recipe)
            for name, train in rows
        ]
    for item in beside:
        flat, staged = _recipes(item.sets[0], rules)
        found.append(_distilled(item, staged or flat, told=staged is not None))
    if rules.baselines:
        steps = dict.fromkeys((recipe.lr, *rules.lr_grid))
        trains = tuple(replace(recipe, lr=lr) for lr in steps)
        nbytes = _real_bytes(data, len(s), s)
        for name, what, note in _matched(s, data.train, features, rules.seeds):
            found.append(Images(name=name, what=what, trains=trains, nbytes=nbytes, note=note))
        if patched is not None:
            what, note = (patched,), "crops that the set's teacher finds easiest"
            found.append(
                Images(name=BASELINES[3], what=what, trains=trains, nbytes=nbytes, note=note)
            )
    if whole is not None:
        nbytes = _real_bytes(data, len(data.train), s)
        found.append(
            Images(name="whole set", what=(Real(indices=None),), trains=(whole,), nbytes=nbytes)
        )
    return found


def _recipes(s: DistilledSet, rules: Protocol) -> tuple[TrainSpec, TrainSpec | None]:
    """Return how a set is trained on as a whole, and in stages if it has any."""
    suited = rules.suited(s)
    return suited.train_spec(s.recipe), suited.staged(s)


def _distilled(
    item: Beside,
    train: TrainSpec,
    *,
    told: bool = False,
    stages: str = "",
    flat: TrainSpec | None = None,
) -> Images:
    """Return sets with how they are trained on; if `told`, the note says in how many steps.

    `stages` says whose stages they are; a matched budget that is above that of `flat` is told.
    """
    s, count = item.sets[0], len(item.sets[0].decode.index(item.sets[0].targets.classes))
    kind = "staged" if train.segments[0].blocks else "flat"
    steps = train.steps(count, s.ends)
    notes = [item.note, f"{kind}, {steps:,} steps" if told else ""]
    notes.append(stages if kind == "staged" else "")
    if flat is not None and item.name == STAGED[1]:
        above = steps > flat.steps(count) or train.seen(count, s.ends) > flat.seen(count)
        notes.append("an epoch a stage is above that budget" if above else "")
    return Images(
        name=item.name,
        what=tuple(Distilled(digest=set_digest(each)) for each in item.sets),
        trains=(train,),
        nbytes=s.nbytes(),
        note="; ".join(filter(None, notes)),
        of=s,
    )


def _matched(
    s: DistilledSet, train: Split, features: Features | None, seeds: int
) -> list[tuple[str, What, str]]:
    """Return name, images and note of each baseline: as many real images a class as the set has.

    Beside a set of mosaics there are random mosaics, too: as many, under the same decoder.
    """
    counts, points = counts_of(s), features or pixel_features(s.space)
    draws = tuple(
        Real(indices=random_real(train, counts, seed=d, replacement=True)) for d in range(seeds)
    )
    medoid = (Real(indices=medoid_real(train, counts, points, replacement=True)),)
    have = torch.bincount(train.labels, minlength=len(counts)).tolist()

    def again(cells: int) -> str:
        scarce = any(n < cells * count for n, count in zip(have, counts, strict=True))
        return "small classes give images twice" if scarce else ""

    part = f", {CLASS_CAP:,} images of each larger class" if max(have) > CLASS_CAP else ""
    note = "; ".join(filter(None, [f"k-means on {points.name}{part}", again(1)]))
    found: list[tuple[str, What, str]] = [
        (BASELINES[0], draws, again(1)),
        (BASELINES[1], medoid, note),
    ]
    if isinstance(s.decode, MultiFormation) and (cells := s.decode.cells) > 1:
        mosaics = tuple(random_mosaics(train, counts, s.decode, seed=d) for d in range(seeds))
        note = "; ".join(filter(None, [f"{cells} real images in each", again(cells)]))
        found.append((BASELINES[2], mosaics, note))
    return found


def random_mosaics(
    train: Split, counts: Sequence[int], decode: MultiFormation, *, seed: int
) -> Mosaics:
    """Return counts[c] mosaics of random images of each class c; small classes give some twice."""
    taken = [count * decode.cells for count in counts]
    chosen = torch.tensor(random_real(train, taken, seed=seed, replacement=True))
    groups = [part.view(decode.cells, -1) for part in chosen.split(taken) if len(part)]
    return Mosaics(indices=tuple(torch.cat(groups, 1).flatten().tolist()), decode=decode)


def _real_bytes(data: DataSet, count: int, s: DistilledSet) -> dict[str, int]:
    """Return the bytes of real images (uint8 pixels, int64 labels) and of the set's normaliser."""
    height, width = data.size
    return {
        "images": count * data.channels * height * width,
        "targets": 8 * count,
        "normaliser": s.space.nbytes(),
    }
