"""Experts that learn features, or by themselves: plain loops, their store, truncated pools."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from potstill.augment import SSL
from potstill.core import keys
from potstill.core.compute import Compute
from potstill.core.errors import InputError
from potstill.core.spec import to_json
from potstill.core.store import Store
from potstill.coresets.features import expert_module
from potstill.data import MeanStd, from_arrays, make_space, measure_stats
from potstill.engine import run_tasks
from potstill.experts import (
    After,
    ExpertPlan,
    Trajectories,
    Trajectory,
    expert_net,
    expert_tasks,
    pools,
    targets_facts,
)
from potstill.experts.kept import write_rows
from potstill.functional import SGD, Segment, TrainSpec, fit, mse
from potstill.functional.selfsup import BarlowTwins, SimCLR
from potstill.nets import HEADS, NetSpec, build, flat, projected
from potstill.report.pools import pool_cells
from potstill.teachers import keep_encoder, target_tasks

CPU = Compute(threads=1)
NET = NetSpec(name="convnet2", width=4)
SPACE = MeanStd(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))
KD = ExpertPlan(count=2, epochs=3, lr=0.1, momentum=0.9, weight_decay=1e-4, batch=32, augment=None,
                objective="kd_mse")  # fmt: skip


@pytest.fixture
def data(alone):
    pixels = torch.randint(0, 256, (120, 3, 8, 8), generator=keys.generator(0, "test"))
    return from_arrays(pixels.byte(), torch.arange(120) % 3, validation=0.2)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def targets(data, store, tmp_path):
    """Return the folder of targets of dimension 20, by a network that nobody trained."""
    (folder := tmp_path / "encoder").mkdir()
    module = build(replace(NET, width=5), channels=3, size=(8, 8), classes=2, seed=1)
    own = {"net": replace(NET, width=5), "space": SPACE, "shape": (3, 8, 8)}
    encoder = keep_encoder(module, folder, **own)
    return run_tasks(target_tasks(data, encoder, folder, compute=CPU), store)[0]


def features_of(data, seed=1):
    """Return the features of each training image by the encoder of `targets`, one by one."""
    net = flat(replace(NET, width=5), channels=3, size=(8, 8), classes=2, seed=seed)
    x = SPACE.forward(data.train.pixels)
    with torch.no_grad():
        return torch.cat([net.features(net.theta0, one[None]) for one in x])


def tasks(data, plan, targets=None, **options):
    space = options.pop("space", None) or measure_stats(data.train)
    return expert_tasks(plan, data, space, NET, seed=0, compute=CPU, targets=targets, **options)


def rows_of(folder):
    expert = Trajectory(folder)
    return torch.stack([expert.row(epoch) for epoch in range(expert.shape[0])])


def plain(data, y, plan, k, *, rows=None, epochs=None):
    """Train an expert by torch's own SGD, whole batches, on the same permutations."""
    module = build(NET, channels=3, size=(8, 8), classes=y.shape[1], seed=0, key=("expert", k))
    x = measure_stats(data.train).forward(data.train.pixels)
    x, y = (x, y) if rows is None else (x[rows], y[rows])
    sgd = torch.optim.SGD(module.parameters(), lr=plan.lr, momentum=plan.momentum,
                          weight_decay=plan.weight_decay)  # fmt: skip
    path = [torch.nn.utils.parameters_to_vector(module.parameters()).detach()]
    for epoch in range(plan.epochs):
        chance = keys.generator(0, "expert", k, "epoch", epoch)
        for chosen in torch.randperm(len(x), generator=chance).split(plan.batch):
            sgd.zero_grad()
            F.mse_loss(module(x[chosen]), y[chosen]).backward()
            sgd.step()
        path.append(torch.nn.utils.parameters_to_vector(module.parameters()).detach())
    return torch.stack(path)


