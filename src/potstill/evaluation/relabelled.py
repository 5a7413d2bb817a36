"""Stored labels of the real images beside a set that has such: the same plan, the same teachers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from potstill.artefact import LabelStore
from potstill.core.compute import Compute
from potstill.core.store import need_room
from potstill.engine import Tasks
from potstill.evaluation.asked import Asked
from potstill.evaluation.images import Images
from potstill.evaluation.lessons import patched_images, real_images
from potstill.evaluation.regimes import is_stored
from potstill.evaluation.specs import Patched, Real, Stored
from potstill.recover import kept_images, relabel, relabel_tasks
from potstill.teachers import Teacher


def relabelled(
    asked: Asked,
    images: Sequence[Images],
    own: Mapping[Teacher, Path],
    compute: Compute,
    work: Callable[[Tasks], list[Path]],
) -> dict[Real | Patched, Stored]:
    """Return the stored labels of real images, which are made where they are not there yet.

    There are none without a regime for them, or where the store lacks the teachers of the set.

    Raises:
        InputError: if they do not fit on the disk.
    """
    targets, store = asked.s.targets, asked.store
    wanted = any(is_stored(asked.s, regime) for regime in asked.regimes)
    if not wanted or not isinstance(targets, LabelStore) or not own:
        return {}
    tasks: dict[Real | Patched, Tasks] = {}
    for what in dict.fromkeys(what for item in images for what in item.what):
        if isinstance(what, Real | Patched) and what != Real(indices=None):
            pixels, labels = _pixels(what, asked)
            digest, folder = kept_images(store, pixels, labels)
            space = asked.s.space.record()
            tasks[what] = relabel_tasks(
                digest, folder, own, targets.plan, space=space, compute=compute
            )
    each = targets.plan.nbytes(len(asked.s), targets.width) // targets.plan.epochs
    unfinished = sum(
        not store.has(relabel.KIND, spec) for part in tasks.values() for spec in part.specs
    )
    hint = "leave out the baselines, or choose another folder with --store"
    need_room(store.root, each * unfinished, what="labels of real images", hint=hint)
    for part in tasks.values():
        work(part)
    return {what: Stored(first=part.specs[0]) for what, part in tasks.items()}


def _pixels(what: Real | Patched, asked: Asked) -> tuple[Tensor, Tensor]:
    if isinstance(what, Patched):
        return patched_images(what, asked.store)
    pixels, labels = real_images(what, asked.data.train)
    assert isinstance(pixels, Tensor)
    return pixels, labels
