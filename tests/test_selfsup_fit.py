"""First-order training on pairs of views against a plain loop."""

from __future__ import annotations

import pytest
import torch

from potstill.augment import SSL
from potstill.core import keys
from potstill.core.compute import Compute
from potstill.core.errors import InputError
from potstill.core.spec import from_json, to_json
from potstill.functional import SGD, Segment, Softened, TrainSpec, fit, take_steps
from potstill.functional.selfsup import BarlowTwins, Mixed, SimCLR
from potstill.nets import NetSpec
from potstill.nets.projector import HeadSpec, projected

torch.set_num_threads(1)
FIRST, SECOND = SSL(), SSL(solarise_prob=0.5)
LOSSES = {
    "barlow": BarlowTwins(lam=0.02, scale=0.1),
    "mixed": BarlowTwins(lam=0.02, mixup=0.08),
    "simclr": SimCLR(temperature=0.5),
}


def spec(loss_of, **changes) -> TrainSpec:
    base = {"lr": 0.05, "segments": (Segment(epochs=2),), "batch": 5, "augment": FIRST,
            "second": SECOND, "pairs": loss_of, "optimizer": SGD(momentum=0.9)}  # fmt: skip
    return TrainSpec(**base | changes)


def net(name: str = "convnet2", *widths: int):
    head = HeadSpec(widths=widths or (6, 4))
    return projected(NetSpec(name=name, width=4), head, channels=3, size=(10, 10), seed=3)


def data(dtype=torch.float64):
    x = torch.rand(12, 3, 10, 10, dtype=dtype, generator=keys.generator(0))
    return x, torch.zeros(12, dtype=torch.int64)


def plain(made, x, loss, epochs: int):
    """Train by torch's own SGD on a plain module, one view after the other."""
    module = made.load(made.theta0.double()).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(epochs):
        chance = keys.generator(7, "k", "epoch", epoch)
        for rows in torch.randperm(len(x), generator=chance).split(5):
            views = [p.apply(x[rows], p.sample(len(rows), (3, 10, 10), chance))
                     for p in (FIRST, SECOND)]  # fmt: skip
            if getattr(loss, "mixup", 0):
                alpha = torch.rand((), generator=chance, dtype=torch.float64)
                order = torch.randperm(len(rows), generator=chance)
                blend = alpha * views[0] + (1 - alpha) * views[1][order]
                z = [module(view) for view in (*views, blend)]
                value = loss(z[0], z[1], Mixed(z=z[2], alpha=float(alpha), order=order))
            else:
                value = loss(*(module(view) for view in views))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    return module


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("name", ["convnet2", "resnet10-bn"])
def test_fit_is_the_plain_loop(kind, name):
    (x, y), made, loss = data(), net(name), LOSSES[kind]
    module = plain(made, x, loss, 2)
    theta = fit(made, made.theta0.double(), x, y, spec(loss), seed=7, key=("k",))
    want = torch.cat([p.detach().flatten() for p in module.parameters()])
    assert (theta - want).abs().max() < 1e-10
    assert (theta - made.theta0).abs().max() > 1e-3
    statistics = made.statistics(theta)
    for key, buffer in module.named_buffers():
        assert (statistics[key].double() - buffer.double()).abs().max() < 1e-10


def test_without_batch_norm_batches_stay_whole():
    """A head without norms makes images separable, but pairs are compared with all others."""
    (x, y), made = data(), net("convnet2", 4)
    x = x.repeat(30, 1, 1, 1)  # more than go through a network at once
    assert made.separable
    once = spec(LOSSES["simclr"], batch=360, segments=(Segment(epochs=1),))
    theta = fit(made, made.theta0.double(), x, y.repeat(30), once, seed=7)
    chance = keys.generator(7, "epoch", 0)
    rows = torch.randperm(360, generator=chance)
    leaf = made.theta0.double().requires_grad_()
    z = [made(leaf, p.apply(x[rows], p.sample(360, (3, 10, 10), chance))) for p in (FIRST, SECOND)]
    (grad,) = torch.autograd.grad(LOSSES["simclr"](*z), leaf)
    assert (theta - (leaf.detach() - 0.05 * grad)).abs().max() < 1e-12


def test_one_policy_for_both_views_and_single_steps():
    (x, y), made = data(), net()
    theta = made.theta0.double()
    one = spec(LOSSES["barlow"], second=None)
    same = spec(LOSSES["barlow"], second=FIRST)
    ends = [fit(made, theta, x, y, each, seed=1) for each in (one, same, spec(LOSSES["barlow"]))]
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])
    rows = [torch.arange(5), torch.arange(5, 10)]
    moved, _ = take_steps(made, theta, one.optimizer.init(theta), x, y, one, rows,
                          step=0, seed=1, key=("s",))  # fmt: skip
    assert (moved - theta).abs().max() > 0


def test_the_spec_as_json_and_what_it_refuses():
    whole = spec(LOSSES["mixed"])
    assert from_json(to_json(whole)) == whole
    assert "pairs" not in to_json(TrainSpec(lr=0.1, segments=(Segment(epochs=1),)))
    for changes, message in (
        ({"pairs": None}, "second augmentation is for pairs"),
        ({"augment": None}, "Pairs of views need an augmentation"),
        ({"batch": 1}, "at least 2 images, not 1"),
        ({"loss": "soft_ce"}, "takes no targets"),
        ({"smoothing": 0.1}, "takes no targets"),
        ({"lesson": Softened()}, "takes no targets"),
    ):
        with pytest.raises(InputError, match=message):
            spec(**{"loss_of": LOSSES["simclr"]} | changes)
    (x, y), made = data(), net()
    with pytest.raises(InputError, match="leave a batch of one, which is no batch of pairs"):
        fit(made, made.theta0.double(), x[:11], y[:11], spec(LOSSES["simclr"]), seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", LOSSES)
def test_compiled_steps_equal_eager_ones(kind):
    (x, y), made, slow = data(torch.float32), net(), spec(LOSSES[kind], lr=0.005)
    ends = [
        fit(made, made.theta0, x, y, slow, seed=7, compute=compute)
        for compute in (None, Compute(compiled=True, threads=1))
    ]
    moved = (ends[0] - made.theta0).norm()
    assert (ends[0] - ends[1]).norm() < 1e-4 * moved
    exact = fit(made, made.theta0.double(), x.double(), y, slow, seed=7)
    assert (ends[1] - exact).norm() < 1e-3 * moved
