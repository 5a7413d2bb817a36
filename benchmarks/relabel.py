"""Time labelling and the training on stored labels, ours against a plain implementation.

Labelling: a teacher (that of `recover.py`) gives logits of crops of images with CutMix, which are
kept as float16 in files; ours is the task of a run, an epoch at a time. Training: a new network of
the same kind learns them, by AdamW without T^2 in the loss; ours is `fit` with what the store
replays. Before anything is timed both must have the same logits of the same views, and a small
network must lead to the same weights in float64. `float32` and `bfloat16` are eager, `compiled` is
in bfloat16 where the machine has it.

    python benchmarks/relabel.py --repeats 3

ORIGINAL are CPU milliseconds an image of the published code on one core of another machine, which
reads its images from files.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory

import common
import rows
from recover_setting import compute_of
from relabel_setting import (
    Setting,
    check_labels,
    check_training,
    our_labels,
    our_training,
    plain_labels,
    plain_training,
    setting,
)
from rows import Row

ORIGINAL = {"labels": (1000 / 28, 1000 / 25), "training": (1000 / 7.3, 1000 / 5.5)}
"""CPU milliseconds an image of the published code at 64 px in batches of 10, lowest and highest."""
VERSIONS = ("plain", "float32", "bfloat16", "compiled")


def work(s: Setting, task: str) -> Callable[[str, int], object]:
    """Return what labels, or trains on labels, by a version."""
    if task == "training":
        kept = s.folder / "plain", s.folder / "ours"
        for folder in kept:
            folder.mkdir()
        files, own = plain_labels(s, kept[0], 0), our_labels(s, kept[1], "float32")

    def labelled(name: str, seed: int) -> object:
        with TemporaryDirectory() as folder:
            if name == "plain":
                return plain_labels(s, Path(folder), seed)
            return our_labels(s, Path(folder), name)

    def trained_on(name: str, _: int) -> object:
        return plain_training(s, files) if name == "plain" else our_training(s, own, name)

    return labelled if task == "labels" else trained_on


def of_flags(asked: argparse.Namespace, folder: str) -> Setting:
    """Return the setting of the flags asked."""
    return setting(
        Path(folder),
        side=asked.side,
        count=asked.count,
        batch=asked.batch,
        epochs=asked.epochs,
        threads=asked.threads,
    )


def in_fresh_process(asked: argparse.Namespace, what: Row) -> None:
    """Print twice what a task takes; it compiles the first time."""
    with TemporaryDirectory() as folder:
        some = partial(work(of_flags(asked, folder), what["task"]), what["version"], 0)
        print(json.dumps([common.timed(some)[0] for _ in range(2)]))


def measure(asked: argparse.Namespace, task: str) -> Row:
    """Return one task's CPU seconds, of all repeats, interleaved."""
    with TemporaryDirectory() as folder:
        s = of_flags(asked, folder)
        some = work(s, task)
        for name in asked.versions:  # warm up
            some(name, 0)
        difference = check_labels(s) if task == "labels" else check_training()
        seconds, _ = common.in_turns(asked.versions, asked.repeats, some)
    return {
        "benchmark": "relabel",
        "task": task,
        "side": asked.side,
        "batch": asked.batch,
        "epochs": asked.epochs,
        "images": asked.count * asked.epochs,
        "n": asked.repeats,
        "compute": compute_of("compiled", threads=asked.threads).describe(),
        "cpu_seconds": seconds,
        "difference": difference,
        "original_ms_an_image": ORIGINAL[task] if (asked.side, asked.batch) == (64, 10) else None,
    }


def show(row: Row) -> list[str]:
    """Return a row as a few lines of text."""
    title = f"{row['task']}: {row['images']} views of {row['side']} px in batches of {row['batch']}"
    seen = row["images"]
    notes = {n: f"{seen / mean(own):.1f} a second" for n, own in row["cpu_seconds"].items()}
    what = {"labels": "kept labels", "training": "float64 weights"}[row["task"]]
    return [
        *rows.lines(row, title, notes),
        f"  {what} equal the plain ones to {row['difference']:.0e}; compiled: {row['compute']}",
        *rows.beside_original(row, "CPU ms an image", row["original_ms_an_image"]),
    ]


def flags() -> argparse.ArgumentParser:
    """Return the parser of the flags."""
    parser = common.parser(__doc__, versions=VERSIONS, repeats=5, width=None)
    parser.add_argument("--tasks", nargs="+", choices=tuple(ORIGINAL), default=list(ORIGINAL))
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--count", type=int, default=20, help="images")
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=2)
    return parser


def measured(asked: argparse.Namespace) -> Iterator[tuple[Row, list[str]]]:
    """Measure every task asked for; yield rows and their text."""
    for task in asked.tasks:
        row = measure(asked, task)
        row["compile_cpu_seconds"] = common.compile_seconds(__file__, {"task": task}, asked)
        yield row, show(row)


def main(arguments: list[str] | None = None) -> list[Row]:
    """Measure every task asked for, print it and append it to --out."""
    return common.run(flags(), arguments, measured, in_fresh_process)


if __name__ == "__main__":
    common.command(main)
