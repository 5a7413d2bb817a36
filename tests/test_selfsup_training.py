"""Encoders that train themselves: published settings, the task, views of normalised images."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from potstill.augment import DSA, SSL, Chain
from potstill.core import keys
from potstill.core.compute import Compute
from potstill.core.errors import InputError, WorkError
from potstill.core.spec import from_json, to_json
from potstill.core.store import Store
from potstill.data import MeanStd, Zca, from_arrays, make_space, measure_stats
from potstill.engine import run_tasks
from potstill.functional import SGD, Adam, Segment
from potstill.functional.neighbours import knn_accuracy
from potstill.functional.restoring import restoring
from potstill.functional.selfsup import BarlowTwins, SimCLR, pair_loss_of, text_of_loss
from potstill.nets import HEADS, NetSpec, filled, projected
from potstill.teachers import (
    MIXBT_CIFAR,
    MIXBT_TINY,
    SAS_CIFAR,
    SAS_TINY,
    SOLOLEARN_CIFAR,
    TRAININGS,
    EncoderPlan,
    SelfSupervised,
    encoder_facts,
    encoder_phase,
    open_encoder,
    read_encoder,
)

CPU = Compute(threads=1)
NET = NetSpec(name="convnet2", width=4, norm="batch")
VIEW = SSL(scale=(0.5, 1.0), solarise_prob=0.3)
TRAIN = SelfSupervised(loss=BarlowTwins(lam=0.01), head="toy", epochs=2, batch=16, optimizer="sgd",
                       lr=0.001, warmup=0, augment=VIEW, second=SSL())  # fmt: skip


def colours(channels=3, count=96):
    """Return data whose classes are colours in noise."""
    labels = torch.arange(count) % 3
    x = 40 + 30 * torch.randn(count, channels, 8, 8, generator=keys.generator(0, "test"))
    x[torch.arange(count), labels % channels] += 120
    return from_arrays(x.clamp(0, 255).byte(), labels, validation=0.2)


def phase(data, training=TRAIN, **options):
    plan = EncoderPlan(training=training, **options)
    return encoder_phase(plan, data, NET, seed=3, compute=CPU)


@pytest.mark.parametrize(
    ("training", "told"),
    [
        (MIXBT_CIFAR, "bt 0.0078125 0.03125 adam 0.01 1e-06 256 2000 10 mixbt"),
        (MIXBT_TINY, "bt 0.0009765625 0.00390625 adam 0.01 1e-06 256 2000 10 mixbt"),
        (SOLOLEARN_CIFAR, "bt 0.005 0.0 adam 0.001 0.0001 256 1000 10 sololearn"),
        (SAS_CIFAR, "simclr 0.5 adam 0.001 1e-06 512 400 0 sas"),
        (SAS_TINY, "simclr 0.5 adam 0.002 1e-06 512 400 0 sas"),
    ],
)
def test_published_trainings(training, told):
    """Compare with ssl-distillation.md 3.1 to 3.3."""
    loss = training.loss
    constants = ("simclr", loss.temperature) if isinstance(loss, SimCLR) else (
        "bt", loss.lam, loss.mixup)  # fmt: skip
    found = (*constants, training.optimizer, training.lr, training.weight_decay, training.batch,
             training.epochs, training.warmup, training.head)  # fmt: skip
    assert " ".join(map(str, found)) == told
    assert training.spec.epochs == training.epochs
    assert training.spec.optimizer == Adam(weight_decay=training.weight_decay)
    assert from_json(to_json(training)) == training
    assert training in TRAININGS.values()
    for scale, most in (("smoke", 2), ("cpu", 20)):
        small = training.scaled(scale)
        assert small.epochs == most
        kept = {"epochs": small.epochs, "warmup": small.warmup, "batch": small.batch}
        assert small == replace(training, **kept)
        assert small.scaled(scale) == small


def test_step_sizes_of_trainings():
    scales = [s.lr_scale for s in MIXBT_CIFAR.spec.segments]
    assert scales[0] == pytest.approx(0.01)
    assert scales[5] == pytest.approx(0.01 + 0.99 * 0.5)
    assert scales[10] == 1
    middle = (1 + math.cos(math.pi * 995 / 1990)) / 2
    assert scales[10 + 995] == pytest.approx(0.001 + 0.999 * middle)
    assert 0.001 < scales[-1] < 0.00101
    assert SAS_CIFAR.spec.segments == (Segment(epochs=400),)
    assert TRAIN.spec.optimizer == SGD(momentum=0.9, weight_decay=1e-6)
    assert (TRAIN.spec.pairs, TRAIN.spec.second) == (TRAIN.loss, SSL())


def test_trainings_that_are_refused():
    for changes, message in (
        ({"head": "mixbtt"}, "did you mean 'mixbt'"),
        ({"optimizer": "lars"}, "optimizer"),
        ({"optimizer": "adam", "momentum": 0.5}, "adam has no momentum"),
        ({"cosine": False, "warmup": 3}, "no warm-up"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"end": 1.0}, r"end must lie in \[0, 1\)"),
        ({"augment": None}, "need an augmentation"),
        ({"batch": 1}, "at least 2 images"),
        ({"lr": 0.0}, "above 0"),
    ):
        with pytest.raises(InputError, match=message):
            replace(TRAIN, **changes)
    for changes, message in (
        ({"net": ""}, "NAME@WEIGHTS"),
        ({"net": "own@"}, "NAME@WEIGHTS"),
        ({"net": "own@file.pth", "training": TRAIN}, "training has no settings"),
        ({"net": "own@file.pth", "width": 64}, "the width of its weights"),
    ):
        with pytest.raises(InputError, match=message):
            EncoderPlan(**changes)
    plan = EncoderPlan(net="own@file.pth")
    assert plan.scaled("smoke").batch == 0
    assert plan.scaled("cpu").net == plan.net
    assert EncoderPlan().batch == 256


def test_an_encoder_can_be_wider_than_the_runs_network():
    own = NetSpec(name="convnet3", width=8)
    assert EncoderPlan().of(own).width == 8
    assert EncoderPlan(width=16).of(own) == filled(NetSpec(name="convnet3", width=16))
    assert EncoderPlan(net="resnet18-bn", width=16).of(own).width == 16
    assert EncoderPlan(net="own@folder", width=None).anew() == EncoderPlan()
    with pytest.raises(InputError, match="has no setting width"):
        EncoderPlan(net="lenet", width=16).of(own)


def test_views_restore_the_colours_of_normalised_images(alone):
    data = colours()
    space, shape = measure_stats(data.train), (3, 8, 8)
    policy = restoring(VIEW, space, shape)
    pixels = data.train.pixels[:9]
    plain = pixels.double() / 255
    params = VIEW.sample(9, shape, keys.generator(1))
    want = space.forward(VIEW.apply(plain, params))
    torch.testing.assert_close(policy.apply(space.forward(plain), params), want)
    assert (VIEW.apply(space.forward(plain), params) - want).abs().max() > 0.1
    assert restoring(policy, space, shape) == policy
    assert restoring(None, space, shape) is None
    assert restoring(DSA(), space, shape) == DSA()
    chain = restoring(Chain(parts=(DSA(), VIEW)), space, shape)
    assert chain.parts == (DSA(), policy)
    other = MeanStd(mean=(0.1,) * 3, std=(0.5,) * 3)
    with pytest.raises(InputError, match="The views restore images of mean"):
        restoring(policy, other, shape)
    white = make_space("zca-mtt", data)
    assert isinstance(white, Zca)
    with pytest.raises(InputError, match="not whitened"):
        restoring(VIEW, white.record(), shape)


def plain_encoder(data, space):
    """Train by torch's own SGD on a plain module, with the views of `TRAIN`."""
    head = HEADS["toy"]
    made = projected(NET, head, channels=3, size=data.size, seed=3, key=("encoder",))
    module, shape = made.load(made.theta0).train(), (3, *data.size)
    views = [replace(v, mean=space.mean, std=space.std) for v in (VIEW, SSL())]
    cosine = [0.001 + 0.999 * (1 + math.cos(math.pi * e / 2)) / 2 for e in range(2)]
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0, momentum=0.9, weight_decay=1e-6)
    x = space.forward(data.train.pixels)
    for epoch in range(2):
        optimizer.param_groups[0]["lr"] = 0.001 * cosine[epoch]
        chance = keys.generator(3, "encoder", "epoch", epoch)
        for rows in torch.randperm(len(x), generator=chance).split(16):
            z = [module(v.apply(x[rows], v.sample(len(rows), shape, chance))) for v in views]
            optimizer.zero_grad()
            TRAIN.loss(*z).backward()
            optimizer.step()
    return module.eval()


