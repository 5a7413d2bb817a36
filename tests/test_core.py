"""The core room: keys, specs, registries, state trees, files, the store."""

import hashlib
import json
import multiprocessing
import os
import resource
from dataclasses import dataclass

import pytest
import torch

from potstill.core import keys
from potstill.core.errors import InputError, WorkError
from potstill.core.files import locked, replacing, replacing_folder, sweep, write_text
from potstill.core.registry import Registry
from potstill.core.spec import canonical, differences, from_json, record, spec_hash, to_json
from potstill.core.state import load_tree, save_tree
from potstill.core.store import Store, default_cache


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))


@record
@dataclass(frozen=True, kw_only=True)
class Leaf:
    name: str = "é"
    size: float = 0.1


@record
@dataclass(frozen=True, kw_only=True)
class Tree:
    count: int
    leaves: tuple[Leaf, ...] = (Leaf(), Leaf(name="b", size=1e-7))
    extra: dict | None = None


def numbers(*key):
    return torch.randint(2**40, (4,), generator=keys.generator(*key)).tolist()


def test_keyed_generators():
    assert numbers(3, "a", 1) == numbers(3, "a", 1)
    some = [(3,), (3, "a"), (4, "a"), (3, "a", 1), (3, "a", "1"), (3, 1, "a"), (3, "a1"), (31, "a")]
    assert len({tuple(numbers(*key)) for key in some}) == len(some)
    assert keys.integer(0, "golden", 1) == 8104560913366980270
    assert all(0 <= keys.integer(seed) < 2**63 for seed in range(-50, 50))


def test_the_global_generator_is_left_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    numbers(0, "x")
    with keys.forked(0, "x"):
        first = torch.randn(3)
    assert torch.equal(torch.random.get_rng_state(), before)
    with pytest.raises(ZeroDivisionError), keys.forked(0, "x"):
        _ = torch.randn(3), 1 / 0
    assert torch.equal(torch.random.get_rng_state(), before)
    with keys.forked(0, "x"):
        assert torch.equal(torch.randn(3), first)
    with keys.forked(0, "y"):
        assert not torch.equal(torch.randn(3), first)


def test_spec_round_trip_and_hash():
    spec = Tree(count=2, extra={"a": [1, None, True]})
    back = from_json(json.loads(json.dumps(to_json(spec))))
    assert back == Tree(count=2, extra={"a": (1, None, True)})
    assert type(back.leaves[1]) is Leaf
    assert spec_hash(spec) == spec_hash(back)
    assert canonical(Leaf()) == '{"name":"\\u00e9","size":0.1,"type":"Leaf"}'
    assert spec_hash(Leaf()) == hashlib.sha256(canonical(Leaf()).encode()).hexdigest()[:20]
    assert spec_hash(spec) == "507bfe0de521a49a1572"
    assert spec_hash(Tree(count=3)) != spec_hash(Tree(count=2))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"type": "Leef"}, "Unknown record 'Leef': did you mean 'Leaf'"),
        ({"type": ["Leaf"]}, "Unknown record"),
        ({"type": "Leaf", "sise": 1}, "Unknown field of Leaf 'sise': did you mean 'size'"),
        ({"type": "Tree"}, "incomplete.*count"),
        ({"type": "Tree", "count": 1, "leaves": [{"type": "Leaf", "x": 1}]}, "field of Leaf 'x'"),
    ],
)
def test_bad_specs_are_refused(data, words):
    with pytest.raises(InputError, match=words):
        from_json(data)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), torch.zeros(1), object(), {1}])
def test_a_spec_holds_json_only(value):
    with pytest.raises(InputError, match="A spec cannot hold"):
        to_json(Tree(count=1, extra={"a": value}))


def test_two_records_of_one_name_and_no_dataclass():
    other = dataclass(frozen=True)(type("Leaf", (), {"__module__": "elsewhere"}))
    with pytest.raises(InputError, match=r"Two records are named 'Leaf'.*elsewhere"):
        record(other)
    with pytest.raises(InputError, match="must be a dataclass"):
        record(type("Plain", (), {}))


def test_differences():
    old, new = to_json(Tree(count=1)), to_json(Tree(count=2, extra={"k": 1}))
    assert differences(old, new) == ["count: 1 -> 2", 'extra: null -> {"k": 1}']
    assert differences(old, old) == []
    herding, random = {"type": "Herding", "features": "own"}, {"type": "Random"}
    assert differences({"method": herding}, {"method": random}) == ["method: Herding -> Random"]


def test_registry():
    things = Registry("thing")
    things.add("alpha")(1)
    things.add("beta")(2)
    assert (things.get("alpha"), things.names()) == (1, ["alpha", "beta"])
    with pytest.raises(InputError, match="Unknown thing 'alfa': did you mean 'alpha'"):
        things.get("alfa")
    with pytest.raises(InputError, match="known: alpha, beta"):
        things.get("zzz")
    with pytest.raises(InputError, match="Two things are named 'alpha'"):
        things.add("alpha")(3)
    assert things.get("alpha") == 1


def state():
    x = torch.arange(6.0).view(2, 3)
    return {
        "images": (x, x.t()),
        "same": x,
        "odd": [torch.tensor(3), torch.empty(0, 2), torch.tensor([True, False])],
        "half": torch.ones(2, dtype=torch.bfloat16),
        "plain": {"a": None, "b": [1, 2.5, "é"], "empty": (), "flag": True},
    }


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


