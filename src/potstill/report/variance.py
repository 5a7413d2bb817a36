"""The plot of the study of variance."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from potstill.report.plots import COLOURS, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = Sequence[dict[str, Any]]


def variance_plot(rows: Rows) -> Figure:
    """Return spreads, gradients' noise, and how far runs went: a line an objective.

    One colour a batch; controls are hatched. Bars are means and standard deviations over theta_0,
    points are each of them.
    """
    rows = [row for row in rows if row["kind"] == "runs"]
    control = {row["title"]: row["control"] for row in rows}
    names, batches = list(control), sorted({row["batch"] for row in rows})
    figure, every = panels(3, width=12)
    figure.set_figheight(1.6 + 0.22 * len(names) * (1 + len(batches)))
    spreads, noises, ways = every
    height = 0.8 / len(batches)
    for k, batch in enumerate(batches):
        for place, title in enumerate(names):
            own = [row for row in rows if (row["title"], row["batch"]) == (title, batch)]
            if own:
                y = place + height * (k - (len(batches) - 1) / 2)
                colour = COLOURS[k % len(COLOURS)]
                look = {"height": 0.9 * height, **_look(colour, control[title])}
                _bar(spreads, y, [row["spread"] for row in own], look)
                _bar(ways, y, [row["moved"] for row in own], look)
                _points(noises, y, height / 6, own, colour)
    for axes in every:
        axes.set_yticks(range(len(names)), names if axes is spreads else [""] * len(names))
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(axis="x", linewidth=0.4, alpha=0.5)
        axes.set_axisbelow(True)
    spreads.set(title="spread of runs", xlabel="0: all alike, 1: at right angles")
    spreads.set_xlim(0, max(1, spreads.get_xlim()[1]))
    noises.set(title="noise / signal of gradients", xlabel="hollow: at θ₀, full: at the end")
    noises.set_xscale("log")
    noises.xaxis.set_major_formatter("{x:g}")
    ways.set(title="how far the runs went", xlabel="|D| / |θ₀|")
    _legend(figure, batches, any(control.values()))
    return figure


def _look(colour: str, control: bool) -> dict[str, Any]:
    if not control:
        return {"facecolor": colour, "edgecolor": colour}
    return {"facecolor": "white", "edgecolor": colour, "hatch": "////"}


def _bar(axes: Any, y: float, values: Sequence[float], look: dict[str, Any]) -> None:
    error = statistics.stdev(values) if len(values) > 1 else None
    error_kw = {"capsize": 2, "elinewidth": 1}
    axes.barh(y, statistics.fmean(values), xerr=error, error_kw=error_kw, **look)


def _points(axes: Any, y: float, apart: float, rows: Rows, colour: str) -> None:
    """Draw noise over signal at the start and, below, at the end, where it is finite."""
    for what, place, fill in (
        ("noise_start", y - apart, "white"),
        ("noise_end", y + apart, colour),
    ):
        values = [row[what] for row in rows if row[what] is not None]
        places = [place] * len(values)
        axes.plot(values, places, "o", color=colour, markerfacecolor=fill, markersize=5)


def _legend(figure: Figure, batches: Sequence[int], controls: bool) -> None:
    from matplotlib.patches import Patch

    colours = [COLOURS[k % len(COLOURS)] for k in range(len(batches))]
    named = zip(colours, batches, strict=True)
    shown = [Patch(**_look(colour, False), label=f"batch {batch}") for colour, batch in named]
    if controls:
        shown.append(Patch(**_look("gray", True), label="control: with the views' augmentation"))
    figure.legend(handles=shown, loc="outside lower center", ncols=len(shown), frameon=False)
