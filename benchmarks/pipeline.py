"""Time a whole job, ours against a plain program: experts, distillation, evaluation of the set.

The setting is MTT on CIFAR-10 at 1 image a class with the counts of the scale `cpu` (3 experts of
8 epochs on 10,000 images, 300 outer steps of 15 student steps, 5 networks of 301 epochs, tested on
10,000 images), ConvNet-3 of width 32, CIFAR-10's mean and std. Plain: stock PyTorch in float32,
with autograd through the whole graph. Ours: `potstill.distill` and `potstill.evaluate` as a user
calls them, files and all; what is compiled and how is left to potstill (--compile auto). Every
program runs in a fresh process, its import and the decoding of the images not counted. One more
run of ours comes first, with nothing in the cache of compiled code; it is reported on its own.
Before anything is timed, training and unrolled gradients of both must agree in float64. Both are
scored by their own evaluation.

    python benchmarks/pipeline.py --data parquet:DIR --repeats 3
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import common
import plain
import rows
import torch
from checks import check_training, spec_of
from plain_dsa import drawn
from rows import Row
from unroll import check_equal

import potstill
from potstill.core.compute import Wish
from potstill.core.files import read_json
from potstill.core.store import Store
from potstill.data import DataSet, named_stats
from potstill.methods.mtt import MTT
from potstill.recipes import RECIPES, scaled
from potstill.run import Where

VERSIONS = ("plain", "potstill")
RECIPE, NORMALISER, NETWORKS = "mtt_cifar10_ipc1", "cifar10@mtt", 5
IMAGES = {"smoke": 200, "cpu": 10_000, "full": 50_000}


def method_of(scale: str) -> MTT:
    """Return the recipe's method with the counts of a scale."""
    return scaled(RECIPES.get(RECIPE).make("cifar10"), scale).method


def plain_program(data: DataSet, method: MTT, *, width: int, seed: int) -> Row:
    """Do the job by the plain program; return CPU seconds by part and test accuracies."""
    torch.manual_seed(seed)
    chance = torch.Generator().manual_seed(seed)
    side, classes = data.size[0], data.n_classes
    space, labels = named_stats(NORMALISER), data.train.labels

    def network() -> torch.nn.Module:
        return plain.convnet(width, side=side, classes=classes)

    def experts() -> list[list[list[torch.Tensor]]]:
        found = []
        for _ in range(method.experts.count):
            epochs = (drawn(len(images), side, chance) for _ in range(method.experts.epochs))
            lr = method.experts.lr
            found.append(plain.train(network(), images, labels, epochs, lr=lr, snapshots=True))
        return found

    def distilled() -> tuple[torch.Tensor, float]:
        rows_of = [(labels == k).nonzero().flatten() for k in range(classes)]
        picked = [int(r[torch.randint(len(r), (), generator=chance)]) for r in rows_of]
        return plain.distil(
            network(),
            trajectories,
            images[picked],
            torch.arange(classes),
            iterations=method.iterations,
            steps=method.steps,
            start_epochs=method.max_start_epoch,
            span=method.expert_epochs,
            lr=method.lr_init,
            lr_img=method.lr_img,
            lr_lr=method.lr_lr,
            momentum=method.momentum,
            chance=chance,
        )

    def evaluated() -> list[float]:
        test, found, nominal = space.forward(data.test.pixels[:]), [], method.evaluation_epochs
        for _ in range(NETWORKS):
            net = network()
            epochs = (drawn(classes, side, chance) for _ in range(nominal + 1))
            plain.train_to_evaluate(
                net, synthetic, torch.arange(classes), epochs, lr=beta, nominal=nominal
            )
            found.append(plain.accuracy(net, test, data.test.labels))
        return found

    first, images = common.timed(lambda: space.forward(data.train.pixels[:]))
    second, trajectories = common.timed(experts)
    distillation, (synthetic, beta) = common.timed(distilled)
    evaluation, accuracies = common.timed(evaluated)
    parts = {"experts": first + second, "distillation": distillation, "evaluation": evaluation}
    return {"cpu_seconds": parts, "accuracies": accuracies}


