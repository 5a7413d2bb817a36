"""The content-addressed store: finished work lies in a folder named by the hash of its spec."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.core.errors import InputError
from potstill.core.files import file_hash, read_json, replacing_folder, write_json
from potstill.core.spec import spec_hash, to_json


def default_cache() -> Path:
    """Return the user's cache folder for potstill (POTSTILL_CACHE, else XDG, else ~/.cache)."""
    base = os.environ.get("POTSTILL_CACHE")
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "potstill"


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
        """Run `work(folder)` in a temporary folder and file the result; return its folder."""
        target = self.path(kind, spec)
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
        try:
            done = read_json(folder / "done.json")
            sound = done["spec"] == to_json(spec)
            bad = [n for n, d in done["files"].items() if file_hash(folder / n) != d]
        except (InputError, OSError, KeyError, TypeError, AttributeError):
            sound, bad = False, []
        if bad or not sound:
            raise InputError(
                f"{folder / (bad or ['done.json'])[0]} was truncated or altered after it was "
                f"written; remove {folder} to have it made again."
            )
        return folder
