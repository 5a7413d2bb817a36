"""The protocols `idc` and `idc-imagenet`: what they take from a set, and golden traces."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from potstill.artefact import DistilledSet, Hard, MultiFormation
from potstill.augment import DSA, IDC, RAT, CutMix, Views
from potstill.core.errors import InputError
from potstill.core.store import Store
from potstill.data import MeanStd, from_arrays, make_space, named_stats
from potstill.evaluation import PROTOCOLS, evaluate
from potstill.functional import SGD, Segment, TrainSpec, fit
from potstill.nets import FlatNet
from recorder import Recorder
from test_evaluate import RECIPE, toy_data, toy_set

PUBLISHED = IDC(strategy="color_crop_scale_rotate_flip")
RULES = TrainSpec(
    lr=0.01, batch=64, augment=PUBLISHED, mix=CutMix(prob=0.5),
    optimizer=SGD(momentum=0.9, weight_decay=5e-4),
    segments=(
        Segment(epochs=666, optimizer="carried"),
        Segment(epochs=167, lr_scale=0.2, optimizer="carried"),
        Segment(epochs=167, lr_scale=0.04, optimizer="carried"),
    ),
)  # fmt: skip


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)


def a_set(ipc: int, classes: int, decode: MultiFormation) -> DistilledSet:
    """Return a set of empty colour pictures, 9 px."""
    return replace(
        toy_set(toy_data()),
        images=torch.zeros(ipc * classes, 3, 9, 9),
        targets=Hard(torch.arange(classes).repeat_interleave(ipc)),
        space=named_stats("imagenet@dc"),
        classes=tuple(map(str, range(classes))),
        decode=decode,
        recipe=RECIPE,
    )


def trace(spec: TrainSpec, count: int) -> tuple[list[str], list[int]]:
    """Return resets and step sizes, and the images of each batch, of a training."""
    recorder, sizes = Recorder(".3g"), []
    net = FlatNet(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)))
    images, labels = torch.zeros(count, 1, 2, 2), torch.arange(count) % 2

    def watched(pixels):
        sizes.append(len(pixels))
        return pixels

    traced = replace(spec, optimizer=recorder, augment=None, mix=None)
    fit(net, net.theta0, images, labels, traced, seed=0, prepare=watched)
    return recorder.calls, sizes[-len(recorder.calls) + 1 :]


def as_published(epochs: int, count: int) -> tuple[list[str], list[int]]:
    """Return the loop as published: one optimizer, steps fall after the epochs 2/3 and 5/6."""
    calls, sizes, lr, step = ["reset"], [], 0.01, 0
    for epoch in range(epochs):
        for first in range(0, count, 64):
            calls.append(f"{lr:.3g} step {step}")
            sizes.append(min(64, count - first))
            step += 1
        if epoch + 1 in (2 * epochs // 3, 5 * epochs // 6):
            lr *= 0.2
    return calls, sizes


@pytest.mark.parametrize("count", [10, 70])
def test_golden_trace_of_idc(count):
    assert trace(PROTOCOLS.get("idc").train_spec(RECIPE), count) == as_published(1000, count)


@pytest.mark.parametrize(
    ("ipc", "decode", "few", "many"),
    [
        (1, MultiFormation(factor=1), 3000, 2000),
        (10, MultiFormation(factor=1), 2000, 1300),
        (10, MultiFormation(factor=2), 1500, 1000),
        (10, MultiFormation(factor=3), 1000, 600),
        (20, MultiFormation(factor=3), 1000, 600),
        (20, MultiFormation(factor=3, kind="bound"), 1000, 600),
        (50, MultiFormation(factor=3), 500, 300),
        (50, MultiFormation(factor=3, kind="bound"), 1000, 600),
        (60, MultiFormation(factor=3), 300, 200),
    ],
)
def test_epochs_of_idc_imagenet(ipc, decode, few, many):
    rules = PROTOCOLS.get("idc-imagenet")
    for classes, epochs in ((10, few), (100, many)):
        spec = rules.suited(a_set(ipc, classes, decode)).train_spec(RECIPE)
        assert spec.epochs == epochs
        first, second, third = (segment.epochs for segment in spec.segments)
        assert (first, first + second) == (2 * epochs // 3, 5 * epochs // 6)
        assert first + second + third == epochs


def test_golden_trace_of_idc_imagenet():
    rules = PROTOCOLS.get("idc-imagenet").suited(a_set(10, 10, MultiFormation(factor=3)))
    assert trace(rules.train_spec(RECIPE), 10) == as_published(1000, 10)


def test_what_idc_takes_from_a_recipe():
    rules = PROTOCOLS.get("idc")
    assert (rules.seeds, rules.ddof, rules.marks, rules.hard_only) == (5, 1, (), True)
    for other in (None, DSA(), RAT()):
        own = replace(RECIPE, lr=0.5, batch=4, balanced=2, augment=other, mix=CutMix(prob=1))
        assert rules.train_spec(own) == RULES
    digits = IDC(strategy="color_crop_scale_rotate")  # which no protocol should mirror
    for mix in (None, CutMix(prob=0.2)):
        own = replace(RECIPE, augment=digits, mix=mix)
        assert rules.train_spec(own) == replace(RULES, augment=digits, mix=mix)
        assert PROTOCOLS.get("strict").train_spec(own) == own
    for name in ("dc", "dsa", "mtt", "dc-bench", "ratbptt"):
        assert PROTOCOLS.get(name).train_spec(replace(RECIPE, mix=CutMix())).mix is None


def test_what_idc_imagenet_takes_from_a_set():
    rules, space = PROTOCOLS.get("idc-imagenet"), named_stats("imagenet@dc")
    own = replace(RECIPE, augment=PUBLISHED, mix=CutMix(prob=0.5))
    spec = rules.suited(a_set(10, 10, MultiFormation(factor=1))).train_spec(own)
    assert (spec.augment, spec.mix) == (
        Views(scale=(0.5, 1.0), mean=space.mean, std=space.std),
        CutMix(prob=1.0),
    )
    assert (spec.lr, spec.batch, spec.optimizer) == (RULES.lr, RULES.batch, RULES.optimizer)
    grey = toy_set(toy_data())
    with pytest.raises(InputError, match="mean and std have 3 numbers"):
        rules.suited(grey)
    with pytest.raises(InputError, match="'idc-imagenet' changes colours"):
        rules.suited(replace(grey, space=make_space("zca-kip", toy_data())))


def colours() -> tuple:
    """Return a data set of colour pictures and a set of mosaics beside it."""
    chance = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (60, 3, 8, 8), generator=chance).byte()
    labels = torch.arange(60) % 3
    data = from_arrays(x, labels, test_images=x[:15], test_labels=labels[:15], validation=0.2)
    space = MeanStd(mean=(0.5,) * 3, std=(0.25,) * 3)
    s = replace(
        toy_set(toy_data()),
        images=space.forward(x[:3]),
        targets=Hard(labels[:3]),
        space=space,
        classes=data.classes,
        ref=data.ref,
        decode=MultiFormation(factor=2),
    )
    return data, s


@pytest.mark.parametrize("name", ["idc", "idc-imagenet"])
def test_a_set_of_mosaics_is_evaluated_under_its_decoder(name, tmp_path, monkeypatch):
    data, s = colours()
    rules, short = PROTOCOLS.get(name), (Segment(epochs=2, optimizer="carried"),)
    if name == "idc":
        rules = replace(rules, segments=short)
    else:
        rules = replace(rules, epochs=((0, 9), (1, 2), (4, 7)))
    monkeypatch.setitem(PROTOCOLS._things, name, rules)
    result = evaluate(s, data=data, protocol=name, seeds=1, store=Store(tmp_path))
    assert {row.name.split(",")[0] for row in result.rows} == {
        "distilled", "random real", "k-means medoid", "random mosaics",
    }  # fmt: skip
    done = [json.loads(path.read_text()) for path in tmp_path.rglob("result.json")]
    assert [each["steps"] for each in done] == [2] * 4  # 12 images and 3 fit into one batch
