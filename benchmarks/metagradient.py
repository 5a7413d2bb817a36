"""Time one outer step of RaT-BPTT, ours against a plain implementation of the same step.

A step trains ConvNet-3 from theta by plain Adam on the distilled images (10 classes, all in every
batch), then by M differentiated steps, and differentiates the loss on real images in the distilled
ones; both are mirrored or rotated. The plain version is stock PyTorch: one graph of all M steps.
Ours: `graph`, `adjoint`, the adjoint's steps `compiled`, all in float32, and, if asked for,
`bfloat16`, the compiled adjoint with the network in bfloat16. Before anything is timed, the
gradients of all but the last must agree in float64. Peak memory is that of a fresh process for each
version; that of the adjoint is shown for each M of --flat too.

    python benchmarks/metagradient.py --sizes 1:5:10 1:20:40 10:5:10 --repeats 5 --out FILE.jsonl

A size is images a class, M and T. ORIGINAL are CPU seconds and GB of the published code on one core
of another machine.
"""

from __future__ import annotations

import argparse
import ctypes
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import common
import plain_meta
import rows
import torch
from checks import judged, plain_net, spec_of
from common import CLASSES, SIDE
from plain_dsa import Batch as PlainBatch
from rows import Row
from torch import Tensor, nn

from potstill.augment import RAT, Params
from potstill.core.compute import Compute
from potstill.functional import Adam, Batch, augmented, ce, training_loss
from potstill.methods.student import Student, meta_gradient
from potstill.nets import FlatNet, flat

ORIGINAL = {
    (1, 5, 10): ((1.9, 2.3), (1.2, 1.4)),
    (1, 20, 40): ((4.1, 4.4), (1.8, 2.2)),
    (10, 5, 10): ((10.9, 11.8), (2.5, 2.8)),
}
"""(images a class, M, T) -> CPU seconds and peak GB of the published code at width 128 and 256 real
images, lowest and highest. Its T decides where windows lie; here they begin after --start steps."""
VERSIONS = ("plain", "graph", "adjoint", "compiled")
LR = 1e-3


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What all versions share: `start` batches come before the window."""

    net: FlatNet
    plain: nn.Module
    theta: Tensor
    images: Tensor
    labels: Tensor
    batches: list[Batch]
    start: int
    real: tuple[Tensor, Tensor, Params]

    def short(self) -> Problem:
        """Return the same with one step before the window, at most, and one in it."""
        start = min(1, self.start)
        return replace(self, start=start, batches=self.batches[: start + 1])


def problem(
    *,
    width: int,
    ipc: int,
    window: int,
    start: int,
    real: int,
    dtype: torch.dtype = torch.float32,
    side: int = SIDE,
) -> Problem:
    """Draw images, batches with augmentation, a fresh student."""
    chance, shape, augment = torch.Generator().manual_seed(0), (3, side, side), RAT()
    net = flat(spec_of(width), channels=3, size=(side, side), classes=CLASSES, seed=0)
    net.train()
    theta, count = net.theta0.to(dtype), ipc * CLASSES
    return Problem(
        net=net,
        plain=plain_net(width, theta, side=side, classes=CLASSES),
        theta=theta,
        images=torch.randn(count, *shape, generator=chance).to(dtype),
        labels=torch.arange(count) % CLASSES,
        batches=[
            Batch(torch.randperm(count, generator=chance), augment.sample(count, shape, chance))
            for _ in range(start + window)
        ],
        start=start,
        real=(
            torch.randn(real, *shape, generator=chance).to(dtype),
            torch.arange(real) % CLASSES,
            augment.sample(real, shape, chance),
        ),
    )


def plain_step(p: Problem) -> Tensor:
    """Return the gradient in the images, by autograd through the graph of the window."""

    def translated(index: Tensor, params: Params) -> PlainBatch:
        flip, angle = params.values.unbind(1)
        (op,) = params.ops
        return PlainBatch(index, op, {"flip": flip, "angle": angle})

    (x, y, params), batches = p.real, [translated(b.index, b.extra) for b in p.batches]
    real = x, y, translated(torch.arange(len(y)), params)
    return plain_meta.meta_gradient(
        p.plain, p.theta, p.images, p.labels, batches, real, start=p.start, lr=LR
    )


def our_step(p: Problem, name: str) -> Tensor:
    """Return the same gradient by potstill."""
    precision = "bfloat16" if name == "bfloat16" else "float32"
    compiled = name in ("compiled", "bfloat16")
    loss = training_loss(p.net, ce, precision=precision)
    student = Student(
        net=p.net,
        loss=loss,
        plain=loss,
        before=Adam(),
        inside=Adam(eps_mode="higher021"),
        prepare=augmented(RAT()),
        strategy="graph" if name == "graph" else "adjoint",
        compute=Compute(threads=torch.get_num_threads(), precision=precision, compiled=compiled),
        part=len(p.real[0]),
    )
    x, y, params = p.real
    found = meta_gradient(
        student,
        p.theta,
        [p.images],
        [p.labels],
        torch.tensor(LR, dtype=p.theta.dtype),
        p.batches,
        (RAT().apply(x, params), y),
        start=p.start,
        scales=[1.0],
    )
    return found.images[0]


def version(name: str) -> Callable[[Problem], Tensor]:
    """Return the version of that name."""
    return plain_step if name == "plain" else lambda p: our_step(p, name)


def check_equal(
    *, width: int, ipc: int, start: int, side: int = SIDE, versions: Sequence[str] = VERSIONS
) -> float:
    """Return the largest relative difference of float64 gradients from the plain ones.

    Raises:
        SystemExit: if it is above 1e-9.
    """
    sizes = {"width": width, "ipc": ipc, "window": 3, "start": start, "real": 40}
    p = problem(**sizes, dtype=torch.float64, side=side)
    reference = plain_step(p)
    return max(
        judged(version(name)(p), reference, reference, f"gradient of {name}")
        for name in versions
        if name != "bfloat16"
    )


def in_fresh_process(_: argparse.Namespace, what: Row) -> None:
    """Print the peak bytes of two outer steps, or what the first and a second step take."""
    p, run = problem(**what["sizes"]), version(what["version"])
    first, second = (common.timed(lambda: run(p.short()))[0] for _ in range(2))
    if what["task"] == "compile":
        print(json.dumps([first, second]))
        return
    ctypes.CDLL(None).malloc_trim(0)  # what a compiler left must not hide what steps need
    Path("/proc/self/clear_refs").write_text("5")
    run(p)
    run(p)
    print(common.peak_bytes())


def measure(asked: argparse.Namespace, sizes: dict[str, int], total: int) -> Row:
    """Return one configuration's CPU seconds (all repeats, interleaved), memory, exactness."""
    p, versions = problem(**sizes), asked.versions
    for name in versions:  # warm up
        version(name)(p.short())
    seconds, gradients = common.in_turns(versions, asked.repeats, lambda name, _: version(name)(p))
    exact = plain_step(problem(**sizes, dtype=torch.float64))

    def peak(name: str, window: int) -> int:
        what = {"task": "peak", "version": name, "sizes": {**sizes, "window": window}}
        return common.fresh(__file__, what, asked)

    published = (sizes["ipc"], sizes["window"], total) if sizes["width"] == 128 else ()
    seconds_of, memory_of = ORIGINAL.get(published, (None, None))
    flat_in = [] if asked.no_memory or "adjoint" not in versions else asked.flat
    return {
        "benchmark": "metagradient",
        **sizes,
        "total": total,
        "n": asked.repeats,
        "cpu_seconds": seconds,
        "cosine_to_float64": {
            name: float(torch.cosine_similarity(own[0].double().flatten(), exact.flatten(), dim=0))
            for name, own in gradients.items()
        },
        "peak_bytes": {
            name: peak(name, sizes["window"]) for name in (() if asked.no_memory else versions)
        },
        "adjoint_peak_bytes": {window: peak("adjoint", window) for window in flat_in},
        "tape_bytes": 4 * p.theta.nbytes,
        "original_cpu_seconds": seconds_of,
        "original_gb": memory_of,
    }


