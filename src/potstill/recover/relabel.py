"""Relabel: a teacher labels the views of an epoch, one task and one shard an epoch.

Source: SRe2L, Yin, Xing and Shen, NeurIPS 2023 (arXiv 2306.13092), section 3.3.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from potstill.artefact.labels import LabelPlan, epoch_of, views
from potstill.artefact.quantise import packed, unpacked
from potstill.core.compute import Compute
from potstill.core.errors import InputError
from potstill.core.files import write_json
from potstill.core.spec import record
from potstill.core.state import load_tree, save_tree
from potstill.data import MeanStd
from potstill.engine import Tasks
from potstill.functional.losses import casting
from potstill.recover.gather import open_images
from potstill.teachers import Teacher, open_teacher

KIND = "labels"
_FILE = "labels.safetensors"


@record
@dataclass(frozen=True, kw_only=True)
class RelabelSpec:
    """The labels of one epoch: everything that they depend on."""

    images: str
    """Hash of the images (`keep_images`)."""
    teacher: Teacher
    plan: LabelPlan
    epoch: int
    compute: Compute
    revision: int = 1
    """Raised when the code changes what the labels become, so that old ones are not reused."""

    def __post_init__(self) -> None:
        if not 0 <= self.epoch < self.plan.epochs:
            raise InputError(
                f"The plan has labels of epochs 0 to {self.plan.epochs - 1}, not {self.epoch}."
            )


def relabel_tasks(
    images: str, folder: Path, teacher: Teacher, where: Path, plan: LabelPlan, *, compute: Compute
) -> Tasks:
    """Return one task an epoch for the images in `folder` and the teacher in `where`."""
    specs = tuple(
        RelabelSpec(images=images, teacher=teacher, plan=plan, epoch=e, compute=compute)
        for e in range(plan.epochs)
    )
    context = {images: str(folder), teacher.digest: str(where)}
    return Tasks(kind=KIND, fn=relabel, specs=specs, context=context, label="labels")


def relabel(spec: RelabelSpec, context: dict[str, str], folder: Path) -> None:
    """Label the views of an epoch and write the logits, packed, by the row of their image.

    Raises:
        InputError: if the images or the teacher are others, or do not fit each other.
    """
    teacher, compute = spec.teacher, spec.compute
    images, _ = open_images(spec.images, Path(context[spec.images]))
    if tuple(images.shape[1:]) != teacher.shape:
        raise InputError(
            f"The teacher is for images {teacher.shape}, not {tuple(images.shape[1:])}."
        )
    module = open_teacher(teacher, Path(context[teacher.digest])).to(compute.device)
    clock, cpu = time.perf_counter(), time.process_time()
    logits = view_logits(module, teacher.space, images, spec.plan, spec.epoch, compute=compute)
    save_tree(folder / _FILE, packed(logits, spec.plan.codes))
    facts = {"seconds": time.perf_counter() - clock, "cpu_seconds": time.process_time() - cpu}
    write_json(folder / "labels.json", facts)


def view_logits(
    module: nn.Module,
    space: MeanStd,
    images: Tensor,
    plan: LabelPlan,
    epoch: int,
    *,
    compute: Compute,
) -> Tensor:
    """Return what a teacher says of the views of uint8 images in an epoch: float32 [N, K], by row.

    They go through in batches of the plan, in the order of training.
    """
    device, count = torch.device(compute.device), len(images)
    made = epoch_of(plan, epoch, count, (images.shape[1], images.shape[2], images.shape[3]))
    found: Tensor | None = None
    with torch.no_grad():
        for rows in made.order.split(plan.batch):
            x = views(plan, made, rows, lambda some: space.forward(images[some].to(device)))
            with casting(device, compute.precision):
                logits = module(x).float().cpu()
            if found is None:
                found = torch.empty(count, logits.shape[1])
            found[rows] = logits
    assert found is not None
    return found


def read_labels(folder: Path, plan: LabelPlan, classes: int, rows: Tensor | None = None) -> Tensor:
    """Return the logits of an epoch from its folder: float32 [N, K], or of some rows.

    Raises:
        InputError: if the file is missing, truncated or altered, or of other classes.
    """
    parts: dict[str, Tensor] = load_tree(folder / _FILE)
    if rows is not None:
        parts = {name: part[rows] for name, part in parts.items()}
    return unpacked(parts, plan.codes, classes)
