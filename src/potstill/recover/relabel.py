"""Relabel: teachers label the views of an epoch, one task and one shard an epoch.

Source: SRe2L, Yin, Xing and Shen, NeurIPS 2023 (arXiv 2306.13092), section 3.3.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from potstill.artefact import LabelPlan, write_labels
from potstill.artefact.labels import epoch_of, views
from potstill.artefact.quantise import packed_rows
from potstill.core.compute import Compute
from potstill.core.errors import InputError
from potstill.core.files import write_json
from potstill.core.spec import record
from potstill.core.state import tensor_digest
from potstill.core.store import Store
from potstill.data import Space, SpaceSpec, open_space
from potstill.engine import Tasks
from potstill.functional import predict
from potstill.functional.advance import Prepare, Teach
from potstill.nets import FlatNet
from potstill.recover.gather import IMAGES, keep_images, open_images
from potstill.teachers import Teacher, open_teacher

KIND = "labels"
"""Where finished labels lie in the store."""
FILE = "labels.safetensors"


@record
@dataclass(frozen=True, kw_only=True)
class RelabelSpec:
    """The labels of one epoch: everything that they depend on."""

    images: str
    """Hash of the images (`keep_images`)."""
    teachers: tuple[Teacher, ...]
    """Whose logits; of several the mean."""
    space: SpaceSpec
    """Normaliser of the images as networks are trained on them; views are made in its space."""
    plan: LabelPlan
    epoch: int
    compute: Compute
    revision: int = 1
    """Raised when the code changes what the labels become, so that old ones are not reused."""

    def __post_init__(self) -> None:
        if not self.teachers:
            raise InputError("Labels need a teacher.")
        if not 0 <= self.epoch < self.plan.epochs:
            raise InputError(
                f"The plan has labels of epochs 0 to {self.plan.epochs - 1}, not {self.epoch}."
            )


def relabel_tasks(
    images: str,
    folder: Path,
    teachers: Mapping[Teacher, Path],
    plan: LabelPlan,
    *,
    space: SpaceSpec,
    compute: Compute,
) -> Tasks:
    """Return one task an epoch for the images in `folder` and teachers with their folders."""
    specs = tuple(
        RelabelSpec(
            images=images,
            teachers=tuple(teachers),
            space=space,
            plan=plan,
            epoch=e,
            compute=compute,
        )
        for e in range(plan.epochs)
    )
    context = {teacher.digest: str(where) for teacher, where in teachers.items()}
    context[images] = str(folder)
    return Tasks(kind=KIND, fn=relabel, specs=specs, context=context, label="labels")


def kept_images(store: Store, images: Tensor, labels: Tensor) -> tuple[str, Path]:
    """Return hash and folder of uint8 images in the store, into which they are put if need be."""
    digest = tensor_digest({"images": images, "labels": labels})

    def keep(folder: Path) -> None:
        keep_images(folder, images, labels)

    return digest, store.put(IMAGES, {"images": digest}, keep)


def relabel(spec: RelabelSpec, context: dict[str, str], folder: Path) -> None:
    """Label the views of an epoch and write the logits, packed, by the row of their image.

    Raises:
        InputError: if the images or a teacher are others, or do not fit each other.
    """
    compute, space = spec.compute, open_space(spec.space)
    images, _ = open_images(spec.images, Path(context[spec.images]))
    clock, cpu = time.perf_counter(), time.process_time()
    for teacher in spec.teachers:
        if tuple(images.shape[1:]) != teacher.shape:
            raise InputError(
                f"The teacher is for images {teacher.shape}, not {tuple(images.shape[1:])}."
            )
    asked = [
        _asked(teacher, context[teacher.digest], spec.space, compute, spec.plan.batch)
        for teacher in spec.teachers
    ]
    pairs = view_logits(asked, space, images, spec.plan, spec.epoch, compute=compute)
    write_labels(folder / FILE, packed_rows(pairs, len(images), spec.plan.codes), spec.plan)
    facts = {"seconds": time.perf_counter() - clock, "cpu_seconds": time.process_time() - cpu}
    write_json(folder / "labels.json", facts)


@lru_cache(maxsize=4)
def _asked(teacher: Teacher, folder: str, space: SpaceSpec, compute: Compute, batch: int) -> Teach:
    """Return a teacher's `asking`, kept for the next epoch with what is compiled of it."""
    module = open_teacher(teacher, Path(folder))
    return asking(module, teacher.space, space, compute, batch=batch)


def asking(
    module: nn.Module, own: SpaceSpec, space: SpaceSpec, compute: Compute, *, batch: int
) -> Teach:
    """Return the logits of a network as a function of images in the space of a normaliser.

    It is computed in evaluation mode, as `compute` says; parts from elsewhere are not compiled.

    Args:
        module: the network.
        own: the normaliser of the images that it takes.
        space: that of the images that are asked about.
        compute: how.
        batch: images that are asked about at once; on a CPU they go through in equal parts of at
            most 64, which is what compiled code is for.
    """
    net, device = FlatNet(module), torch.device(compute.device)
    return partial(
        predict,
        net,
        net.theta0.to(device),
        batch=batch if device.type == "cuda" else -(-batch // -(-batch // 64)),
        prepare=between(space, own),
        compute=replace(compute, compiled=compute.compiled and net.known),
    )


def between(one: SpaceSpec, other: SpaceSpec) -> Prepare:
    """Return how images normalised in one way become normalised in another."""
    back, forward = open_space(one).inverse, open_space(other).forward
    return lambda x: x if one == other else forward(back(x))


def view_logits(
    teachers: Sequence[Teach],
    space: Space,
    images: Tensor,
    plan: LabelPlan,
    epoch: int,
    *,
    compute: Compute,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield rows and the teachers' mean logits, float32 [n, K], of views of uint8 images.

    They go through in batches of the plan, in the order of training in that epoch.
    """
    device, count = torch.device(compute.device), len(images)
    made = epoch_of(plan, epoch, count, (images.shape[1], images.shape[2], images.shape[3]))
    for rows in made.order.split(plan.batch):
        with torch.no_grad():
            x = views(plan, made, rows, lambda some: space.forward(images[some].to(device)))
            logits = torch.stack([ask(x) for ask in teachers]).mean(0)
        yield rows, logits.float().cpu()
