"""One evaluation task: train one fresh network on some images and measure it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from potstill.artefact import DistilledSet, load
from potstill.core.errors import InputError
from potstill.core.files import write_json
from potstill.core.spec import record
from potstill.core.state import tensor_digest
from potstill.data import DataRef, MeanStd, Split, reopen
from potstill.functional import TrainSpec, accuracy, fit
from potstill.nets import FlatNet, NetSpec, build


@record
@dataclass(frozen=True, kw_only=True)
class Distilled:
    """Train on the distilled set of this digest (its folder is context["set"])."""

    digest: str


@record
@dataclass(frozen=True, kw_only=True)
class Real:
    """Train on these images of the training part; None means all."""

    indices: tuple[int, ...] | None


@record
@dataclass(frozen=True, kw_only=True)
class EvalSpec:
    """One trained network: everything that its accuracy depends on."""

    what: Distilled | Real
    net: NetSpec
    train: TrainSpec
    seed: int
    data: DataRef
    space: MeanStd
    threads: int
    revision: int = 1
    """Raised when the code changes what is measured, so that old results are not reused."""


def set_digest(s: DistilledSet) -> str:
    """Return the SHA-256 of what a set trains on: decoded images and targets."""
    images, targets = s.decoded()
    return tensor_digest({"images": images, "targets": targets})


def evaluate_one(spec: EvalSpec, context: dict[str, str], folder: Path) -> None:
    """Train one network, last epoch, and write `result.json`.

    It holds `val` and `test` (accuracies, fractions), `steps` and `cpu_seconds`.

    Raises:
        InputError: if the set in context["set"] is not the one of the spec.
    """
    data = reopen(spec.data)
    images, targets = _training_images(spec, context)
    prepare = spec.space.forward
    module = build(
        spec.net,
        channels=data.channels,
        size=data.size,
        classes=data.n_classes,
        seed=spec.seed,
        key=("evaluate",),
    )
    net = FlatNet(module)
    start = time.process_time()
    theta = fit(
        net,
        net.theta0,
        images,
        targets,
        spec.train,
        seed=spec.seed,
        key=("evaluate",),
        prepare=prepare if isinstance(spec.what, Real) else None,
    )
    seconds = time.process_time() - start

    def measure(split: Split) -> float:
        return accuracy(net, theta, split.pixels, split.labels, prepare=prepare)

    result = {
        "val": measure(data.val),
        "test": measure(data.test),
        "steps": spec.train.epochs * -(-len(images) // spec.train.batch),
        "cpu_seconds": seconds,
    }
    write_json(folder / "result.json", result)


def _training_images(spec: EvalSpec, context: dict[str, str]) -> tuple[Tensor, Tensor]:
    """Return images and targets: a set in model-input space, or real images in uint8."""
    if isinstance(spec.what, Distilled):
        s = load(context["set"])
        if set_digest(s) != spec.what.digest:
            raise InputError(f"The distilled set in {context['set']} changed in the meantime.")
        return s.decoded()
    part = reopen(spec.data).train
    if spec.what.indices is None:
        return part.pixels, part.labels
    chosen = torch.tensor(spec.what.indices)
    return part.pixels[chosen], part.labels[chosen]
