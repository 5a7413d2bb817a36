"""Experts of other code: read as plain tensors, checked, kept as a pool, used by a run."""

import os
import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn

from potstill.core.compute import Compute
from potstill.core.errors import InputError
from potstill.core.spec import from_json, to_json
from potstill.core.store import Store
from potstill.data import make_space, measure_stats, open_data
from potstill.engine import run_tasks
from potstill.experts import (
    ExpertPlan,
    Trajectory,
    epochs_of,
    expert_tasks,
    find_pool,
    import_experts,
    pools,
)
from potstill.methods.mtt import MTT
from potstill.nets import FlatNet, NetSpec, build
from potstill.run import Run, Where, distil, preflight

NET = NetSpec(name="convnet2", width=4)
PLAN = ExpertPlan(count=3, epochs=3, lr=0.05, batch=64)
METHOD = MTT(
    iterations=3,
    steps=2,
    expert_epochs=1,
    max_start_epoch=2,
    lr_img=10.0,
    lr_lr=1e-4,
    lr_init=0.05,
    evaluation_epochs=2,
    experts=PLAN,
)
RUN = Run(method=METHOD, data="digits", ipc=1, net=NET, limit=20, threads=1)


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)


@pytest.fixture
def data():
    return open_data("digits", limit=20)


@pytest.fixture
def net(data):
    return FlatNet(build(NET, channels=1, size=data.size, classes=10, seed=0))


def snapshots(net, rows, wrap=lambda tensor: tensor.clone()):
    """Return the rows of an expert as the lists of tensors that the files hold."""
    return [[wrap(view) for view in net.views(row).values()] for row in rows]


def rows_of(expert):
    return torch.stack([expert.row(epoch) for epoch in range(expert.shape[0])])


def some(net, count=2, epochs=2, seed=0):
    chance = torch.Generator().manual_seed(seed)
    return [0.1 * torch.randn(epochs + 1, net.numel, generator=chance) for _ in range(count)]


def bring(files, data, store, net=NET, space=None, **options):
    space = space or measure_stats(data.train)
    return import_experts(files, data=data, space=space, net=net, store=store, **options)


def test_a_run_with_imported_experts_equals_one_with_its_own(data, net, tmp_path):
    own, other = Where(store=tmp_path / "own"), Where(store=tmp_path / "other")
    trained = distil(RUN, tmp_path / "a", where=own)
    ctx, _ = preflight(RUN, data)
    folders = run_tasks(METHOD.phases(ctx, {}), own.open_store())
    experts = [snapshots(net, rows_of(Trajectory(folder))) for folder in folders]
    files = [tmp_path / "replay_buffer_0.pt", tmp_path / "replay_buffer_1.pt"]
    torch.save(experts[:2], files[0])
    torch.save(experts[2:], files[1])
    seen = []
    store = other.open_store()
    made = bring(files, data, store, lr=0.05, on_done=lambda *n: seen.append(n))
    assert (made.count, made.epochs, seen) == (3, 3, [(1, 3), (2, 3), (3, 3)])
    facts = [Trajectory(folder).facts for folder in folders]
    assert made.accuracy == facts[0]["validation_accuracy"]
    (pool,) = pools(store)
    assert (pool.name, pool.indices, pool.last_epoch()) == (made.pool, [0, 1, 2], 3)
    assert [Trajectory(e.folder).facts["source"] for e in pool.entries] == [
        *["replay_buffer_0.pt"] * 2,
        "replay_buffer_1.pt",
    ]
    plan = replace(PLAN, imported=made.pool[:8], epochs=1)
    run = replace(RUN, method=replace(METHOD, experts=plan))
    imported = distil(run, tmp_path / "b", where=other)
    assert torch.equal(imported.images, trained.images)
    assert imported.recipe == trained.recipe
    assert bring(files, data, store) == made
    with pytest.raises(InputError, match=r"max_start|need experts of 4 epochs; these have 3"):
        preflight(
            replace(run, method=replace(run.method, max_start_epoch=4)),
            data,
            store=other.open_store(),
        )


