"""Train experts: real-data networks whose parameters are kept after every epoch.

Source: Cazenavette et al., Dataset Distillation by Matching Training Trajectories, CVPR 2022
(arXiv 2203.11932), section 3.2.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from potstill.augment import DSA, Policy
from potstill.core.compute import Compute
from potstill.core.errors import InputError, WorkError
from potstill.core.ranges import at_least
from potstill.core.spec import record
from potstill.core.store import Store, default_cache
from potstill.data import DataRef, DataSet, Space, SpaceSpec, moved, open_space, prepared, reopen
from potstill.engine import Tasks
from potstill.experts.imports import imported_tasks
from potstill.experts.pools import KIND, find_pool
from potstill.experts.store import write_trajectory
from potstill.functional import GSAM, SGD, Segment, TrainSpec, accuracy, fit, fresh
from potstill.nets import NetSpec, filled


@record
@dataclass(frozen=True, kw_only=True)
class ExpertPlan:
    """How many experts are trained, and how."""

    count: int = 100
    """Number of experts."""
    epochs: int = 50
    """Epochs of real data an expert sees."""
    lr: float = 0.01
    """Step size."""
    momentum: float = 0.0
    """Momentum of SGD."""
    weight_decay: float = 0.0
    """Weight decay of SGD."""
    batch: int = 256
    """Images a step; the last, partial batch of an epoch is kept."""
    augment: Policy | None = DSA()
    """Augmentation of the real images."""
    gsam: GSAM = GSAM(rho=0.0, alpha=0.0)
    """Experts in flat regions (FTD): GSAM around SGD; a rho of 0 means plain SGD."""
    imported: str | None = None
    """Train none: take `count` experts of this pool (see `potstill experts import`)."""

    def __post_init__(self) -> None:
        at_least(1, self, "count", "epochs", prefix="experts' ")
        if not self.gsam.rho and (self.gsam.alpha or not self.gsam.adaptive):
            raise InputError("gsam.alpha and gsam.adaptive have no effect without a gsam.rho.")
        _ = self.train  # its records refuse a bad step size, batch, momentum or decay

    @property
    def train(self) -> TrainSpec:
        """Return how each expert is trained."""
        return TrainSpec(
            lr=self.lr,
            segments=(Segment(epochs=self.epochs),),
            batch=self.batch,
            optimizer=SGD(momentum=self.momentum, weight_decay=self.weight_decay),
            augment=self.augment,
            sharpness=self.gsam if self.gsam.rho else None,
        )


@record
@dataclass(frozen=True, kw_only=True)
class ExpertSpec:
    """One expert: everything that its trajectory depends on."""

    data: DataRef
    space: SpaceSpec
    net: NetSpec
    train: TrainSpec
    seed: int
    index: int
    compute: Compute
    revision: int = 4
    """Raised when the code changes what an expert becomes, so that old ones are not reused."""


def expert_tasks(
    plan: ExpertPlan,
    data: DataSet,
    space: Space,
    net: NetSpec,
    *,
    seed: int,
    compute: Compute,
    store: Store | None = None,
) -> Tasks:
    """Return one task an expert; expert k of a seed is the same however many there are.

    Raises:
        InputError: if the plan names an imported pool that `store` lacks or that does not fit.
    """
    if plan.imported is not None:
        found = store or Store(default_cache())
        return imported_tasks(
            plan.imported, plan.count, data=data, space=space, net=net, store=found
        )
    first = ExpertSpec(
        data=data.ref,
        space=space.record(),
        net=filled(net),
        train=plan.train,
        seed=seed,
        index=0,
        compute=compute,
    )
    specs = tuple(replace(first, index=k) for k in range(plan.count))
    return Tasks(
        kind=KIND, fn=train_expert, specs=specs, context={"source": data.source}, label="experts"
    )


def epochs_of(plan: ExpertPlan, store: Store | None = None) -> int:
    """Return the epochs that the experts of a plan have: its own, or those of an imported pool.

    Raises:
        InputError: if the store lacks the imported pool.
    """
    if plan.imported is None:
        return plan.epochs
    return find_pool(store or Store(default_cache()), plan.imported).last_epoch()


def train_expert(spec: ExpertSpec, context: dict[str, str], folder: Path) -> None:
    """Train one expert and write its trajectory (row 0 = initial weights) into the folder.

    Differs: the original aliases all snapshots when it runs on a CPU; here each row is a copy.

    Raises:
        WorkError: if the parameters stop being finite.
    """
    train_from(spec, reopen(spec.data), None, context, folder)


def train_from(
    spec: ExpertSpec,
    data: DataSet,
    theta0: Tensor | None,
    context: dict[str, str],
    folder: Path,
) -> None:
    """Train one expert on `data` from weights theta0, its initial ones if there are none.

    Raises:
        WorkError: if the parameters stop being finite.
    """
    net = fresh(spec.net, data, seed=spec.seed, key=("expert", spec.index))
    theta0 = net.theta0 if theta0 is None else theta0
    compute, device = spec.compute, torch.device(spec.compute.device)
    rows = torch.empty(spec.train.epochs + 1, net.numel, pin_memory=device.type == "cuda")
    rows[0] = theta0
    losses: list[float] = []

    def keep(epoch: int, theta: Tensor, loss: float) -> None:
        rows[epoch + 1].copy_(theta, non_blocking=True)
        losses.append(loss)

    space = open_space(spec.space)
    clock, cpu = time.perf_counter(), time.process_time()
    pixels, prepare = prepared(space, data.train.pixels)
    theta = fit(
        net,
        theta0.to(device),
        moved(pixels, device),
        data.train.labels.to(device),
        spec.train,
        seed=spec.seed,
        key=("expert", spec.index),
        prepare=prepare,
        on_epoch=keep,
        compute=compute,
    )
    finite = bool(theta.isfinite().all())  # waits for a GPU, the rows that it copies included
    if not (finite and bool(rows.isfinite().all())):
        raise WorkError(
            f"Expert {spec.index} diverged; lower its step size (now {spec.train.lr:g})."
        )
    val, forward = data.val, space.forward
    validation = accuracy(net, theta, val.pixels, val.labels, prepare=forward, compute=compute)
    facts = {
        "source": context.get("source"),
        "train_loss": losses,
        "validation_accuracy": validation,
        "parameters": [[n, list(s)] for n, s in zip(net.names, net.shapes, strict=True)],
        "torch": torch.__version__,
        "seconds": time.perf_counter() - clock,
        "cpu_seconds": time.process_time() - cpu,
    }
    write_trajectory(folder, rows, facts)
