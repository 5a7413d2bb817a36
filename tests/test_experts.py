"""Experts: their training against plain torch, their store, the source of networks."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from potstill.augment import DSA
from potstill.core import keys
from potstill.core.compute import Compute
from potstill.core.errors import InputError, WorkError
from potstill.core.store import Store
from potstill.data import measure_stats, open_data
from potstill.engine import run_tasks
from potstill.experts import (
    Ahead,
    Draw,
    ExpertPlan,
    Trajectories,
    Trajectory,
    check_window,
    expert_tasks,
    write_trajectory,
)
from potstill.nets import NetSpec, build

NET = NetSpec(name="convnet2", width=6)
ONE = Compute(threads=1)
PLAN = ExpertPlan(count=2, epochs=2, lr=0.05, batch=100, augment=DSA())


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)


@pytest.fixture
def data():
    return open_data("digits", limit=30)


def tasks(data, plan=PLAN, *, net=NET, seed=0, compute=ONE, space=None):
    return expert_tasks(
        plan, data, space or measure_stats(data.train), net, seed=seed, compute=compute
    )


def trained(data, tmp_path, plan=PLAN, **options):
    folders = run_tasks(tasks(data, plan, **options), Store(tmp_path / "store"))
    return [Trajectory(folder) for folder in folders]


def rows_of(expert):
    return torch.stack([expert.row(epoch) for epoch in range(expert.shape[0])])


def plain(data, plan, k, *, seed=0):
    """Train an expert with torch.optim on the same permutations and augmentation."""
    module = build(
        NET, channels=1, size=data.size, classes=data.n_classes, seed=seed, key=("expert", k)
    )
    x = measure_stats(data.train).forward(data.train.pixels)
    optimizer = torch.optim.SGD(
        module.parameters(), lr=plan.lr, momentum=plan.momentum, weight_decay=plan.weight_decay
    )
    rows = [torch.nn.utils.parameters_to_vector(module.parameters()).detach()]
    for epoch in range(plan.epochs):
        chance = keys.generator(seed, "expert", k, "epoch", epoch)
        order = torch.randperm(len(x), generator=chance)
        for start in range(0, len(x), plan.batch):
            index = order[start : start + plan.batch]
            batch = x[index]
            if plan.augment is not None:
                params = plan.augment.sample(len(index), (1, *data.size), chance)
                batch = plan.augment.apply(batch, params)
            optimizer.zero_grad()
            F.cross_entropy(module(batch), data.train.labels[index]).backward()
            optimizer.step()
        rows.append(torch.nn.utils.parameters_to_vector(module.parameters()).detach())
    return torch.stack(rows)


@pytest.mark.parametrize("plan", [PLAN, replace(PLAN, momentum=0.9, weight_decay=1e-3)], ids="ab")
def test_a_trajectory_equals_a_plain_torch_loop(data, tmp_path, plan):
    for k, expert in enumerate(trained(data, tmp_path, plan)):
        rows, expected = rows_of(expert), plain(data, plan, k)
        assert torch.equal(rows[0], expected[0])
        assert len({row.numpy().tobytes() for row in rows}) == plan.epochs + 1
        torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-6)
        assert float((rows[1] - rows[0]).norm()) > 1e-3


def test_an_expert_does_not_depend_on_the_count(data, tmp_path):
    few = tasks(data, replace(PLAN, count=2))
    many = tasks(data, replace(PLAN, count=5))
    assert many.specs[:2] == few.specs
    store = Store(tmp_path / "store")
    assert len({store.path("experts", spec) for spec in many.specs}) == 5
    one, two = trained(data, tmp_path / "a"), trained(data, tmp_path / "b", replace(PLAN, count=3))
    for a, b in zip(one, two[:2], strict=True):
        assert torch.equal(rows_of(a), rows_of(b))
    assert not torch.equal(two[0].row(0), two[1].row(0))


def test_facts_and_threads(data, tmp_path):
    torch.set_num_threads(2)
    state = torch.random.get_rng_state()
    try:
        expert, _ = trained(data, tmp_path, compute=ONE)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert torch.equal(torch.random.get_rng_state(), state)
    facts = expert.facts
    assert len(facts["train_loss"]) == PLAN.epochs
    assert facts["train_loss"][1] < facts["train_loss"][0]
    assert 0 <= facts["validation_accuracy"] <= 1
    assert sum(torch.Size(shape).numel() for _, shape in facts["parameters"]) == expert.shape[1]


def test_what_an_expert_depends_on_names_its_folder(data, tmp_path):
    space = measure_stats(data.train)
    other = open_data("digits", limit=30, validation=0.2)
    changed = [
        tasks(data),
        tasks(other, space=space),
        tasks(open_data("digits", limit=29), space=space),
        tasks(data, space=replace(space, std=(1.0,))),
        tasks(data, net=replace(NET, width=7)),
        tasks(data, net=replace(NET, norm="none")),
        tasks(data, seed=1),
        tasks(data, compute=Compute(threads=2)),
        tasks(data, compute=replace(ONE, precision="bfloat16")),
        *(tasks(data, replace(PLAN, **change)) for change in ({"epochs": 3}, {"augment": None})),
        *(tasks(data, replace(PLAN, **change)) for change in ({"lr": 0.1}, {"batch": 50})),
    ]
    store = Store(tmp_path)
    assert len({store.path("experts", task.specs[0]) for task in changed}) == len(changed)


def test_a_diverging_expert_is_reported(data, tmp_path):
    with pytest.raises(WorkError, match=r"Expert 0 diverged; lower its step size \(now 1e\+30\)"):
        trained(data, tmp_path, replace(PLAN, lr=1e30))
    assert not list((tmp_path / "store").rglob("*.safetensors"))


@pytest.mark.parametrize(
    "wrong",
    [
        *({name: 0} for name in ("count", "epochs", "lr", "batch")),
        {"momentum": 1.0},
        {"weight_decay": -1.0},
    ],
)
def test_a_bad_plan_is_refused(wrong):
    with pytest.raises(InputError, match=r"({}).*({})".format(*next(iter(wrong.items())))):
        ExpertPlan(**wrong)


def resident():
    """Return the resident bytes of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_two_rows_of_a_big_file_do_not_load_it(tmp_path):
    rows = torch.empty(100, 500_000)
    rows.copy_(torch.arange(100.0)[:, None].expand(100, 500_000))
    write_trajectory(tmp_path, rows, {})
    del rows
    assert (tmp_path / "trajectory.safetensors").stat().st_size > 200e6
    expert = Trajectory(tmp_path)
    expert.row(0)
    before = resident()
    assert expert.shape == (100, 500_000)
    first, last = expert.row(3), expert.row(99)
    grown = resident() - before
    assert float(first.min()) == float(first.max()) == 3
    assert float(last.min()) == float(last.max()) == 99
    assert grown < 20e6


