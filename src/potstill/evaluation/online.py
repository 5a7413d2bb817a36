"""Teachers of an evaluation: whose labels its regimes take, and where they lie.

A teacher of the set's own also chooses the images of RDED that are shown beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch

from potstill.artefact import DistilledSet, LabelStore
from potstill.core.compute import Compute, Wish
from potstill.core.errors import InputError
from potstill.core.store import Store
from potstill.coresets import counts_of
from potstill.coresets.patch_tasks import PatchSpec, class_blocks, patch_tasks
from potstill.data import DataSet
from potstill.engine import Tasks
from potstill.evaluation.regimes import is_stored, teacher_of
from potstill.evaluation.specs import EvalSpec, Online, Taught
from potstill.experts import ExpertSpec, ImportedExpert
from potstill.teachers import Teacher, check_facts, check_teacher, read_teacher, teacher_facts

_PARENT = "teacher "
"""How a parent of a set begins that is a teacher; its digest follows."""


def own_teachers(s: DistilledSet, data: DataSet, store: Store) -> dict[Teacher, Path]:
    """Return the teachers that a set comes from with their folders in a store; none if one lacks.

    Of a set with labels of views these are the teachers that gave them.

    Raises:
        InputError: if they are of other data, or have learned nothing.
    """
    parents = (parent for parent in s.origin.parents if parent.startswith(_PARENT))
    wanted, there = [parent.removeprefix(_PARENT) for parent in parents], {}
    if isinstance(s.targets, LabelStore):
        wanted = list(s.targets.teachers) or wanted
    for entry in store.entries("teachers") if wanted else ():
        with suppress(InputError):  # work of another version
            teacher = read_teacher(entry.folder)
            there[teacher.digest] = (teacher, entry.folder)
    if not all(digest in there for digest in wanted):
        return {}
    found = dict(there[digest] for digest in wanted)
    for teacher, folder in found.items():
        check_teacher(teacher, data)
        check_facts(teacher_facts(folder), teacher)
    return found


def labellers(
    s: DistilledSet,
    data: DataSet,
    regimes: Sequence[str],
    teacher: ExpertSpec | ImportedExpert | None,
    *,
    beside: bool,
    store: Store,
    wish: Wish,
) -> tuple[dict[str, Taught | Online], dict[Teacher, Path]]:
    """Return whose labels the regimes take that need a teacher, and folders of the set's own.

    These are the set's own teachers, if the store has them all; else `teacher`, or one that is
    trained on the real images. With `beside` they are looked for in any case, for RDED's images.

    Raises:
        InputError: if the set's teachers are of other data, or have learned nothing.
    """
    kinds: dict[str, type[Taught | Online]] = {"soft": Taught, "online": Online}
    asked = [regime for regime in regimes if regime in kinds]
    if not (asked or beside or any(is_stored(s, regime) for regime in regimes)):
        return {}, {}
    own = own_teachers(s, data, store)
    teachers = tuple(own) or ((teacher or teacher_of(s, data, wish),) if asked else ())
    return {regime: kinds[regime](teachers=teachers) for regime in asked}, own


def experts_of(specs: Iterable[EvalSpec]) -> tuple[ExpertSpec | ImportedExpert, ...]:
    """Return the experts whose labels networks take, none twice."""
    found: list[Teacher | ExpertSpec | ImportedExpert] = []
    for labels in (spec.labels for spec in specs):
        found += labels.teachers if isinstance(labels, Online | Taught) else ()
    return tuple(dict.fromkeys(each for each in found if not isinstance(each, Teacher)))


def easiest(
    s: DistilledSet, data: DataSet, own: Mapping[Teacher, Path], compute: Compute
) -> Tasks | None:
    """Return the tasks that make RDED's images, as many a class as the set has, by its teacher.

    A committee's first one chooses. None without a teacher, or where RDED has no images: classes
    of different numbers in the set or with too few real images, images that are not square.
    """
    counts, (height, width) = counts_of(s), data.size
    factor = 2 if height > 64 and height % 2 == 0 else 1
    have = min(torch.bincount(data.train.labels, minlength=len(counts)).tolist())
    if not own or len(set(counts)) > 1 or height != width:
        return None
    teacher, folder = next(iter(own.items()))
    needed = counts[0] * factor**2
    if have < needed:
        return None
    spec = PatchSpec(
        teacher=teacher,
        data=s.ref,
        classes=(0,),
        ipc=counts[0],
        factor=factor,
        images=max(needed, PatchSpec.images),
        seed=0,
        compute=compute,
    )
    return patch_tasks(spec, class_blocks(len(counts)), teacher=folder)
