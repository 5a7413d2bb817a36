"""What a study found, and the folder in which it is kept."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.core.errors import InputError
from potstill.core.files import replacing, write_text

FILES = ("rows.jsonl", "table.md", "plot.svg", "plot.png")
Table = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Study:
    """Rows as they were measured, and the tables for people (head first) that sum them up."""

    rows: tuple[dict[str, Any], ...]
    table: Table
    more: tuple[Table, ...] = ()
    """Further tables, below it."""


def free(out: Path) -> Path:
    """Return the folder of a study's files.

    Raises:
        InputError: if one of its files is there already, or nothing can be written there.
    """
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    taken, what = [out / name for name in FILES if (out / name).exists()], None
    if taken:
        what = f"{taken[0]} is there already"
    elif not there.is_dir():
        what = f"{there} is a file"
    elif not os.access(there, os.W_OK | os.X_OK):
        what = f"Nothing can be written in {there}"
    if what is not None:
        raise InputError(f"{what}; name a new folder with --out.")
    return out


def keep(study: Study, figure: Any, out: Path) -> None:
    """Write rows, tables and plot of a study into a folder; see `written`."""
    lines = (json.dumps(row, allow_nan=False) for row in study.rows)
    written(lines, "\n".join(map(markdown, (study.table, *study.more))), figure, out)


def written(lines: Iterable[str], tables: str, figure: Any, out: Path) -> None:
    """Write rows (JSONL), tables (Markdown) and a plot (SVG and PNG) into a folder.

    Raises:
        WorkError: if the disk refuses.
    """
    write_text(out / FILES[0], "".join(f"{line}\n" for line in lines))
    write_text(out / FILES[1], tables)
    for name, how in ((FILES[2], {"metadata": {"Date": None}}), (FILES[3], {"dpi": 150})):
        with replacing(out / name) as temporary:
            figure.savefig(temporary, format=name.rpartition(".")[2], **how)


def markdown(table: Sequence[Sequence[str]]) -> str:
    """Return a table, head first, as Markdown."""
    head, *body = table
    rows = [head, ["---"] * len(head), *body]
    return "".join("| " + " | ".join(c.replace("|", "\\|") for c in row) + " |\n" for row in rows)


def mean_text(values: Sequence[float | None], digits: int) -> str:
    """Return mean ± standard deviation; "-" where there is none."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return "-"
    deviation = f" ± {statistics.stdev(known):.{digits}g}" if len(known) > 1 else ""
    lost = f" ({len(values) - len(known)} not finite)" if len(known) < len(values) else ""
    return f"{statistics.fmean(known):.{digits}g}{deviation}{lost}"


def finite(value: Any) -> Any:
    """Return a value as JSON has it: None for a number that is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
