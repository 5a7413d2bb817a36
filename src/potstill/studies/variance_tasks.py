"""One row of the study of variance: an objective, a batch and a theta_0."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from potstill.augment import Policy
from potstill.augment.ssl import TOY
from potstill.core.compute import Compute
from potstill.core.files import write_json
from potstill.core.spec import record
from potstill.core.store import Store
from potstill.core.usage import peak_memory
from potstill.data import DataRef, DataSet, MeanStd, moved, reopen
from potstill.engine import progress
from potstill.experts import TARGETS, read_targets
from potstill.functional import SGD, BarlowTwins, PairLoss, Segment, SimCLR, TrainSpec, predict
from potstill.functional.diagnostics import Training, Trials, diagnosed
from potstill.functional.losses import Loss
from potstill.functional.selfsup import standardised
from potstill.nets import VIEWS_HEAD, FlatNet, HeadSpec, NetSpec, fitting, flat, projected
from potstill.studies.kept import finite
from potstill.teachers import TargetsSpec

KIND, RESULT, KEY = "variances", "result.json", ("variance",)
RANDOM = NetSpec(name="auto", width=128)
"""The random network whose outputs are learned where there is no encoder, and how many they are."""
OUTPUTS = 512


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What a row learns, with the settings of the study on record."""

    title: str
    lr: float
    loss: Loss = "ce"
    pairs: PairLoss | None = None
    augment: Policy | None = None
    control: bool = False
    steps: Mapping[int, int] = field(default_factory=dict)
    """Steps of a run by the batch."""

    def train(self, batch: int, lr: float | None = None) -> TrainSpec:
        """Return the training, at another step size if one is given.

        Raises:
            InputError: for a step size or a batch that it cannot have.
        """
        return TrainSpec(
            lr=self.lr if lr is None else lr,
            segments=(Segment(epochs=1),),
            batch=batch,
            optimizer=SGD(momentum=0.9),
            loss=self.loss,
            pairs=self.pairs,
            augment=self.augment,
        )


_FEW, _MORE = {64: 40, 256: 12}, {64: 40, 256: 20}
OBJECTIVES: Mapping[str, Objective] = {
    "ce": Objective(title="classes", lr=0.05, steps=_FEW),
    "kd_mse": Objective(title="features", lr=0.2, loss="mse", steps=_MORE),
    "bt": Objective(
        title="Barlow Twins", lr=5e-4, pairs=BarlowTwins(lam=1 / 128), augment=TOY, steps=_MORE
    ),
    "simclr": Objective(
        title="SimCLR", lr=0.1, pairs=SimCLR(temperature=0.5), augment=TOY, steps=_FEW
    ),
    "kd_mse+views": Objective(
        title="features, augmented", lr=0.2, loss="mse", augment=TOY, control=True, steps=_MORE
    ),
    "ce+views": Objective(
        title="classes, augmented", lr=0.05, augment=TOY, control=True, steps=_FEW
    ),
}
"""By name; "+views" are controls, with the augmentation of self-supervised training."""


@record
@dataclass(frozen=True, kw_only=True)
class VarianceSpec:
    """One row: everything that its numbers depend on."""

    data: DataRef
    space: MeanStd
    net: NetSpec
    head: HeadSpec
    """What is in place of the network's last layer."""
    train: TrainSpec
    trials: Trials
    targets: TargetsSpec | None
    """Those that loss mse learns, finished work in the store context["store"]; None: those of a
    random network."""
    seed: int
    compute: Compute
    revision: int = 1
    """Raised when the code changes what is measured, so that old rows are not reused."""


def head_of(train: TrainSpec, data: DataSet, targets: TargetsSpec | None) -> HeadSpec:
    """Return what a training has in place of the network's last layer."""
    if train.pairs is not None:
        return VIEWS_HEAD
    if train.loss == "mse":
        return HeadSpec(widths=(OUTPUTS if targets is None else targets.encoder.width,))
    return HeadSpec(widths=(data.n_classes,))


def network(spec: VarianceSpec, data: DataSet) -> tuple[FlatNet, Tensor, int]:
    """Return the network of a row, theta_0, and how many weights, the first ones, its encoder has.

    The encoder's do not depend on the head.

    Raises:
        InputError: if the network does not fit the images, or does not end in a linear layer.
    """
    make = partial(projected, channels=data.channels, size=data.size, seed=spec.seed, key=KEY)
    net, any_head = make(spec.net, spec.head), make(spec.net, HeadSpec(widths=(2,)))
    sizes = zip(net.names, map(math.prod, net.shapes), strict=True)
    encoder = sum(count for name, count in sizes if name.startswith("encoder."))
    return net, torch.cat([any_head.theta0[:encoder], net.theta0[encoder:]]), encoder


def measure(spec: VarianceSpec, context: dict[str, str], folder: Path) -> None:
    """Make the runs of a row and write `result.json`: `Diagnostics`, seconds, memory.

    Numbers that are not finite are None there.

    Raises:
        InputError: if the targets are gone, or the network does not fit.
        WorkError: if a run diverges.
    """
    clock, cpu = time.perf_counter(), time.process_time()
    data, device = reopen(spec.data), torch.device(spec.compute.device)
    net, theta0, encoder = network(spec, data)
    training = Training(
        net=net,
        theta0=theta0.to(device),
        images=moved(data.train.pixels, device),
        targets=_targets(spec, context, data).to(device),
        spec=spec.train,
        prepare=spec.space.forward,
        compute=spec.compute,
    )
    found = diagnosed(
        training,
        spec.trials,
        measured=encoder,
        seed=spec.seed,
        key=KEY,
        on_part=lambda done, total: progress(done, total, "part"),
    )
    result = {
        **{name: finite(value) for name, value in asdict(found).items()},
        "weights": encoder,
        "seconds": time.perf_counter() - clock,
        "cpu_seconds": time.process_time() - cpu,
        "peak_bytes": peak_memory(),
    }
    write_json(folder / RESULT, result)


def _targets(spec: VarianceSpec, context: dict[str, str], data: DataSet) -> Tensor:
    """Return what the images are to be given: classes, or features of mean 0 and std 1."""
    if spec.train.loss != "mse":
        return data.train.labels
    if spec.targets is not None:
        folder = Store(Path(context["store"])).verify(TARGETS, spec.targets)
        return read_targets(folder, data=spec.data, width=spec.head.widths[-1])
    size = {"channels": data.channels, "size": data.size, "classes": spec.head.widths[-1]}
    net = flat(fitting(RANDOM, data.size), **size, seed=spec.seed, key=(*KEY, "targets"))
    theta = net.theta0.to(spec.compute.device)
    run: Callable[..., Tensor] = partial(predict, prepare=spec.space.forward, compute=spec.compute)
    values = run(net, theta, data.train.pixels).cpu().double()
    return standardised(values, unbiased=False).float()
