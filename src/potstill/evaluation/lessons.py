"""Images and targets that one network of an evaluation is trained on."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from potstill.artefact import DistilledSet, load, set_digest
from potstill.core.errors import InputError
from potstill.core.store import Store
from potstill.coresets import expert_module
from potstill.coresets.patch_tasks import read_patches
from potstill.data import Pixels, SpaceSpec, moved, open_space, prepared, reopen
from potstill.evaluation.specs import Distilled, EvalSpec, Online, Patched, Real, Taught
from potstill.experts import ExpertSpec, ImportedExpert
from potstill.functional import predict
from potstill.functional.advance import Prepare, Teach
from potstill.functional.train import View
from potstill.nets import FlatNet
from potstill.teachers import Teacher, open_teacher


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What `fit` trains on, on the device of the task."""

    images: Pixels
    targets: Tensor
    places: Tensor | None = None
    prepare: Prepare | None = None
    view: View | None = None
    ends: tuple[int, ...] = ()
    """Images of the first 1, 2, ... blocks, if there are any."""
    teach: Teach | None = None
    teacher_bytes: int = 0
    """Weights and running statistics of the teachers that are there while the network learns."""


def lesson_of(spec: EvalSpec, context: dict[str, str]) -> Lesson:
    """Return what the network of a spec is trained on; `context` is that of `evaluate_one`.

    Raises:
        InputError: if the set or teacher in its folder is not the one of the spec.
    """
    lesson = _lesson(spec, context)
    if not isinstance(spec.labels, Online):
        return lesson
    modules = [_opened(teacher, context) for teacher in spec.labels.teachers]
    parts = [part for module in modules for part in module.state_dict().values()]
    nbytes, teach = sum(part.nbytes for part in parts), _online(spec, spec.labels, modules)
    return replace(lesson, teach=teach, teacher_bytes=nbytes)


def _lesson(spec: EvalSpec, context: dict[str, str]) -> Lesson:
    device = torch.device(spec.compute.device)
    if isinstance(spec.what, Distilled):
        s = _set(context[spec.what.digest], spec.what.digest)

        def view(blocks: int | None) -> tuple[Pixels, Tensor, Tensor | None]:
            part = s if blocks is None else s.prefix(blocks)
            images, targets = part.decoded()
            targets = _labelled(spec, images, targets, context)
            return moved(images, device), targets.to(device), part.places()

        images, targets, places = view(None)
        return Lesson(images=images, targets=targets, places=places, view=view, ends=s.ends)
    images, targets = _real(spec, context)
    targets = _labelled(spec, images, targets, context).to(device)
    prepare = None
    if isinstance(spec.what, Real | Patched):
        images, prepare = prepared(open_space(spec.space), images)
    return Lesson(images=moved(images, device), targets=targets, prepare=prepare)


def _set(folder: str, digest: str) -> DistilledSet:
    s = load(folder)
    if set_digest(s) != digest:
        raise InputError(f"The distilled set in {folder} changed in the meantime.")
    return s


def _real(spec: EvalSpec, context: dict[str, str]) -> tuple[Pixels, Tensor]:
    """Return real images in uint8, or mosaics of them as model input, and their classes."""
    assert not isinstance(spec.what, Distilled)
    if isinstance(spec.what, Patched):
        store = Store(Path(context["store"]))
        found = [read_patches(store.verify("patches", each)) for each in spec.what.specs]
        return torch.cat([each["images"].flatten(0, 1) for each in found]), spec.what.labels()
    part = reopen(spec.data).train
    if spec.what.indices is None:
        return part.pixels, part.labels
    chosen = torch.tensor(spec.what.indices)
    if isinstance(spec.what, Real):
        return part.pixels[chosen], part.labels[chosen]
    decode, labels = spec.what.decode, spec.what.labels(part)
    stored = open_space(spec.space).forward(decode.mosaic(part.pixels[chosen]))
    index = decode.index(labels)
    return decode.take(stored, index), labels[index[:, 0]]


def _labelled(spec: EvalSpec, images: Pixels, targets: Tensor, context: dict[str, str]) -> Tensor:
    """Return the targets of the images under the regime of the spec."""
    if isinstance(spec.labels, Taught):
        return _taught(spec, images, context)
    hard = spec.labels != "own" and targets.is_floating_point()
    return targets.argmax(1) if hard else targets


def _taught(spec: EvalSpec, images: Pixels, context: dict[str, str]) -> Tensor:
    """Return the teacher's probabilities [N, K] of the images, on the task's device."""
    assert isinstance(spec.labels, Taught)
    teacher = spec.labels.teacher
    device = torch.device(spec.compute.device)
    module = copy.deepcopy(_opened(teacher, context)).to(device)  # the other one serves others
    prepare = open_space(teacher.space).forward
    if not isinstance(spec.what, Real | Patched):
        prepare = _between(spec.space, teacher.space)
    with torch.no_grad():
        logits = [module(prepare(part.to(device))) for part in images.split(64)]
    return torch.cat(logits).softmax(1)


def _online(spec: EvalSpec, labels: Online, modules: list[nn.Module]) -> Teach:
    """Return the mean logits of teachers, in evaluation mode, as a function of a network's input.

    They are computed as the network is; networks with parts from elsewhere are not compiled.
    """
    device = torch.device(spec.compute.device)
    size = spec.train.batch if device.type == "cuda" else 64
    asked: list[Teach] = []
    for teacher, module in zip(labels.teachers, modules, strict=True):
        net = FlatNet(module)
        compute = replace(spec.compute, compiled=spec.compute.compiled and net.known)
        asked.append(
            partial(
                predict,
                net,
                net.theta0.to(device),
                batch=size,
                prepare=_between(spec.space, teacher.space),
                compute=compute,
            )
        )
    return lambda x: torch.stack([ask(x) for ask in asked]).mean(0)


def _opened(teacher: Teacher | ExpertSpec | ImportedExpert, context: dict[str, str]) -> nn.Module:
    """Return a teacher in evaluation mode, on the CPU; an expert's is kept in the process."""
    if isinstance(teacher, Teacher):
        return open_teacher(teacher, Path(context[teacher.digest]))
    return expert_module(teacher, Store(Path(context["store"])).verify("experts", teacher))


def _between(own: SpaceSpec, other: SpaceSpec) -> Prepare:
    """Return how images normalised in one way become normalised in another."""
    back, forward = open_space(own).inverse, open_space(other).forward
    return lambda x: x if own == other else forward(back(x))
