"""Time one outer step of unrolled training, ours against a plain implementation of the same step.

A step trains ConvNet-3 from theta by N steps of plain SGD on b images with DSA and differentiates
the distance to a target in images and step size, as trajectory matching does. The plain version
(`plain_step`) is stock PyTorch: modules called on split views of the flat vector, autograd with
create_graph through all N steps. Before anything is timed, the gradients of all versions must agree
in float64. Versions take turns in one process; times are CPU seconds of one thread. Peak memory is
that of a fresh process for each version, above what it has after a step with N = 1.

    python benchmarks/unroll.py --steps 10 50 --width 128 --batch 10 --repeats 5 --out FILE.jsonl

ORIGINAL are the CPU seconds of the published code on one core of another machine.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from potstill.augment import DSA
from potstill.functional import SGD, Batch, unroll
from potstill.functional.losses import ce
from potstill.nets import FlatNet, NetSpec, build

ORIGINAL = {(128, 10, 10): (1.5, 1.9), (128, 10, 50): (6.5, 8.1)}
"""(width, batch, steps) -> CPU seconds of the published code, lowest and highest."""
VERSIONS = ("plain", "graph", "adjoint")
TOLERANCE = 1e-9
SIDE, CLASSES = 32, 10


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


def problem(
    *, width: int, batch: int, steps: int, dtype: torch.dtype = torch.float32, side: int = SIDE
) -> Problem:
    """Draw images, batches with augmentation, a start (fresh weights), a target near it."""
    chance = torch.Generator().manual_seed(0)
    spec, augment = NetSpec(name="convnet3", width=width), DSA()
    net = FlatNet(build(spec, channels=3, size=(side, side), classes=CLASSES, seed=0))
    theta = net.theta0.to(dtype)
    shape = (3, side, side)
    return Problem(
        net=net,
        plain=plain_net(width, side),
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


def plain_net(width: int, side: int) -> nn.Module:
    """Return ConvNet-3 of stock modules, its parameters in the order of potstill's."""
    layers: list[nn.Module] = []
    for channels in (3, width, width):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.GroupNorm(width, width)]
        layers += [nn.ReLU(), nn.AvgPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * (side // 8) ** 2, CLASSES))


def plain_step(p: Problem) -> tuple[Tensor, Tensor]:
    """Return the gradients in images and step size, by autograd through the graph of all steps."""
    named = dict(p.plain.named_parameters())
    images, lr = p.images.clone().requires_grad_(), p.lr.clone().requires_grad_()
    theta = p.theta.clone().requires_grad_()
    for batch in p.batches:
        parts = theta.split([w.numel() for w in named.values()])
        weights = {
            name: part.view(w.shape) for (name, w), part in zip(named.items(), parts, strict=True)
        }
        x = p.augment.apply(images[batch.index], batch.extra)
        loss = F.cross_entropy(functional_call(p.plain, weights, (x,)), p.labels[batch.index])
        (grad,) = torch.autograd.grad(loss, theta, create_graph=True)
        theta = theta - lr * grad
    distance = (theta - p.target).square().sum() / (p.theta - p.target).square().sum()
    by_images, by_lr = torch.autograd.grad(distance, (images, lr))
    return by_images, by_lr


def our_step(p: Problem, strategy: str) -> tuple[Tensor, Tensor]:
    """Return the same gradients by potstill."""
    images, lr = p.images.clone().requires_grad_(), p.lr.clone().requires_grad_()
    end = unroll(
        lambda theta, rows, extra: ce(p.net(theta, p.augment.apply(rows[0], extra)), rows[1]),
        p.theta,
        (images, p.labels),
        lr,
        p.batches,
        optimizer=SGD(),
        strategy=strategy,  # pyrefly: ignore[bad-argument-type]
    )
    distance = (end - p.target).square().sum() / (p.theta - p.target).square().sum()
    by_images, by_lr = torch.autograd.grad(distance, (images, lr))
    return by_images, by_lr


def version(name: str) -> Callable[[Problem], tuple[Tensor, Tensor]]:
    """Return the version of that name."""
    return plain_step if name == "plain" else lambda p: our_step(p, name)


def check_equal(*, width: int, batch: int, side: int = SIDE) -> float:
    """Return the largest relative difference of float64 gradients from the plain ones.

    Raises:
        SystemExit: if it is above 1e-9.
    """
    p = problem(width=width, batch=batch, steps=3, dtype=torch.float64, side=side)
    reference, worst = plain_step(p), 0.0
    for name in VERSIONS[1:]:
        for ours, plain in zip(version(name)(p), reference, strict=True):
            worst = max(worst, float((ours - plain).norm() / plain.norm()))
    if not worst < TOLERANCE:
        raise SystemExit(f"The gradients differ from the plain ones by {worst:.1e} in float64.")
    return worst


def peak_bytes(name: str, *, width: int, batch: int, steps: int) -> int:
    """Return the peak memory of two outer steps above that of one with N = 1, in a new process."""
    sizes = [str(size) for size in (width, batch, steps)]
    command = [sys.executable, __file__, "--peak-of", name, *sizes]
    out = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(out.stdout)


def _peak_here(name: str, width: int, batch: int, steps: int) -> int:
    run, base = version(name), 0
    for count in (1, steps, steps):
        run(problem(width=width, batch=batch, steps=count))
        base = base or _high_water()
    return _high_water() - base


def _high_water() -> int:
    """Return the peak resident bytes; getrusage would give those of the parent process."""
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x)
    return int(line.split()[1]) * 1024


def measure(*, width: int, batch: int, steps: int, repeats: int, memory: bool) -> dict[str, object]:
    """Return one configuration's CPU seconds (all repeats, interleaved) and peak memory."""
    p = problem(width=width, batch=batch, steps=steps)
    seconds: dict[str, list[float]] = {name: [] for name in VERSIONS}
    for name in VERSIONS:  # warm up
        version(name)(problem(width=width, batch=batch, steps=1))
    for _ in range(repeats):
        for name in VERSIONS:
            start = time.process_time()
            version(name)(p)
            seconds[name].append(time.process_time() - start)
    peaks = {
        name: peak_bytes(name, width=width, batch=batch, steps=steps) if memory else None
        for name in VERSIONS
    }
    return {
        "benchmark": "unroll",
        "width": width,
        "batch": batch,
        "steps": steps,
        "n": repeats,
        "cpu_seconds": seconds,
        "peak_extra_bytes": peaks,
        "original_cpu_seconds": ORIGINAL.get((width, batch, steps)),
    }


def ratios(row: dict[str, object]) -> dict[str, tuple[float, float]]:
    """Return mean and standard deviation of the ratios to plain, one ratio a repeat."""
    seconds: dict[str, list[float]] = row["cpu_seconds"]  # pyrefly: ignore[bad-assignment]
    found = {}
    for name in VERSIONS[1:]:
        pairs = zip(seconds[name], seconds["plain"], strict=True)
        each = [ours / plain for ours, plain in pairs]
        spread = statistics.stdev(each) if len(each) > 1 else math.nan
        found[name] = (statistics.mean(each), spread)
    return found


def show(row: dict[str, object]) -> str:
    """Return a row as a few lines of text."""
    seconds: dict[str, list[float]] = row["cpu_seconds"]  # pyrefly: ignore[bad-assignment]
    peaks: dict[str, int | None] = row["peak_extra_bytes"]  # pyrefly: ignore[bad-assignment]
    lines = [f"width {row['width']}, b = {row['batch']}, N = {row['steps']}, n = {row['n']}:"]
    for name in VERSIONS:
        mean, peak = statistics.mean(seconds[name]), peaks[name]
        line = f"  {name:8s} {mean:7.3f} CPU s"
        if peak is not None:
            line += f", peak +{peak / 2**20:.0f} MiB"
        if name != "plain":
            ratio, spread = ratios(row)[name]
            line += f", {ratio:.3f} +- {spread:.3f} of plain ({1 / ratio:.2f}x its speed)"
        lines.append(line)
    if original := row["original_cpu_seconds"]:
        low, high = original  # pyrefly: ignore[not-iterable]
        lines.append(f"  the published code, on another machine: {low}-{high} CPU s")
    return "\n".join(lines)


def machine() -> dict[str, object]:
    """Return what the numbers were taken on."""
    here = Path(__file__).parent
    git = ["git", "-C", str(here), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    model = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "commit": commit,
        "torch": torch.__version__,
        "machine": f"{platform.machine()} {model[0] if model else ''}".strip(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "threads": torch.get_num_threads(),
    }


def main(arguments: list[str] | None = None) -> list[dict[str, object]]:
    """Measure every configuration asked for, print it and append it to --out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 50], help="N")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory")
    parser.add_argument("--out", type=Path, help="JSONL file that gets one line a configuration")
    parser.add_argument("--peak-of", nargs=4, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if asked.peak_of:
        name, *sizes = asked.peak_of
        print(_peak_here(name, *(int(size) for size in sizes)))
        return []
    difference = check_equal(width=asked.width, batch=asked.batch)
    print(f"float64 gradients equal the plain ones to {difference:.1e}")
    rows = []
    for steps in asked.steps:
        row = measure(
            width=asked.width,
            batch=asked.batch,
            steps=steps,
            repeats=asked.repeats,
            memory=not asked.no_memory,
        )
        rows.append({**row, "float64_difference": difference, **machine()})
        print(show(row))
        if asked.out:
            with asked.out.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    return rows


if __name__ == "__main__":
    main()
