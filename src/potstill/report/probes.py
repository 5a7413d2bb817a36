"""Results of probes: a table with a column for each data set and label budget, and a plot."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from potstill.evaluation import ProbeResult, ProbeRow
from potstill.report.plots import COLOURS, MARKERS, panels
from potstill.report.table import accuracy_text, bytes_text, markdown_of, rich_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

_FRONT, _BACK = ("trained on", "network"), ("n", "step size", "bytes", "note")


def probe_cells(result: ProbeResult) -> list[tuple[str, ...]]:
    """Return the table, head first: a line an entrant and network, test accuracies in %.

    Cells are mean ± std over networks of the linear probe, nearest neighbours behind them.
    """
    columns = tuple(dict.fromkeys((row.target, row.labels) for row in result.rows))
    lines = dict.fromkeys((row.name, row.net) for row in result.rows)
    found = {(row.name, row.net, row.target, row.labels): row for row in result.rows}
    names = _short(target for target, _ in columns)
    head = (*_FRONT, *(f"{names[target]} {labels}" for target, labels in columns), *_BACK)
    body = []
    for name, net in lines:
        rows = [found[name, net, *column] for column in columns]
        first, notes = rows[0], dict.fromkeys(row.note for row in rows if row.note)
        step = "-" if first.lr is None else f"{first.lr:.4g}"
        size = bytes_text(sum(first.nbytes.values())) if first.nbytes else "-"
        back = (str(first.n), step, size, "; ".join(notes))
        body.append((name, net, *map(_measured, rows), *back))
    return [head, *body]


def probe_caption(result: ProbeResult) -> str:
    """Return one line that says under which rules the numbers were made and what they cost."""
    how = " or ".join(dict.fromkeys(row.compute for row in result.rows if row.compute))
    parts = ", ".join(f"{name} {bytes_text(count)}" for name, count in result.nbytes.items())
    known = _short(row.target for row in result.rows)
    counts = dict.fromkeys(
        f"{row.labels} = {row.count:,} of {known[row.target]}" for row in result.rows
    )
    return "; ".join(
        [
            f"{result.data} ({result.identity[:12]}), protocol {result.protocol}",
            "test accuracy % of linear probes (in brackets: nearest neighbours)",
            f"labels: {', '.join(counts)}",
            f"set: {parts}",
            f"{result.pretrainings} pre-trainings served {result.probes} probes: "
            f"{result.seconds:.1f} s, {result.cpu_seconds:.1f} CPU s, at most "
            f"{bytes_text(result.peak_bytes)} of memory ({how})",
            *result.notes,
        ]
    )


def probe_markdown(result: ProbeResult) -> str:
    """Return the table as Markdown."""
    return markdown_of(probe_cells(result), probe_caption(result))


def rich_probes(result: ProbeResult) -> Table:
    """Return the table for a rich console."""
    from rich.text import Text

    table = rich_of(probe_cells(result))
    table.caption, table.caption_justify = Text(probe_caption(result)), "left"
    return table


def probe_plot(result: ProbeResult) -> Figure:
    """Return test accuracies: a panel a data set and label budget, a line an entrant.

    Points are means, one colour a network; bars are 95 % intervals.
    """
    columns = list(dict.fromkeys((row.target, row.labels) for row in result.rows))
    names = list(dict.fromkeys(row.name for row in result.rows))
    nets = list(dict.fromkeys(row.net for row in result.rows))
    known = _short(target for target, _ in columns)
    figure, axes = panels(len(columns), width=2.4 + 2.6 * len(columns))
    figure.set_figheight(1.4 + 0.35 * len(names) * max(1, 0.6 * len(nets)))
    for each, (target, labels) in zip(axes, columns, strict=True):
        rows = [row for row in result.rows if (row.target, row.labels) == (target, labels)]
        for k, net in enumerate(nets):
            _points(each, [row for row in rows if row.net == net], names, k, len(nets))
        each.set_title(f"{known[target]}, {labels}", fontsize="medium")
        each.set_xlabel("test accuracy, %")
        each.set_yticks(range(len(names)), names if each is axes[0] else [""] * len(names))
        each.set_ylim(len(names) - 0.5, -0.5)
        each.grid(axis="x", linewidth=0.4, alpha=0.5)
    if len(nets) > 1:
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(nets), frameon=False)
    return figure


def _points(axes: Any, rows: Sequence[ProbeRow], names: list[str], k: int, count: int) -> None:
    """Draw the rows of one network."""
    shift = 0.3 * (k - (count - 1) / 2)
    axes.errorbar(
        [100 * row.mean for row in rows],
        [names.index(row.name) + shift for row in rows],
        xerr=[
            [100 * min(row.ci95 or 0, row.mean) for row in rows],
            [100 * min(row.ci95 or 0, 1 - row.mean) for row in rows],
        ],
        linestyle="none",
        color=COLOURS[k % len(COLOURS)],
        marker=MARKERS[k % len(MARKERS)],
        capsize=3,
        label=rows[0].net,
    )


def _short(names: Iterable[str]) -> dict[str, str]:
    """Return what data sets are called where room is scarce: the last part of a path."""
    found = {name: name.rstrip("/").rpartition("/")[2] for name in names}
    return found if len(set(found.values())) == len(found) else {name: name for name in found}


def _measured(row: ProbeRow) -> str:
    near = "" if row.knn is None else f" ({100 * row.knn:.1f})"
    return f"{accuracy_text(row.mean, row.std)}{near}"
