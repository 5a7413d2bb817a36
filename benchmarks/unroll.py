"""Time one outer step of unrolled training, ours against a plain implementation of the same step.

A step trains ConvNet-3 from theta by N steps of plain SGD on b images with DSA and differentiates
the distance to a target in images and step size, as trajectory matching does. The plain version is
stock PyTorch: autograd with create_graph through all N steps. Ours: `graph`, `adjoint`, and the
adjoint's steps `compiled`, all in float32. Before anything is timed, the gradients of all versions
must agree in float64. Peak memory is that of a fresh process for each version, above what a step
with N = 1 needs.

    python benchmarks/unroll.py --steps 10 50 --widths 128 --batch 10 --repeats 5 --out FILE.jsonl

ORIGINAL are the CPU seconds of the published code on one core of another machine.
"""

from __future__ import annotations

import argparse
import ctypes
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import common
import plain
import rows
import torch
from checks import judged, plain_net, spec_of, translated
from common import CLASSES, SIDE
from rows import Row
from torch import Tensor, nn

from potstill.augment import DSA
from potstill.functional import SGD, Batch, augmented, ce, training_loss, unroll
from potstill.nets import FlatNet, build

ORIGINAL = {(32, 10, 10): (0.29, 0.36), (128, 10, 10): (1.5, 1.9), (128, 10, 50): (6.5, 8.1)}
"""(width, batch, steps) -> CPU seconds of the published code, lowest and highest."""
VERSIONS = ("plain", "graph", "adjoint", "compiled")
Gradients = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What all versions share."""

    net: FlatNet
    plain: nn.Module
    theta: Tensor
    target: Tensor
    images: Tensor
    labels: Tensor
    lr: Tensor
    batches: list[Batch]
    augment: DSA

    def first(self) -> Problem:
        """Return the same with its first step alone."""
        return replace(self, batches=self.batches[:1])


def problem(
    *, width: int, batch: int, steps: int, dtype: torch.dtype = torch.float32, side: int = SIDE
) -> Problem:
    """Draw images, batches with augmentation, a start (fresh weights), a target near it."""
    chance = torch.Generator().manual_seed(0)
    net = FlatNet(build(spec_of(width), channels=3, size=(side, side), classes=CLASSES, seed=0))
    theta, shape, augment = net.theta0.to(dtype), (3, side, side), DSA()
    return Problem(
        net=net,
        plain=plain_net(width, theta, side=side, classes=CLASSES),
        theta=theta,
        target=theta + 0.01 * torch.randn(theta.shape, generator=chance).to(dtype),
        images=torch.randn(batch, *shape, generator=chance).to(dtype),
        labels=torch.arange(batch) % CLASSES,
        lr=torch.tensor(0.01, dtype=dtype),
        batches=[
            Batch(torch.randperm(batch, generator=chance), augment.sample(batch, shape, chance))
            for _ in range(steps)
        ],
        augment=augment,
    )


def plain_step(p: Problem) -> Gradients:
    """Return the gradients in images and step size, by autograd through the graph of all steps."""
    images, lr = p.images.clone().requires_grad_(), p.lr.clone().requires_grad_()
    batches = (translated(batch.index, batch.extra) for batch in p.batches)
    end = plain.unrolled(p.plain, p.theta, images, p.labels, lr, batches)
    by_images, by_lr = torch.autograd.grad(plain.distance(end, p.theta, p.target), (images, lr))
    return by_images, by_lr


def our_step(p: Problem, name: str) -> Gradients:
    """Return the same gradients by potstill."""
    images, lr = p.images.clone().requires_grad_(), p.lr.clone().requires_grad_()
    end = unroll(
        training_loss(p.net, ce),
        p.theta,
        (images, p.labels),
        lr,
        p.batches,
        optimizer=SGD(),
        prepare=augmented(p.augment),
        strategy="graph" if name == "graph" else "adjoint",
        compiled=name == "compiled",
    )
    by_images, by_lr = torch.autograd.grad(plain.distance(end, p.theta, p.target), (images, lr))
    return by_images, by_lr


def version(name: str) -> Callable[[Problem], Gradients]:
    """Return the version of that name."""
    return plain_step if name == "plain" else lambda p: our_step(p, name)


def check_equal(
    *, width: int, batch: int, side: int = SIDE, versions: Sequence[str] = VERSIONS
) -> float:
    """Return the largest relative difference of float64 gradients from the plain ones.

    Raises:
        SystemExit: if it is above 1e-9.
    """
    p = problem(width=width, batch=batch, steps=3, dtype=torch.float64, side=side)
    reference = plain_step(p)
    return max(
        judged(ours, other, other, f"gradient of {name}")
        for name in versions
        for ours, other in zip(version(name)(p), reference, strict=True)
    )


def in_fresh_process(_: argparse.Namespace, what: Row) -> None:
    """Print the peak of two outer steps above one with N = 1, or what the first step takes."""
    p = problem(width=what["width"], batch=what["batch"], steps=what["steps"])
    run = version(what["version"])
    first, second = (common.timed(lambda: run(p.first()))[0] for _ in range(2))
    if what["task"] == "compile":
        print(json.dumps([first, second]))
        return
    ctypes.CDLL(None).malloc_trim(0)  # what a compiler left must not hide what steps need
    Path("/proc/self/clear_refs").write_text("5")
    run(p.first())
    base = common.peak_bytes()
    run(p)
    run(p)
    print(common.peak_bytes() - base)


def measure(asked: argparse.Namespace, width: int, steps: int) -> Row:
    """Return one configuration's CPU seconds (all repeats, interleaved) and peak memory."""
    sizes, versions = {"width": width, "batch": asked.batch, "steps": steps}, asked.versions
    p = problem(**sizes)
    for name in versions:  # warm up
        version(name)(p.first())
    seconds, _ = common.in_turns(versions, asked.repeats, lambda name, _: version(name)(p))
    return {
        "benchmark": "unroll",
        **sizes,
        "n": asked.repeats,
        "cpu_seconds": seconds,
        "peak_extra_bytes": {
            name: common.fresh(__file__, {**sizes, "task": "peak", "version": name}, asked)
            for name in (() if asked.no_memory else versions)
        },
        "original_cpu_seconds": ORIGINAL.get((width, asked.batch, steps)),
    }


