"""Step sizes of every step, and smoothed labels, against torch's; teachers trained by them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from potstill.core import keys
from potstill.core.errors import InputError
from potstill.functional import SGD, Adam, Segment, Softened, TrainSpec, fit, mtt_segments
from potstill.functional.cycle import OneCycle
from potstill.nets import FlatNet
from potstill.teachers import CIFAR100, IN21K, TINY, Squeeze


@pytest.mark.parametrize(("steps", "rise"), [(50, 0.1), (1000, 0.1), (37, 0.3)])
def test_step_sizes_are_those_of_torch(steps, rise):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=3e-4, total_steps=steps, pct_start=rise, div_factor=20,
        cycle_momentum=False,
    )  # fmt: skip
    cycle = OneCycle(rise=rise)
    for step in range(steps):
        want = scheduler.get_last_lr()[0]
        assert 3e-4 * cycle.at(step, steps) == pytest.approx(want, rel=1e-12)
        optimizer.step()
        if step + 1 < steps:
            scheduler.step()


def test_a_rise_of_one_step():
    assert OneCycle(rise=0.1).at(0, 10) == OneCycle(rise=0.1).at(0, 1) == 1
    assert [OneCycle(rise=0.1).at(k, 10) for k in (4, 9)] == pytest.approx(
        [0.586829, 5e-6], rel=1e-4
    )


def test_training_takes_them_and_smooths_labels():
    """Against torch.optim.Adam, whose weight decay is left out of biases, and cross_entropy."""
    with keys.forked(0, "net"):
        module = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    chance = torch.Generator().manual_seed(1)
    x = torch.randn(20, 3, 2, 2, generator=chance, dtype=torch.float64)
    y = torch.arange(20) % 3
    spec = TrainSpec(
        lr=0.02,
        segments=(Segment(epochs=4),),
        batch=8,
        optimizer=Adam(weight_decay=0.1, decays="weights"),
        augment=None,
        cycle=OneCycle(rise=0.25),
        smoothing=0.2,
    )
    net = FlatNet(module)
    theta = fit(net, net.theta0, x, y, spec, seed=3)
    weights = [p for p in module.parameters() if p.ndim > 1]
    rest = [p for p in module.parameters() if p.ndim < 2]
    groups = [{"params": weights, "weight_decay": 0.1}, {"params": rest}]
    optimizer, step = torch.optim.Adam(groups), 0
    for epoch in range(4):
        order = torch.randperm(20, generator=keys.generator(3, "epoch", epoch))
        for rows in order.split(8):
            for group in optimizer.param_groups:
                group["lr"] = 0.02 * spec.cycle.at(step, 12)
            optimizer.zero_grad()
            F.cross_entropy(module(x[rows]), y[rows], label_smoothing=0.2).backward()
            optimizer.step()
            step += 1
    want = torch.cat([p.detach().flatten() for p in module.parameters()])
    assert (theta - want).abs().max() < 1e-12
    soft = replace(spec, loss="soft_ce")
    assert torch.equal(fit(net, net.theta0, x, F.one_hot(y, 3).double(), soft, seed=3), theta)


def test_what_does_not_go_together_is_refused():
    spec = TrainSpec(lr=0.1, segments=(Segment(epochs=1),))
    with pytest.raises(InputError, match="one segment"):
        replace(spec, segments=mtt_segments(), cycle=OneCycle())
    for changes in ({"smoothing": 1.0}, {"smoothing": 0.1, "lesson": Softened()}):
        with pytest.raises(InputError, match="smoothing lies in"):
            replace(spec, **changes)
    with pytest.raises(InputError, match="rise of OneCycle"):
        OneCycle(rise=1.0)


def test_teachers_of_imagenet21k_and_others():
    assert IN21K.spec.cycle == OneCycle(rise=0.1, first=1 / 20, last=1 / 200_000)
    assert isinstance(TINY.spec.optimizer, SGD)
    assert (CIFAR100.spec.cycle, CIFAR100.spec.smoothing) == (None, 0.0)
    small = IN21K.scaled("smoke")
    assert (small.epochs, small.warmup, small.batch, small.smoothing) == (10, 2, 20, 0.2)
    assert small.scaled("smoke") == small
    for changes, message in (
        ({"momentum": 0.5}, "no momentum"),
        ({"warmup": 0}, "1 or more epochs of warm-up"),
        ({"optimizer": "adamw"}, "optimizer of a teacher"),
        ({"smoothing": 1.0}, "smoothing lies in"),
    ):
        with pytest.raises(InputError, match=message):
            replace(IN21K, **changes)
    assert replace(IN21K, weight_decay=0.0).spec.optimizer == Adam()
    assert Squeeze(epochs=3, warmup=1).scaled("smoke").warmup == 1
