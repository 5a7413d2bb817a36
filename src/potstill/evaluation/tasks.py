"""One evaluation task: train one fresh network on some images and measure it."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from potstill.artefact import DistilledSet, Identity, MultiFormation, Soft, load
from potstill.core.compute import Compute
from potstill.core.errors import InputError
from potstill.core.files import write_json
from potstill.core.spec import canonical, record
from potstill.core.state import tensor_digest
from potstill.core.store import Store
from potstill.core.usage import peak_memory
from potstill.coresets import expert_module
from potstill.data import DataRef, Pixels, SpaceSpec, Split, moved, open_space, prepared, reopen
from potstill.experts import ExpertSpec, ImportedExpert
from potstill.functional import TrainSpec, accuracy, fit
from potstill.functional.train import Prepare
from potstill.nets import FlatNet, NetSpec, flat


@record
@dataclass(frozen=True, kw_only=True)
class Distilled:
    """Train on the distilled set of this digest (its folder is context[digest])."""

    digest: str


@record
@dataclass(frozen=True, kw_only=True)
class Real:
    """Train on these images of the training part; None means all."""

    indices: tuple[int, ...] | None


@record
@dataclass(frozen=True, kw_only=True)
class Mosaics:
    """Train on mosaics of these images of the training part (see `MultiFormation.mosaic`)."""

    indices: tuple[int, ...]
    """All pictures of the first cell, of the second ...; a mosaic is of one class."""
    decode: MultiFormation

    def labels(self, part: Split) -> Tensor:
        """Return the class of each mosaic, int64 [n]."""
        return part.labels[torch.tensor(self.indices[: len(self.indices) // self.decode.cells])]


@record
@dataclass(frozen=True, kw_only=True)
class Taught:
    """Take soft labels: the softmax of what a teacher says of the images, in evaluation mode."""

    teacher: ExpertSpec | ImportedExpert
    """The teacher is this expert after its last epoch."""


@record
@dataclass(frozen=True, kw_only=True)
class EvalSpec:
    """One trained network: everything that its accuracy depends on."""

    what: Distilled | Real | Mosaics
    labels: Taught | Literal["own", "hard"] = "own"
    """As the images bring them, the likeliest class of each, or those of a teacher."""
    net: NetSpec
    train: TrainSpec
    seed: int
    data: DataRef
    space: SpaceSpec
    compute: Compute
    revision: int = 4
    """Raised when the code changes what is measured, so that old results are not reused."""
    marks: tuple[int, ...] = ()
    """Epochs after which the network is measured too."""


def set_digest(s: DistilledSet) -> str:
    """Return the SHA-256 of what a set trains on: images, targets, and how they are decoded."""
    texts = () if s.decode == Identity() else (canonical(s.decode),)
    tensors = {"images": s.images, "targets": s.targets.values}
    if isinstance(s.targets, Soft) and s.targets.own is not None:
        tensors["classes"] = s.targets.own
    return tensor_digest(tensors, *texts)


def evaluate_one(spec: EvalSpec, context: dict[str, str], folder: Path) -> None:
    """Train one network, last epoch, and write `result.json`.

    It holds `val` and `test` (accuracies, fractions), `steps`, `target_bytes`, `seconds`,
    `cpu_seconds` and `peak_bytes` (the most memory that the process held so far); `marks` with
    `epochs`, `val` and `test` of each. context[digest] is the folder of the distilled set of that
    digest, context["store"] the store with the teacher.

    Raises:
        InputError: if the set in that folder is not the one of the spec.
    """
    data = reopen(spec.data)
    space = open_space(spec.space)
    images, targets, places = _training_images(spec, context)
    if spec.labels == "hard" and targets.is_floating_point():
        targets = targets.argmax(1)
    elif isinstance(spec.labels, Taught):
        targets = _taught(spec, images, context)
    net = flat(
        spec.net,
        channels=data.channels,
        size=data.size,
        classes=data.n_classes,
        seed=spec.seed,
        key=("evaluate",),
    )
    prepare, device = None, spec.compute.device
    if isinstance(spec.what, Real):
        images, prepare = prepared(space, images)

    def measure(theta: Tensor) -> dict[str, float]:
        found = {}
        for part in ("val", "test"):
            pixels, prepare = _measured(spec.data, part, spec.space, device)
            labels, compute = getattr(data, part).labels, spec.compute
            found[part] = accuracy(net, theta, pixels, labels, prepare=prepare, compute=compute)
        return found

    theta, marks, (seconds, cpu_seconds) = _trained(
        spec, net, images, targets, places, prepare, measure
    )
    result = {
        **measure(theta),
        "steps": spec.train.steps(len(images)),
        "target_bytes": targets.nbytes,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_bytes": peak_memory(),
        "marks": marks,
    }
    write_json(folder / "result.json", result)


def _trained(
    spec: EvalSpec,
    net: FlatNet,
    images: Pixels,
    targets: Tensor,
    places: Tensor | None,
    prepare: Prepare | None,
    measure: Callable[[Tensor], dict[str, float]],
) -> tuple[Tensor, list[dict[str, float]], list[float]]:
    """Return the weights, what was measured at each mark, and seconds and CPU seconds without."""
    marks, spent = [], [0.0, 0.0]

    def tick(sign: int) -> None:
        spent[0] += sign * time.perf_counter()
        spent[1] += sign * time.process_time()

    def on_epoch(epoch: int, theta: Tensor, _: float) -> None:
        if epoch + 1 in spec.marks:
            tick(1)
            marks.append({"epochs": epoch + 1, **measure(theta)})
            tick(-1)

    tick(-1)
    device = torch.device(spec.compute.device)
    theta = fit(
        net,
        net.theta0.to(device),
        moved(images, device),
        targets.to(device),
        spec.train,
        seed=spec.seed,
        key=("evaluate",),
        places=places,
        prepare=prepare,
        on_epoch=on_epoch if spec.marks else None,
        compute=spec.compute,
    )
    if device.type == "cuda":
        torch.cuda.synchronize()
    tick(1)
    return theta, marks, spent


@lru_cache(maxsize=2)
def _measured(
    ref: DataRef, part: str, space: SpaceSpec, device: str
) -> tuple[Pixels, Prepare | None]:
    """Return the images of a part as `prepared`, once a process."""
    pixels, prepare = prepared(open_space(space), getattr(reopen(ref), part).pixels)
    return moved(pixels, device), prepare


def _training_images(
    spec: EvalSpec, context: dict[str, str]
) -> tuple[Pixels, Tensor, Tensor | None]:
    """Return images, targets and places (see `fit`).

    Images are model input of a set or of mosaics, or real ones in uint8.
    """
    if isinstance(spec.what, Distilled):
        folder = context[spec.what.digest]
        s = load(folder)
        if set_digest(s) != spec.what.digest:
            raise InputError(f"The distilled set in {folder} changed in the meantime.")
        return *s.decoded(), s.places()
    part = reopen(spec.data).train
    if spec.what.indices is None:
        return part.pixels, part.labels, None
    chosen = torch.tensor(spec.what.indices)
    if isinstance(spec.what, Real):
        return part.pixels[chosen], part.labels[chosen], None
    decode, labels = spec.what.decode, spec.what.labels(part)
    stored = open_space(spec.space).forward(decode.mosaic(part.pixels[chosen]))
    index = decode.index(labels)
    return decode.take(stored, index), labels[index[:, 0]], None


def _taught(spec: EvalSpec, images: Pixels, context: dict[str, str]) -> Tensor:
    """Return the teacher's probabilities [N, K] of the images, on the task's device."""
    assert isinstance(spec.labels, Taught)
    teacher = spec.labels.teacher
    device = torch.device(spec.compute.device)
    module = expert_module(teacher, Store(Path(context["store"])).verify("experts", teacher))
    module = copy.deepcopy(module).to(device)  # the other one serves others, on the CPU
    prepare = open_space(teacher.space).forward
    if not isinstance(spec.what, Real):
        back = open_space(spec.space).inverse
        same = teacher.space == spec.space
        forward, prepare = prepare, lambda x: x if same else forward(back(x))
    with torch.no_grad():
        logits = [module(prepare(part.to(device))) for part in images.split(64)]
    return torch.cat(logits).softmax(1)