@pytest.mark.parametrize("name", ["convnet2", "resnet10-bn"])
def test_mse_training_is_the_plain_loop(name):
    """Compare in float64; with batch norm batches stay whole."""
    x = torch.rand(40, 3, 10, 10, dtype=torch.float64, generator=keys.generator(0))
    y = torch.randn(40, 6, dtype=torch.float64, generator=keys.generator(1))
    net = flat(NetSpec(name=name, width=4), channels=3, size=(10, 10), classes=6, seed=2)
    spec = TrainSpec(lr=0.1, segments=(Segment(epochs=2),), batch=16, augment=None, loss="mse",
                     optimizer=SGD(momentum=0.9, weight_decay=1e-4))  # fmt: skip
    theta = fit(net, net.theta0.double(), x, y, spec, seed=7)
    module = net.load(net.theta0.double()).train()
    sgd = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    for epoch in range(2):
        order = torch.randperm(40, generator=keys.generator(7, "epoch", epoch))
        for rows in order.split(16):
            sgd.zero_grad()
            ((module(x[rows]) - y[rows]) ** 2).mean().backward()
            sgd.step()
    want = torch.nn.utils.parameters_to_vector(module.parameters()).detach()
    assert (theta - want).abs().max() < 1e-12
    assert (theta - net.theta0).abs().max() > 1e-3


def test_mse_refuses_what_it_cannot_take():
    x, y = torch.rand(8, 3, 8, 8), torch.rand(8, 6)
    net = flat(NET, channels=3, size=(8, 8), classes=6, seed=2)
    spec = TrainSpec(lr=0.1, segments=(Segment(epochs=1),), batch=4, augment=None, loss="mse")
    for targets, message in (
        (torch.zeros(8, dtype=torch.int64), "takes features"),
        (y[:, :5], "has 6 outputs, its targets 5 dimensions"),
        (y[:, :1], "has 6 outputs, its targets 1 dimensions"),
        (y[:7], "8 images and 7 targets"),
    ):
        with pytest.raises(InputError, match=message):
            fit(net, net.theta0, x, targets, spec, seed=0)
    balanced = replace(spec, balanced=2)
    with pytest.raises(InputError, match="the class of each image"):
        fit(net, net.theta0, x, y, balanced, seed=0)
    places = torch.arange(8) % 2
    assert torch.isfinite(fit(net, net.theta0, x, y, balanced, seed=0, places=places)).all()
    for changes in ({"smoothing": 0.1}, {"pairs": SimCLR(), "augment": SSL()}):
        with pytest.raises(InputError, match=r"takes? no"):
            replace(spec, **changes)
    assert float(mse(y, y + 2)) == pytest.approx(4)


def test_experts_learn_the_targets_of_their_own_images(data, store, targets):
    """A plain loop on features encoded one by one: targets stay with their images."""
    work = tasks(data, KD, targets)
    assert work.specs[0].targets == targets.name
    assert work.specs[0].outputs == 20
    for k, folder in enumerate(run_tasks(work, store)):
        rows, expected = rows_of(folder), plain(data, features_of(data), KD, k)
        assert torch.equal(rows[0], expected[0])
        torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-5)
        assert float((rows[1] - rows[0]).norm()) > 0.1
        facts = Trajectory(folder).facts
        assert facts["train_loss"][-1] < facts["train_loss"][0]
        assert facts["validation_accuracy"] is None
    (pool,) = pools(store)
    digest = targets_facts(targets)["encoder"]
    assert pool_cells(pool)[5].startswith(f"KD of convnet2 {digest[:8]}, 3 epochs")
    assert expert_module(work.specs[0], folder)(torch.rand(2, 3, 8, 8)).shape == (2, 20)


def test_a_truncated_pool_is_the_beginning_of_a_long_one(data, store, targets):
    long = run_tasks(tasks(data, KD, targets), store)
    short = run_tasks(tasks(data, replace(KD, epochs=1), targets), store)
    for one, other in zip(long, short, strict=True):
        assert one != other
        assert torch.equal(rows_of(one)[:2], rows_of(other))
    draws = [
        [Trajectories.open(f, start_epochs=1, span=1).draw(5, it) for it in range(4)]
        for f in (long, short)
    ]
    for one, other in zip(*draws, strict=True):
        assert torch.equal(one.theta, other.theta)
        assert torch.equal(one.target, other.target)
    with pytest.raises(InputError):
        Trajectories.open(short, start_epochs=2, span=1)


