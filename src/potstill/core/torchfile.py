"""Files of torch.save from elsewhere, read as plain tensors only."""

from __future__ import annotations

import pickle
import re
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from potstill.core.errors import InputError


class _Unread:
    """What stands in for what is not read: it takes anything and keeps nothing."""

    def __init__(self, *parts: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


class _Kind:
    """What stands in for the type of a number of NumPy, such as "i8"."""

    def __init__(self, name: str = "", *parts: object) -> None:
        self.name, self.order = name, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1] if state[1] in (">", "<") else "<"


def _number(kind: _Kind, data: bytes) -> int | float:
    """Return a number of NumPy as one of Python."""
    return struct.unpack(kind.order + _FORMATS[kind.name], data)[0]


_FORMATS = {"i4": "i", "i8": "q", "f4": "f", "f8": "d"}
_NUMBERS: tuple[tuple[Any, str], ...] = (
    (_Kind, "numpy.dtype"),
    (_number, "numpy.core.multiarray.scalar"),
    (_number, "numpy._core.multiarray.scalar"),
)
_SETTINGS = ("argparse.Namespace",)


def read_torch(file: Path, *, numbers: bool = False, settings: bool = False) -> Any:
    """Read a file of torch.save; nothing in it is run.

    Tensors are on the CPU and may be mapped from the file. With `numbers` the file may hold single
    numbers of NumPy (of 4 or 8 bytes), which become numbers of Python, with `settings` an
    argparse.Namespace, which is not read.

    Raises:
        InputError: for a file that is damaged or asks for more than tensors.
    """
    unread = [(_Unread, name) for name in _SETTINGS] if settings else []
    allowed: list[Any] = [*(_NUMBERS if numbers else ()), *unread]
    try:
        mapped = zipfile.is_zipfile(file)  # the old format cannot be mapped into memory
        if mapped:
            with zipfile.ZipFile(file) as archive:  # torch checks no sums
                if part := archive.testzip():
                    raise ValueError(f"{part} is altered")
        with warnings.catch_warnings(), torch.serialization.safe_globals(allowed):
            warnings.simplefilter("ignore")  # on pickles that it refuses a moment later
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch, pickle and zip raise many kinds for damaged files
        asked = re.search(r"GLOBAL ([\w.]+\w)", str(error))
        if isinstance(error, pickle.UnpicklingError) and asked:
            raise InputError(
                f"{file} asks for {asked[1]}; only lists of plain tensors are read, because "
                "anything else may run code of whoever made the file."
            ) from error
        raise InputError(f"{file} is damaged or not a file of torch.save.") from error


def kind_of(thing: object) -> str:
    """Return what something in a file is, in words: "a list of 3"."""
    name = type(thing).__name__
    return f"a {name} of {len(thing)}" if isinstance(thing, (list, tuple, dict)) else f"a {name}"
