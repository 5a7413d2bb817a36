"""Experts that were trained elsewhere: into the store, and out of it for a method."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from potstill.core.errors import InputError
from potstill.core.files import file_hash
from potstill.core.keys import generator
from potstill.core.spec import record, spec_hash
from potstill.core.store import Store
from potstill.data import DataRef, DataSet, Space, SpaceSpec, keep_space
from potstill.engine import Tasks
from potstill.experts.buffers import read_buffer
from potstill.experts.pools import KIND, find_pool
from potstill.experts.store import write_trajectory
from potstill.functional import accuracy, fresh
from potstill.nets import FlatNet, NetSpec, describe, filled

_TRIED = 1000
"""Validation images that the first expert has to classify."""


@record
@dataclass(frozen=True, kw_only=True)
class ImportedExpert:
    """One expert that was trained elsewhere, and what it was trained for."""

    source: str
    """SHA-256 of the SHA-256s of all files that were imported together."""
    index: int
    data: DataRef
    space: SpaceSpec
    net: NetSpec


@dataclass(frozen=True, kw_only=True)
class Import:
    """What an import put into the store."""

    pool: str
    count: int
    epochs: int
    accuracy: float | None
    """Of the first expert on validation images, on which it was most likely trained too; None for a
    network with running statistics."""


def import_experts(
    files: Sequence[Path],
    *,
    data: DataSet,
    space: Space,
    net: NetSpec,
    store: Store,
    lr: float | None = None,
    on_done: Callable[[int, int], None] | None = None,
) -> Import:
    """Put the experts of `replay_buffer_*.pt` files into the store, as one pool.

    All files are checked before anything is written; one file at a time is open.

    Args:
        files: the files, in the order in which their experts are numbered.
        data: the images that the experts were trained on.
        space: the normaliser of those images.
        net: the experts' network.
        store: where they go.
        lr: the step size that they were trained with; only noted.
        on_done: called as (experts done, all experts).

    Raises:
        InputError: as `read_buffer`, for experts of different lengths, a step size of at most 0,
            or a full disk.
        WorkError: if the disk refuses.
    """
    if lr is not None and not 0 < lr < math.inf:
        raise InputError(f"The step size lr must be above 0, not {lr}.")
    net = filled(net)
    own = fresh(net, data)
    name = describe(net)
    digests = _digests(files)
    source = hashlib.sha256("".join(digests).encode()).hexdigest()
    first = ImportedExpert(source=source, index=0, data=data.ref, space=space.record(), net=net)
    count, length = _survey(files, own, name)
    specs = [replace(first, index=k) for k in range(count)]
    store.need_room(KIND, specs, count * length * own.numel * 4)
    keep_space(space)
    experts = ((file, k, r) for file in files for k, r in enumerate(read_buffer(file, own, name)))
    tried = None
    for spec, (file, k, rows) in zip(specs, experts, strict=True):
        if spec.index == 0 and not own.statistics(own.theta0):
            tried = _accuracy(own, rows[-1], data, space)
        facts = {
            "source": file.name,
            "expert": k,
            "lr": lr,
            "validation_accuracy": tried if spec.index == 0 else None,
            "parameters": [[n, list(s)] for n, s in zip(own.names, own.shapes, strict=True)],
        }
        store.put(KIND, spec, lambda to, r=rows, f=facts: write_trajectory(to, r, f))
        if on_done is not None:
            on_done(spec.index + 1, count)
    return Import(pool=spec_hash(first), count=count, epochs=length - 1, accuracy=tried)


def _digests(files: Sequence[Path]) -> list[str]:
    """Return the hash of each file; refuse absent ones and the same one twice."""
    digests: dict[str, Path] = {}
    for file in files:
        if not file.is_file():
            raise InputError(f"There is no file {file}.")
        digest = file_hash(file)
        if digest in digests:
            raise InputError(f"{file} holds the same experts as {digests[digest]}.")
        digests[digest] = file
    if not digests:
        raise InputError("Name the files to import, such as replay_buffer_0.pt.")
    return list(digests)


def _survey(files: Sequence[Path], net: FlatNet, name: str) -> tuple[int, int]:
    """Check all experts of all files; return their number and that of their snapshots."""
    count, lengths = 0, dict[int, str]()
    for file in files:
        for k, rows in enumerate(read_buffer(file, net, name)):
            lengths.setdefault(len(rows), f"{file}, expert {k}")
            count += 1
            if len(lengths) > 1:
                (a, one), (b, other) = lengths.items()
                raise InputError(f"{one} has {a - 1} epochs but {other} has {b - 1}.")
    return count, next(iter(lengths))


def _accuracy(net: FlatNet, theta: Tensor, data: DataSet, space: Space) -> float:
    """Return how good an expert is on some validation images: a test of normaliser and labels."""
    chosen = torch.randperm(len(data.val), generator=generator(0, "import"))[:_TRIED].sort().values
    labels = data.val.labels[chosen]
    return accuracy(net, theta, data.val.pixels[chosen], labels, prepare=space.forward)


def imported_tasks(
    prefix: str, count: int, *, data: DataSet, space: Space, net: NetSpec, store: Store
) -> Tasks:
    """Return the first `count` experts of an imported pool, as tasks that are finished.

    Raises:
        InputError: if the store lacks the pool or so many of its experts, or if they belong to
            other images, another normaliser or another network.
    """
    pool = find_pool(store, prefix)
    first, net = pool.spec, filled(net)
    if not isinstance(first, ImportedExpert) or pool.problem:
        raise InputError(f"The pool {pool.name} was not imported, or not by this version.")
    experts = f"The imported experts {pool.name}"
    if first.net != net:
        raise InputError(f"{experts} are {describe(first.net)}, not {describe(net)}.")
    if first.data.identity != data.ref.identity:
        raise InputError(f"{experts} belong to other images than {data.source}.")
    if first.space != space.record():
        raise InputError(
            f"{experts} saw images under another normaliser; name theirs with --normaliser, not "
            f"{space.describe()}."
        )
    if missing := set(range(count)) - set(pool.indices):
        raise InputError(
            f"{experts} are {len(pool.indices)}, and {len(missing)} of the first {count} are "
            "missing; see --method.experts.count."
        )
    specs = tuple(replace(first, index=k) for k in range(count))
    return Tasks(kind=KIND, fn=_gone, specs=specs, label="imported experts")


def _gone(spec: ImportedExpert, context: dict[str, str], folder: Path) -> None:
    raise InputError(f"The imported expert {spec.index} is no longer in the store.")
