"""Parquet files in Hugging Face layout: train-*.parquet beside test-* or validation-*."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill.core.errors import InputError
from potstill.data.images import decode
from potstill.data.layout import TEST_NAMES, existing_folder, unused_note
from potstill.data.splits import numbered_classes
from potstill.data.types import Listed, Opener, Parts, Reading

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "fine_label", "labels")


@dataclass(frozen=True, kw_only=True)
class _Table:
    """What a parquet file says of itself, and its labels."""

    path: Path
    image: str
    classes: tuple[str, ...]
    labels: Tensor


def _layout(folder: Path) -> dict[str, list[Path]]:
    """Return the files of the part "train" and those of held-out parts."""
    here = sorted(folder.glob("*.parquet")) or sorted((folder / "data").glob("*.parquet"))
    named = {
        name: [f for f in here if re.fullmatch(rf"{name}(-.*)?\.parquet", f.name)]
        for name in ("train", *TEST_NAMES)
    }
    if not named["train"]:
        found = ", ".join(f.name for f in here[:5]) or "no parquet file"
        raise InputError(f"There is no train-*.parquet in {folder} (found: {found}).")
    return named


def open_parquet(rest: str, reading: Reading) -> Parts:
    """Return the parts of a folder of parquet files.

    Raises:
        InputError: if the folder or a train-*.parquet in it is missing; as `parquet_parts`.
    """
    folder = existing_folder(rest, "parquet")
    return parquet_parts(_layout(folder), str(folder))


def parquet_parts(
    found: Mapping[str, Sequence[Path]], where: str, *, label: str | None = None
) -> Parts:
    """Return the parts of parquet files: "train", and the first of `TEST_NAMES` with labels.

    Args:
        found: the files of each part.
        where: what to call them all in errors.
        label: the column of labels, if it is not to be found out.

    Raises:
        InputError: for a file, column or label that cannot be used; for a part without images.
    """
    train = [_read(path, label) for path in found["train"]]
    present = [name for name in TEST_NAMES if found.get(name)]
    test, used, notes = [], "", ()
    for name in present:
        test, used = [_read(path, label) for path in found[name]], name
        if any(bool((table.labels != -1).any()) for table in test):
            break
        notes += (f"{name!r} has no labels (all are -1).",)
        test, used = [], ""
    if not sum(len(t.labels) for t in train) or (test and not sum(len(t.labels) for t in test)):
        raise InputError(f"A parquet part in {where} holds no images.")
    for table in (*train, *test):
        if table.classes != train[0].classes:
            raise InputError(f"{table.path} and {train[0].path} name different classes.")
    part = _listed(train)
    return Parts(
        train=part,
        test=_listed(test) if test else None,
        classes=train[0].classes or numbered_classes(part.labels),
        notes=notes + (unused_note(present[len(notes) :], used) if used else ()),
        files={f"{n} {table.path.name}": table.path for n, table in enumerate((*train, *test))},
    )


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} is not a readable parquet file ({reason}).") from error


def _read(path: Path, label: str | None) -> _Table:
    from pyarrow import parquet

    with _readable(path), parquet.ParquetFile(path) as file:
        schema = file.schema_arrow
        noted: dict[str, Any] = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        typed = noted.get("info", {}).get("features", {})
        features = {name: typed[name] for name in typed if isinstance(typed[name], dict)}
        image = _column(schema.names, features, path, ("image", IMAGE_COLUMNS, "Image"))
        names, feature = (LABEL_COLUMNS, "ClassLabel") if label is None else ((label,), "")
        column = _column(schema.names, features, path, ("label", names, feature))
        values = file.read([column])[column].to_pylist()
    for row, value in enumerate(values):
        if type(value) is not int:
            raise InputError(
                f"Row {row} of {path} has the label {value!r}; labels must be integers 0..K-1."
            )
    classes = tuple(features.get(column, {}).get("names") or ())
    return _Table(path=path, image=image, classes=classes, labels=torch.tensor(values).long())


def _column(
    columns: Sequence[str],
    features: Mapping[str, Any],
    path: Path,
    sought: tuple[str, tuple[str, ...], str],
) -> str:
    """Return the column of one of the sought names, else the only one of the sought feature."""
    kind, names, feature = sought
    typed = [c for c in columns if features.get(c, {}).get("_type") == feature]
    for name in (*names, *(typed if len(typed) == 1 else ())):
        if name in columns:
            return name
    raise InputError(
        f"{path} has no {kind} column ({', '.join(names)}); its columns are: {', '.join(columns)}."
    )


def _listed(tables: list[_Table]) -> Listed:
    labels = torch.cat([table.labels for table in tables])
    return Listed(labels=labels, rows=torch.arange(len(labels)), named=_opened(tables))


def _opened(tables: list[_Table]) -> Callable[[Tensor], Iterator[tuple[str, Opener]]]:
    def named(rows: Tensor) -> Iterator[tuple[str, Opener]]:
        wanted = torch.zeros(sum(len(table.labels) for table in tables), dtype=torch.bool)
        wanted[rows] = True
        for table, part in zip(tables, wanted.split([len(t.labels) for t in tables]), strict=True):
            with _readable(table.path):
                yield from _images(table, part.tolist())

    return named


def _images(table: _Table, wanted: list[bool]) -> Iterator[tuple[str, Opener]]:
    """Yield the wanted images of a file; row groups without any are not read."""
    from pyarrow import parquet

    with parquet.ParquetFile(table.path, pre_buffer=False) as file:
        end = 0
        for group in range(file.num_row_groups):
            start, end = end, end + file.metadata.row_group(group).num_rows
            if not any(wanted[start:end]):
                continue
            row = start
            for batch in file.iter_batches(
                64, row_groups=[group], columns=[table.image], use_threads=False
            ):
                for value in batch.column(0):
                    if wanted[row]:
                        name = f"in row {row} of {table.path}"
                        yield name, partial(decode, _bytes(value.as_py(), name), name)
                    row += 1


def _bytes(value: Any, name: str) -> bytes:
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise InputError(f"There are no image bytes {name}.")
    return data
