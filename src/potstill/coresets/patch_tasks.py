"""RDED's images of some classes as a task: they are a method's result, or where recovery starts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from potstill.core.compute import Compute
from potstill.core.errors import InputError
from potstill.core.files import write_json
from potstill.core.keys import generator
from potstill.core.spec import record
from potstill.core.state import load_tree, save_tree
from potstill.coresets.patches import cropped, easiest, patch_boxes, patch_scores, tiled
from potstill.data import DataRef, DataSet, reopen
from potstill.engine import Tasks
from potstill.functional.losses import casting
from potstill.teachers import Teacher, check_teacher, open_teacher

KIND = "patches"
_FILE = "patches.safetensors"


@record
@dataclass(frozen=True, kw_only=True)
class PatchSpec:
    """RDED's images of some classes: everything that they depend on."""

    teacher: Teacher
    data: DataRef
    classes: tuple[int, ...]
    ipc: int
    factor: int = 1
    """Cells a side of an image; published: 2 at 224 pixels, 1 at 64 and below."""
    images: int = 300
    """Images of a class that are looked at, drawn at random; of a smaller class all."""
    crops: int = 5
    """Crops of each."""
    seed: int
    compute: Compute
    revision: int = 1
    """Raised when the code changes what is chosen, so that old results are not reused."""

    def __post_init__(self) -> None:
        if min(self.ipc, self.factor, self.images, self.crops) < 1 or not self.classes:
            raise InputError("Patches need classes, and ipc, factor, images, crops of at least 1.")


def patch_tasks(spec: PatchSpec, blocks: Sequence[tuple[int, ...]], *, teacher: Path) -> Tasks:
    """Return one task a block of classes, else as `spec`; `teacher` is the folder of its teacher.

    A class has the same images however the classes are cut into blocks.
    """
    specs = tuple(replace(spec, classes=tuple(block)) for block in blocks)
    context = {spec.teacher.digest: str(teacher)}
    return Tasks(kind=KIND, fn=choose_patches, specs=specs, context=context, label="patches")


def class_blocks(count: int) -> list[tuple[int, ...]]:
    """Return so many classes in blocks for tasks: about 20, of at most 25 classes."""
    each = min(25, max(1, count // 20))
    return [tuple(range(c, min(c + each, count))) for c in range(0, count, each)]


def choose_patches(spec: PatchSpec, context: dict[str, str], folder: Path) -> None:
    """Choose and tile the patches of each class and write `images` uint8 [K, ipc, C, H, W].

    With them `rows` int64 and `scores` float32 [K, ipc, cells]: which image of the training part a
    cell was cut from, and its cross-entropy.

    Raises:
        InputError: if the data do not fit the teacher, or a class has too few images.
    """
    data, teacher = reopen(spec.data), spec.teacher
    check_teacher(teacher, data)
    device = torch.device(spec.compute.device)
    module = open_teacher(teacher, Path(context[teacher.digest])).to(device)
    clock, cpu = time.perf_counter(), time.process_time()
    found = [_of_class(spec, data, module, label) for label in spec.classes]
    names = ("images", "rows", "scores")
    parts = {
        name: torch.stack(each) for name, each in zip(names, zip(*found, strict=True), strict=True)
    }
    save_tree(folder / _FILE, parts)
    facts = {"seconds": time.perf_counter() - clock, "cpu_seconds": time.process_time() - cpu}
    write_json(folder / "patches.json", facts)


def _of_class(
    spec: PatchSpec, data: DataSet, module: nn.Module, label: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return images [ipc, C, H, W], rows and scores [ipc, cells] of one class."""
    members = torch.nonzero(data.train.labels == label)[:, 0]
    wanted = spec.ipc * spec.factor**2
    if min(len(members), spec.images) < wanted:
        raise InputError(
            f"Class {data.classes[label]!r} needs {wanted} images for its patches; it has "
            f"{len(members)}, of which {spec.images} may be looked at."
        )
    chance = generator(spec.seed, "patches", label)
    rows = members[torch.randperm(len(members), generator=chance)[: spec.images]]
    box = patch_boxes(len(rows), spec.crops, data.size, chance)
    side, device = min(data.size) // spec.factor, torch.device(spec.compute.device)
    kept, scores = [], []
    for k in range(spec.crops):
        parts = zip(rows.split(64), box[:, k].split(64), strict=True)
        here = torch.cat([cropped(data.train.pixels[r].to(device), b, side) for r, b in parts])
        kept.append(here)
        with casting(device, spec.compute.precision):
            scores.append(patch_scores(module, spec.teacher.space, here, label, data.size))
    table = torch.stack(scores, dim=1).cpu()
    images, crops = easiest(table, wanted)
    chosen = torch.stack(
        [kept[k][i] for i, k in zip(images.tolist(), crops.tolist(), strict=True)]
    ).cpu()

    def by_image(values: Tensor) -> Tensor:
        return values.view(-1, spec.ipc).T.contiguous()

    made = tiled(chosen, spec.factor, data.size)
    return made, by_image(rows[images]), by_image(table[images, crops])


def read_patches(folder: Path) -> dict[str, Tensor]:
    """Return `images`, `rows` and `scores` of finished patches (see `choose_patches`).

    Raises:
        InputError: if the file is missing, truncated or altered.
    """
    return load_tree(folder / _FILE)
