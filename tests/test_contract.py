"""What every registered method promises; a new one only adds its settings to method_settings."""

from dataclasses import replace

import pytest
import torch

from method_settings import SMALL, WRONG
from potstill.artefact import Embedding, load
from potstill.core.errors import InputError
from potstill.core.spec import differences, from_json, spec_hash, to_json
from potstill.core.state import load_tree, save_tree
from potstill.core.store import Store
from potstill.data import open_data
from potstill.engine import Tasks, run_tasks
from potstill.functional import accuracy, fit
from potstill.methods import METHODS
from potstill.nets import NetSpec, flat
from potstill.run import Run, preflight

EVERY = pytest.mark.parametrize("name", METHODS.names())


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)


def ready(name, tmp_path, *, seed=0):
    """Do the phases of a method up to its loop; return the method and the loop's context."""
    method = SMALL[name]
    run = Run(
        method=method,
        data="digits",
        ipc=2,
        net=NetSpec(name="convnet2", width=8),
        seed=seed,
        limit=40,
        threads=1,
    )
    data = open_data(run.data, limit=run.limit)
    ctx, cost = preflight(run, data)
    ctx, done, steps = replace(ctx, store=Store(tmp_path / "store")), {}, 0
    while isinstance(phase := method.phases(ctx, done), Tasks) or phase.stage:
        if isinstance(phase, Tasks):
            done[phase.phase] = run_tasks(phase, ctx.store)
            continue
        looped = replace(ctx, nets=phase.nets, done=dict(done))
        assert phase.first == steps
        steps += phase.steps
        state, _ = walked(method, looped, method.init(looped), phase.first, steps)
        method.export(looped, state).save(tmp_path / phase.stage)
        done[phase.stage] = [tmp_path / phase.stage]
    assert phase.first == steps
    assert steps + phase.steps == cost.steps
    assert method.phases(ctx, {**done, "loop": []}) is None
    return method, replace(ctx, nets=phase.nets, done=done)


def bytes_of(state, folder):
    save_tree(folder / "tree", state)
    return (folder / "tree").read_bytes()


def walked(method, ctx, state, start, stop):
    seen = []
    for it in range(start, stop):
        state, numbers = method.step(ctx, state, it)
        seen.append(numbers)
    return state, seen


@EVERY
def test_small_settings_travel_as_json(name):
    method = SMALL[name]
    assert type(method) is METHODS.get(name)
    assert from_json(to_json(method)) == method
    assert spec_hash(from_json(to_json(method))) == spec_hash(method)
    assert from_json(to_json(METHODS.get(name)())) == METHODS.get(name)()


@EVERY
def test_the_state_continues_bit_for_bit_from_a_file(name, tmp_path):
    method, ctx = ready(name, tmp_path)
    whole, numbers = walked(method, ctx, method.init(ctx), 0, 6)
    half, first = walked(method, ctx, method.init(ctx), 0, 3)
    text = bytes_of(half, tmp_path)
    again = load_tree(tmp_path / "tree")
    assert bytes_of(again, tmp_path) == text
    method, fresh = ready(name, tmp_path)
    end, second = walked(method, fresh, again, 3, 6)
    assert bytes_of(end, tmp_path) == bytes_of(whole, tmp_path) != text
    assert first + second == numbers
    for row in numbers:
        assert all(torch.isfinite(torch.tensor(float(value))) for value in row.values())


@EVERY
def test_the_same_seed_gives_the_same_bytes(name, tmp_path):
    ends = []
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(len(ends))
        global_state = torch.random.get_rng_state()
        method, ctx = ready(name, tmp_path / folder, seed=seed)
        ends.append(bytes_of(walked(method, ctx, method.init(ctx), 0, 2)[0], tmp_path))
        assert torch.equal(torch.random.get_rng_state(), global_state)
    assert ends[0] == ends[1] != ends[2]


@EVERY
def test_a_step_does_not_change_its_input(name, tmp_path):
    method, ctx = ready(name, tmp_path)
    state, _ = walked(method, ctx, method.init(ctx), 0, 1)
    before = bytes_of(state, tmp_path)
    method.step(ctx, state, 1)
    assert bytes_of(state, tmp_path) == before


@EVERY
def test_the_export_saves_loads_and_trains_a_network(name, tmp_path):
    method, ctx = ready(name, tmp_path)
    state, _ = walked(method, ctx, method.init(ctx), 0, method.cost(ctx).steps)
    made = method.export(ctx, state)
    made.save(tmp_path / "set")
    back = load(tmp_path / "set")
    assert torch.equal(back.images, made.images)
    assert from_json(back.origin.method_spec) == method
    assert back.ipc == (2,) * 10
    test = ctx.data.test
    if isinstance(back.targets, Embedding):
        pretrains(back, test.pixels)
        return
    model = back.train("convnet2", seed=0)
    with torch.no_grad():
        hits = model(test.pixels).argmax(1) == test.labels
    untrained = accuracy(
        ctx.net, ctx.net.theta0, test.pixels, test.labels, prepare=ctx.space.forward
    )
    assert float(hits.float().mean()) > max(0.3, untrained + 0.1)


def pretrains(made, pictures):
    """Check that a network learns the features of a set, and gives its own."""
    losses, (x, y, _) = [], made.prepared()
    net = flat(made.net, channels=1, size=(8, 8), classes=y.shape[1], seed=0)
    given = {"seed": 0, "key": ("test",), "on_epoch": lambda *at: losses.append(at[2])}
    fit(net, net.theta0, x, y, made.recipe, **given)
    assert losses[-1] < 0.7 * losses[0]
    assert made.pretrain(seed=0)(pictures).shape == (len(pictures), 32)
    with pytest.raises(InputError, match="pretrain"):
        made.train("convnet2")


@EVERY
def test_scaled_methods_still_fit(name):
    for scale in ("smoke", "cpu"):
        for method in (METHODS.get(name)(), SMALL[name]):
            small = method.scaled(scale)
            assert type(small) is type(method)
            assert small.scaled(scale) == small
            for line in differences(to_json(method), to_json(small)):
                before, after = (int(n) for n in line.rpartition(": ")[2].split(" -> "))
                assert 0 < after < before


@pytest.mark.parametrize(
    ("name", "wrong"),
    [(name, wrong) for name in METHODS.names() for wrong in WRONG.get(name, [])],
    ids=str,
)
def test_wrong_settings_are_refused(name, wrong):
    ((field, value),) = wrong.items()
    with pytest.raises(InputError, match=rf"{field}.*{value}"):
        replace(SMALL[name], **wrong)
