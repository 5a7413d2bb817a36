"""Results as tables: for the terminal (rich), as plain text, as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from potstill.evaluation import Result, Row

if TYPE_CHECKING:
    from rich.table import Table

HEAD = ("trained on", "network", "test accuracy %", "95 % interval", "n", "step size", "note")


def cells(result: Result) -> list[tuple[str, ...]]:
    """Return the body of the table, one tuple a row in the order of `HEAD`."""
    return [_cells(row) for row in result.rows]


def caption(result: Result) -> str:
    """Return one line that says under which rules the numbers were made and what they cost."""
    parts = ", ".join(f"{name} {_size(count)}" for name, count in result.nbytes.items())
    return (
        f"{result.data} ({result.identity[:12]}), protocol {result.protocol}, last epoch; "
        f"set: {parts}; {result.cpu_seconds:.1f} CPU seconds of training"
    )


def text(result: Result) -> str:
    """Return the table as aligned plain text."""
    rows = [HEAD, *cells(result)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    return "\n".join([*lines, caption(result)])


def markdown(result: Result) -> str:
    """Return the table as Markdown."""
    rows = [HEAD, tuple("---" for _ in HEAD), *cells(result)]
    lines = ["| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in rows]
    return "\n".join([*lines, "", caption(result).replace("|", "\\|")])


def rich_table(result: Result) -> Table:
    """Return the table for a rich console."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, caption=Text(caption(result)), caption_justify="left")
    for head in HEAD:
        table.add_column(head, justify="left" if head in HEAD[:2] + HEAD[-1:] else "right")
    for row in cells(result):
        table.add_row(*map(Text, row), style="bold" if row[0] == "distilled" else "")
    return table


def _cells(row: Row) -> tuple[str, ...]:
    mean, low, high = f"{100 * row.mean:.2f}", "", ""
    if row.std is not None:
        mean += f" ± {100 * row.std:.2f}"
    if row.ci95 is not None:
        low, high = f"{100 * (row.mean - row.ci95):.2f}", f"{100 * (row.mean + row.ci95):.2f}"
    interval = f"{low} to {high}" if low else "-"
    return (row.name, row.net, mean, interval, str(row.n), f"{row.lr:.4g}", row.note)


def _size(count: int) -> str:
    return f"{count} B" if count < 1024 else f"{count / 1024:.1f} KiB"
