"""Files that are either whole or absent, and folders that one process owns at a time."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from potstill.core.errors import InputError, WorkError


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes the place of `path` at once."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise WorkError(f"Cannot write {path}: {error.strerror or error}.") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path, data: Any) -> None:
    """Write JSON atomically, indented for people."""
    write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        InputError: if the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"There is no file {path}.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable JSON file ({error}).") from error


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a new temporary folder; on success it takes the place of `path`.

    A folder already at `path` is moved away first and removed after, so at every moment a reader
    finds either the old or the new one, or (between two renames) none, never a mixture.
    """
    tag = uuid.uuid4().hex[:8]
    temporary = path.with_name(f".{path.name}.{tag}.tmp")
    old = path.with_name(f".{path.name}.{tag}.old")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for item in temporary.rglob("*"):
            if item.is_file():
                with open(item, "rb") as handle:
                    os.fsync(handle.fileno())
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise WorkError(f"Cannot write {path}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def sweep(folder: Path, name: str = "*") -> None:
    """Remove what a killed writer left in a folder that the caller owns (or of one name there)."""
    for item in folder.glob(f".{name}.*.tmp"):
        shutil.rmtree(item) if item.is_dir() else item.unlink()
    for item in folder.glob(f".{name}.*.old"):
        kept = folder / item.name[1:].rsplit(".", 2)[0]
        shutil.rmtree(item) if kept.exists() else os.replace(item, kept)


def file_hash(*paths: Path) -> str:
    """Return the SHA-256 (hex) of the bytes of the files, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; the lock ends with the process, however it ends.

    Raises:
        InputError: if another process holds it.
        WorkError: if the folder cannot be made.
    """
    with holding(folder / ".lock", wait=False, keep=True):
        yield


@contextmanager
def holding(file: Path, *, wait: bool, note: str = "", keep: bool = False) -> Iterator[None]:
    """Hold the lock `file` for this process; it ends with the process, however that ends.

    With `wait` the call returns when nobody else holds it; without `keep` the file goes after.
    Others may read the note in the file as long as it is there.

    Raises:
        InputError: without `wait`, if another process holds it.
        WorkError: if the file cannot be made.
    """
    handle = _hold(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        if note:
            os.ftruncate(handle, 0)
            os.write(handle, note.encode())
        yield
    finally:
        if not keep:
            file.unlink(missing_ok=True)  # still held: nobody can hold a removed file, see _hold
        os.close(handle)


def _hold(file: Path, how: int) -> int:
    """Return the open lock file after locking it, the one that lies at that path now."""
    while True:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            reason = error.strerror or error
            raise WorkError(f"Cannot write in {file.parent}: {reason}.") from error
        try:
            fcntl.flock(handle, how)
            if os.path.samestat(os.fstat(handle), os.stat(file)):
                return handle
        except FileNotFoundError:
            pass  # its holder removed it: the next one is a new file
        except BlockingIOError:
            os.close(handle)
            raise InputError(f"Another process is working in {file.parent}.") from None
        except OSError as error:  # a network file system without locks
            os.close(handle)
            raise WorkError(f"Cannot lock {file}: {error.strerror or error}.") from error
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
