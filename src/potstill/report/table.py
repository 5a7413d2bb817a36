"""Results as tables: for the terminal (rich), as plain text, as Markdown; and as a matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from potstill.evaluation import Result, Row

if TYPE_CHECKING:
    from rich.table import Table

HEAD = (
    "trained on",
    "network",
    "labels",
    "test accuracy %",
    "95 % interval",
    "n",
    "step size",
    "bytes",
    "note",
)
LEFT = ("trained on", "network", "labels", "note", "images", "images of", "window")


def cells(result: Result) -> list[tuple[str, ...]]:
    """Return the body of the table, one tuple a row in the order of `HEAD`."""
    return [_cells(row) for row in result.rows]


def caption(result: Result) -> str:
    """Return one line that says under which rules the numbers were made and what they cost."""
    parts = ", ".join(f"{name} {bytes_text(count)}" for name, count in result.nbytes.items())
    how = " or ".join(dict.fromkeys(row.compute for row in result.rows if row.compute))
    when = "best mark on validation" if any(row.marks for row in result.rows) else "last epoch"
    return (
        f"{result.data} ({result.identity[:12]}), protocol {result.protocol}, {when}; "
        f"set: {parts}; training took {result.seconds:.1f} s, {result.cpu_seconds:.1f} CPU s, at "
        f"most {bytes_text(result.peak_bytes)} of memory{f' ({how})' if how else ''}"
    )


def matrix(result: Result) -> list[tuple[str, ...]]:
    """Return test accuracies as a table of trained-on by network, head first.

    Cells are mean ± std in %; "-" where there is no such row (a best step that is the own one).
    """
    nets = tuple(dict.fromkeys(row.net for row in result.rows))
    kinds = tuple(dict.fromkeys((row.name, row.regime) for row in result.rows))
    found = {(row.name, row.regime, row.net): _accuracy(row) for row in result.rows}
    body = [
        (name, regime, *(found.get((name, regime, net), "-") for net in nets))
        for name, regime in kinds
    ]
    return [("trained on", "labels", *nets), *body]


def text(result: Result) -> str:
    """Return the table as aligned plain text."""
    rows = [HEAD, *cells(result)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    return "\n".join([*lines, caption(result)])


def markdown(result: Result) -> str:
    """Return the table as Markdown."""
    return markdown_of([HEAD, *cells(result)], caption(result))


def markdown_of(rows: Sequence[tuple[str, ...]], below: str) -> str:
    """Return any table, head first, as Markdown, with a line below it."""
    rows = [rows[0], tuple("---" for _ in rows[0]), *rows[1:]]
    lines = ["| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in rows]
    return "\n".join([*lines, "", below.replace("|", "\\|")])


def rich_table(result: Result) -> Table:
    """Return the table for a rich console."""
    from rich.text import Text

    table = rich_of([HEAD, *cells(result)])
    table.caption, table.caption_justify = Text(caption(result)), "left"
    return table


def rich_matrix(result: Result) -> Table:
    """Return the table of `matrix` for a rich console."""
    return rich_of(matrix(result))


def rich_of(rows: Sequence[tuple[str, ...]]) -> Table:
    """Return any table, head first, for a rich console."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD)
    for head in rows[0]:
        table.add_column(Text(head), justify="left" if head in LEFT else "right")
    for row in rows[1:]:
        table.add_row(*map(Text, row), style="bold" if row[0] == "distilled" else "")
    return table


def _cells(row: Row) -> tuple[str, ...]:
    low, high = "", ""
    if row.ci95 is not None:
        ends = max(0.0, row.mean - row.ci95), min(1.0, row.mean + row.ci95)
        low, high = (f"{100 * end:.2f}" for end in ends)
    interval = f"{low} to {high}" if low else "-"
    parts = [f"{k} {bytes_text(row.nbytes[k])}" for k in ("labels", "teacher") if k in row.nbytes]
    size = bytes_text(sum(row.nbytes.values())) + (f" ({', '.join(parts)})" if parts else "")
    step = f"{row.lr:.4g}"
    measured = (_accuracy(row), interval, str(row.n), step, size)
    return (row.name, row.net, row.regime, *measured, row.note)


def _accuracy(row: Row) -> str:
    return accuracy_text(row.mean, row.std)


def accuracy_text(mean: float, std: float | None) -> str:
    """Return fractions as mean ± std in %."""
    return f"{100 * mean:.2f}" + ("" if std is None else f" ± {100 * std:.2f}")


def bytes_text(count: int) -> str:
    """Return bytes in B, KiB or MiB."""
    if count < 1024:
        return f"{count} B"
    return f"{count / 2**10:.1f} KiB" if count < 2**20 else f"{count / 2**20:.1f} MiB"