def test_an_encoder_is_that_of_a_plain_loop(alone, tmp_path):
    data = colours()
    (folder,) = run_tasks(phase(data), Store(tmp_path / "one"))
    encoder, space = read_encoder(folder), measure_stats(data.train)
    assert encoder.space == space
    module, plain = open_encoder(encoder, folder), plain_encoder(data, space)
    x = space.forward(data.val.pixels)
    with torch.no_grad():
        found, want = module(x), plain.features(x)
        known = module(space.forward(data.train.pixels))
    torch.testing.assert_close(found, want, rtol=1e-3, atol=1e-4)
    start = projected(NET, HEADS["toy"], channels=3, size=data.size, seed=3, key=("encoder",))
    start.eval()
    assert (start.load(start.theta0).features(x) - want).abs().max() > 3e-3
    facts = encoder_facts(folder)
    assert len(facts["train_loss"]) == facts["epochs"] == 2
    assert facts["train_loss"][1] < facts["train_loss"][0]
    near = knn_accuracy(known, data.train.labels, found, data.val.labels, facts["neighbours"])
    assert facts["validation_knn"] == near > 0.5
    (again,) = run_tasks(phase(data), Store(tmp_path / "two"))
    assert read_encoder(again) == encoder
    other = phase(data, space="cifar10@mixbt").specs[0]
    assert other.space != space
    assert other.train.augment.std == other.space.std