def test_targets_stay_with_the_images_of_a_filter(data, store, targets):
    """An expert that goes on with some of the images learns their targets, also when resumed."""
    rows = torch.arange(1, len(data.train), 2)
    (folder := store.root / "filters" / "odd").mkdir(parents=True)
    write_rows(folder, rows, {})
    work = After(links=(), folders=(), store=store, rows="odd").continued(tasks(data, KD, targets))
    found = rows_of(run_tasks(work, store)[1])
    torch.testing.assert_close(
        found, plain(data, features_of(data), KD, 1, rows=rows), rtol=1e-4, atol=1e-5
    )
    store.remove(store.path(work.kind, work.specs[1]))
    assert torch.equal(rows_of(run_tasks(work, store)[1]), found)


def test_experts_by_themselves(data, store):
    """Pairs of views of normalised images, a head that evaluation throws away."""
    space = measure_stats(data.train)
    for objective, loss in (("bt", BarlowTwins(lam=1 / 128)), ("simclr", SimCLR())):
        plan = ExpertPlan(count=1, epochs=2, lr=0.01, batch=24, augment=SSL(), objective=objective)
        work = tasks(data, plan)
        (spec,), (folder,) = work.specs, run_tasks(work, store)
        assert (spec.train.pairs, spec.head) == (loss, HEADS["toy"])
        assert spec.train.augment == SSL(mean=space.mean, std=space.std)
        net = projected(NET, HEADS["toy"], channels=3, size=(8, 8), seed=0, key=("expert", 0))
        want = fit(net, net.theta0, data.train.pixels, data.train.labels, spec.train, seed=0,
                   key=("expert", 0), prepare=space.forward)  # fmt: skip
        rows = rows_of(folder)
        assert torch.equal(rows[0], net.theta0)
        assert torch.equal(rows[2], want)
        assert expert_net(spec, data).numel == rows.shape[1]
        short = run_tasks(tasks(data, replace(plan, epochs=1)), store)[0]
        assert torch.equal(rows_of(short), rows[:2])


def test_plans_keep_their_names_and_refuse_what_does_not_belong(data, store, targets):
    plan = ExpertPlan(count=1)
    assert "objective" not in to_json(plan)
    spec = tasks(data, plan).specs[0]
    assert not {"targets", "outputs", "head"} & to_json(spec).keys()
    for changes, message in (
        ({"objective": "kd"}, "objective"),
        ({"objective": "bt", "augment": None}, "need an augmentation"),
        ({"objective": "bt", "imported": "abc"}, "Imported experts learned classes"),
    ):
        with pytest.raises(InputError, match=message):
            ExpertPlan(**changes)
    with pytest.raises(InputError, match="'kd_mse' needs targets"):
        tasks(data, KD)
    with pytest.raises(InputError, match="'ce' takes no targets"):
        tasks(data, plan, targets)
    other = from_arrays(data.train.pixels.flip(0), data.train.labels, validation=0.2)
    with pytest.raises(InputError, match="belong to another data set"):
        tasks(other, KD, targets)
    (first,) = tasks(data, replace(KD, count=1), targets).specs
    wrong = replace(tasks(data, replace(KD, count=1), targets), specs=(replace(first, outputs=9),))
    with pytest.raises(InputError, match="have 20 dimensions, not 9"):
        run_tasks(wrong, store)
    grey = from_arrays(data.train.pixels[:, :1], data.train.labels)
    views = ExpertPlan(count=1, augment=SSL(), objective="simclr")
    with pytest.raises(InputError, match="Images with 1 channel have no colours"):
        tasks(grey, views)
    with pytest.raises(InputError, match="not whitened"):
        tasks(data, views, space=make_space("zca-mtt", data))
    alone = replace(views, batch=(count := len(data.train)) - 1)
    with pytest.raises(InputError, match=f"{count} images in batches of {count - 1} leave a batch"):
        tasks(data, alone)


@pytest.mark.slow
def test_compiled_steps_on_features_equal_eager_ones():
    x = torch.rand(40, 3, 10, 10, generator=keys.generator(0))
    y = torch.randn(40, 6, generator=keys.generator(1))
    net = flat(NET, channels=3, size=(10, 10), classes=6, seed=2)
    spec = TrainSpec(lr=0.1, segments=(Segment(epochs=2),), batch=16, augment=None, loss="mse")
    ends = [
        fit(net, net.theta0, x, y, spec, seed=7, compute=compute)
        for compute in (None, Compute(threads=1, compiled=True))
    ]
    assert (ends[0] - ends[1]).norm() < 1e-4 * (ends[0] - net.theta0).norm()