def show(row: Row) -> list[str]:
    """Return a row as a few lines of text."""
    peaks = row["peak_extra_bytes"]
    return [
        *rows.lines(
            row,
            f"width {row['width']}, b = {row['batch']}, N = {row['steps']}",
            {name: f"peak +{peak / 2**20:.0f} MiB" for name, peak in peaks.items()},
        ),
        *rows.beside_original(row, "CPU s a step", row["original_cpu_seconds"]),
    ]


def flags() -> argparse.ArgumentParser:
    """Return the parser of the flags."""
    parser = common.parser(__doc__, versions=VERSIONS, repeats=5)
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 50], help="N")
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory")
    return parser


def measured(asked: argparse.Namespace) -> Iterator[tuple[Row, list[str]]]:
    """Measure every configuration asked for; yield rows and their text."""
    for width in asked.widths:
        difference = check_equal(width=width, batch=asked.batch, versions=asked.versions)
        print(f"width {width}: float64 gradients equal the plain ones to {difference:.1e}")
        what = {"width": width, "batch": asked.batch, "steps": 1, "task": "compile"}
        compiling = common.compile_seconds(__file__, what, asked)
        for steps in asked.steps:
            row = measure(asked, width, steps)
            row |= {"float64_difference": difference, "compile_cpu_seconds": compiling}
            yield row, show(row)


def main(arguments: list[str] | None = None) -> list[Row]:
    """Measure every configuration asked for, print it and append it to --out."""
    return common.run(flags(), arguments, measured, in_fresh_process)


if __name__ == "__main__":
    common.command(main)
