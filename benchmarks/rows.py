"""Rows of results: ratios to the plain version, text for people, lines of JSON."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from potstill.core.compute import fast_bfloat16

Row = dict[str, Any]
KINDS = {"cpu": "cpu_seconds", "cuda": "clock_seconds"}
"""Where a row has the seconds of work on a device."""


def seconds_of(row: Row) -> tuple[dict[str, list[float]], str]:
    """Return the seconds of each version, and what they are called."""
    if "cpu_seconds" in row:
        return row["cpu_seconds"], "CPU s"
    return row["clock_seconds"], "s"


def ratios(row: Row) -> dict[str, tuple[float, float]]:
    """Return mean and standard deviation of the ratios to the base (plain), one ratio a repeat."""
    seconds, _ = seconds_of(row)
    base = row.get("base", "plain")
    return {
        name: spread([ours / other for ours, other in zip(own, seconds[base], strict=True)])
        for name, own in seconds.items()
        if name != base and base in seconds
    }


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation (ddof 1; nan for one value)."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def lines(row: Row, title: str, notes: Mapping[str, str] | None = None) -> list[str]:
    """Return a row as text: each version with its seconds, ratio and note, the compiler's time."""
    found, count, known = [f"{title}, n = {row['n']}:"], row.get("images"), ratios(row)
    all_of, unit = seconds_of(row)
    base, wide = row.get("base", "plain"), max(8, *map(len, all_of))
    for name, seconds in all_of.items():
        mean = statistics.mean(seconds)
        line = f"  {name:{wide}s} {mean:8.3f} {unit}"
        if count:
            line += f", {1000 * mean / count:.3f} ms an image"
        if name in known:
            ratio, deviation = known[name]
            spread = "" if math.isnan(deviation) else f" +- {deviation:.3f}"
            line += f", {ratio:.3f}{spread} of {base} ({1 / ratio:.2f}x its speed)"
        found.append(line + (f", {notes[name]}" if notes and notes.get(name) else ""))
    if took := row.get("compile_cpu_seconds"):
        found.append(
            f"  compiling takes {took['cold']:.1f} CPU s more, {took['warm']:.1f} with a warm cache"
        )
    return found


def accuracy_notes(row: Row) -> dict[str, str]:
    """Return the test accuracies of each version in percent, and how far they are from base's."""
    found, base = {}, row.get("base", "plain")
    all_of = {name: own for name, own in row["accuracies"].items() if own}
    for name, own in all_of.items():
        mean, deviation = spread([100 * value for value in own])
        found[name] = f"{mean:.2f} +- {deviation:.2f} % right"
        if name != base and base in all_of:
            pairs = zip(own, all_of[base], strict=True)
            mean, deviation = spread([100 * (ours - other) for ours, other in pairs])
            found[name] += f" ({mean:+.2f} +- {deviation:.2f})"
    return found


def beside_original(row: Row, unit: str, figure: Sequence[float] | None) -> list[str]:
    """Return a line that sets the plain version beside the published code's lowest and highest.

    Both count CPU seconds; a row with `images` is counted in milliseconds an image.
    """
    if "plain" not in row["cpu_seconds"]:
        return []
    if figure is None:
        return ["  the published code was not timed at this size"]
    scale = 1000 / row["images"] if "images" in row else 1.0
    seconds, (low, high) = scale * statistics.mean(row["cpu_seconds"]["plain"]), figure
    near = 0.8 * low <= seconds <= 1.2 * high
    return [
        f"  plain takes {seconds:.3g} {unit}, the published code {low:g} to {high:g} on another "
        f"machine: {'within 20 %' if near else 'NOT within 20 %, so it counts for little'}"
    ]


def machine() -> Row:
    """Return what the numbers were taken on."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    model = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "commit": subprocess.run(git, capture_output=True, text=True).stdout.strip(),
        "torch": torch.__version__,
        "machine": f"{platform.machine()} {model[0] if model else ''}".strip(),
        "bfloat16": fast_bfloat16("cpu"),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "threads": torch.get_num_threads(),
    }


def keep(row: Row, text: Sequence[str], out: Path | None) -> Row:
    """Print a row, append it to the file, and return it with the machine."""
    whole = {**row, **machine()}
    print("\n".join(text), flush=True)
    if out:
        with out.open("a") as file:
            file.write(json.dumps(whole) + "\n")
    return whole
