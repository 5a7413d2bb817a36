"""Train experts: real-data networks whose parameters are kept after every epoch.

Source: Cazenavette et al., Dataset Distillation by Matching Training Trajectories, CVPR 2022
(arXiv 2203.11932), section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill.core.compute import Compute
from potstill.core.errors import InputError, WorkError
from potstill.core.spec import later, record
from potstill.core.store import Store, default_cache
from potstill.data import DataRef, DataSet, Space, SpaceSpec, moved, open_space, prepared, reopen
from potstill.engine import Tasks, Watch
from potstill.experts.imports import imported_tasks
from potstill.experts.plan import PAIRS, ExpertPlan
from potstill.experts.pools import KIND
from potstill.experts.store import write_trajectory
from potstill.experts.targets import read_targets, targets_width
from potstill.functional import TrainSpec, accuracy, fit
from potstill.functional.checks import check_pairs
from potstill.functional.restoring import restoring
from potstill.nets import VIEWS_HEAD, FlatNet, HeadSpec, NetSpec, filled, flat, projected


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
    targets: str | None = later(None)
    """Name of the targets in the store, of loss mse."""
    outputs: int | None = later(None)
    """Their width; None: as many outputs as there are classes."""
    head: HeadSpec | None = later(None)
    """What is in place of the last layer; None: that layer."""


def expert_tasks(
    plan: ExpertPlan,
    data: DataSet,
    space: Space,
    net: NetSpec,
    *,
    seed: int,
    compute: Compute,
    store: Store | None = None,
    targets: Path | None = None,
) -> Tasks:
    """Return one task an expert; expert k of a seed is the same however many there are.

    `targets` is the folder in a store of the targets that experts of objective kd_mse learn.

    Raises:
        InputError: if the plan names an imported pool that `store` lacks or that does not fit; if
            targets are missing, of other data or learned by nobody; if images have no colours
            that are augmented, or one is alone in a batch of pairs of views.
    """
    if (plan.objective == "kd_mse") != (targets is not None):
        does = "needs" if targets is None else "takes no"
        raise InputError(f"The experts' objective {plan.objective!r} {does} targets.")
    if plan.imported is not None:
        found = store or Store(default_cache())
        return imported_tasks(
            plan.imported, plan.count, data=data, space=space, net=net, store=found
        )
    shape = (data.channels, *data.size)
    check_pairs(len(data.train), plan.train)
    first = ExpertSpec(
        data=data.ref,
        space=space.record(),
        net=filled(net),
        train=replace(plan.train, augment=restoring(plan.augment, space.record(), shape)),
        seed=seed,
        index=0,
        compute=compute,
        head=VIEWS_HEAD if plan.objective in PAIRS else None,
    )
    context = {"source": data.source}
    if targets is not None:
        width = targets_width(targets, data=data.ref)
        first = replace(first, targets=targets.name, outputs=width)
        context[targets.name] = str(targets)
    if first.head is not None:
        expert_net(first, data)  # refuses a network that takes no other head
    specs = tuple(replace(first, index=k) for k in range(plan.count))
    return Tasks(kind=KIND, fn=train_expert, specs=specs, context=context, label="experts")


def expert_net(spec: ExpertSpec, data: DataSet) -> FlatNet:
    """Return the network of an expert with its initial weights.

    Raises:
        InputError: as `flat`, or if it has another head and does not end in a linear layer.
    """
    made: dict[str, Any] = {"channels": data.channels, "size": data.size, "seed": spec.seed}
    made["key"] = ("expert", spec.index)
    if spec.head is not None:
        return projected(spec.net, spec.head, **made)
    return flat(spec.net, classes=spec.outputs or data.n_classes, **made)


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
    *,
    rows: Tensor | None = None,
) -> None:
    """Train one expert on `data` from weights theta0, its initial ones if there are none.

    `rows` says which of the training images `data` still has; None: all of them.

    Raises:
        InputError: if the targets that it learns are gone, or other ones.
        WorkError: if the parameters stop being finite.
    """
    net, targets = expert_net(spec, data), data.train.labels
    if spec.targets is not None:
        taught = read_targets(Path(context[spec.targets]), data=spec.data, width=spec.outputs)
        targets = taught if rows is None else taught[rows]
    theta0 = net.theta0 if theta0 is None else theta0
    compute, device = spec.compute, torch.device(spec.compute.device)
    path = torch.empty(spec.train.epochs + 1, net.numel, pin_memory=device.type == "cuda")
    path[0] = theta0
    watch = Watch(spec.train.epochs)

    def keep(epoch: int, theta: Tensor, loss: float) -> None:
        path[epoch + 1].copy_(theta, non_blocking=True)
        watch.epoch(epoch, theta, loss)

    space = open_space(spec.space)
    pixels, prepare = prepared(space, data.train.pixels)
    theta = fit(
        net,
        theta0.to(device),
        moved(pixels, device),
        targets.to(device),
        spec.train,
        seed=spec.seed,
        key=("expert", spec.index),
        prepare=prepare,
        on_epoch=keep,
        compute=compute,
    )
    finite = bool(theta.isfinite().all())  # waits for a GPU, the rows that it copies included
    if not (finite and bool(path.isfinite().all())):
        raise WorkError(
            f"Expert {spec.index} diverged; lower its step size (now {spec.train.lr:g})."
        )
    val, forward, validation = data.val, space.forward, None
    if spec.outputs is None and spec.head is None:
        validation = accuracy(net, theta, val.pixels, val.labels, prepare=forward, compute=compute)
    facts = {
        **watch.facts(context),
        "validation_accuracy": validation,
        "parameters": [[n, list(s)] for n, s in zip(net.names, net.shapes, strict=True)],
    }
    write_trajectory(folder, path, facts)
