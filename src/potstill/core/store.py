"""The content-addressed store: finished work lies in a folder named by the hash of its spec.

`root/<kind>/<hash>/` is finished work; `.<hash>.lock` beside it is held by the process that makes
it, and ends with that process; `.<hash>.*.tmp` is work under way, or left by a killed process.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.core.errors import InputError, WorkError
from potstill.core.files import (
    file_hash,
    holding,
    read_json,
    replacing_folder,
    sweep,
    write_json,
)
from potstill.core.spec import canonical, spec_hash, to_json


def default_cache() -> Path:
    """Return the user's cache folder for potstill (POTSTILL_CACHE, else XDG, else ~/.cache)."""
    base = os.environ.get("POTSTILL_CACHE")
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "potstill"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Work as it lies in the store."""

    folder: Path
    spec: dict[str, Any] | None
    """The spec as plain JSON, or None where it cannot be read."""

    @property
    def nbytes(self) -> int:
        """Return the bytes of its files."""
        return sum(item.stat().st_size for item in self.folder.rglob("*") if item.is_file())

    @property
    def seconds(self) -> float:
        """Return when it was finished, in seconds since 1970."""
        return self.folder.stat().st_mtime


@dataclass(frozen=True)
class Store:
    """Finished work under `root/<kind>/<hash>/`: its files and `done.json` (spec, file hashes)."""

    root: Path

    def path(self, kind: str, spec: Any) -> Path:
        """Return the folder in which the work of that spec lies or will lie."""
        return self.root / kind / spec_hash(spec)

    def has(self, kind: str, spec: Any) -> bool:
        """Tell whether the work of that spec is finished."""
        return (self.path(kind, spec) / "done.json").is_file()

    def put(self, kind: str, spec: Any, work: Callable[[Path], None]) -> Path:
        """Run `work(folder)` in a temporary folder and file the result; return its folder.

        If another process is doing the same work, wait for it; what is finished and sound by then
        is not done again.
        """
        target = self.path(kind, spec)
        with holding(_lock(target), wait=True, note=canonical(spec)):
            sweep(target.parent, target.name)
            if self.has(kind, spec) and not faults(target):
                return target
            with replacing_folder(target) as folder:
                work(folder)
                files = {f.name: file_hash(f) for f in sorted(folder.iterdir()) if f.is_file()}
                write_json(folder / "done.json", {"spec": to_json(spec), "files": files})
        return target

    def verify(self, kind: str, spec: Any) -> Path:
        """Return the folder of finished work after checking every file against its hash.

        Raises:
            InputError: if a file is missing, truncated or altered; says what to remove.
        """
        folder = self.path(kind, spec)
        if bad := faults(folder):
            raise InputError(
                f"{folder / bad[0]} was truncated or altered after it was written; remove {folder} "
                "to have it made again."
            )
        return folder

    def entries(self, kind: str) -> list[Entry]:
        """Return all work of a kind by name, also what no present spec can name."""
        folder = self.root / kind
        names = sorted(os.listdir(folder)) if folder.is_dir() else []
        folders = [folder / name for name in names if name[0] != "."]
        return [Entry(folder=f, spec=_read_spec(f)) for f in folders if f.is_dir()]

    def tidy(self, kind: str) -> list[dict[str, Any]]:
        """Remove what killed processes left; return the specs (JSON) that living ones work on."""
        folder = self.root / kind
        left = [
            item.name[1:] for end in ("tmp", "old", "lock") for item in folder.glob(f".*.{end}")
        ]
        for name in {text.split(".")[0] for text in left}:
            with (
                contextlib.suppress(InputError, WorkError, OSError),
                holding(_lock(folder / name), wait=False),
            ):
                sweep(folder, name)
        busy = []
        for lock in folder.glob(".*.lock"):
            with contextlib.suppress(OSError, ValueError):
                busy.append(json.loads(lock.read_text()))
        return busy

    def remove(self, folder: Path) -> None:
        """Remove the work in a folder of the store, all at once.

        Raises:
            InputError: if a living process is making it.
            WorkError: if the disk refuses.
        """
        gone = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
        with holding(_lock(folder), wait=False):
            try:
                os.replace(folder, gone)
                shutil.rmtree(gone)
            except OSError as error:
                raise WorkError(f"Cannot remove {folder}: {error.strerror or error}.") from error

    def need_room(
        self, kind: str, specs: Sequence[Any], nbytes: int, *, what: str | None = None
    ) -> None:
        """Refuse work of `nbytes` in all if what is unfinished of it does not fit on the disk."""
        left = sum(not self.has(kind, spec) for spec in specs)
        wanted = nbytes * left // max(len(specs), 1)
        hint = "choose another folder with --store"
        need_room(self.root, wanted, what=what or kind, hint=hint)


def faults(folder: Path) -> list[str]:
    """Return which files of finished work are missing or altered; none if it is sound."""
    try:
        done = read_json(folder / "done.json")
        sound = spec_hash(done["spec"]) == folder.name
        return [n for n, d in done["files"].items() if not _has_hash(folder / n, d)] + (
            [] if sound else ["done.json"]
        )
    except (InputError, KeyError, TypeError, AttributeError):
        return ["done.json"]


def existing(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    return next(f for f in (folder, *folder.absolute().parents) if f.exists())


def need_room(
    folder: Path, nbytes: int, *, what: str = "files", hint: str = "make room there"
) -> None:
    """Refuse work whose bytes are more than the file system of a folder has free.

    Raises:
        InputError: naming both numbers and what can be done.
    """
    free = shutil.disk_usage(existing(folder)).free
    if nbytes > free:
        raise InputError(
            f"The {what} still to be made need {nbytes / 2**30:.3g} GiB, and {folder} has only "
            f"{free / 2**30:.3g} GiB free; {hint}."
        )


def _lock(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")


def _has_hash(file: Path, digest: str) -> bool:
    try:
        return file_hash(file) == digest
    except OSError:
        return False


def _read_spec(folder: Path) -> dict[str, Any] | None:
    try:
        spec = read_json(folder / "done.json")["spec"]
    except (InputError, KeyError, TypeError):
        return None
    return spec if isinstance(spec, dict) else None