FORMS = {
    "parameters": (nn.Parameter, {}),
    "old format": (torch.clone, {"_use_new_zipfile_serialization": False}),
    "old parameters": (nn.Parameter, {"_use_new_zipfile_serialization": False}),
    "double": (torch.Tensor.double, {}),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_files(form, data, net, tmp_path):
    wrap, options = FORMS[form]
    wanted = some(net)
    torch.save([snapshots(net, rows, wrap) for rows in wanted], tmp_path / "f.pt", **options)
    made = bring([tmp_path / "f.pt"], data, Store(tmp_path / "store"))
    (pool,) = pools(Store(tmp_path / "store"))
    found = [rows_of(Trajectory(entry.folder)) for entry in pool.entries]
    assert (made.count, made.epochs) == (2, 2)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert all(rows.dtype == torch.float32 for rows in found)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a torch that sees no GPU")
@pytest.mark.parametrize("new", [True, False])
def test_tensors_that_were_saved_on_a_gpu(new, data, net, tmp_path, monkeypatch):
    wanted = some(net)
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        experts = [snapshots(net, rows) for rows in wanted]
        torch.save(experts, tmp_path / "f.pt", _use_new_zipfile_serialization=new)
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(tmp_path / "f.pt", weights_only=True)
    bring([tmp_path / "f.pt"], data, Store(tmp_path / "store"))
    (pool,) = pools(Store(tmp_path / "store"))
    assert torch.equal(rows_of(Trajectory(pool.entries[1].folder)), wanted[1])


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("taken-over",)


def changed(net, change, expert=1, epoch=2):
    """Return two experts of which one snapshot is changed."""
    experts = [snapshots(net, rows) for rows in some(net)]
    experts[expert][epoch] = change(experts[expert][epoch])
    return experts


def spoilt(tensors, value):
    tensors[3] = torch.full_like(tensors[3], value)
    return tensors


BAD = {
    "empty": (lambda net: [], "must hold a list of experts, not a list of 0"),
    "a dict": (lambda net: {"a": torch.zeros(1)}, "must hold a list of experts, not a dict of 1"),
    "a tensor": (lambda net: torch.zeros(2), "must hold a list of experts, not a Tensor"),
    "no snapshots": (lambda net: [[]], r"expert 0 must be a list of at least 2 .* a list of 0"),
    "one snapshot": (
        lambda net: [snapshots(net, some(net)[0])[:1]],
        "expert 0 must be a list of at least 2 snapshots",
    ),
    "state dicts": (
        lambda net: changed(net, lambda t: {"w": t[0]}),
        "expert 1, epoch 2 must be a list of tensors, not a dict of 1",
    ),
    "a number": (
        lambda net: changed(net, lambda t: [*t[:4], 3.0]),
        "epoch 2: parameter 4 must be a tensor, not a float",
    ),
    "too few": (
        lambda net: changed(net, lambda t: t[:-1]),
        r"parameter 9 of convnet2 width 4 should be classifier.bias \[10\], the file has nothing",
    ),
    "too many": (
        lambda net: changed(net, lambda t: [*t, t[0]]),
        r"parameter 10 of .* should be nothing, the file has \[4, 1, 3, 3\]",
    ),
    "another shape": (
        lambda net: changed(net, lambda t: [t[0], t[1][:2], *t[2:]]),
        r"expert 1, epoch 2: parameter 1 of .* features.0.bias \[4\], the file has \[2\].*--net",
    ),
    "whole numbers": (
        lambda net: changed(net, lambda t: [t[0].long(), *t[1:]]),
        "parameter 0 has the type torch.int64, not float",
    ),
    "sparse": (
        lambda net: changed(net, lambda t: [t[0].to_sparse(), *t[1:]]),
        "parameter 0 is not a plain tensor that holds its numbers",
    ),
    "no numbers": (
        lambda net: changed(net, lambda t: [t[0].to("meta"), *t[1:]]),
        "parameter 0 is not a plain tensor that holds its numbers",
    ),
    "NaN": (lambda net: changed(net, lambda t: spoilt(t, float("nan"))), "epoch 2 .* not finite"),
    "infinity": (
        lambda net: changed(net, lambda t: spoilt(t, float("inf")), 0, 0),
        "expert 0, epoch 0 holds numbers that are not finite",
    ),
    "lengths": (
        lambda net: [snapshots(net, some(net)[0]), snapshots(net, some(net, epochs=3)[0])],
        r"expert 0 has 2 epochs but .*expert 1 has 3",
    ),
    "code": (lambda net: [Hostile()], r"asks for (posix|os)\.mkdir; only lists of plain tensors"),
    "arrays": (
        lambda net: changed(net, lambda t: [x.numpy() for x in t]),
        "asks for numpy.*only lists of plain tensors",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_refused_and_leave_nothing(kind, data, net, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, words = BAD[kind]
    good, bad = tmp_path / "good.pt", tmp_path / "bad.pt"
    torch.save([snapshots(net, rows) for rows in some(net)], good)
    torch.save(make(net), bad)
    store = Store(tmp_path / "store")
    with pytest.raises(InputError, match=words) as caught:
        bring([good, bad], data, store)
    assert str(bad) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)
    assert pools(store) == []
    assert not (tmp_path / "taken-over").exists()


def test_files_of_other_kinds(data, net, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good, store = tmp_path / "good.pt", Store(tmp_path / "store")
    torch.save([snapshots(net, rows) for rows in some(net)], good)
    (tmp_path / "text.pt").write_text("no tensors")
    (tmp_path / "void.pt").write_bytes(b"")
    (tmp_path / "cut.pt").write_bytes(good.read_bytes()[:-200])
    (tmp_path / "raw.pt").write_bytes(pickle.dumps([Hostile()], protocol=4))
    altered = good.read_bytes()
    number = some(net)[1][2, -1:].numpy().tobytes()
    assert altered.count(number) == 1
    (tmp_path / "altered.pt").write_bytes(altered.replace(number, bytes(4)))
    (tmp_path / "old.pt").write_bytes(pickle.dumps([Hostile()], protocol=2))
    for name in ("text", "void", "cut", "altered", "raw"):
        with pytest.raises(InputError, match=f"{name}.pt is damaged or not a file") as caught:
            bring([tmp_path / f"{name}.pt"], data, store)
        assert not isinstance(caught.value.__cause__, Warning)  # torch warns of some of them
    with pytest.raises(InputError, match=r"old\.pt asks for"):
        bring([tmp_path / "old.pt"], data, store)
    for lr in (0.0, float("nan")):
        with pytest.raises(InputError, match=f"lr must be above 0, not {lr}"):
            bring([good], data, store, lr=lr)
    assert not (tmp_path / "taken-over").exists()
    with pytest.raises(InputError, match=r"There is no file .*absent\.pt"):
        bring([tmp_path / "absent.pt"], data, store)
    (tmp_path / "again.pt").write_bytes(good.read_bytes())
    with pytest.raises(InputError, match=r"again\.pt holds the same experts as .*good\.pt"):
        bring([good, tmp_path / "again.pt"], data, store)
    with pytest.raises(InputError, match="Name the files"):
        bring([], data, store)
    assert pools(store) == []


def test_a_pool_serves_only_what_it_was_imported_for(data, net, tmp_path):
    store, space = Store(tmp_path / "store"), measure_stats(data.train)
    torch.save([snapshots(net, rows) for rows in some(net, 3)], tmp_path / "f.pt")
    made = bring([tmp_path / "f.pt"], data, store)
    plan = ExpertPlan(count=2, imported=made.pool)

    def tasks(plan=plan, data=data, space=space, net=NET, store=store):
        return expert_tasks(plan, data, space, net, seed=0, compute=Compute(threads=1), store=store)

    assert [spec.index for spec in tasks().specs] == [0, 1]
    assert from_json(to_json(tasks().specs[1])) == tasks().specs[1]
    assert run_tasks(tasks(), store) == [e.folder for e in find_pool(store, made.pool).entries[:2]]
    assert epochs_of(plan, store) == 2
    assert epochs_of(replace(plan, imported=None)) == plan.epochs
    validated = open_data("digits", limit=10, validation=0.2)
    assert tasks(data=validated).specs == tasks().specs  # the same images, cut otherwise
    trained = run_tasks(tasks(replace(PLAN, count=1)), store)[0].name
    for change, words in (
        ({"plan": replace(plan, imported="zz")}, "no pool 'zz' in"),
        ({"plan": replace(plan, imported="")}, "no pool ''"),
        ({"plan": replace(plan, imported=trained)}, f"{trained} was not imported"),
        ({"plan": replace(plan, count=5)}, "are 3, and 2 of the first 5 are missing"),
        ({"net": replace(NET, width=8)}, "are convnet2 width 4, not convnet2 width 8"),
        ({"net": replace(NET, act="leaky")}, "not convnet2 width 4 act leaky"),
        ({"space": replace(space, std=(1.0,))}, "another normaliser"),
        ({"space": make_space("zca-mtt", data)}, "another normaliser.*not zca-mtt"),
        ({"data": open_data("standin:1x8x2")}, "other images than standin:1x8x2"),
        ({"store": Store(tmp_path / "else")}, "no pool"),
    ):
        with pytest.raises(InputError, match=words):
            tasks(**change)


def test_a_full_disk_is_said_first(data, net, tmp_path, monkeypatch):
    import shutil
    from collections import namedtuple

    torch.save([snapshots(net, rows) for rows in some(net)], tmp_path / "f.pt")
    usage = namedtuple("usage", "total used free")(0, 0, 100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    store = Store(tmp_path / "store")
    with pytest.raises(InputError, match="experts still to be made need"):
        bring([tmp_path / "f.pt"], data, store)
    assert pools(store) == []
    with pytest.raises(InputError, match="experts still to be made need"):
        distil(RUN, tmp_path / "run", where=Where(store=store.root))
    assert not (tmp_path / "run").exists()
