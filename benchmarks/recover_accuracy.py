"""Whether sets recovered in bfloat16 train networks as well as those recovered in float32.

One teacher (a small ResNet with batch norm, trained in float32) and repeats: number k recovers a
set by CDA in both, from the same noise with the same crops, and trains one network on each, whose
labels come from the teacher online. Everything but the recovery is in float32.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import common
import rows
import torch
from rows import Row
from torch import Tensor, nn

from potstill.augment import Crops, CutMix
from potstill.core.compute import Compute
from potstill.data import DataSet, MeanStd, measure_stats
from potstill.functional import Adam, Softened, TrainSpec, accuracy, fit
from potstill.functional.cosine import cosine_segments
from potstill.nets import FlatNet, NetSpec, build
from potstill.nets.taps import Tapped
from potstill.recover import CDA_TINY, recovered, units_of
from potstill.recover.codec import levels, stored
from potstill.teachers import Squeeze

NET = NetSpec(name="resnet10-bn", width=16)
SIZES = {"train": 10_000, "squeeze": 8, "ipc": 10, "iterations": 200, "epochs": 100, "test": 2_000}
"""Real images of the teacher, its epochs, images a class, steps, epochs of a network, test."""


def fresh(data: DataSet, seed: int) -> FlatNet:
    """Return a new network."""
    return FlatNet(
        build(NET, channels=3, size=data.size, classes=data.n_classes, seed=seed, key=("sets",))
    )


def squeezed(data: DataSet, space: MeanStd, epochs: int) -> tuple[nn.Module, float]:
    """Train the teacher; return it and its accuracy on the test images."""
    net = fresh(data, 0)
    spec = Squeeze(epochs=epochs, warmup=1, batch=128).spec
    real, test = data.train, data.test
    theta = fit(net, net.theta0, real.pixels, real.labels, spec, seed=0, prepare=space.forward)
    right = accuracy(net, theta, test.pixels, test.labels, prepare=space.forward)
    return net.load(theta).eval().requires_grad_(False), right


def recovered_set(
    teacher: Tapped, data: DataSet, space: MeanStd, sizes: Row, seed: int, compute: Compute
) -> tuple[Tensor, Tensor]:
    """Return recovered images, uint8, and their classes."""
    settings = replace(CDA_TINY, iterations=sizes["iterations"])
    chance, images, labels = torch.Generator().manual_seed(seed), [], []
    for unit in units_of(data.n_classes, sizes["ipc"]):
        x = torch.randn(len(unit), 3, *data.size, generator=chance)
        found = recovered([teacher], x, [unit], settings, space, seed=seed, compute=compute)
        images.append(stored(levels(found.images, space), "exact"))
        labels.append(unit.labels())
    return torch.cat(images), torch.cat(labels)


def taught(
    teacher: nn.Module, data: DataSet, space: MeanStd, s: tuple[Tensor, Tensor], epochs: int, k: int
) -> float:
    """Return the test accuracy of network k after training on a set with the teacher's labels."""
    spec = TrainSpec(
        lr=0.001,
        segments=cosine_segments(epochs),
        batch=50,
        optimizer=Adam(weight_decay=0.01, decoupled=True, decays="weights"),
        augment=Crops(),
        mix=CutMix(prob=1.0),
        lesson=Softened(squared=False),
    )
    net, prepare = fresh(data, k), space.forward
    theta = fit(net, net.theta0, *s, spec, seed=k, prepare=prepare, teach=teacher)
    return accuracy(net, theta, data.test.pixels, data.test.labels, prepare=prepare)


def compare_sets(
    source: str | None, *, repeats: int, threads: int, sizes: dict[str, Any] = SIZES
) -> Row:
    """Return the accuracies of networks trained on sets of both precisions, one pair a repeat."""
    data = common.images(source, train=sizes["train"], test=sizes["test"])
    data = replace(data, test=data.test.take(torch.arange(min(sizes["test"], len(data.test)))))
    space = measure_stats(data.train)
    module, right = squeezed(data, space, sizes["squeeze"])
    teacher, accuracies = Tapped(module), {}
    for precision in ("float32", "bfloat16"):
        compute = Compute(threads=threads, precision=precision)
        accuracies[precision] = [
            taught(
                module,
                data,
                space,
                recovered_set(teacher, data, space, sizes, k, compute),
                sizes["epochs"],
                k,
            )
            for k in range(repeats)
        ]
    return {
        "benchmark": "recover",
        "data": source or "noise",
        **sizes,
        "n": repeats,
        "base": "float32",
        "teacher_accuracy": right,
        "accuracies": accuracies,
    }


def show_sets(row: Row) -> list[str]:
    """Return such a row as a few lines of text."""
    sizes = f"{row['ipc']} images a class, {row['iterations']} steps"
    found = f"{sizes}, networks taught {row['epochs']} epochs, n = {row['n']}:"
    told = [f"  {name:9s}{note}" for name, note in rows.accuracy_notes(row).items()]
    return [found, *told, f"  the teacher: {100 * row['teacher_accuracy']:.2f} % right"]
