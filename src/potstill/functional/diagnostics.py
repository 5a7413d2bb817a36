"""What trainings from one beginning have in common: their gradients, where they go, how far.

Source: Joshi, Ni and Mirzasoleiman, Dataset Distillation via Knowledge Distillation: Towards
Efficient Self-Supervised Pre-Training of Deep Networks (MKDT), ICLR 2025 (arXiv 2410.02116),
section 4.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.core import keys
from potstill.core.compute import Compute
from potstill.core.errors import InputError, WorkError
from potstill.core.ranges import above_zero, at_least
from potstill.core.spec import record
from potstill.data import Pixels
from potstill.functional.advance import Job, Prepare
from potstill.functional.schedule import TrainSpec
from potstill.functional.spread import cosine, moments, ratio_of, spread
from potstill.functional.train import take_steps
from potstill.nets.flat import FlatNet

Key = tuple[int | str, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Training:
    """What `fit` takes: a network and its first weights, images, targets, and how it is trained.

    The segments of the spec are not read.
    """

    net: FlatNet
    theta0: Tensor
    images: Pixels
    targets: Tensor
    spec: TrainSpec
    prepare: Prepare | None = None
    compute: Compute | None = None


@record
@dataclass(frozen=True, kw_only=True)
class Trials:
    """Which runs are made, and what is measured of them.

    Raises:
        InputError: for fewer than 2 runs, 2 gradients or 1 step, or a distance of at most 0.
    """

    runs: int = 4
    steps: int = 40
    """Of each run, at most."""
    gradients: int = 24
    """Batches whose gradients are taken at the start and at each end."""
    distance: float | None = None
    """A run ends where its weights are so far from theta_0, as a part of theta_0's length."""

    def __post_init__(self) -> None:
        at_least(2, self, "runs", "gradients")
        at_least(1, self, "steps")
        above_zero(self, "distance")


@dataclass(frozen=True, kw_only=True)
class Diagnostics:
    """What runs from one theta_0 differ in, and how far they came; of the measured weights only."""

    noise_start: float
    """`noise_to_signal` of batches' gradients at theta_0; infinite where no signal is left."""
    noise_end: float
    """The same at the ends of all runs together."""
    spread: float
    """Of the runs' ways, theta_end - theta_0; the first quantity to look at."""
    cosine: float
    """Of these ways."""
    moved: float
    """Mean length of these ways, as a part of theta_0's."""
    loss_start: float
    """Mean loss of the batches of the gradients at theta_0."""
    loss_end: float
    """The same at the ends of all runs."""
    steps: tuple[int, ...]
    """Steps of each run."""


def diagnosed(
    training: Training,
    trials: Trials,
    *,
    measured: int | None = None,
    seed: int,
    key: Key = (),
    on_part: Callable[[int, int], None] = lambda done, total: None,
) -> Diagnostics:
    """Return what runs from theta_0 that differ in order and augmentation have in common.

    Args:
        training: what is trained, and how.
        trials: how many runs, and how long.
        measured: look at so many weights only, the first ones (an encoder's); by default at all.
        seed, key: of everything random; each step and each gradient has numbers of its own, so
            that longer runs begin as shorter ones.
        on_part: called as (finished, all) after each run, and after the gradients at each place.

    Raises:
        InputError: as `fit`, or for a batch of more images than there are.
        WorkError: if weights stop being finite, or no run moves.
    """
    count, batch = len(training.images), training.spec.batch
    if batch > count:
        raise InputError(f"A batch of {batch} images is more than there are, {count}.")
    own, parts = slice(measured), 2 * trials.runs + 1
    chance = keys.generator(seed, *key, "gradients")
    drawn = [torch.randperm(count, generator=chance)[:batch] for _ in range(trials.gradients)]

    def look(theta: Tensor) -> tuple[float, tuple[float, float]]:
        """Return the mean loss, and both moments of the gradients, which are not kept."""
        losses, found = gradients(training, theta, drawn, measured=measured, seed=seed, key=key)
        return float(losses.mean()), moments(found)

    loss, first = look(training.theta0)
    on_part(1, parts)
    ends, steps, last = list[Tensor](), list[int](), list[tuple[float, tuple[float, float]]]()
    for k in range(trials.runs):
        end, taken = run(training, trials, own, seed=seed, key=(*key, "run", k))
        ends.append(end)
        steps.append(taken)
        on_part(2 * k + 2, parts)
        last.append(look(end))
        on_part(2 * k + 3, parts)
    start = training.theta0[own].double()
    ways = torch.stack([end[own].double() - start for end in ends])
    return Diagnostics(
        noise_start=ratio_of([first]),
        noise_end=ratio_of(found for _, found in last),
        spread=spread(ways),
        cosine=cosine(ways),
        moved=float(ways.norm(dim=1).mean() / start.norm()),
        loss_start=loss,
        loss_end=statistics.fmean(each for each, _ in last),
        steps=tuple(steps),
    )


def gradients(
    training: Training,
    theta: Tensor,
    batches: Sequence[Tensor],
    *,
    measured: int | None = None,
    seed: int,
    key: Key = (),
) -> tuple[Tensor, Tensor]:
    """Return losses [n] and gradients [n, P] of a training's steps on n batches (rows) at theta.

    Only the first `measured` weights' parts are kept. Batch k is augmented from the key with
    ("batch", k); dropout draws from the same key with "net". Running statistics stay as they are.

    Raises:
        InputError: as `take_steps`.
    """
    net, spec = training.net, training.spec
    given = (training.images, training.targets, spec, training.prepare, training.compute)
    net.train()
    job, losses, found = Job.of(net, theta, *given), list[Tensor](), list[Tensor]()
    for k, rows in enumerate(batches):
        own = (*key, "batch", k)
        with net.keeping_statistics(), keys.forked(seed, *own, "net", device=theta.device):
            loss, gradient = job.slope(rows, theta, keys.generator(seed, *own))(theta)
        losses.append(loss)
        found.append(gradient[:measured].clone())
    return torch.stack(losses), torch.stack(found)


def run(
    training: Training, trials: Trials, own: slice, *, seed: int, key: Key
) -> tuple[Tensor, int]:
    """Return the weights after one run, and its steps.

    Steps take whole batches of random passes through the images.

    Raises:
        WorkError: if weights stop being finite.
    """
    first, spec = training.theta0, training.spec
    theta, state, taken = first, spec.optimizer.init(first), 0
    far = math.inf if trials.distance is None else trials.distance * float(first[own].norm())
    order = keys.generator(seed, *key, "order")
    for rows in passes(len(training.images), spec.batch, trials.steps, order):
        theta, state = take_steps(
            training.net,
            theta,
            state,
            training.images,
            training.targets,
            spec,
            [rows],
            step=taken,
            seed=seed,
            key=(*key, taken),
            prepare=training.prepare,
            compute=training.compute,
        )
        taken += 1
        if far < math.inf and float((theta - first)[own].norm()) >= far:
            break
    if not bool(theta.isfinite().all()):
        raise WorkError(f"A run diverged; lower its step size (now {spec.lr:g}).")
    return theta, taken


def passes(count: int, batch: int, steps: int, chance: torch.Generator) -> list[Tensor]:
    """Return the rows of so many steps: whole batches of permutations of `count` images.

    What a permutation has beyond whole batches is left out.
    """
    whole, rows = count // batch, list[Tensor]()
    while len(rows) < steps:
        rows += torch.randperm(count, generator=chance)[: whole * batch].split(batch)
    return rows[:steps]
