"""Time the gradients of several networks side by side against one network after another.

Five ConvNet-3 of their own weights and images: `alone` takes their gradients one by one as
potstill does; `vmap` all at once (torch.func.vmap of the gradient over stacked weights), in the
same parts of at most 32 images. Both in eager float32, and both compiled, in bfloat16 where the
machine has it. Before anything is timed, the gradients must agree in float64.

    python benchmarks/grouping.py --widths 32 --batch 10 256 --repeats 20
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial

import common
import plain
import rows
import torch
import torch.nn.functional as F
from checks import judged, spec_of
from common import CLASSES, SIDE
from rows import Row
from torch import Tensor
from torch.func import functional_call, grad, vmap

from potstill.core.compute import Compute
from potstill.functional import ce, kernels
from potstill.nets import FlatNet, build

NETWORKS, PART = 5, 32
VERSIONS = ("alone", "vmap")
Gradients = Callable[[Tensor, Tensor, Tensor], Tensor]


def alone(net: FlatNet, compute: Compute | None) -> Gradients:
    """Return what takes the gradients [E, P] of images [E, B, C, H, W] one network at a time."""

    def gradients(thetas: Tensor, x: Tensor, y: Tensor) -> Tensor:
        one = partial(kernels.gradient, net, loss_of=ce, compute=compute, batch=x.shape[1])
        return torch.stack([one(*each)[1] for each in zip(thetas, x, y, strict=True)])

    return gradients


def side_by_side(width: int, compute: Compute | None) -> Gradients:
    """Return what takes the same gradients of all networks at once."""
    net = plain.convnet(width, side=SIDE, classes=CLASSES)
    named = {name: w.shape for name, w in net.named_parameters()}

    def loss(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        parts = theta.split([shape.numel() for shape in named.values()])
        pairs = zip(named.items(), parts, strict=True)
        weights = {name: part.view(shape) for (name, shape), part in pairs}
        return F.cross_entropy(functional_call(net, weights, (x,)), y)

    each = vmap(grad(loss))
    if compute is not None:
        each = torch.compile(each, fullgraph=True, dynamic=False)
    low = compute is not None and compute.precision == "bfloat16"

    def gradients(thetas: Tensor, x: Tensor, y: Tensor) -> Tensor:
        size, found = min(PART, x.shape[1]), torch.zeros_like(thetas)
        for part, labels in zip(x.split(size, 1), y.split(size, 1), strict=True):
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                found += each(thetas, part.contiguous(), labels) * (part.shape[1] / x.shape[1])
        return found

    return gradients


def measure(asked: argparse.Namespace, width: int, batch: int, compute: Compute | None) -> Row:
    """Return what both versions took; the float64 check comes first."""
    chance, shape = torch.Generator().manual_seed(0), (NETWORKS, batch)
    fresh = [
        build(spec_of(width), channels=3, size=(SIDE, SIDE), classes=CLASSES, seed=k)
        for k in range(NETWORKS)
    ]
    nets = [FlatNet(module) for module in fresh]
    thetas = torch.stack([net.theta0 for net in nets])
    x = torch.randn(*shape, 3, SIDE, SIDE, generator=chance)
    y = torch.randint(CLASSES, shape, generator=chance)
    exact = [
        make(thetas.double(), x.double(), y)
        for make in (alone(nets[0], None), side_by_side(width, None))
    ]
    difference = judged(exact[1], exact[0], exact[0], "gradient of vmap")
    works = {"alone": alone(nets[0], compute), "vmap": side_by_side(width, compute)}
    for name in asked.versions:  # warm up
        works[name](thetas, x, y)
    seconds, _ = common.in_turns(
        asked.versions, asked.repeats, lambda name, _: works[name](thetas, x, y)
    )
    return {
        "benchmark": "grouping",
        "width": width,
        "batch": batch,
        "networks": NETWORKS,
        "images": NETWORKS * batch,
        "compute": compute.describe() if compute else "eager float32",
        "n": asked.repeats,
        "base": "alone",
        "cpu_seconds": seconds,
        "float64_difference": difference,
    }


def flags() -> argparse.ArgumentParser:
    """Return the parser of the flags."""
    parser = common.parser(__doc__, versions=VERSIONS, repeats=20, width=32)
    parser.add_argument("--batch", type=int, nargs="+", default=[10, 256])
    parser.add_argument("--eager-only", action="store_true", help="do not compile anything")
    return parser


def measured(asked: argparse.Namespace) -> Iterator[tuple[Row, list[str]]]:
    """Measure every configuration asked for; yield rows and their text."""
    compiled = common.first_order("compiled", asked.threads)
    for width in asked.widths:
        for batch in asked.batch:
            for compute in (None, compiled)[: 1 if asked.eager_only else 2]:
                row = measure(asked, width, batch, compute)
                title = f"width {width}, {NETWORKS} networks, b = {batch}, {row['compute']}"
                yield row, rows.lines(row, title)


def main(arguments: list[str] | None = None) -> list[Row]:
    """Measure every configuration asked for, print it and append it to --out."""
    return common.run(flags(), arguments, measured)


if __name__ == "__main__":
    common.command(main)
