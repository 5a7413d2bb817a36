"""Time the training of experts, ours against a plain implementation, and compare their accuracy.

An expert is ConvNet-3 trained by plain SGD (step size .01, batches of 256, DSA) with its parameters
kept after every epoch. Plain: stock PyTorch in float32, whole batches, images normalised in
advance and not counted. Ours: `train_expert` as it is called by a run, with its files, `eager` in
float32 or `compiled` in bfloat16 where the machine has it. Before anything is timed, some steps of
both must agree in float64. Repeat k trains one expert of each version from the same weights; with
real images all are measured on the test part in the same way (not counted).

    python benchmarks/experts.py --widths 128 --train 2000 --epochs 1 --repeats 5
    python benchmarks/experts.py --data parquet:DIR --train 5000 --epochs 10 --repeats 3

ORIGINAL are CPU milliseconds an image of the published code on one core of another machine.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import common
import plain
import rows
import torch
from checks import check_training, plain_net, spec_of
from common import FIRST_ORDER
from plain_dsa import drawn
from rows import Row
from torch import Tensor, nn

from potstill.data import DataSet, Space, make_space
from potstill.experts import ExpertPlan, ExpertSpec, train_expert
from potstill.experts.store import Trajectory
from potstill.nets import FlatNet, build, filled

ORIGINAL = {32: (0.88, 0.88), 128: (4.6, 5.0)}
"""width -> CPU milliseconds an image of the published code, lowest and highest."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all versions share."""

    data: DataSet
    space: Space
    width: int
    plan: ExpertPlan
    threads: int

    @property
    def sizes(self) -> tuple[int, int]:
        """Return side and classes."""
        return self.data.size[0], self.data.n_classes

    def start(self, seed: int) -> Tensor:
        """Return the weights that an expert of that seed starts from."""
        side, classes = self.sizes
        spec, key = spec_of(self.width), ("expert", 0)
        return FlatNet(
            build(spec, channels=3, size=(side, side), classes=classes, seed=seed, key=key)
        ).theta0


def plain_expert(s: Setting, images: Tensor, seed: int) -> Tensor:
    """Train an expert by the plain program and return its last weights [P]."""
    side, classes = s.sizes
    net = plain_net(s.width, s.start(seed), side=side, classes=classes)
    chance = torch.Generator().manual_seed(seed)
    epochs = (drawn(len(images), side, chance) for _ in range(s.plan.epochs))
    *_, last = plain.train(net, images, s.data.train.labels, epochs, lr=s.plan.lr, snapshots=True)
    return nn.utils.parameters_to_vector(last)


def our_expert(s: Setting, version: str, seed: int) -> Tensor:
    """Train an expert by potstill and return its last weights [P]."""
    spec = ExpertSpec(
        data=s.data.ref,
        space=s.space.record(),
        net=filled(spec_of(s.width)),
        train=s.plan.train,
        seed=seed,
        index=0,
        compute=common.first_order(version, s.threads),
    )
    with tempfile.TemporaryDirectory() as folder:
        train_expert(spec, {}, Path(folder))
        return Trajectory(Path(folder)).row(s.plan.epochs)


def tested(s: Setting, theta: Tensor) -> float:
    """Return the test accuracy of weights [P]."""
    side, classes = s.sizes
    net = plain_net(s.width, theta, side=side, classes=classes)
    return plain.accuracy(net, s.space.forward(s.data.test.pixels[:]), s.data.test.labels)


def setting(asked: argparse.Namespace, *, width: int, train: int, epochs: int) -> Setting:
    """Return the setting of the flags asked."""
    data = common.images(asked.data, train=train, test=common.CLASSES)
    return Setting(
        data=data,
        space=make_space("cifar10@mtt", data),
        width=width,
        plan=ExpertPlan(count=1, epochs=epochs, batch=asked.batch),
        threads=asked.threads,
    )


def work(s: Setting) -> Callable[[str, int], Tensor]:
    """Return what trains the expert of a version and a seed."""
    images = s.space.forward(s.data.train.pixels[:])

    def expert(version: str, seed: int) -> Tensor:
        if version == "plain":
            return plain_expert(s, images, seed)
        return our_expert(s, version, seed)

    return expert


def brief(asked: argparse.Namespace) -> int:
    """Return how many images make a short training that runs the same compiled code."""
    return min(asked.train, 2 * asked.batch)


def in_fresh_process(asked: argparse.Namespace, what: Row) -> None:
    """Print twice what a short training takes; it compiles the first time."""
    expert = work(setting(asked, width=what["width"], train=brief(asked), epochs=1))
    print(json.dumps([common.timed(lambda: expert(what["version"], 0))[0] for _ in range(2)]))


def measure(asked: argparse.Namespace, width: int) -> Row:
    """Return one width's CPU seconds (all repeats, interleaved) and accuracies."""
    short = work(setting(asked, width=width, train=brief(asked), epochs=1))
    for name in asked.versions:  # warm up
        short(name, 0)
    s = setting(asked, width=width, train=asked.train, epochs=asked.epochs)
    seconds, thetas = common.in_turns(asked.versions, asked.repeats, work(s))
    accuracies = {
        name: [tested(s, theta) for theta in found] if asked.data else []
        for name, found in thetas.items()
    }
    return {
        "benchmark": "experts",
        "data": asked.data or "noise",
        "width": width,
        "batch": asked.batch,
        "train_images": len(s.data.train),
        "epochs": asked.epochs,
        "images": len(s.data.train) * asked.epochs,
        "n": asked.repeats,
        "compute": common.first_order("compiled", asked.threads).describe(),
        "cpu_seconds": seconds,
        "accuracies": accuracies,
        "original_ms_an_image": ORIGINAL.get(width),
    }


def show(row: Row) -> list[str]:
    """Return a row as a few lines of text."""
    title = f"width {row['width']}, {row['train_images']} images, {row['epochs']} epochs"
    return [
        *rows.lines(row, title, rows.accuracy_notes(row)),
        f"  compiled: {row['compute']}",
        *rows.beside_original(row, "CPU ms an image", row["original_ms_an_image"]),
    ]


def flags() -> argparse.ArgumentParser:
    """Return the parser of the flags."""
    parser = common.parser(__doc__, versions=FIRST_ORDER, repeats=3)
    parser.add_argument("--data", help=common.DATA)
    parser.add_argument("--train", type=int, default=2000, help="training images in all")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch", type=int, default=256)
    return parser


def measured(asked: argparse.Namespace) -> Iterator[tuple[Row, list[str]]]:
    """Measure every configuration asked for; yield rows and their text."""
    for width in asked.widths:
        difference = check_training(width=width)
        print(f"width {width}: float64 training equals the plain one to {difference:.1e}")
        compiling = common.compile_seconds(__file__, {"width": width}, asked)
        row = measure(asked, width)
        row |= {"float64_difference": difference, "compile_cpu_seconds": compiling}
        yield row, show(row)


def main(arguments: list[str] | None = None) -> list[Row]:
    """Measure every width asked for, print it and append it to --out."""
    return common.run(flags(), arguments, measured, in_fresh_process)


if __name__ == "__main__":
    common.command(main)
