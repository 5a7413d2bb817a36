"""Time the targets and experts of MKDT, ours against a plain implementation.

Targets: an encoder (ResNet-18 in solo-learn's form) gives features of images. Plain is the network
of torchvision on one image at a time, as the published code does it; `batched` the same in batches
of 64; ours is the task of a run with its files, in eager `float32` or `bfloat16`, or `compiled` in
bfloat16 where the machine has it. Experts: ConvNet-3 with an output for each of 512 dimensions
learns features (mean square error, SGD with momentum, batches of 256, not augmented), its
parameters kept after every epoch; plain is stock PyTorch on whole batches. Before anything is
timed, both must agree in float64. The published code trains 20 epochs of which 3 or 6 are read;
that ours stops there is not counted.

    python benchmarks/selfsup.py --repeats 3

ORIGINAL are CPU milliseconds an image of the published code on one core of another machine.
(A script named ssl would hide a module of Python.)
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory

import common
import rows
from recover_setting import compute_of
from rows import Row
from selfsup_setting import PLAN, Setting, check_experts, check_targets, setting, work

ORIGINAL = {"targets": (66.0, 96.0), "experts": (6.0, 7.0)}
"""CPU milliseconds an image, lowest and highest; an expert's is of a step of 64 images."""
VERSIONS = ("plain", "batched", "float32", "bfloat16", "compiled")


def versions(asked: argparse.Namespace, task: str) -> list[str]:
    """Return the versions asked that a task has."""
    return [name for name in asked.versions if task == "targets" or name != "batched"]


def of_flags(asked: argparse.Namespace, folder: str, task: str) -> Setting:
    """Return the setting of the flags asked."""
    count = asked.images if task == "targets" else asked.train
    return setting(Path(folder), count=count, width=asked.width, threads=asked.threads)


def in_fresh_process(asked: argparse.Namespace, what: Row) -> None:
    """Print twice what a task takes; it compiles the first time."""
    with TemporaryDirectory() as folder:
        some = partial(
            work(of_flags(asked, folder, what["task"]), what["task"]), what["version"], 0
        )
        print(json.dumps([common.timed(some)[0] for _ in range(2)]))


def measure(asked: argparse.Namespace, task: str) -> Row:
    """Return one task's CPU seconds, of all repeats, interleaved."""
    with TemporaryDirectory() as folder:
        s, names = of_flags(asked, folder, task), versions(asked, task)
        difference = (check_targets if task == "targets" else check_experts)(s)
        some = work(s, task)
        for name in names:  # warm up
            some(name, 0)
        seconds, _ = common.in_turns(names, asked.repeats, some)
    return {
        "benchmark": "selfsup",
        "task": task,
        "width": asked.width,
        "batch": PLAN.batch,
        "images": len(s.data.train),
        "n": asked.repeats,
        "compute": compute_of("compiled", threads=asked.threads).describe(),
        "cpu_seconds": seconds,
        "float64_difference": difference,
        "original_ms_an_image": ORIGINAL[task] if task == "targets" or asked.width == 128 else None,
    }


def show(row: Row) -> list[str]:
    """Return a row as a few lines of text."""
    what = "ResNet-18" if row["task"] == "targets" else f"width {row['width']}"
    seen, far = row["images"], row["float64_difference"]
    notes = {n: f"{seen / mean(own):.1f} a second" for n, own in row["cpu_seconds"].items()}
    return [
        *rows.lines(row, f"{row['task']}: {what}, {seen} images of 32 px", notes),
        f"  in float64 plain and ours differ by {far:.0e}; compiled: {row['compute']}",
        *rows.beside_original(row, "CPU ms an image", row["original_ms_an_image"]),
    ]


def flags() -> argparse.ArgumentParser:
    """Return the parser of the flags."""
    parser = common.parser(__doc__, versions=VERSIONS, repeats=5, width=None)
    parser.add_argument("--tasks", nargs="+", choices=tuple(ORIGINAL), default=list(ORIGINAL))
    parser.add_argument("--images", type=int, default=128, help="images to encode")
    parser.add_argument("--train", type=int, default=1280, help="images that an expert sees")
    parser.add_argument("--width", type=int, default=128, help="of experts (ConvNet-3)")
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
