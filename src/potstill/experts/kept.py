"""Data sets of which only some training images are seen, and the files that say which."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from potstill.core.errors import InputError
from potstill.core.files import write_json
from potstill.data import DataSet

_FILE = "rows.safetensors"


def write_rows(folder: Path, rows: Tensor, facts: dict[str, Any]) -> None:
    """Write rows of a training part, int64 [n] and ascending, and the facts of their filter."""
    from safetensors.torch import save_file

    save_file({"rows": rows.contiguous()}, str(folder / _FILE))
    write_json(folder / "filter.json", facts)


@lru_cache(maxsize=1)
def read_rows(folder: Path) -> Tensor:
    """Return the rows, int64 [n], in the folder of a filter; those read last stay in the process.

    Raises:
        InputError: if the file is missing or truncated.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(folder / _FILE))["rows"]
    except (SafetensorError, OSError, KeyError) as error:
        raise InputError(f"{folder / _FILE} is missing, truncated or no filter.") from error


@lru_cache(maxsize=1)
def kept(data: DataSet, rows: Tensor) -> DataSet:
    """Return the data set with only these rows, int64 [n], of its training part; `ref` stays.

    Memory-mapped pixels stay on disk. Of resident ones there is one copy in the process: equal
    arguments (the very same objects) give the same data set until others are asked for.
    """
    return replace(data, train=data.train.take(rows))
