"""Parquet files in Hugging Face layout: train-*.parquet beside test-* or validation-*."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from potstill.core.errors import InputError
from potstill.data.images import decode, stack
from potstill.data.layout import TEST_NAMES, existing_folder, unused_note
from potstill.data.splits import numbered_classes
from potstill.data.types import Parts, Split

if TYPE_CHECKING:
    from datasets import Dataset

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "fine_label", "labels")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the bars and log lines of `datasets` off the terminal; errors still raise."""
    import datasets

    bars, level = datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if not bars:
            datasets.enable_progress_bars()


def _layout(rest: str) -> tuple[dict[str, list[Path]], tuple[str, ...]]:
    """Return the files of the parts "train" and, if there, "test", and notes."""
    folder = existing_folder(rest, "parquet")
    here = sorted(folder.glob("*.parquet")) or sorted((folder / "data").glob("*.parquet"))
    named = {
        name: [f for f in here if re.fullmatch(rf"{name}(-.*)?\.parquet", f.name)]
        for name in ("train", *TEST_NAMES)
    }
    if not named["train"]:
        found = ", ".join(f.name for f in here[:5]) or "no parquet file"
        raise InputError(f"There is no train-*.parquet in {folder} (found: {found}).")
    held_out = [name for name in TEST_NAMES if named[name]]
    parts = {"train": named["train"]}
    if held_out:
        parts["test"] = named[held_out[0]]
    return parts, unused_note(held_out, held_out[0]) if held_out else ()


def parquet_files(rest: str) -> dict[str, Path]:
    """Return the parquet files by name.

    Raises:
        InputError: if the folder or a train-*.parquet in it is missing.
    """
    parts, _ = _layout(rest)
    return {path.name: path for paths in parts.values() for path in paths}


def _column(table: Dataset, path: Path, kind: str, names: tuple[str, ...]) -> str:
    for name in names:
        if name in table.column_names:
            return name
    raise InputError(
        f"{path} has no {kind} column ({', '.join(names)}); "
        f"its columns are: {', '.join(table.column_names)}."
    )


def _read(path: Path, scratch: str) -> Dataset:
    """Return the image and label columns of a file, renamed to "image" and "label"."""
    from datasets import Dataset
    from datasets.exceptions import DatasetsError

    try:
        table = Dataset.from_parquet(str(path), cache_dir=scratch)
    except (DatasetsError, OSError, ValueError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise InputError(f"{path} is not a readable parquet file ({reason}).") from error
    assert isinstance(table, Dataset)
    columns = [
        _column(table, path, "image", IMAGE_COLUMNS),
        _column(table, path, "label", LABEL_COLUMNS),
    ]
    for old, new in zip(columns, ("image", "label"), strict=True):
        table = table if old == new else table.rename_column(old, new)
    return table


def _class_names(tables: dict[Path, Dataset], labels: torch.Tensor) -> tuple[str, ...]:
    """Return the names in the ClassLabel feature, else "0".."K-1" from the training labels."""
    named = {
        path: tuple(getattr(t.features["label"], "names", None) or ()) for path, t in tables.items()
    }
    first, classes = next(iter(named.items()))
    for path, names in named.items():
        if names != classes:
            raise InputError(f"{path} and {first} name different classes.")
    return classes or numbered_classes(labels)


def _labels(tables: dict[Path, Dataset]) -> torch.Tensor:
    found: list[Any] = []
    for path, table in tables.items():
        values = table.with_format("arrow", ["label"])[:]["label"].to_pylist()
        for row, value in enumerate(values):
            if type(value) is not int:
                raise InputError(
                    f"Row {row} of {path} has the label {value!r}; labels must be integers 0..K-1."
                )
        found += values
    return torch.tensor(found, dtype=torch.int64)


def _images(tables: dict[Path, Dataset]) -> Iterator[tuple[str, Any]]:
    for path, table in tables.items():
        row = 0
        batches: Any = table.with_format("arrow", ["image"]).iter(1000)
        for batch in batches:
            for value in batch["image"].to_pylist():
                name = f"in row {row} of {path}"
                data = value.get("bytes") if isinstance(value, dict) else value
                if not isinstance(data, bytes):
                    raise InputError(f"There are no image bytes {name}.")
                yield name, decode(data, name)
                row += 1


def open_parquet(rest: str, resize: int | None) -> Parts:
    """Return the parts of a folder of parquet files.

    Raises:
        InputError: as `parquet_files`; for a file, column, label or image that cannot be used.
    """
    parts, notes = _layout(rest)
    with tempfile.TemporaryDirectory() as scratch, _quiet():
        train = {path: _read(path, scratch) for path in parts["train"]}
        test = {path: _read(path, scratch) for path in parts.get("test", [])}
        n_train = sum(map(len, train.values()))
        if not n_train or (test and not sum(map(len, test.values()))):
            raise InputError(f"A parquet part in {rest} holds no images.")
        tables = train | test
        labels = _labels(tables)
        classes = _class_names(tables, labels[:n_train])
        pixels = stack(_images(tables), len(labels), resize=resize)
    return Parts(
        train=Split(pixels[:n_train], labels[:n_train]),
        test=Split(pixels[n_train:], labels[n_train:]) if test else None,
        classes=classes,
        notes=notes,
    )
