"""Pools: the experts of a store that differ in nothing but their index."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.core.errors import InputError
from potstill.core.spec import from_json, spec_hash
from potstill.core.store import Entry, Store, faults
from potstill.data import DataRef, SpaceSpec
from potstill.experts.store import Trajectory
from potstill.nets import NetSpec

KIND = "experts"
"""Under what the store files experts."""
_PARTS = {"data": DataRef, "space": SpaceSpec, "net": NetSpec}


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Experts that differ only in their index, or one entry that nobody can read."""

    name: str
    """The hash of its expert 0, whether that is there or not."""
    entries: tuple[Entry, ...]
    spec: Any
    """The spec of its first expert, or None if this version cannot read it."""
    problem: str = ""
    """Why this version does not use it."""

    @property
    def nbytes(self) -> int:
        """Return the bytes on disk."""
        return sum(entry.nbytes for entry in self.entries)

    @property
    def indices(self) -> list[int]:
        """Return the indices of its experts."""
        found = [(entry.spec or {}).get("index") for entry in self.entries]
        return sorted(index for index in found if isinstance(index, int))

    def facts(self) -> list[dict[str, Any]]:
        """Return what was noted of each expert, as far as it can be read."""
        found = []
        for entry in self.entries:
            try:
                facts = Trajectory(entry.folder).facts
            except InputError:
                continue
            if isinstance(facts, dict):
                found.append(facts)
        return found

    def last_epoch(self) -> int:
        """Return the epochs that all of its experts have.

        Raises:
            InputError: if one cannot be read.
        """
        return min(Trajectory(entry.folder).shape[0] for entry in self.entries) - 1

    def faults(self) -> Iterator[list[Path]]:
        """Yield for each expert its files that are missing or altered."""
        for entry in self.entries:
            yield [entry.folder / name for name in faults(entry.folder)]


def pool_name(spec: dict[str, Any] | None) -> str | None:
    """Return the name of the pool of a spec in plain JSON, or None if it is no expert's."""
    return spec_hash({**spec, "index": 0}) if spec and "index" in spec else None


def pools(store: Store) -> list[Pool]:
    """Return the pools of a store by name, and what nobody can read one by one."""
    groups: dict[str, list[Entry]] = {}
    for entry in store.entries(KIND):
        groups.setdefault(pool_name(entry.spec) or entry.folder.name, []).append(entry)
    return [_pool(name, groups[name]) for name in sorted(groups)]


def _pool(name: str, entries: list[Entry]) -> Pool:
    entries.sort(key=lambda entry: str((entry.spec or {}).get("index", "")).zfill(9))
    raw, spec, problem = entries[0].spec, None, ""
    if raw is None:
        problem = "no readable done.json"
    else:
        try:
            spec = from_json(raw)
            if spec_hash(spec) != entries[0].folder.name:
                problem = "made by another version; this one would train it anew"
        except Exception as error:  # whatever an old or foreign record does
            problem = " ".join(str(error).split()) or type(error).__name__
    if not all(isinstance(getattr(spec, name, None), kind) for name, kind in _PARTS.items()):
        spec, problem = None, problem or "not an expert"
    return Pool(name=name, entries=tuple(entries), spec=spec, problem=problem)


def find_pool(store: Store, prefix: str) -> Pool:
    """Return the only pool whose name begins with the prefix.

    Raises:
        InputError: if there is none, or more than one.
    """
    found = [pool for pool in pools(store) if pool.name.startswith(prefix)]
    if not prefix or not found:
        raise InputError(
            f"There is no pool {prefix!r} in {store.root}; potstill experts list shows them."
        )
    if len(found) > 1:
        names = ", ".join(pool.name for pool in found[:5])
        raise InputError(f"{prefix!r} fits {len(found)} pools ({names}); write more of the name.")
    return found[0]


def remove_pool(store: Store, pool: Pool) -> int:
    """Remove a pool from the store and return its bytes.

    Raises:
        InputError: if a living process makes experts of it.
        WorkError: if the disk refuses.
    """
    if pool.name in map(pool_name, store.tidy(KIND)):
        raise InputError(f"Another process is making experts of the pool {pool.name}.")
    nbytes = pool.nbytes
    for entry in pool.entries:
        store.remove(entry.folder)
    return nbytes
