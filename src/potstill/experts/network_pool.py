"""Pools of networks that were trained on real images once and are kept in the store.

Source: Kim et al., ICML 2022 (arXiv 2205.14959), whose ImageNet-100 networks start pre-trained; and
the observation that a path never depends on the distilled images, so that all of it can be kept.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from potstill.core.compute import Compute
from potstill.core.errors import InputError, WorkError
from potstill.core.keys import generator
from potstill.core.ranges import at_least, one_of
from potstill.core.spec import record
from potstill.data import DataRef, DataSet, Space, SpaceSpec, at_hand, open_space, reopen
from potstill.engine import Tasks
from potstill.experts.paths import NetworkPath, Walker
from potstill.experts.pools import KIND
from potstill.experts.source import Draw, Fresh
from potstill.experts.store import Trajectory, write_trajectory
from potstill.functional import TrainSpec, accuracy
from potstill.nets import FlatNet, NetSpec, filled


@record
@dataclass(frozen=True, kw_only=True)
class NetworkPool:
    """Networks made once, kept in the store, and drawn again and again."""

    size: int = 0
    """Networks; 0 = none are kept, every path is a new network's (as published)."""
    keeps: Literal["paths", "starts"] = "paths"
    """What is kept of each: its weights before every matching, or after some epochs of real images;
    from these `starts` paths are walked anew."""
    first: int = 0
    """Epochs before the first of the starts."""
    count: int = 1
    """Starts of each network, an epoch apart."""
    seed: int = 0
    """Seed of the networks, whatever that of the run: pools of one seed are shared."""

    def __post_init__(self) -> None:
        at_least(0, self, "size", "first", prefix="pool.")
        at_least(1, self, "count", prefix="pool.")
        one_of(("paths", "starts"), self, "keeps", prefix="pool.")
        starts = (self.first, self.count) != (0, 1)
        if (starts or self.seed or self.keeps == "starts") and not self.size:
            raise InputError("pool.keeps, first, count and seed need a pool.size.")
        if starts and self.keeps == "paths":
            raise InputError("pool.first and pool.count are for --pool.keeps starts.")

    def kept(self, path: NetworkPath, matches: int, images: int) -> tuple[NetworkPath, int]:
        """Return the path that each network of the pool walks, and the places that are kept.

        `images` are those of an epoch.
        """
        if self.keeps == "paths":
            return path, matches
        return replace(path, early=0, images=images), self.first + self.count


@record
@dataclass(frozen=True, kw_only=True)
class PathSpec:
    """One walked path: everything that its weights depend on."""

    data: DataRef
    space: SpaceSpec
    net: NetSpec
    path: NetworkPath
    matches: int
    """Places of the path that are kept."""
    seed: int
    index: int
    compute: Compute
    revision: int = 1
    """Raised when the code changes what a path becomes, so that old ones are not reused."""

    @property
    def train(self) -> TrainSpec:
        """Return how each step is taken."""
        return self.path.train


def pool_tasks(
    pool: NetworkPool,
    path: NetworkPath,
    matches: int,
    data: DataSet,
    space: Space,
    net: NetSpec,
    *,
    compute: Compute,
) -> Tasks:
    """Return one task a network; network k of a seed is the same however many there are."""
    path, matches = pool.kept(path, matches, len(data.train))
    first = PathSpec(
        data=data.ref,
        space=space.record(),
        net=filled(net),
        path=path,
        matches=matches,
        seed=pool.seed,
        index=0,
        compute=compute,
    )
    specs = tuple(replace(first, index=k) for k in range(pool.size))
    context = {"source": data.source}
    return Tasks(kind=KIND, fn=walk, specs=specs, context=context, label="network pool")


def walk(spec: PathSpec, context: dict[str, str], folder: Path) -> None:
    """Walk one path and write its weights before each matching [matches, P] into the folder.

    Raises:
        WorkError: if the weights stop being finite.
    """
    walk_from(spec, reopen(spec.data), None, context, folder)


