"""Time one outer step of unrolled training, ours against a plain implementation of the same step.

A step trains ConvNet-3 from theta by N steps of plain SGD on b images with DSA and differentiates
the distance to a target in images and step size, as trajectory matching does. The plain version is
stock PyTorch: autograd with create_graph through all N steps. Ours: `graph`, `adjoint`, and the
adjoint's steps `compiled`, all in float32. Before anything is timed, the gradients of all versions
must agree in float64. Peak memory is that of a fresh process for each version, above what a step
with N = 1 needs. With `--features D` students learn D numbers of each image, which are learned too,
by their mean square error and without augmentation, as in MKDT.

    python benchmarks/unroll.py --steps 10 50 --widths 128 --batch 10 --repeats 5 --out FILE.jsonl
    python benchmarks/unroll.py --steps 5 10 --widths 128 --batch 16 --features 512 --out FILE.jsonl

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
import torch.nn.functional as F
from checks import judged, plain_net, spec_of, translated
from common import CLASSES, SIDE
from rows import Row
from torch import Tensor, nn

from potstill.augment import DSA
from potstill.functional import SGD, Batch, augmented, ce, mse, training_loss, unroll
from potstill.nets import FlatNet, build

ORIGINAL = {
    (32, 10, 10, 0): (0.29, 0.36),
    (128, 10, 10, 0): (1.5, 1.9),
    (128, 10, 50, 0): (6.5, 8.1),
    (128, 16, 5, 512): (1.41, 1.67),
    (128, 16, 10, 512): (3.59, 3.59),
}
"""(width, batch, steps, features) -> CPU seconds of the published code, lowest and highest."""
VERSIONS = ("plain", "graph", "adjoint", "compiled")
Gradients = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What all versions share."""

    net: FlatNet
    plain: nn.Module
    theta: Tensor
    target: Tensor
    images: Tensor
    labels: Tensor
    """Classes [b], or features [b, D], which are learned."""
    lr: Tensor
    batches: list[Batch]
    augment: DSA | None

    def first(self) -> Problem:
        """Return the same with its first step alone."""
        return replace(self, batches=self.batches[:1])

    def leaves(self) -> list[Tensor]:
        """Return copies of what is learned: images, step size, and features."""
        learned = (self.images, self.lr, *([] if self.augment else [self.labels]))
        return [each.clone().requires_grad_() for each in learned]


def problem(
    *,
    width: int,
    batch: int,
    steps: int,
    features: int = 0,
    dtype: torch.dtype = torch.float32,
    side: int = SIDE,
) -> Problem:
    """Draw images, batches with augmentation, a start (fresh weights), a target near it."""
    chance, outputs = torch.Generator().manual_seed(0), features or CLASSES
    net = FlatNet(build(spec_of(width), channels=3, size=(side, side), classes=outputs, seed=0))
    theta, shape, augment = net.theta0.to(dtype), (3, side, side), None if features else DSA()

    def step() -> Batch:
        index = torch.randperm(batch, generator=chance)
        return Batch(index, augment and augment.sample(batch, shape, chance))

    return Problem(
        net=net,
        plain=plain_net(width, theta, side=side, classes=outputs),
        theta=theta,
        target=theta + 0.01 * torch.randn(theta.shape, generator=chance).to(dtype),
        images=torch.randn(batch, *shape, generator=chance).to(dtype),
        labels=torch.randn(batch, features, generator=chance).to(dtype)
        if features
        else torch.arange(batch) % CLASSES,
        lr=torch.tensor(0.01, dtype=dtype),
        batches=[step() for _ in range(steps)],
        augment=augment,
    )


def plain_step(p: Problem) -> Gradients:
    """Return the gradients of what is learned, by autograd through the graph of all steps."""
    leaves = p.leaves()
    images, lr, labels = (*leaves, p.labels)[:3]
    batches = (translated(batch.index, batch.extra) for batch in p.batches)
    loss = F.cross_entropy if p.augment else F.mse_loss
    end = plain.unrolled(p.plain, p.theta, images, labels, lr, batches, loss=loss)
    return torch.autograd.grad(plain.distance(end, p.theta, p.target), leaves)


def our_step(p: Problem, name: str) -> Gradients:
    """Return the same gradients by potstill."""
    leaves = p.leaves()
    images, lr, labels = (*leaves, p.labels)[:3]
    end = unroll(
        training_loss(p.net, ce if p.augment else mse),
        p.theta,
        (images, labels),
        lr,
        p.batches,
        optimizer=SGD(),
        prepare=augmented(p.augment),
        strategy="graph" if name == "graph" else "adjoint",
        compiled=name == "compiled",
    )
    return torch.autograd.grad(plain.distance(end, p.theta, p.target), leaves)


def version(name: str) -> Callable[[Problem], Gradients]:
    """Return the version of that name."""
    return plain_step if name == "plain" else lambda p: our_step(p, name)


def check_equal(
    *,
    width: int,
    batch: int,
    features: int = 0,
    side: int = SIDE,
    versions: Sequence[str] = VERSIONS,
) -> float:
    """Return the largest relative difference of float64 gradients from the plain ones.

    Raises:
        SystemExit: if it is above 1e-9.
    """
    sizes = {"width": width, "batch": batch, "features": features, "side": side}
    p = problem(**sizes, steps=3, dtype=torch.float64)
    reference = plain_step(p)
    return max(
        judged(ours, other, other, f"gradient of {name}")
        for name in versions
        for ours, other in zip(version(name)(p), reference, strict=True)
    )


def in_fresh_process(_: argparse.Namespace, what: Row) -> None:
    """Print the peak of two outer steps above one with N = 1, or what the first step takes."""
    p = problem(**{name: what[name] for name in ("width", "batch", "steps", "features")})
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
    sizes = {"width": width, "batch": asked.batch, "steps": steps, "features": asked.features}
    versions = asked.versions
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
        "original_cpu_seconds": ORIGINAL.get((width, asked.batch, steps, asked.features)),
    }


def show(row: Row) -> list[str]:
    """Return a row as a few lines of text."""
    peaks = row["peak_extra_bytes"]
    what = f", {row['features']} features" if row.get("features") else ""
    return [
        *rows.lines(
            row,
            f"width {row['width']}, b = {row['batch']}, N = {row['steps']}{what}",
            {name: f"peak +{peak / 2**20:.0f} MiB" for name, peak in peaks.items()},
        ),
        *rows.beside_original(row, "CPU s a step", row["original_cpu_seconds"]),
    ]


def flags() -> argparse.ArgumentParser:
    """Return the parser of the flags."""
    parser = common.parser(__doc__, versions=VERSIONS, repeats=5)
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 50], help="N")
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--features", type=int, default=0, help="D; 0: classes")
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory")
    return parser


def measured(asked: argparse.Namespace) -> Iterator[tuple[Row, list[str]]]:
    """Measure every configuration asked for; yield rows and their text."""
    for width in asked.widths:
        sizes = {"width": width, "batch": asked.batch, "features": asked.features}
        difference = check_equal(**sizes, versions=asked.versions)
        print(f"width {width}: float64 gradients equal the plain ones to {difference:.1e}")
        what = {**sizes, "steps": 1, "task": "compile"}
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
