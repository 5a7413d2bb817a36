"""Time the evaluation of a set, ours against a plain implementation, and compare accuracies.

Repeat k trains ConvNet-3 number k on random real images, some a class, by the published recipe
(1,001 epochs of SGD with momentum .9 and decay 5e-4, DSA, a tenth of the step size after epoch
index 501) and measures it on the test part. Plain: stock PyTorch in float32, test batches of 256,
images normalised in advance and not counted. Ours: `evaluate_one` as `potstill.evaluate` calls it,
`eager` in float32 or `compiled` in bfloat16 where the machine has it. Before anything is timed,
some steps of both must agree in float64.

    python benchmarks/evaluate.py --data parquet:DIR --widths 128 --ipc 1 10 --repeats 5
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import common
import plain
import rows
import torch
from checks import check_training, plain_net, spec_of
from common import FIRST_ORDER
from plain_dsa import drawn
from rows import Row
from torch import Tensor

from potstill import __version__
from potstill.artefact import DistilledSet, Hard, set_digest
from potstill.artefact.types import Provenance
from potstill.core.files import read_json
from potstill.coresets import random_real
from potstill.data import DataSet, make_space
from potstill.evaluation import Distilled, EvalSpec, evaluate_one
from potstill.functional import TrainSpec, mtt_segments
from potstill.nets import FlatNet, build, filled


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all versions share; `epochs` is nominal, one more is made."""

    data: DataSet
    s: DistilledSet
    width: int
    epochs: int
    threads: int


def real_set(data: DataSet, *, ipc: int, width: int, epochs: int) -> DistilledSet:
    """Return random real images as a set with the published recipe."""
    counts = [ipc] * data.n_classes
    rows = torch.tensor(random_real(data.train, counts, seed=0))
    space = make_space("cifar10@mtt", data)
    return DistilledSet(
        images=space.forward(data.train.pixels[rows]),
        targets=Hard(data.train.labels[rows]),
        space=space,
        recipe=TrainSpec(lr=0.01, segments=mtt_segments(epochs)),
        net=filled(spec_of(width)),
        classes=data.classes,
        ref=data.ref,
        origin=Provenance(
            method="{}", data=data.source, identity=data.ref.identity, seed=0, version=__version__
        ),
    )


def plain_network(x: Setting, test: Tensor, seed: int) -> float:
    """Train and test a network by the plain program."""
    data, side = x.data, x.data.size[0]
    fresh = build(
        x.s.net,
        channels=3,
        size=data.size,
        classes=data.n_classes,
        seed=seed,
        key=("evaluate",),
    )
    net = plain_net(x.width, FlatNet(fresh).theta0, side=side, classes=data.n_classes)
    chance = torch.Generator().manual_seed(seed)
    plain.train_to_evaluate(
        net,
        x.s.images,
        x.s.targets.classes,
        (drawn(len(x.s), side, chance) for _ in range(x.epochs + 1)),
        lr=x.s.recipe.lr,
        nominal=x.epochs,
    )
    return plain.accuracy(net, test, data.test.labels)


def our_network(x: Setting, version: str, seed: int, folder: Path) -> float:
    """Train and test a network by potstill; `folder` holds the set."""
    own = Distilled(digest=set_digest(x.s))
    spec = EvalSpec(
        what=own,
        net=x.s.net,
        train=x.s.recipe,
        seed=seed,
        data=x.data.ref,
        space=x.s.space.record(),
        compute=common.first_order(version, x.threads),
    )
    with tempfile.TemporaryDirectory() as out:
        evaluate_one(spec, {own.digest: str(folder)}, Path(out))
        return read_json(Path(out) / "result.json")["test"]


def setting(asked: argparse.Namespace, *, width: int, ipc: int) -> Setting:
    """Return the setting of the flags asked."""
    train = common.CLASSES * (ipc + 1)
    data = common.images(asked.data, train=train, test=asked.test)
    return Setting(
        data=data,
        s=real_set(data, ipc=ipc, width=width, epochs=asked.epochs),
        width=width,
        epochs=asked.epochs,
        threads=asked.threads,
    )


def work(x: Setting, folder: Path) -> Callable[[str, int], float]:
    """Return what trains and tests the network of a version and a seed; fills the folder."""
    test = x.s.space.forward(x.data.test.pixels[:])
    x.s.save(folder)

    def network(version: str, seed: int) -> float:
        if version == "plain":
            return plain_network(x, test, seed)
        return our_network(x, version, seed, folder)

    return network


def short(x: Setting) -> Setting:
    """Return the setting with one or two epochs."""
    return replace(
        x, epochs=1, s=replace(x.s, recipe=replace(x.s.recipe, segments=mtt_segments(1)))
    )


def in_fresh_process(asked: argparse.Namespace, what: Row) -> None:
    """Print twice what a short training and its test take; it compiles the first time."""
    with tempfile.TemporaryDirectory() as folder:
        x = short(setting(asked, width=what["width"], ipc=what["ipc"]))
        network = work(x, Path(folder) / "set")
        took = [common.timed(lambda: network(what["version"], 0))[0] for _ in range(2)]
    print(json.dumps(took))


def measure(asked: argparse.Namespace, width: int, ipc: int) -> Row:
    """Return one configuration's CPU seconds (all networks, interleaved) and accuracies."""
    x = setting(asked, width=width, ipc=ipc)
    with tempfile.TemporaryDirectory() as folder:
        warm = work(short(x), Path(folder) / "short")
        for name in asked.versions:
            warm(name, 0)
        network = work(x, Path(folder) / "set")
        seconds, accuracies = common.in_turns(asked.versions, asked.repeats, network)
    return {
        "benchmark": "evaluate",
        "data": asked.data or "noise",
        "width": width,
        "set_images": len(x.s),
        "epochs": x.s.recipe.epochs,
        "test_images": len(x.data.test),
        "n": asked.repeats,
        "compute": common.first_order("compiled", asked.threads).describe(),
        "cpu_seconds": seconds,
        "accuracies": accuracies if asked.data else {},
    }


def show(row: Row) -> list[str]:
    """Return a row as a few lines of text."""
    title = f"width {row['width']}, a set of {row['set_images']}, {row['epochs']} epochs, tested on"
    return [
        *rows.lines(row, f"{title} {row['test_images']}", rows.accuracy_notes(row)),
        f"  compiled: {row['compute']}",
    ]


def flags() -> argparse.ArgumentParser:
    """Return the parser of the flags."""
    parser = common.parser(__doc__, versions=FIRST_ORDER, repeats=5)
    parser.add_argument("--data", help=common.DATA)
    parser.add_argument("--ipc", type=int, nargs="+", default=[1, 10], help="images a class")
    parser.add_argument("--epochs", type=int, default=1000, help="one more is made")
    parser.add_argument("--test", type=int, default=10_000, help="test images of the noise")
    return parser


def measured(asked: argparse.Namespace) -> Iterator[tuple[Row, list[str]]]:
    """Measure every configuration asked for; yield rows and their text."""
    for width in asked.widths:
        difference = check_training(width=width)
        print(f"width {width}: float64 training equals the plain one to {difference:.1e}")
        for ipc in asked.ipc:
            what = {"width": width, "ipc": ipc}
            compiling = common.compile_seconds(__file__, what, asked)
            row = measure(asked, width, ipc)
            row |= {"float64_difference": difference, "compile_cpu_seconds": compiling}
            yield row, show(row)


def main(arguments: list[str] | None = None) -> list[Row]:
    """Measure every configuration asked for, print it and append it to --out."""
    return common.run(flags(), arguments, measured, in_fresh_process)


if __name__ == "__main__":
    common.command(main)
