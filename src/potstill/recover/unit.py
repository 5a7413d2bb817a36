"""A unit of recovery as a task: from a teacher to images of some classes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from potstill.core.compute import Compute
from potstill.core.errors import InputError
from potstill.core.files import write_json
from potstill.core.spec import record
from potstill.core.state import load_tree, map_tree, save_tree
from potstill.core.store import Store
from potstill.coresets.patch_tasks import KIND as PATCHES
from potstill.coresets.patch_tasks import PatchSpec
from potstill.data import DataRef, reopen
from potstill.engine import Tasks
from potstill.nets.taps import Tapped
from potstill.recover.codec import levels, stored
from potstill.recover.loop import recovered
from potstill.recover.picture import draw
from potstill.recover.settings import Recovery
from potstill.recover.start import noise, patched, real
from potstill.recover.units import Unit, side_by_side
from potstill.teachers import Teacher, check_teacher, open_teacher

if TYPE_CHECKING:
    import numpy as np

KIND = "recovered"
_FILE = "images.safetensors"


@record
@dataclass(frozen=True, kw_only=True)
class RecoverSpec:
    """Units that are recovered side by side: everything that their images depend on.

    Raises:
        InputError: for no unit or teacher, classes that a teacher does not know, teachers of
            different images, a `data` or `patches` that the start does not use or lacks.
    """

    teachers: tuple[Teacher, ...]
    """One, or a committee whose losses are averaged."""
    recovery: Recovery
    units: tuple[Unit, ...]
    seed: int
    compute: Compute
    data: DataRef | None = None
    """Real images, for the start `real`."""
    patches: tuple[PatchSpec, ...] = ()
    """Where the start `patches` comes from."""
    revision: int = 1
    """Raised when the code changes what becomes of the images, so that old ones are not reused."""

    def __post_init__(self) -> None:
        if not self.teachers or not self.units:
            raise InputError("Recovery needs at least one teacher and one unit.")
        first = self.teachers[0]
        for other in self.teachers[1:]:
            same = (other.space, other.shape, other.classes) == (
                first.space, first.shape, first.classes,
            )  # fmt: skip
            if not same:
                raise InputError(
                    "The teachers of a committee must be of equal images, normalised in the same "
                    "way, and of equal classes."
                )
        largest = max(max(unit.classes) for unit in self.units)
        if largest >= first.classes:
            raise InputError(f"The teacher knows classes 0 to {first.classes - 1}, not {largest}.")
        if len({len(unit) for unit in self.units}) > 1:
            raise InputError("Units side by side must have equally many images.")
        start = self.recovery.start
        if (self.data is not None) != (start == "real"):
            raise InputError(
                f"The start {start!r} {'needs' if start == 'real' else 'has no'} data."
            )
        if bool(self.patches) != (start == "patches"):
            which = "needs" if start == "patches" else "has no"
            raise InputError(f"The start {start!r} {which} patches.")


def recover_tasks(
    teachers: Sequence[Teacher],
    recovery: Recovery,
    units: Sequence[Unit],
    *,
    seed: int,
    compute: Compute,
    folders: Mapping[str, Path],
    store: Store,
    data: DataRef | None = None,
    patches: Sequence[PatchSpec] = (),
    together: int = 1,
) -> Tasks:
    """Return the tasks of some units, `together` of equal size in each.

    Args:
        teachers: one or a committee; `folders` has the folder of each by its digest.
        recovery: the constants.
        units: see `units_of`; a part of them is done as it is among all.
        seed: of starts and crops.
        compute: how.
        folders: see `teachers`.
        store: where finished patches lie.
        data: for the start `real`.
        patches: for the start `patches`; each task names those of its classes.
        together: units in one batch; it changes rounding.

    Raises:
        InputError: as `RecoverSpec`, or for a `together` below 1.
    """
    specs = tuple(
        RecoverSpec(
            teachers=tuple(teachers),
            recovery=recovery,
            units=group,
            seed=seed,
            compute=compute,
            data=data,
            patches=tuple(
                p for p in patches if any(set(p.classes) & set(u.classes) for u in group)
            ),
        )
        for group in side_by_side(units, together)
    )
    context = {digest: str(folder) for digest, folder in folders.items()}
    context["store"] = str(store.root)
    return Tasks(kind=KIND, fn=recover_unit, specs=specs, context=context, label="recovery")


def recover_unit(spec: RecoverSpec, context: dict[str, str], folder: Path) -> None:
    """Recover the images of the units and write them with labels, indices and snapshots.

    `images` uint8 [N, C, H, W], `labels` and `indices` int64 [N], `snapshots` uint8
    [k, N, C, H, W], if there are any also as a picture; in `unit.json` losses (step, cross-entropy,
    statistics) and seconds.
    context[digest] is the folder of the teacher of that digest, context["store"] the store.

    Raises:
        InputError: for a teacher without batch norm, or another one than the spec's.
        WorkError: if the images stop being finite.
    """
    compute, space = spec.compute, spec.teachers[0].space
    clock, cpu = time.perf_counter(), time.process_time()
    folders = tuple(context[teacher.digest] for teacher in spec.teachers)
    found = recovered(
        _opened(spec.teachers, folders, compute.device),
        torch.cat([_first(spec, unit, context) for unit in spec.units]),
        spec.units,
        spec.recovery,
        space,
        seed=spec.seed,
        compute=compute,
    )
    pairs = [pair for unit in spec.units for pair in unit.pairs()]
    seen = [stored(levels(x, space), spec.recovery.codec) for x in (found.images, *found.snapshots)]
    tree = {
        "images": seen[0],
        "labels": torch.tensor([c for c, _ in pairs]),
        "indices": torch.tensor([k for _, k in pairs]),
        "snapshots": torch.stack(seen[1:]) if seen[1:] else seen[0].new_empty(0, *seen[0].shape),
    }
    save_tree(folder / _FILE, tree)
    if seen[1:]:
        draw(folder / "snapshots.png", seen[0], tree["snapshots"], tree["labels"])
    facts = {
        "losses": found.losses,
        "torch": torch.__version__,
        "seconds": time.perf_counter() - clock,
        "cpu_seconds": time.process_time() - cpu,
    }
    write_json(folder / "unit.json", facts)


def map_unit(folder: Path) -> dict[str, np.ndarray]:
    """Return what `read_unit` does as arrays that stay in their file, whose bytes are not checked.

    Raises:
        InputError: if the file is missing or truncated.
    """
    return map_tree(folder / _FILE)


def read_unit(folder: Path) -> dict[str, Tensor]:
    """Return `images`, `labels`, `indices` and `snapshots` of finished units.

    Raises:
        InputError: if the file is missing, truncated or altered.
    """
    return load_tree(folder / _FILE)


@lru_cache(maxsize=1)
def _opened(
    teachers: tuple[Teacher, ...], folders: tuple[str, ...], device: str
) -> tuple[Tapped, ...]:
    """Return the teachers of a run, which are kept in the process with what is compiled of them."""
    pairs = zip(teachers, folders, strict=True)
    return tuple(Tapped(open_teacher(teacher, Path(f))).to(device) for teacher, f in pairs)


def _first(spec: RecoverSpec, unit: Unit, context: dict[str, str]) -> Tensor:
    """Return the first images of a unit."""
    teacher = spec.teachers[0]
    if spec.data is not None:
        data = reopen(spec.data)
        check_teacher(teacher, data)
        return real(unit, teacher, data, seed=spec.seed)
    if spec.patches:
        store = Store(Path(context["store"]))
        made = [(patch, store.verify(PATCHES, patch)) for patch in spec.patches]
        return patched(unit, teacher, made)
    return noise(unit, teacher, seed=spec.seed)