def walk_from(
    spec: PathSpec, data: DataSet, theta: Tensor | None, context: dict[str, str], folder: Path
) -> None:
    """Walk one path on `data` from weights theta, a fresh network's if there are none.

    Raises:
        WorkError: if the weights stop being finite.
    """
    space, k = open_space(spec.space), spec.index
    net = Fresh(spec.net, data.channels, data.size, data.n_classes).net(spec.seed, k)
    theta = net.theta0 if theta is None else theta
    clock, cpu = time.perf_counter(), time.process_time()
    found = at_hand(data, space, spec.compute.device)
    own = Walker(
        net=net,
        path=spec.path,
        images=found.pixels,
        labels=found.labels,
        prepare=found.prepare,
        seed=spec.seed,
        compute=spec.compute,
    )
    rows = torch.empty(spec.matches, net.numel)
    theta, state = own.start(theta.to(spec.compute.device), k)
    rows[0].copy_(theta)
    for place in range(1, spec.matches):
        theta, state = own.onward(theta, state, k, place)
        rows[place].copy_(theta)
    if not bool(rows.isfinite().all()):
        raise WorkError(
            f"Network {k} of the pool diverged; lower its step size (now {spec.path.lr:g})."
        )
    facts = {
        "source": context.get("source"),
        "validation_accuracy": _measured(net, theta, data, space, spec.compute),
        "parameters": [[n, list(s)] for n, s in zip(net.names, net.shapes, strict=True)],
        "torch": torch.__version__,
        "seconds": time.perf_counter() - clock,
        "cpu_seconds": time.process_time() - cpu,
    }
    write_trajectory(folder, rows, facts)


def _measured(net: FlatNet, theta: Tensor, data: DataSet, space: Space, compute: Compute) -> float:
    val, prepare = data.val, space.forward
    net.train()
    if not net.separable:  # a trajectory holds no running statistics
        net.measure(theta, prepare(data.train.pixels[:1024]).to(theta))
    return accuracy(net, theta, val.pixels, val.labels, prepare=prepare, compute=compute)


@dataclass(frozen=True)
class Paths:
    """Draw the networks of a pool with their whole paths, in rounds of random order."""

    networks: tuple[Trajectory, ...]
    matches: int
    walked: ClassVar[bool] = True
    """Whether there is a network for every image step, not for every path."""

    @classmethod
    def open(cls, folders: Sequence[Path]) -> Paths:
        """Open walked paths."""
        networks = tuple(Trajectory(folder) for folder in folders)
        return cls(networks, networks[0].shape[0])

    def draw(self, seed: int, it: int) -> Draw:
        """Return the network of matching `it`."""
        turn, place = divmod(it, self.matches)
        rounds, k = divmod(turn, len(self.networks))
        order = torch.randperm(len(self.networks), generator=generator(seed, "paths", rounds))
        network = int(order[k])
        theta = self.networks[network].row(place)
        return Draw(theta=theta, target=None, expert=network, epoch=place)


@dataclass(frozen=True)
class Starts:
    """Draw a network of a pool after one of some numbers of epochs, both at random."""

    networks: tuple[Trajectory, ...]
    first: int

    @classmethod
    def open(cls, folders: Sequence[Path], first: int) -> Starts:
        """Open networks whose snapshots from epoch `first` on are starts."""
        return cls(tuple(Trajectory(folder) for folder in folders), first)

    def draw(self, seed: int, it: int) -> Draw:
        """Return the start of path number `it`."""
        chance = generator(seed, "start", it)
        network = int(torch.randint(len(self.networks), (), generator=chance))
        own = self.networks[network]
        epoch = int(torch.randint(self.first, own.shape[0], (), generator=chance))
        return Draw(theta=own.row(epoch), target=None, expert=network, epoch=epoch)
