"""Networks that go on from where they were: links on distilled images, then real ones again.

    link k of a network:  theta_k = train(theta_{k-1}, S_1..S_k)                    (links)
    its stage k + 1:      real-data training that begins at theta_k                 (continued)

The real images never feed into theta_k: a chain of links runs through distilled sets alone.

Source: Chen et al., Data Distillation Can Be Like Vodka: Distilling More Times For Better Quality,
ICLR 2024 (arXiv 2310.06982): PDD, as its released code goes about it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from potstill.artefact import load, set_digest
from potstill.core.compute import Compute
from potstill.core.errors import InputError, WorkError
from potstill.core.keys import generator, integer
from potstill.core.spec import record
from potstill.core.state import tensor_digest
from potstill.core.store import Store
from potstill.data import DataRef, SpaceSpec, open_space, reopen
from potstill.engine import Tasks
from potstill.experts.imports import ImportedExpert
from potstill.experts.kept import kept, read_rows
from potstill.experts.network_pool import PathSpec, walk_from
from potstill.experts.source import Draw
from potstill.experts.store import Trajectory, write_trajectory
from potstill.experts.train import ExpertSpec, train_from
from potstill.functional import TrainSpec, accuracy, fit
from potstill.nets import FlatNet, NetSpec, flat

LINKS, CONTINUED, FILTERS = "links", "continued", "filters"
"""Under what the store files them, and the filters that they may name."""


@record
@dataclass(frozen=True, kw_only=True)
class Begin:
    """The initial weights of a network."""

    seed: int
    kind: Literal["expert", "fresh"]
    """Which initial weights: those of an expert, or of a network of `Fresh` (and of pools)."""
    index: int


@record
@dataclass(frozen=True, kw_only=True)
class Link:
    """One network trained on from where it was, on the union of the blocks so far."""

    after: Begin | ImportedExpert | Link
    """Where it begins: initial weights, those of an imported expert, or the link before."""
    union: str
    """Digest of the set."""
    train: TrainSpec
    net: NetSpec
    data: DataRef
    space: SpaceSpec
    compute: Compute
    revision: int = 1
    """Raised when the code changes what a link becomes, so that old ones are not reused."""

    @property
    def depth(self) -> int:
        """Return the number of links up to this one."""
        return 1 + (self.after.depth if isinstance(self.after, Link) else 0)

    @property
    def begin(self) -> Begin | ImportedExpert:
        """Return where the chain begins."""
        return self.after.begin if isinstance(self.after, Link) else self.after


@record
@dataclass(frozen=True, kw_only=True)
class Continued:
    """The training of an expert or the walk of a path, from where a link ended."""

    of: ExpertSpec | PathSpec
    start: Link | None
    """None: its own initial weights."""
    rows: str = ""
    """Name of the filter whose real images it sees; "": all."""

    @property
    def compute(self) -> Compute:
        """Return how the task is computed."""
        return self.of.compute


@dataclass(frozen=True, kw_only=True)
class After:
    """Where the networks of a stage begin: links and their folders, none in the first; a filter."""

    links: tuple[Link, ...]
    folders: tuple[Path, ...]
    store: Store
    rows: str = ""
    """Name of the filter of the real images; "": none."""

    def continued(self, tasks: Tasks) -> Tasks:
        """Return the tasks of experts or paths, each from where the link of its place ended.

        Orders of batches and augmentation are other ones in every stage.

        Raises:
            InputError: for experts that learn no classes, as networks of links do.
        """
        learned = (spec for spec in tasks.specs if isinstance(spec, ExpertSpec))
        if self.links and any(each.outputs or each.head for each in learned):
            raise InputError(
                "Networks between two stages learn classes; experts that learn features, or from "
                "views, cannot go on from them."
            )
        links = self.links or (None,) * len(tasks.specs)
        specs = tuple(
            Continued(of=_reseeded(spec, link), start=link, rows=self.rows)
            for spec, link in zip(tasks.specs, links, strict=True)
        )
        context = {**tasks.context, "store": str(self.store.root)}
        return replace(tasks, kind=CONTINUED, fn=go_on, specs=specs, context=context)

    @property
    def source(self) -> Conditioned | None:
        """Return the source of networks that were trained on the union, if there are any."""
        return Conditioned(tuple(map(Trajectory, self.folders))) if self.folders else None


def _reseeded(spec: ExpertSpec | PathSpec, link: Link | None) -> ExpertSpec | PathSpec:
    return spec if link is None else replace(spec, seed=integer(spec.seed, "stage", link.depth))


@dataclass(frozen=True)
class Conditioned:
    """Draw a network that was trained on the union of the earlier blocks, any one at random."""

    networks: tuple[Trajectory, ...]

    def draw(self, seed: int, it: int) -> Draw:
        """Return the network of outer step (or path) `it`."""
        chance = generator(seed, "conditioned", it)
        network = int(torch.randint(len(self.networks), (), generator=chance))
        theta = self.networks[network].row(0)
        return Draw(theta=theta, target=None, expert=network, epoch=0)


def link_tasks(links: Sequence[Link], union: Path, store: Store) -> Tasks:
    """Return one task a network; `union` is the folder of the set that all are trained on."""
    digests = {link.union for link in links}
    context = {digest: str(union) for digest in digests} | {"store": str(store.root)}
    return Tasks(
        kind=LINKS, fn=train_link, specs=tuple(links), context=context, label="conditioning"
    )


def train_link(spec: Link, context: dict[str, str], folder: Path) -> None:
    """Train one network on a union and write its weights [1, P] into the folder.

    Raises:
        InputError: if the set in the folder of the context is not the one of the spec.
        WorkError: if the weights stop being finite.
    """
    s = load(context[spec.union])
    if set_digest(s) != spec.union:
        raise InputError(f"The distilled set in {context[spec.union]} changed in the meantime.")
    data, store, begin = reopen(spec.data), Store(Path(context["store"])), spec.begin
    net = _net(spec, data.channels, data.size, data.n_classes)
    theta0 = _weights_before(spec, net, store)
    clock, cpu = time.perf_counter(), time.process_time()
    images, targets = s.decoded()
    device = torch.device(spec.compute.device)
    theta = fit(
        net,
        theta0.to(device),
        images.to(device),
        targets.to(device),
        spec.train,
        seed=0 if isinstance(begin, ImportedExpert) else begin.seed,
        key=("link", spec.depth, begin.index),
        places=s.places(),
        compute=spec.compute,
    )
    if not bool(theta.isfinite().all()):
        raise WorkError(
            f"Network {begin.index} diverged on the union; lower its step size (now "
            f"{spec.train.lr:g})."
        )
    forward = open_space(spec.space).forward
    val, compute = data.val, spec.compute
    measured = accuracy(net, theta, val.pixels, val.labels, prepare=forward, compute=compute)
    facts = {
        "began": tensor_digest({"theta": theta0}),
        "ended": tensor_digest({"theta": theta.cpu()}),
        "steps": spec.train.steps(len(images)),
        "validation_accuracy": measured,
        "seconds": time.perf_counter() - clock,
        "cpu_seconds": time.process_time() - cpu,
    }
    write_trajectory(folder, theta.cpu()[None], facts)


def go_on(spec: Continued, context: dict[str, str], folder: Path) -> None:
    """Train an expert or walk a path from where a link ended, on the images of the filter."""
    store, data, rows = Store(Path(context["store"])), reopen(spec.of.data), None
    if spec.rows:
        rows = read_rows(store.root / FILTERS / spec.rows)
        data = kept(data, rows)
    theta = None if spec.start is None else Trajectory(store.path(LINKS, spec.start)).row(0)
    if isinstance(spec.of, ExpertSpec):
        train_from(spec.of, data, theta, context, folder, rows=rows)
    else:
        walk_from(spec.of, data, theta, context, folder)


def _net(spec: Link, channels: int, size: tuple[int, int], classes: int) -> FlatNet:
    begin = spec.begin
    seed, kind = (0, "expert") if isinstance(begin, ImportedExpert) else (begin.seed, begin.kind)
    key = (kind, begin.index)
    return flat(spec.net, channels=channels, size=size, classes=classes, seed=seed, key=key)


def _weights_before(spec: Link, net: FlatNet, store: Store) -> Tensor:
    """Return the weights that a link begins with: row 0 of what it comes after."""
    if isinstance(spec.after, Begin):
        return net.theta0
    kind = LINKS if isinstance(spec.after, Link) else "experts"
    return Trajectory(store.path(kind, spec.after)).row(0)
