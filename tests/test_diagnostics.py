"""What runs from one theta_0 have in common, against plain loops in float64."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from itertools import combinations, pairwise

import pytest
import torch
from torch.nn import functional as F

from potstill.augment.ssl import TOY
from potstill.core.errors import InputError, WorkError
from potstill.core.keys import generator
from potstill.functional import SGD, BarlowTwins, Segment, TrainSpec
from potstill.functional.diagnostics import Training, Trials, diagnosed, passes
from potstill.nets import HeadSpec, NetSpec, projected

NET = NetSpec(name="convnet1", width=4)
SEED, KEY = 3, ("test",)


@pytest.fixture(autouse=True)
def _alone():
    torch.set_num_threads(1)


def toy(pairs: bool) -> tuple[Training, int]:
    """Return a training in float64, and how many weights its encoder has."""
    head = HeadSpec(widths=(6, 5)) if pairs else HeadSpec(widths=(3,))
    net = projected(NET, head, channels=3, size=(8, 8), seed=0)
    chance = generator(0, "images")
    training = Training(
        net=net,
        theta0=net.theta0.double(),
        images=torch.rand(11, 3, 8, 8, generator=chance, dtype=torch.float64),
        targets=torch.randint(3, (11,), generator=chance),
        spec=TrainSpec(
            lr=0.02,
            segments=(Segment(epochs=1),),
            batch=4,
            optimizer=SGD(momentum=0.9),
            augment=TOY if pairs else None,
            pairs=BarlowTwins(lam=1 / 128) if pairs else None,
        ),
    )
    return training, sum(p.numel() for p in net.load(net.theta0).encoder.parameters())


def plain_loss(training: Training, module, rows, key):
    """Return the loss of a batch, its views drawn one after the other."""
    x, chance = training.images[rows], generator(SEED, *key)
    if training.spec.pairs is None:
        return F.cross_entropy(module(x), training.targets[rows])
    views = [TOY.apply(x, TOY.sample(len(x), (3, 8, 8), chance)) for _ in range(2)]
    z = [module(view) for view in views]
    c = [(each - each.mean(0)) / each.std(0) for each in z]
    c = c[0].T @ c[1] / len(x)
    off = c - torch.diag(c.diagonal())
    return (c.diagonal() - 1).square().sum() + off.square().sum() / 128


@pytest.mark.parametrize("pairs", [False, True])
def test_diagnostics_equal_plain_loops(pairs):
    training, encoder = toy(pairs)
    found = diagnosed(
        training, Trials(runs=3, steps=5, gradients=6), measured=encoder, seed=SEED, key=KEY
    )
    fresh = partial(training.net.load, training.theta0)
    start = torch.cat([p.detach().flatten() for p in fresh().encoder.parameters()])

    def flat(module, what=lambda p: p.detach()):
        return torch.cat([what(p).flatten() for p in module.encoder.parameters()])

    ends, ways = [], []
    for run in range(3):
        module = fresh().train()
        steps = torch.optim.SGD(module.parameters(), lr=0.02, momentum=0.9)
        order = generator(SEED, *KEY, "run", run, "order")
        rows = [torch.randperm(11, generator=order)[:8].split(4) for _ in range(3)]
        for k, batch in enumerate([part for each in rows for part in each][:5]):
            steps.zero_grad()
            plain_loss(training, module, batch, (*KEY, "run", run, k)).backward()
            steps.step()
        ends.append(module)
        ways.append(flat(module) - start)
    length = sum(float(d @ d) for d in ways) / 3
    apart = [float((a - b) @ (a - b)) for a, b in combinations(ways, 2)]
    angles = [float(F.cosine_similarity(a, b, dim=0)) for a, b in combinations(ways, 2)]
    close = partial(pytest.approx, rel=1e-9)
    assert found.spread == close(sum(apart) / 3 / (2 * length))
    assert found.cosine == close(sum(angles) / 3)
    assert found.moved == close(sum(float(d.norm()) for d in ways) / 3 / float(start.norm()))
    assert found.steps == (5, 5, 5)
    for modules, noise, mean in (
        ([fresh().train()], found.noise_start, found.loss_start),
        (ends, found.noise_end, found.loss_end),
    ):
        variance, signal, losses = 0.0, 0.0, []
        for module in modules:
            chance, gradients = generator(SEED, *KEY, "gradients"), []
            for k in range(6):
                rows = torch.randperm(11, generator=chance)[:4]
                module.zero_grad()
                loss = plain_loss(training, module, rows, (*KEY, "batch", k))
                loss.backward()
                losses.append(float(loss.detach()))
                gradients.append(flat(module, lambda p: p.grad))
            g = torch.stack(gradients)
            variance += float(g.var(0).sum())
            signal += float(g.mean(0).square().sum() - g.var(0).sum() / 6)
        assert noise == close(variance / signal if signal > 0 else math.inf)
        assert mean == close(sum(losses) / len(losses))


def test_runs_end_at_a_distance_and_longer_ones_begin_as_shorter_ones():
    training, encoder = toy(False)
    look = partial(diagnosed, training, measured=encoder, seed=SEED, key=KEY)
    lengths = [look(Trials(runs=2, steps=k, gradients=2)).moved for k in (1, 2, 3, 4)]
    assert all(a < b for a, b in pairwise(lengths))
    found = look(Trials(runs=2, steps=9, gradients=2, distance=lengths[2] * 0.9))
    assert max(found.steps) <= 4
    assert found.moved >= lengths[2] * 0.9
    assert look(Trials(runs=2, steps=2, gradients=2, distance=1e9)).steps == (2, 2)
    with pytest.raises(WorkError, match="diverged; lower its step size"):
        diagnosed(replace(training, spec=replace(training.spec, lr=1e200)), Trials(), seed=0)
    for bad, message in (
        ({"runs": 1}, "runs must be at least 2, not 1"),
        ({"gradients": 1}, "gradients must be at least 2"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"distance": 0.0}, "distance must be above 0"),
    ):
        with pytest.raises(InputError, match=message):
            Trials(**bad)
    more = replace(training, spec=replace(training.spec, batch=12))
    with pytest.raises(InputError, match="batch of 12 images is more than there are, 11"):
        diagnosed(more, Trials(), seed=0)


def test_passes_are_whole_batches_of_permutations():
    rows = passes(10, 4, 5, generator(0))
    assert [len(batch) for batch in rows] == [4] * 5
    for first, second in zip(rows[0:4:2], rows[1:4:2], strict=True):
        assert len({*first.tolist(), *second.tolist()}) == 8
    assert not torch.equal(rows[0], rows[2])
