"""The rows of the study of variance that are asked for: checked, and as specs of tasks."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from potstill.artefact import load
from potstill.core.compute import Compute, Wish, choose
from potstill.core.errors import InputError, unknown
from potstill.core.ranges import at_least
from potstill.core.store import Store
from potstill.data import DataSet, MeanStd, make_space, reopen
from potstill.engine import Tasks
from potstill.functional import TrainSpec
from potstill.functional.diagnostics import Trials
from potstill.functional.restoring import restoring
from potstill.nets import NetSpec, fitting, flops, narrowed
from potstill.studies.variance_tasks import OBJECTIVES, VarianceSpec, head_of, network
from potstill.teachers import ENCODERS, Encoder, TargetsSpec, read_encoder, target_tasks
from potstill.teachers.encoders import ENCODER_FACTS


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What the study of variance looks at.

    Raises:
        InputError: for names or numbers that are not possible.
    """

    objectives: tuple[str, ...] = tuple(OBJECTIVES)
    """Of `OBJECTIVES`; controls end in +views."""
    batches: tuple[int, ...] = (64, 256)
    """Images a step."""
    images: int = 64
    """Training images of each class."""
    net: NetSpec = NetSpec(name="auto")
    """The encoder with its last layer; without a width, of a quarter of the published one."""
    runs: int = 4
    """Trainings from each theta_0."""
    steps: int | None = None
    """Of each run; None: those on record for batches of 64 and 256."""
    gradients: int = 24
    """Batches whose gradients are taken at theta_0 and at the end of each run."""
    distance: float | None = None
    """Runs end where |D| is this part of |theta_0|, at the latest after their steps."""
    lr: Mapping[str, float] = field(default_factory=dict)
    """Step sizes by objective, where not those on record."""
    seed: int = 0
    """Of the first theta_0."""
    seeds: int = 1
    """How many there are; each has its own random network to learn."""

    def __post_init__(self) -> None:
        for name in (*self.objectives, *self.lr):
            if name not in OBJECTIVES:
                raise unknown("objective", name, OBJECTIVES)
        for name in self.lr:
            if name not in self.objectives:
                raise InputError(f"There is a step size of {name}, which is not looked at.")
        for what, given in (("objective", self.objectives), ("batch", self.batches)):
            if not given or len(set(given)) < len(given):
                told = ", ".join(map(str, given)) or "none"
                raise InputError(f"Name at least one {what}, each once, not {told}.")
        at_least(1, self, "images", "seeds")
        for name, batch, _ in self.lines:  # their records refuse the rest
            _ = self.trials(name, batch), self.train(name, batch)

    @property
    def lines(self) -> list[tuple[str, int, int]]:
        """Return objective, batch and seed of each row."""
        seeds = range(self.seed, self.seed + self.seeds)
        return [(name, b, k) for name in self.objectives for b in self.batches for k in seeds]

    def train(self, name: str, batch: int) -> TrainSpec:
        """Return how the runs of an objective are trained."""
        return OBJECTIVES[name].train(batch, self.lr.get(name))

    def trials(self, name: str, batch: int) -> Trials:
        """Return which runs are made of an objective."""
        steps, known = self.steps, OBJECTIVES[name].steps
        if steps is None and batch not in known:
            sizes = " and ".join(map(str, known))
            raise InputError(
                f"Batches of {sizes} have a number of steps on record; say how many are taken on "
                f"those of {batch} (steps)."
            )
        steps = known[batch] if steps is None else steps
        given = {"gradients": self.gradients, "distance": self.distance}
        return Trials(runs=self.runs, steps=steps, **given)  # pyrefly: ignore[bad-argument-type]