def test_rows_outside_and_damaged_files_are_refused(tmp_path):
    write_trajectory(tmp_path, torch.zeros(3, 4), {"a": 1})
    expert = Trajectory(tmp_path)
    for epoch in (-1, 3):
        with pytest.raises(InputError, match=f"holds epochs 0 to 2, not {epoch}"):
            expert.row(epoch)
    file = tmp_path / "trajectory.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    for read in (lambda: expert.row(0), lambda: expert.shape):
        with pytest.raises(InputError, match="missing, truncated"):
            read()
    with pytest.raises(InputError, match="missing, truncated"):
        Trajectory(tmp_path / "absent").row(0)


def source(tmp_path, lengths, *, start_epochs, span):
    folders = []
    for k, length in enumerate(lengths):
        folders.append(tmp_path / str(k))
        folders[-1].mkdir()
        rows = 100.0 * k + torch.arange(length)[:, None].expand(length, 2)
        write_trajectory(folders[-1], rows, {})
    return Trajectories.open(folders, start_epochs=start_epochs, span=span)


def test_draws(tmp_path):
    nets = source(tmp_path, [6] * 5, start_epochs=3, span=2)
    draws = [nets.draw(7, it) for it in range(300)]
    for start in range(0, 300, 5):
        assert sorted(d.expert for d in draws[start : start + 5]) == [0, 1, 2, 3, 4]
    orders = {tuple(d.expert for d in draws[start : start + 5]) for start in range(0, 300, 5)}
    assert len(orders) > 20
    assert set(Counter(d.epoch for d in draws)) == {0, 1, 2}
    assert min(Counter(d.epoch for d in draws).values()) > 70
    for d in draws:
        assert d.theta.tolist() == [100.0 * d.expert + d.epoch] * 2
        assert d.target is not None
        assert torch.equal(d.target, d.theta + 2)
    again = [nets.draw(7, it) for it in reversed(range(300))][::-1]
    other = [nets.draw(8, it) for it in range(300)]
    pairs = [(d.expert, d.epoch) for d in draws]
    assert [(d.expert, d.epoch) for d in again] == pairs
    assert [(d.expert, d.epoch) for d in other] != pairs


def test_a_window_beyond_the_last_snapshot_is_refused(tmp_path):
    assert source(tmp_path, [5, 6], start_epochs=3, span=2).draw(0, 0)
    folders = [tmp_path / "0", tmp_path / "1"]
    for start_epochs, span in ((4, 2), (3, 3)):
        with pytest.raises(InputError, match="need experts of 5 epochs; these have 4"):
            Trajectories.open(folders, start_epochs=start_epochs, span=span)
    for start_epochs, span in ((0, 1), (1, 0)):
        with pytest.raises(InputError, match="must be at least 1"):
            check_window(start_epochs=start_epochs, span=span, epochs=9)
    check_window(start_epochs=8, span=2, epochs=9)


def test_draws_ahead_are_those_of_the_source(tmp_path):
    """In order, out of order and again; the next one is drawn before it is asked for."""

    class Source:
        walked = True

        def __init__(self):
            self.asked = []

        def draw(self, seed, it):
            self.asked.append(it)
            return Draw(theta=torch.full((3,), 10.0 * seed + it), target=None, expert=it, epoch=0)

    ahead = Ahead(Source())
    assert ahead.walked
    for seed, it in ((1, 0), (1, 1), (1, 2), (1, 7), (2, 8), (1, 3), (1, 3)):
        found = ahead.draw(seed, it)
        assert (found.expert, found.theta[0].item()) == (it, 10.0 * seed + it)
    own = Source()
    first = Ahead(own)
    first.draw(1, 4)
    first._thread.shutdown(wait=True)
    assert own.asked == [4, 5]