def our_program(
    data: DataSet, method: MTT, *, width: int, seed: int, threads: int, compiling: str
) -> Row:
    """Do the job by potstill; return CPU seconds by part and test accuracies."""
    wish = Wish(device="cpu", threads=threads, compile=compiling)  # pyrefly: ignore
    with tempfile.TemporaryDirectory() as folder:
        store, out = Path(folder) / "store", Path(folder) / "run"
        distillation, s = common.timed(
            lambda: potstill.distill(
                data,
                ipc=1,
                method=method,
                out=out,
                net=spec_of(width),
                normaliser=NORMALISER,
                seed=seed,
                wish=wish,
                where=Where(store=store),
            )
        )
        evaluation, result = common.timed(
            lambda: potstill.evaluate(
                s, data=data, seeds=NETWORKS, baselines=False, store=Store(store), wish=wish
            )
        )
        facts = [read_json(file)["cpu_seconds"] for file in store.glob("experts/*/expert.json")]
        plan = read_json(out / "config.json")["plan"]
    parts = {"experts": sum(facts), "distillation": distillation - sum(facts)}
    return {
        "cpu_seconds": {**parts, "evaluation": evaluation},
        "accuracies": list(result.rows[0].accuracies),
        "plan": plan,
    }


def in_fresh_process(asked: argparse.Namespace, what: Row) -> None:
    """Print the outcome of one program, as JSON."""
    data, method = opened(asked), method_of(asked.scale)
    width, seed = what["width"], what["seed"]
    if what["version"] == "plain":
        found = plain_program(data, method, width=width, seed=seed)
    else:
        found = our_program(
            data, method, width=width, seed=seed, threads=asked.threads, compiling=asked.compile
        )
    print(json.dumps({**found, "peak_bytes": common.peak_bytes()}))


def opened(asked: argparse.Namespace) -> DataSet:
    """Return the images; the first time they are decoded into the cache."""
    return common.images(asked.data, train=asked.train or IMAGES[asked.scale], test=asked.test)


def measure(asked: argparse.Namespace, width: int) -> Row:
    """Return what all programs took, in turns."""

    def program(version: str, seed: int) -> Row:
        what = {"version": version, "seed": seed, "width": width}
        return common.fresh(__file__, what, asked)

    data, ours = opened(asked), "potstill" in asked.versions
    cold = program("potstill", 0) if ours else None
    _, found = common.in_turns(asked.versions, asked.repeats, program)
    return {
        "benchmark": "pipeline",
        "data": asked.data or "noise",
        "scale": asked.scale,
        "width": width,
        "train_images": len(data.train),
        "n": asked.repeats,
        "cpu_seconds": {
            name: [sum(one["cpu_seconds"].values()) for one in each] for name, each in found.items()
        },
        "accuracies": {
            name: [statistics.mean(one["accuracies"]) for one in each]
            for name, each in (found.items() if asked.data else ())
        },
        "programs": found,
        "cold": cold,
    }


def show(row: Row) -> list[str]:
    """Return a row as a few lines of text."""
    notes = rows.accuracy_notes(row)
    for name, each in row["programs"].items():
        peak = max(one["peak_bytes"] for one in each) / 2**20
        notes[name] = ", ".join(filter(None, [notes.get(name), f"peak {peak:.0f} MiB"]))
    title = f"scale {row['scale']}, width {row['width']}, {row['train_images']} images"
    found = rows.lines(row, title, notes)
    for name, each in row["programs"].items():
        means = {part: statistics.mean(one["cpu_seconds"][part] for one in each) for part in PARTS}
        found.append(f"  {name:8s} {', '.join(f'{k} {v:.1f}' for k, v in means.items())} CPU s")
    if cold := row["cold"]:
        total = sum(cold["cpu_seconds"].values())
        found.append(f"  potstill with nothing compiled yet: {total:.1f} CPU s")
        found.append(f"  its plan: {json.dumps(cold['plan'])}")
    return found


PARTS = ("experts", "distillation", "evaluation")


def flags() -> argparse.ArgumentParser:
    """Return the parser of the flags."""
    parser = common.parser(__doc__, versions=VERSIONS, repeats=3, width=32)
    parser.add_argument("--data", help=common.DATA)
    parser.add_argument(
        "--scale", choices=tuple(IMAGES), default="cpu", help="counts of the recipe"
    )
    parser.add_argument("--train", type=int, help="training images in all; by the scale")
    parser.add_argument("--test", type=int, default=10_000, help="test images of the noise")
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="auto")
    return parser


def measured(asked: argparse.Namespace) -> Iterator[tuple[Row, list[str]]]:
    """Measure every configuration asked for; yield rows and their text."""
    for width in asked.widths:
        differences = (
            check_training(width=width),
            check_equal(width=width, batch=10, versions=("graph", "adjoint")),
        )
        print(f"width {width}: float64 agrees to {max(differences):.1e}")
        row = {**measure(asked, width), "float64_difference": max(differences)}
        yield row, show(row)


def main(arguments: list[str] | None = None) -> list[Row]:
    """Measure every width asked for, print it and append it to --out."""
    return common.run(flags(), arguments, measured, in_fresh_process)


if __name__ == "__main__":
    common.command(main)
