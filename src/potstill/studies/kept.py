"""What a study found, and the folder in which it is kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.core.errors import InputError
from potstill.core.files import write_text

FILES = ("rows.jsonl", "table.md", "plot.svg", "plot.png")


@dataclass(frozen=True, kw_only=True)
class Study:
    """Rows as they were measured, and the table for people (head first) that sums them up."""

    rows: tuple[dict[str, Any], ...]
    table: tuple[tuple[str, ...], ...]


def free(out: Path) -> Path:
    """Return the folder of a study's files.

    Raises:
        InputError: if one of its files is there already, or the folder is a file.
    """
    taken = [name for name in FILES if (out / name).exists()]
    if taken or (out.exists() and not out.is_dir()):
        what = f"{out / taken[0]} is there already" if taken else f"{out} is a file"
        raise InputError(f"{what}; name a new folder with --out.")
    return out


def keep(study: Study, figure: Any, out: Path) -> None:
    """Write rows (JSONL), table (Markdown) and plot (SVG and PNG) of a study into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row, allow_nan=False) for row in study.rows)
    write_text(out / FILES[0], "".join(line + "\n" for line in lines))
    write_text(out / FILES[1], markdown(study.table))
    figure.savefig(out / FILES[2], metadata={"Date": None})
    figure.savefig(out / FILES[3], dpi=150)


def markdown(table: Sequence[Sequence[str]]) -> str:
    """Return a table, head first, as Markdown."""
    head, *body = table
    rows = [head, ["---"] * len(head), *body]
    return "".join("| " + " | ".join(c.replace("|", "\\|") for c in row) + " |\n" for row in rows)
