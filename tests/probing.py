"""A small data set, an encoder of it, its targets and a set made of them, for tests of probes."""

from pathlib import Path

import torch

from potstill.artefact import DistilledSet, Embedding, Encoded, Provenance
from potstill.core.compute import Compute
from potstill.core.store import Store
from potstill.data import DataSet, from_arrays, measure_stats
from potstill.engine import run_tasks
from potstill.evaluation import pretraining_tasks as tasks
from potstill.experts import read_targets
from potstill.functional import SGD, Segment, TrainSpec
from potstill.nets import NetSpec, build
from potstill.teachers.encoders import keep_encoder
from potstill.teachers.targets import TargetsSpec, target_tasks

NET = NetSpec(name="convnet1", width=4)
RECIPE = TrainSpec(
    lr=0.05, segments=(Segment(epochs=4),), batch=8, optimizer=SGD(), loss="mse", augment=None
)
COMPUTE = Compute(threads=1)


def images(count: int, classes: int, seed: int, side: int = 8):
    """Class templates with noise: uint8 [classes count, 1, side, side] and labels."""
    chance = torch.Generator().manual_seed(9)
    templates = torch.rand(classes, 1, side, side, generator=chance)
    labels = torch.arange(classes).repeat(count)
    chance = torch.Generator().manual_seed(seed)
    x = templates[labels] + 0.4 * torch.randn(len(labels), 1, side, side, generator=chance)
    return (x.clamp(0, 1) * 255).to(torch.uint8), labels


def data_set(name: str = "toy", *, classes: int = 3, count: int = 40, side: int = 8) -> DataSet:
    x, y = images(count, classes, len(name), side)
    test, labels = images(10, classes, 1 + len(name), side)
    given = {"test_images": test, "test_labels": labels, "validation": 0.2, "name": name}
    return from_arrays(x, y, **given)


def targets_of(data: DataSet, store: Store, folder: Path) -> TargetsSpec:
    """Return the targets of the training images by a random network, finished in the store."""
    shape = (data.channels, *data.size)
    net = NetSpec(name="convnet1", width=3)
    module = build(net, channels=shape[0], size=shape[1:], classes=2, seed=5)
    folder.mkdir(parents=True, exist_ok=True)
    space = measure_stats(data.train)
    encoder = keep_encoder(module, folder, net=net, space=space, shape=shape)
    found = target_tasks(data, encoder, folder, compute=COMPUTE, scale="standardised")
    run_tasks(found, store)
    return found.specs[0]


def set_of(data: DataSet, targets: TargetsSpec, store: Store, count: int = 12, **changes):
    """Return a set of the first training images and their targets."""
    values = read_targets(store.verify("targets", targets), data=data.ref)
    space, encoder = measure_stats(data.train), targets.encoder
    by = Encoded(digest=encoder.digest, net=encoder.net, space=encoder.space, scale=targets.scale)
    origin = Provenance(method='{"type": "Toy"}', data="toy", identity="x", seed=0, version="0")
    fields = {
        "images": space.forward(data.train.pixels[:count]),
        "targets": Embedding(values[:count], data.train.labels[:count], by),
        "space": space,
        "recipe": RECIPE,
        "net": NET,
        "classes": data.classes,
        "ref": data.ref,
        "origin": origin,
    }
    return DistilledSet(**(fields | changes))


def counted(monkeypatch, name: str):
    """Count the calls of a function of the tasks."""
    calls, real = [], getattr(tasks, name)
    monkeypatch.setattr(tasks, name, lambda *a, **k: (calls.append(a), real(*a, **k))[1])
    return calls
