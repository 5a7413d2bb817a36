"""Time a step of recovery, ours against a plain implementation, and compare recovered sets.

A step changes a batch of images so that a teacher classifies their crops and finds the statistics
of its batch norms in them. The teacher is ResNet-18 (stem of stride 1) of 200 classes at 64 pixels,
from 65 pixels on the one of ImageNet with 1,000 classes, after some steps of training on noise.
Before anything is timed, both must have the same losses in float32, from the same first images and
choices. `float32` and `bfloat16` are eager, `compiled` is in bfloat16 where the machine has it, and
`grouped` the same for two units side by side; all seconds are of a step of one batch.

    python benchmarks/recover.py --repeats 5
    python benchmarks/recover.py --device cuda --batch 100 --sides 64 224 --steps 20
    python benchmarks/recover.py --accuracy parquet:DIR --repeats 3

ORIGINAL are CPU seconds of a step of the published code on one core of another machine. On a GPU
seconds are those of a clock.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from functools import partial

import common
import rows
import torch
from recover_accuracy import compare_sets, show_sets
from recover_setting import (
    Problem,
    check_equal,
    compute_of,
    our_steps,
    plain_steps,
    problem,
)
from rows import Row

ORIGINAL = {(64, 10): (1.06, 1.34)}
"""(side, batch) -> CPU seconds of a step of the published code, lowest and highest."""
VERSIONS = ("plain", "float32", "bfloat16", "compiled", "grouped")


def work(p: Problem, steps: int) -> Callable[[str, int], object]:
    """Return what takes the steps of a version."""

    def some(name: str, seed: int) -> object:
        found = plain_steps(p, steps, seed) if name == "plain" else our_steps(p, name, steps, seed)
        if p.device == "cuda":
            torch.cuda.synchronize()
        return found

    return some


def in_fresh_process(asked: argparse.Namespace, what: Row) -> None:
    """Print twice what a step takes; it compiles the first time."""
    p = problem(side=what["side"], batch=asked.batch, device=asked.device, threads=asked.threads)
    once = partial(work(p, 1), what["version"], 0)
    print(json.dumps([common.timed(once)[0] for _ in range(2)]))


def measure(asked: argparse.Namespace, side: int) -> Row:
    """Return the seconds of a step, of all repeats, interleaved."""
    p = problem(side=side, batch=asked.batch, device=asked.device, threads=asked.threads)
    losses = check_equal(p, asked.versions)  # and a warm-up
    some, clock = work(p, asked.steps), common.CLOCKS[asked.device]
    seconds, _ = common.in_turns(asked.versions, asked.repeats, some, clock)
    each = {name: asked.steps * (2 if name == "grouped" else 1) for name in asked.versions}
    return {
        "benchmark": "recover",
        "device": torch.cuda.get_device_name() if asked.device == "cuda" else "cpu",
        "side": side,
        "batch": asked.batch,
        "steps": asked.steps,
        "images": asked.batch,
        "n": asked.repeats,
        "compute": compute_of("compiled", device=asked.device, threads=asked.threads).describe(),
        rows.KINDS[asked.device]: {n: [s / each[n] for s in own] for n, own in seconds.items()},
        "loss_differences": losses,
        "original_cpu_seconds": ORIGINAL.get((side, asked.batch)),
    }


def show(row: Row) -> list[str]:
    """Return a row as a few lines of text."""
    if "accuracies" in row:
        return show_sets(row)
    far = row["loss_differences"]
    notes = {name: f"losses within {far[name]:.0e}" for name in VERSIONS if name in far}
    found = rows.lines(row, f"{row['side']} px, batch {row['batch']}, {row['steps']} steps", notes)
    found.append(f"  compiled, grouped: {row['compute']}")
    if row["device"] != "cpu":
        return [*found, f"  {row['device']}"]
    return [*found, *_beside_original(row)]


def _beside_original(row: Row) -> list[str]:
    only = {key: value for key, value in row.items() if key != "images"}
    return rows.beside_original(only, "CPU s a step", row["original_cpu_seconds"])


def flags() -> argparse.ArgumentParser:
    """Return the parser of the flags."""
    parser = common.parser(__doc__, versions=VERSIONS, repeats=5, width=None)
    parser.add_argument("--sides", type=int, nargs="+", default=[64], help="of the images")
    parser.add_argument("--batch", type=int, default=10, help="images of a unit")
    parser.add_argument("--steps", type=int, default=3, help="that are timed together")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--accuracy", help=f"compare sets of bfloat16 and float32; {common.DATA}")
    return parser


def measured(asked: argparse.Namespace) -> Iterator[tuple[Row, list[str]]]:
    """Measure every configuration asked for; yield rows and their text."""
    if asked.accuracy:
        row = compare_sets(asked.accuracy, repeats=asked.repeats, threads=asked.threads)
        yield row, show(row)
        return
    for side in asked.sides:
        compiling = common.compile_seconds(__file__, {"side": side}, asked)
        row = measure(asked, side) | {"compile_cpu_seconds": compiling}
        yield row, show(row)


def main(arguments: list[str] | None = None) -> list[Row]:
    """Measure every side asked for, print it and append it to --out."""
    return common.run(flags(), arguments, measured, in_fresh_process)


if __name__ == "__main__":
    common.command(main)
