"""Images and targets that one network of an evaluation is trained on."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from potstill.artefact import DistilledSet, LabelStore, label_store, load, set_digest
from potstill.core.errors import InputError
from potstill.core.store import Store
from potstill.coresets import expert_module
from potstill.coresets.patch_tasks import read_patches
from potstill.data import Pixels, Split, moved, open_space, prepared, reopen
from potstill.evaluation.specs import (
    Distilled,
    EvalSpec,
    Online,
    Patched,
    Real,
    Stored,
    Taught,
    among,
)
from potstill.experts import ExpertSpec, ImportedExpert
from potstill.functional.advance import Prepare, Replay, Teach
from potstill.functional.train import View
from potstill.recover import relabel
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
    replay: Replay | None = None
    label_bytes: int = 0
    """Labels of views that the network learns."""


def lesson_of(spec: EvalSpec, context: dict[str, str]) -> Lesson:
    """Return what the network of a spec is trained on; `context` is that of `evaluate_one`.

    Raises:
        InputError: if the set or teacher in its folder is not the one of the spec.
    """
    lesson, stored = _lesson(spec, context)
    if spec.train.lesson is None:
        return lesson
    if not isinstance(spec.labels, Online):
        assert stored is not None
        channels, height, width = lesson.images.shape[1:]
        replay = stored.replay((channels, height, width))
        return replace(lesson, replay=replay, label_bytes=stored.nbytes)
    modules = [_opened(teacher, context) for teacher in spec.labels.teachers]
    parts = [part for module in modules for part in module.state_dict().values()]
    nbytes, teach = sum(part.nbytes for part in parts), _online(spec, spec.labels, modules)
    return replace(lesson, teach=teach, teacher_bytes=nbytes)


def _lesson(spec: EvalSpec, context: dict[str, str]) -> tuple[Lesson, LabelStore | None]:
    """Return the lesson without a teacher, and the stored labels of its images, if any."""
    device = torch.device(spec.compute.device)
    if isinstance(spec.what, Distilled):
        s = _set(context[spec.what.digest], spec.what.digest)
        if spec.seen is not None:
            s = s.taken(among(s.targets.classes, spec.seen))

        def of(part: DistilledSet) -> Lesson:
            images, targets, prepare = part.prepared()
            inputs = images if prepare is None else part.decoded()[0]
            return Lesson(
                images=moved(images, device),
                targets=_labelled(spec, inputs, targets, context).to(device),
                places=part.places(),
                prepare=prepare,
            )

        def view(blocks: int) -> tuple[Pixels, Tensor, Tensor | None]:
            part = of(s.prefix(blocks))
            return part.images, part.targets, part.places

        lesson = replace(of(s), view=view, ends=s.ends)
        return lesson, s.targets if isinstance(s.targets, LabelStore) else None
    images, targets = _real(spec, context)
    if spec.seen is not None:
        rows = among(targets, spec.seen)
        images, targets = images[rows], targets[rows]
    stored = _stored(spec.labels, targets, context) if isinstance(spec.labels, Stored) else None
    targets = _labelled(spec, images, targets, context).to(device)
    prepare = None
    if isinstance(spec.what, Real | Patched):
        images, prepare = prepared(open_space(spec.space), images)
    return Lesson(images=moved(images, device), targets=targets, prepare=prepare), stored


def _stored(labels: Stored, targets: Tensor, context: dict[str, str]) -> LabelStore:
    """Return the stored labels of real images of these classes."""
    first, store = labels.first, Store(Path(context["store"]))
    shards = (replace(first, epoch=e) for e in range(first.plan.epochs))
    return label_store(
        targets,
        first.plan,
        [store.path(relabel.KIND, spec) / relabel.FILE for spec in shards],
        classes=first.teachers[0].classes,
        teachers=tuple(teacher.digest for teacher in first.teachers),
    )


def _set(folder: str, digest: str) -> DistilledSet:
    s = load(folder)
    if set_digest(s) != digest:
        raise InputError(f"The distilled set in {folder} changed in the meantime.")
    return s


def _real(spec: EvalSpec, context: dict[str, str]) -> tuple[Pixels, Tensor]:
    """Return real images in uint8, or mosaics of them as model input, and their classes."""
    assert not isinstance(spec.what, Distilled)
    if isinstance(spec.what, Patched):
        return patched_images(spec.what, Store(Path(context["store"])))
    part = reopen(spec.data).train
    if isinstance(spec.what, Real):
        return real_images(spec.what, part)
    decode, labels = spec.what.decode, spec.what.labels(part)
    pixels = part.pixels[torch.tensor(spec.what.indices)]
    stored = open_space(spec.space).forward(decode.mosaic(pixels))
    index = decode.index(labels)
    return decode.take(stored, index), labels[index[:, 0]]


def patched_images(what: Patched, store: Store) -> tuple[Tensor, Tensor]:
    """Return RDED's images in uint8, and their classes."""
    found = [read_patches(store.verify("patches", each)) for each in what.specs]
    return torch.cat([each["images"].flatten(0, 1) for each in found]), what.labels()


def real_images(what: Real, part: Split) -> tuple[Pixels, Tensor]:
    """Return images of the training part in uint8, and their classes."""
    if what.indices is None:
        return part.pixels, part.labels
    chosen = torch.tensor(what.indices)
    return part.pixels[chosen], part.labels[chosen]


def _labelled(spec: EvalSpec, images: Pixels, targets: Tensor, context: dict[str, str]) -> Tensor:
    """Return the targets of the images under the regime of the spec."""
    if isinstance(spec.labels, Taught):
        return _taught(spec, images, context)
    hard = spec.labels != "own" and targets.is_floating_point()
    return targets.argmax(1) if hard else targets


def _taught(spec: EvalSpec, images: Pixels, context: dict[str, str]) -> Tensor:
    """Return the teachers' probabilities [N, K] of the images, on the task's device."""
    assert isinstance(spec.labels, Taught)
    device, found = torch.device(spec.compute.device), []
    for teacher in spec.labels.teachers:
        module = copy.deepcopy(_opened(teacher, context)).to(device)  # the other one serves others
        prepare = open_space(teacher.space).forward
        if not isinstance(spec.what, Real | Patched):
            prepare = relabel.between(spec.space, teacher.space)
        with torch.no_grad():
            found.append(torch.cat([module(prepare(x.to(device))) for x in images.split(64)]))
    return torch.stack(found).mean(0).softmax(1)


def _online(spec: EvalSpec, labels: Online, modules: list[nn.Module]) -> Teach:
    """Return the mean logits of teachers, in evaluation mode, as a function of a network's input.

    They are computed as the network is; networks with parts from elsewhere are not compiled.
    """
    pairs = zip(labels.teachers, modules, strict=True)
    asked = [
        relabel.asking(module, teacher.space, spec.space, spec.compute, batch=spec.train.batch)
        for teacher, module in pairs
    ]
    return lambda x: torch.stack([ask(x) for ask in asked]).mean(0)


def _opened(teacher: Teacher | ExpertSpec | ImportedExpert, context: dict[str, str]) -> nn.Module:
    """Return a teacher in evaluation mode, on the CPU; an expert's is kept in the process."""
    if isinstance(teacher, Teacher):
        return open_teacher(teacher, Path(context[teacher.digest]))
    return expert_module(teacher, Store(Path(context["store"])).verify("experts", teacher))
