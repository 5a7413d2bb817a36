"""Squeeze: a teacher is trained on the real images.

Source: SRe2L, Yin, Xing and Shen, NeurIPS 2023 (arXiv 2306.13092), section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from potstill.core.compute import Compute
from potstill.core.errors import InputError, WorkError
from potstill.core.spec import later, record
from potstill.data import DataRef, DataSet, MeanStd, moved, reopen
from potstill.engine import Tasks, Watch, sharing
from potstill.functional import TrainSpec, fit, fresh
from potstill.nets import NetSpec, filled
from potstill.nets.taps import Tapped
from potstill.teachers.check import names_of, teacher_accuracy
from potstill.teachers.files import keep_teacher

KIND = "teachers"


@record
@dataclass(frozen=True, kw_only=True)
class TeacherSpec:
    """A teacher to be trained: everything that its weights depend on."""

    data: DataRef
    space: MeanStd
    net: NetSpec
    train: TrainSpec
    seed: int
    compute: Compute
    revision: int = 1
    """Raised when the code changes what a teacher becomes, so that old ones are not reused."""
    ranks: int = later(1)
    """Processes that share each batch: batch norm takes statistics of such a part of it."""


def teacher_tasks(
    data: DataSet,
    space: MeanStd,
    net: NetSpec,
    train: TrainSpec,
    *,
    seed: int,
    compute: Compute,
    ranks: int = 1,
) -> Tasks:
    """Return the one task that trains a teacher, in one process or so many (`ranks`) of torchrun.

    Raises:
        InputError: if the network has no batch norm, from whose statistics images are recovered.
    """
    net = filled(net)
    made = fresh(net, data, seed=seed)
    Tapped(made.load(made.theta0))
    spec = TeacherSpec(
        data=data.ref,
        space=space,
        net=net,
        train=train,
        seed=seed,
        compute=compute,
        ranks=ranks,
    )
    return Tasks(
        kind=KIND,
        fn=train_teacher,
        specs=(spec,),
        context={"source": data.source},
        label="teacher",
        together=ranks > 1,
    )


def train_teacher(spec: TeacherSpec, context: dict[str, str], folder: Path) -> None:
    """Train a teacher and write it, with its running statistics, into the folder.

    Its facts hold the accuracy on the validation part and the loss of every epoch. An accuracy no
    better than chance is left to whoever uses it (`check_accuracy`).

    Processes that share the work train alike; the first one writes, with its running statistics.

    Raises:
        InputError: if there are not as many processes as the spec says.
        WorkError: if the parameters stop being finite.
    """
    ranks = sharing(context)
    if ranks.world != spec.ranks:
        raise InputError(
            f"This teacher is trained by {spec.ranks} processes of torchrun, not by {ranks.world}; "
            "start as many, or another run."
        )
    data, compute = reopen(spec.data), spec.compute
    device, shape = torch.device(compute.device), (data.channels, *data.size)
    net = fresh(spec.net, data, seed=spec.seed, key=("teacher",))
    watch = Watch(spec.train.epochs)
    theta = fit(
        net,
        net.theta0.to(device),
        moved(data.train.pixels, device),
        data.train.labels.to(device),
        spec.train,
        seed=spec.seed,
        key=("teacher",),
        prepare=spec.space.forward,
        on_epoch=watch.epoch,
        compute=compute,
        ranks=ranks,
    )
    if not bool(theta.isfinite().all()):
        raise WorkError(f"The teacher diverged; lower its step size (now {spec.train.lr:g}).")
    if ranks.rank:
        return
    net.eval()
    module = net.load(theta)
    facts = {**watch.facts(context), "epochs": spec.train.epochs}
    try:
        keep_teacher(
            module,
            folder,
            net=spec.net,
            space=spec.space,
            shape=shape,
            classes=data.n_classes,
            names=names_of(data.classes),
            facts={**facts, "validation_accuracy": teacher_accuracy(spec.space, module, data)},
        )
    except InputError as error:  # running statistics that are not finite
        raise WorkError(f"{error} Lower its step size (now {spec.train.lr:g}).") from error
