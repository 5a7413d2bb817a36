"""Folders that users name: that they exist, and which of their parts is the test part."""

from __future__ import annotations

from pathlib import Path

from potstill.core.errors import InputError

TEST_NAMES = ("test", "val", "validation", "valid")


def existing_folder(rest: str, kind: str) -> Path:
    """Return the folder that the user named.

    Raises:
        InputError: if none is named or it is missing or empty.
    """
    if not rest:
        raise InputError(f"The data source {kind!r} needs a folder: {kind}:DIR.")
    folder = Path(rest).expanduser()
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}.")
    if not any(folder.iterdir()):
        raise InputError(f"The folder {folder} is empty.")
    return folder


def unused_note(present: list[str], used: str) -> tuple[str, ...]:
    """Return a note on further held-out parts, of which only the first serves as the test part."""
    others = [name for name in present if name != used]
    if not others:
        return ()
    return (f"{used!r} is the test part; not used: {', '.join(map(repr, others))}.",)