def images_of(data: DataSet, asked: Comparison) -> DataSet:
    """Return data with as many training images a class as are asked for.

    Raises:
        InputError: for classes with fewer, a batch of more than all, or images whose colours
            cannot be augmented.
    """
    coloured = [name for name in asked.objectives if OBJECTIVES[name].augment is not None]
    if data.channels != 3 and coloured:
        plain = ", ".join(name for name, each in OBJECTIVES.items() if each.augment is None)
        raise InputError(
            f"Only images of 3 channels, not of {data.channels}, have colours that {coloured[0]} "
            f"augments; possible objectives are {plain}."
        )
    counts = torch.bincount(data.train.labels, minlength=data.n_classes).tolist()
    for name, count in zip(data.classes, counts, strict=True):
        if count < asked.images:
            raise InputError(
                f"Class {name!r} has {count} training images, fewer than {asked.images} (images)."
            )
    batch, total = max(asked.batches), asked.images * data.n_classes
    if batch > total:
        raise InputError(f"A batch of {batch} images is more than the {total} of all classes.")
    return reopen(replace(data.ref, limit=asked.images))


def taught_by(path: Path, asked: Comparison, data: DataSet, store: Store, wish: Wish) -> Tasks:
    """Return the task that makes an encoder's targets of the images.

    Raises:
        InputError: as `found_encoder`, for images of another shape than the encoder's, or if no
            objective learns features.
    """
    if all(OBJECTIVES[name].loss != "mse" for name in asked.objectives):
        raise InputError("An encoder is for objectives that learn features (kd_mse).")
    encoder, folder = found_encoder(path.expanduser(), store)
    compute = choose(wish, order=1, flops=0, images=0, steps=0)
    return target_tasks(data, encoder, folder, compute=compute, scale="standardised")


def row_specs(
    asked: Comparison, data: DataSet, targets: TargetsSpec | None, wish: Wish
) -> tuple[VarianceSpec, ...]:
    """Return the rows, each with how it is computed.

    Raises:
        InputError: if the network does not fit, or the machine cannot compute as wished.
    """
    space, shape = make_space("measured", data), (data.channels, *data.size)
    assert isinstance(space, MeanStd)
    net = narrowed(asked.net, 1 / 4) if asked.net.width is None else asked.net
    specs = list[VarianceSpec]()
    for name, batch, seed in asked.lines:
        train = asked.train(name, batch)
        spec = VarianceSpec(
            data=data.ref,
            space=space,
            net=fitting(net, data.size),
            head=head_of(train, data, targets),
            train=replace(train, augment=restoring(train.augment, space, shape)),
            trials=asked.trials(name, batch),
            targets=targets if train.loss == "mse" else None,
            seed=seed,
            compute=Compute(threads=1),
        )
        specs.append(replace(spec, compute=_computed(spec, data, wish)))
    return tuple(specs)


def _computed(spec: VarianceSpec, data: DataSet, wish: Wish) -> Compute:
    """Return how a row is computed."""
    (net, *_), trials = network(spec, data), spec.trials
    batches = trials.runs * trials.steps + (1 + trials.runs) * trials.gradients
    return choose(
        wish,
        order=1,
        flops=flops(net.load(net.theta0), data.channels, data.size),
        images=batches * spec.train.batch * (1 if spec.train.pairs is None else 2),
        steps=batches,
        compiles=net.known or wish.compile == "on",
    )


def found_encoder(path: Path, store: Store) -> tuple[Encoder, Path]:
    """Return the encoder in a folder, or that of a set or run with features, and its folder.

    Raises:
        InputError: if there is none, or the store has it no more.
    """
    if (path / ENCODER_FACTS).is_file():
        return read_encoder(path), path
    by = getattr(load(path).targets, "by", None)
    if by is None:
        raise InputError(f"The targets of {path} are not the features of an encoder.")
    for entry in store.entries(ENCODERS):
        with suppress(InputError):  # of another version
            encoder = read_encoder(entry.folder)
            if encoder.digest == by.digest:
                return encoder, entry.folder
    raise InputError(f"The encoder of {path}, {by.digest[:12]}, is not in {store.root}.")