def test_what_an_encoder_cannot_learn_from(alone, tmp_path):
    grey = colours(channels=1)
    with pytest.raises(InputError, match="Images with 1 channel have no colours"):
        phase(grey)
    plain = SSL(saturation=0.0, hue=0.0, grey_prob=0.0)
    assert phase(grey, replace(TRAIN, augment=plain, second=None)).specs[0].train.augment.mean
    data = colours()
    with pytest.raises(InputError, match="not whitened"):
        phase(data, space="zca-mtt")
    with pytest.raises(InputError, match="1 channels"):
        phase(data, space="mnist@dc")
    with pytest.raises(InputError, match="leave a batch of one, which is no batch of pairs"):
        phase(data, replace(TRAIN, batch=len(data.train) - 1))
    wild = replace(TRAIN, lr=1e30, loss=SimCLR(), second=None)
    with pytest.raises(WorkError, match="ower its step size"):
        run_tasks(phase(data, wild), Store(tmp_path / "store"))


def test_losses_as_texts():
    for loss in (
        BarlowTwins(),
        SimCLR(),
        MIXBT_TINY.loss,
        SOLOLEARN_CIFAR.loss,
        SimCLR(temperature=0.2),
    ):
        assert pair_loss_of(text_of_loss(loss)) == loss
    assert pair_loss_of("bt:lam=0.1,unbiased=False") == BarlowTwins(lam=0.1, unbiased=False)
    assert text_of_loss(SimCLR(temperature=0.2)) == "simclr:temperature=0.2"
    for text, message in (
        ("byol", "loss of pairs"),
        ("bt:temperature=1", "setting of bt"),
        ("simclr:temperature=warm", r"written as temperature=0\.5"),
        ("bt:unbiased=no", "written as unbiased=True"),
        ("simclr:temperature=0", "above 0"),
    ):
        with pytest.raises(InputError, match=message):
            pair_loss_of(text)