def show(row: Row) -> list[str]:
    """Return a row as a few lines of text."""
    peaks, flat_in = row["peak_bytes"], row["adjoint_peak_bytes"]
    notes = {
        name: f"cosine {cosine:.5f} to float64"
        + (f", peak {peaks[name] / 1e9:.2f} GB" if name in peaks else "")
        for name, cosine in row["cosine_to_float64"].items()
    }
    title = "width {width}, IPC {ipc}, M = {window}, T = {total}, {real} real images"
    found = rows.lines(row, title.format(**row), notes)
    if flat_in:
        listed = ", ".join(f"{peak / 1e9:.2f} GB at M = {m}" for m, peak in flat_in.items())
        found.append(
            f"  adjoint needs at most {listed}; {row['tape_bytes'] / 1e6:.1f} MB a step of it are "
            "weights, gradient and moments"
        )
    found += rows.beside_original(row, "CPU s a step", row["original_cpu_seconds"])
    if row["original_gb"]:
        low, high = row["original_gb"]
        found.append(f"  the published code held {low} to {high} GB")
    return found


def size_of(text: str) -> tuple[int, int, int]:
    """Read a size IPC:M:T."""
    ipc, window, total = map(int, text.split(":"))
    if not (ipc >= 1 and 1 <= window <= total):
        raise ValueError(text)
    return ipc, window, total


def flags() -> argparse.ArgumentParser:
    """Return the parser of the flags."""
    parser = common.parser(__doc__, versions=(*VERSIONS, "bfloat16"), repeats=5)
    parser.set_defaults(versions=list(VERSIONS))
    sizes: dict[str, Any] = {"type": size_of, "nargs": "+", "default": list(ORIGINAL)}
    parser.add_argument("--sizes", **sizes, help="IPC:M:T")
    parser.add_argument("--start", type=int, default=2, help="steps before the window")
    parser.add_argument("--real", type=int, default=256, help="real images")
    parser.add_argument("--flat", type=int, nargs="*", default=[5, 40], help="M of the adjoint")
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory")
    return parser


def measured(asked: argparse.Namespace) -> Iterator[tuple[Row, list[str]]]:
    """Measure every configuration asked for; yield rows and their text."""
    for width in asked.widths:
        for ipc, window, total in asked.sizes:
            if asked.start > total - window:
                flags().error(f"--start must be at most {total - window} here")
            sizes = {"width": width, "ipc": ipc, "start": asked.start}
            difference = check_equal(**sizes, versions=asked.versions)
            print(f"width {width}, IPC {ipc}: float64 gradients equal to {difference:.1e}")
            sizes |= {"window": window, "real": asked.real}
            what = {"sizes": sizes, "task": "compile"}
            row = measure(asked, sizes, total)
            row["float64_difference"] = difference
            row["compile_cpu_seconds"] = common.compile_seconds(__file__, what, asked)
            yield row, show(row)


def main(arguments: list[str] | None = None) -> list[Row]:
    """Measure every configuration asked for, print it and append it to --out."""
    return common.run(flags(), arguments, measured, in_fresh_process)


if __name__ == "__main__":
    common.command(main)
