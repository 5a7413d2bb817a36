"""The images that recovery begins with, in the space of the teacher."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from potstill.core.errors import InputError
from potstill.core.keys import generator
from potstill.coresets.patch_tasks import PatchSpec, read_patches
from potstill.data import DataSet
from potstill.recover.units import Unit
from potstill.teachers import Teacher


def noise(unit: Unit, teacher: Teacher, *, seed: int) -> Tensor:
    """Return standard normal images [n, C, H, W], each by its own key (class, index)."""
    return torch.stack(
        [
            torch.randn(teacher.shape, generator=generator(seed, "recover", "noise", c, k))
            for c, k in unit.pairs()
        ]
    )


def real(unit: Unit, teacher: Teacher, data: DataSet, *, seed: int) -> Tensor:
    """Return random real images of the classes, number k of a keyed order of its class.

    Classes with fewer images give each once before any twice.

    Raises:
        InputError: if a class has no image.
    """
    rows: list[int] = []
    orders: dict[int, Tensor] = {}
    for c, k in unit.pairs():
        if c not in orders:
            members = torch.nonzero(data.train.labels == c)[:, 0]
            if not len(members):
                raise InputError(f"Class {data.classes[c]!r} has no real image to start from.")
            chance = generator(seed, "recover", "real", c)
            orders[c] = members[torch.randperm(len(members), generator=chance)]
        rows.append(int(orders[c][k % len(orders[c])]))
    return teacher.space.forward(data.train.pixels[torch.tensor(rows)])


def patched(unit: Unit, teacher: Teacher, chosen: list[tuple[PatchSpec, Path]]) -> Tensor:
    """Return RDED's images number k of the classes, from the folders of finished patches.

    Raises:
        InputError: if one of them was not made.
    """
    found: dict[int, Tensor] = {}
    for spec, folder in chosen:
        if set(spec.classes) & set(unit.classes):
            images = read_patches(folder)["images"]
            found |= {c: images[place] for place, c in enumerate(spec.classes)}
    for c, k in unit.pairs():
        if c not in found or k >= len(found[c]):
            raise InputError(f"There is no image of patches number {k} of class {c} to start from.")
    return teacher.space.forward(torch.stack([found[c][k] for c, k in unit.pairs()]))
