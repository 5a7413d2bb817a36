"""Images and targets that one network of an evaluation is trained on."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from potstill.artefact import DistilledSet, load, set_digest
from potstill.core.errors import InputError
from potstill.core.store import Store
from potstill.coresets import expert_module
from potstill.data import Pixels, moved, open_space, prepared, reopen
from potstill.evaluation.specs import Distilled, EvalSpec, Real, Taught
from potstill.functional.train import Prepare, View


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


def lesson_of(spec: EvalSpec, context: dict[str, str]) -> Lesson:
    """Return what the network of a spec is trained on; `context` is that of `evaluate_one`.

    Raises:
        InputError: if the set in that folder is not the one of the spec.
    """
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
    images, targets = _real(spec)
    targets = _labelled(spec, images, targets, context).to(device)
    prepare = None
    if isinstance(spec.what, Real):
        images, prepare = prepared(open_space(spec.space), images)
    return Lesson(images=moved(images, device), targets=targets, prepare=prepare)


def _set(folder: str, digest: str) -> DistilledSet:
    s = load(folder)
    if set_digest(s) != digest:
        raise InputError(f"The distilled set in {folder} changed in the meantime.")
    return s


def _real(spec: EvalSpec) -> tuple[Pixels, Tensor]:
    """Return real images in uint8, or mosaics of them as model input, and their classes."""
    assert not isinstance(spec.what, Distilled)
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
    return targets.argmax(1) if spec.labels == "hard" and targets.is_floating_point() else targets


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