def test_state_tree_round_trip(tmp_path):
    save_tree(tmp_path / "s", state())
    assert equal(load_tree(tmp_path / "s"), state())
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_tensors_that_are_read_begin_where_those_of_torch_do(tmp_path):
    tree = {f"t{n}": torch.arange(float(n)) for n in range(1, 60)}
    save_tree(tmp_path / "s", tree)
    read = load_tree(tmp_path / "s")
    assert {t.data_ptr() % 64 for t in (*tree.values(), *read.values())} == {0}
    assert equal(read, tree)


def test_a_state_tree_is_stable_in_its_bytes(tmp_path):
    seen = set()
    for _ in range(30):
        save_tree(tmp_path / "s", state())
        seen.add((tmp_path / "s").read_bytes())
    assert len(seen) == 1


@pytest.mark.parametrize("tree", [{"a": object()}, {1: torch.zeros(1)}, [{2, 3}]])
def test_a_state_tree_refuses_other_things(tmp_path, tree):
    with pytest.raises(TypeError):
        save_tree(tmp_path / "s", tree)
    assert not list(tmp_path.iterdir())


def test_truncated_and_altered_states_are_refused(tmp_path):
    path = tmp_path / "s"
    save_tree(path, {"x": torch.arange(3.0), "n": 1})
    whole = path.read_bytes()
    for cut in range(0, len(whole), 7):
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError, match="truncated"):
            load_tree(path)
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(InputError, match=r"truncated|altered"):
            load_tree(path)
    with pytest.raises(InputError, match="no file"):
        load_tree(tmp_path / "absent")


def test_a_full_disk_is_a_work_error_and_keeps_the_old_file(tmp_path):
    save_tree(tmp_path / "s", {"n": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(WorkError, match="Cannot write"):
            save_tree(tmp_path / "s", {"x": torch.zeros(10_000)})
        with pytest.raises(WorkError, match="Cannot write"):
            write_text(tmp_path / "t", "x" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert load_tree(tmp_path / "s") == {"n": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_atomic_replace_survives_a_crash_in_the_block(tmp_path):
    file, folder = tmp_path / "f", tmp_path / "d"
    write_text(file, "old")
    with replacing_folder(folder) as temporary:
        write_text(temporary / "a", "old")
    with pytest.raises(ZeroDivisionError), replacing(file) as temporary:
        _ = temporary.write_text("half") / 0
    with pytest.raises(ZeroDivisionError), replacing_folder(folder) as temporary:
        _ = (temporary / "b").write_text("half") / 0
    assert file.read_text() == "old"
    assert [p.name for p in folder.iterdir()] == ["a"]
    with replacing_folder(folder) as temporary:
        write_text(temporary / "c", "new")
    assert [p.name for p in folder.iterdir()] == ["c"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d", "f"]


def _die_inside(path):
    with replacing(path / "f") as temporary, replacing_folder(path / "d") as folder:
        temporary.write_text("half")
        (folder / "b").write_text("half")
        os._exit(9)


def test_a_killed_writer_leaves_the_old_file_and_sweep_tidies(tmp_path):
    write_text(tmp_path / "f", "old")
    child = multiprocessing.get_context("spawn").Process(target=_die_inside, args=(tmp_path,))
    child.start()
    child.join()
    assert child.exitcode == 9
    assert (tmp_path / "f").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 3
    sweep(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
    (tmp_path / ".d.12345678.old").mkdir()
    sweep(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d", "f"]


def _hold(folder, ready, go):
    with locked(folder):
        ready.set()
        go.wait(20)


def test_a_lock_between_two_processes(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    ready, go = spawn.Event(), spawn.Event()
    child = spawn.Process(target=_hold, args=(tmp_path, ready, go))
    child.start()
    assert ready.wait(60)
    with pytest.raises(InputError, match="Another process is working"), locked(tmp_path):
        pass
    child.kill()
    child.join()
    with locked(tmp_path):
        pass


def test_store(tmp_path):
    store, spec, calls = Store(tmp_path), Tree(count=1), []

    def work(folder):
        calls.append(folder)
        (folder / "out").write_text("result")

    assert not store.has("kind", spec)
    with pytest.raises(ZeroDivisionError):
        store.put("kind", spec, lambda folder: work(folder) or 1 / 0)
    assert not store.has("kind", spec)
    folder = store.put("kind", spec, work)
    assert folder == tmp_path / "kind" / spec_hash(spec) == store.verify("kind", spec)
    assert store.has("kind", spec)
    assert not store.has("kind", Tree(count=2))
    assert not store.has("other", spec)
    assert not any(path.exists() for path in calls)
    done = json.loads((folder / "done.json").read_text())
    assert from_json(done["spec"]) == spec
    for change in (lambda f: f.write_text("resulT"), lambda f: f.unlink()):
        change(folder / "out")
        with pytest.raises(InputError, match=r"truncated or altered.*remove"):
            store.verify("kind", spec)
        store.put("kind", spec, work)
        assert store.verify("kind", spec) == folder


def test_the_cache_folder(tmp_path, monkeypatch):
    assert default_cache() == tmp_path / "cache"
    monkeypatch.delenv("POTSTILL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "potstill"
