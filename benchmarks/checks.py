"""Whether the plain programs do what ours does, in float64; a benchmark without that is none."""

from __future__ import annotations

import plain
import torch
from plain_dsa import Batch
from torch import Tensor, nn

from potstill.augment import DSA, Params
from potstill.augment.operations import COLUMNS
from potstill.core.keys import generator
from potstill.functional import SGD, Segment, TrainSpec, fit
from potstill.nets import FlatNet, NetSpec, build

TOLERANCE = 1e-9
KEY = ("check",)


def translated(index: Tensor, params: Params | None) -> Batch:
    """Return a step of the plain programs with the choices of ours; None: no augmentation."""
    if params is None:
        return Batch(index, "", {})
    (op,) = params.ops
    return Batch(index, op, dict(zip(COLUMNS, params.values.unbind(1), strict=True)))


def spec_of(width: int) -> NetSpec:
    """Return the network of all benchmarks."""
    return NetSpec(name="convnet3", width=width)


def plain_net(width: int, theta: Tensor, *, side: int, classes: int) -> nn.Sequential:
    """Return the plain network with the parameters theta [P] of ours, in their type."""
    net = plain.convnet(width, side=side, classes=classes).to(theta.dtype)
    nn.utils.vector_to_parameters(theta.clone(), net.parameters())
    return net


def judged(ours: Tensor, plain: Tensor, scale: Tensor, what: str) -> float:
    """Return |ours - plain| / |scale|.

    Raises:
        SystemExit: if it is above 1e-9.
    """
    difference = float((ours - plain).norm() / scale.norm())
    if not difference < TOLERANCE:
        raise SystemExit(f"The {what} differs from the plain one by {difference:.1e} in float64.")
    return difference


def check_training(*, width: int, side: int = 32, classes: int = 10) -> float:
    """Return how far 6 steps of ours lead from where the plain ones lead, in parts of their way.

    Momentum, decay, a smaller last batch, DSA and the drop of the step size take part.
    """
    spec = TrainSpec(
        lr=0.05,
        segments=(Segment(epochs=2), Segment(epochs=1, lr_scale=0.1)),
        batch=40,
        optimizer=SGD(momentum=0.9, weight_decay=5e-4),
    )
    chance, count, shape = torch.Generator().manual_seed(0), 60, (3, side, side)
    images = torch.randn(count, *shape, generator=chance, dtype=torch.float64)
    labels, policy = torch.arange(count) % classes, DSA()
    fresh = build(spec_of(width), channels=3, size=(side, side), classes=classes, seed=0)
    ours = FlatNet(fresh)
    start = ours.theta0.double()
    theirs = plain_net(width, start, side=side, classes=classes)

    def batches(epoch: int) -> list[Batch]:
        same = generator(0, *KEY, "epoch", epoch)
        parts = torch.randperm(count, generator=same).split(spec.batch)
        return [translated(part, policy.sample(len(part), shape, same)) for part in parts]

    plain.train(
        theirs,
        images,
        labels,
        map(batches, range(spec.epochs)),
        lr=spec.lr,
        momentum=0.9,
        decay=5e-4,
        drop_after=1,
    )
    end = fit(ours, start, images, labels, spec, seed=0, key=KEY)
    other = nn.utils.parameters_to_vector(theirs.parameters()).detach()
    return judged(end, other, other - start, "training")
