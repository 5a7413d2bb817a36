"""Plots of studies: matplotlib figures that are made without a display."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's, that can be told apart without red and green."""
MARKERS = "osD^v<"


def correlation_plot(rows: Sequence[dict[str, Any]]) -> Figure:
    """Return accuracy by images a class, a line a kind of images; bars are 95 % intervals."""
    figure, (axes,) = panels(1, width=6.4)
    whole = [row for row in rows if row["kind"] == "whole set"]
    kinds = [kind for kind in dict.fromkeys(row["kind"] for row in rows) if kind != "whole set"]
    for k, kind in enumerate(kinds):
        line = sorted((row for row in rows if row["kind"] == kind), key=lambda row: row["ipc"])
        axes.errorbar(
            [row["ipc"] * 1.02 ** (k - (len(kinds) - 1) / 2) for row in line],  # side by side
            [100 * row["mean"] for row in line],
            yerr=[100 * (row["ci95"] or 0) for row in line],
            **_look(k, kind),
        )
    axes.errorbar(
        [row["ipc"] for row in whole],
        [100 * row["mean"] for row in whole],
        yerr=[100 * (row["ci95"] or 0) for row in whole],
        **{**_look(0, "whole set"), "color": "black", "marker": "*", "linestyle": "none"},
    )
    sizes = sorted({row["ipc"] for row in rows})
    axes.set_xscale("log")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("images a class")
    axes.set_ylabel("test accuracy, %")
    axes.legend(frameon=False)
    return figure


def windows_plot(rows: Sequence[dict[str, Any]]) -> Figure:
    """Return norms and cosines by start of the window, and the norms of each kind of window."""
    figure, (norms, cosines, kinds) = panels(3, width=13)
    names = list(dict.fromkeys(row["of"] for row in rows))
    for k, name in enumerate(names):
        own = [row for row in rows if row["of"] == name]
        placed = [row for row in own if row["window"] == "by position"]
        _line(norms, placed, "norm", **_look(k, name))
        _line(cosines, placed, "cosine_of_students", **_look(k, f"{name}: other students"))
        if any(row["cosine_to_whole"] is not None for row in placed):
            look = {**_look(k, f"{name}: whole training"), "linestyle": "--", "mfc": "white"}
            _line(cosines, placed, "cosine_to_whole", **look)
    others = list(dict.fromkeys(row["window"] for row in rows if row["window"] != "by position"))
    for k, name in enumerate(names):
        shown = [row for row in rows if row["of"] == name and row["window"] in others]
        shift = 0.15 * (k - (len(names) - 1) / 2)
        places = [others.index(row["window"]) + shift for row in shown]
        look = {**_look(k, name), "linestyle": "none", "alpha": 0.7}
        kinds.plot(places, [row["norm"] for row in shown], **_without(look, "capsize"))
    kinds.set_xticks(range(len(others)), others)
    kinds.set_xlim(-0.6, len(others) - 0.4)
    for axes, title in ((norms, "norm by start"), (kinds, "norm by kind of window")):
        axes.set_yscale("log")
        axes.set_ylabel("norm of the meta-gradient")
        axes.set_title(title)
    cosines.set(
        title="cosine to the same window of others, to the whole",
        ylabel="cosine",
        ylim=(-0.25, 1.05),
    )
    cosines.axhline(0, color="gray", linewidth=0.5)
    for axes in (norms, cosines):
        axes.set_xlabel("plain steps before the window")
        axes.legend(frameon=False, fontsize="small")
    return figure


def panels(count: int, *, width: float) -> tuple[Figure, list[Any]]:
    """Return a figure of so many panels side by side, and their axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 4), layout="constrained")
    axes = [figure.add_subplot(1, count, k + 1) for k in range(count)]
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _look(k: int, label: str) -> dict[str, Any]:
    marker = MARKERS[k % len(MARKERS)]
    return {"color": COLOURS[k % len(COLOURS)], "marker": marker, "capsize": 3, "label": label}


def _without(look: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in look.items() if key != name}


def _line(axes: Any, rows: Sequence[dict[str, Any]], what: str, **look: Any) -> None:
    """Draw means with standard deviations by the start of the window."""
    known = [row for row in rows if row[what] is not None]
    starts = sorted({row["start"] for row in known})
    values = [[row[what] for row in known if row["start"] == start] for start in starts]
    spread = [statistics.stdev(own) if len(own) > 1 else 0.0 for own in values]
    axes.errorbar(starts, [statistics.fmean(own) for own in values], yerr=spread, **look)
