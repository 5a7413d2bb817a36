"""The store between processes: one does the work, the dead hold nothing, leftovers go."""

import json
import multiprocessing
import os
import shutil
import signal
import time
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path

import pytest

from potstill.core.errors import InputError, WorkError
from potstill.core.files import holding
from potstill.core.spec import canonical, record, spec_hash
from potstill.core.store import Store, faults, need_room

SPAWN = multiprocessing.get_context("spawn")


@record
@dataclass(frozen=True, kw_only=True)
class Job:
    number: int = 0
    rate: float = 0.5
    rates: tuple[float, ...] = (0.5,)
    bound: float | None = None
    count: int | float = 1


def _make(root: Path, spec: Job, seconds: float) -> None:
    """Do a slow job that notes its process in `root/log`."""

    def work(folder: Path) -> None:
        with open(root / "log", "a") as log:
            log.write(f"{os.getpid()}\n")
        (folder / "half").write_text("half")
        time.sleep(seconds)
        (folder / "out").write_text("whole")

    Store(root / "store").put("jobs", spec, work)


def started(root: Path, number: int, seconds: float = 30) -> None:
    for _ in range(int(seconds / 0.02)):
        if (root / "log").is_file() and len((root / "log").read_text().splitlines()) >= number:
            return
        time.sleep(0.02)
    raise AssertionError("no worker began")


def process(root: Path, spec: Job, seconds: float):
    child = SPAWN.Process(target=_make, args=(root, spec, seconds))
    child.start()
    return child


def names(folder: Path) -> set[str]:
    return {item.name for item in folder.iterdir()}


def test_two_processes_do_the_same_work_once(tmp_path):
    children = [process(tmp_path, Job(), 1.0) for _ in range(3)]
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    assert len((tmp_path / "log").read_text().splitlines()) == 1
    assert names(tmp_path / "store" / "jobs") == {spec_hash(Job())}


def test_different_work_does_not_wait(tmp_path):
    children = [process(tmp_path, Job(number=n), 60) for n in range(2)]
    try:
        started(tmp_path, 2)
    finally:
        for child in children:
            child.kill()
            child.join()


def test_a_killed_process_holds_nothing_and_its_leftovers_go(tmp_path):
    folder, other = tmp_path / "store" / "jobs", Job(number=1)
    children = [process(tmp_path, spec, 60) for spec in (Job(), other)]
    started(tmp_path, 2)
    store, name = Store(tmp_path / "store"), spec_hash(Job())
    assert sorted(map(spec_hash, store.tidy("jobs"))) == sorted([name, spec_hash(other)])
    assert len([n for n in names(folder) if n.endswith(".tmp")]) == 2  # the living keep theirs
    for child in children:
        os.kill(child.pid, signal.SIGKILL)
        child.join()
    assert len(names(folder)) == 4
    began = time.monotonic()
    _make(tmp_path, Job(), 0)
    assert time.monotonic() - began < 5
    assert {n for n in names(folder) if name in n} == {name}
    assert store.tidy("jobs") == []
    assert names(folder) == {name}
    assert store.verify("jobs", Job()) == folder / name


def test_waiting_then_finding_the_first_dead_does_the_work(tmp_path):
    first = process(tmp_path, Job(), 60)
    started(tmp_path, 1)
    second = process(tmp_path, Job(), 0)
    time.sleep(1.5)
    assert second.is_alive()
    assert not Store(tmp_path / "store").has("jobs", Job())
    first.kill()
    second.join(30)
    assert second.exitcode == 0
    assert len((tmp_path / "log").read_text().splitlines()) == 2
    assert names(tmp_path / "store" / "jobs") == {spec_hash(Job())}


def test_sound_work_is_not_done_again_and_damaged_work_is(tmp_path):
    store, calls = Store(tmp_path), []

    def work(folder: Path) -> None:
        calls.append(folder)
        (folder / "out").write_text("result")

    for _ in range(2):
        folder = store.put("jobs", Job(), work)
        assert len(calls) == 1
    (folder / "out").write_text("resulT")
    assert faults(folder) == ["out"]
    store.put("jobs", Job(), work)
    assert len(calls) == 2
    assert faults(folder) == []
    text = (folder / "done.json").read_text()
    (folder / "done.json").write_text(text.replace('"number": 0', '"number": 1'))
    assert faults(folder) == ["done.json"]
    (folder / "done.json").write_text("[]")
    assert faults(folder) == ["done.json"]


def test_a_lock_that_was_removed_is_not_held(tmp_path):
    lock = tmp_path / "lock"
    with holding(lock, wait=True, note="first"):
        assert lock.read_text() == "first"
        with pytest.raises(InputError, match="Another process"), holding(lock, wait=False):
            pass
    assert not lock.exists()
    (tmp_path / "file").touch()
    beneath = holding(tmp_path / "file" / "lock", wait=True)
    with pytest.raises(WorkError, match="Cannot write"), beneath:
        pass


def test_entries_and_removal(tmp_path):
    store = Store(tmp_path)
    assert store.entries("jobs") == []
    for number in range(2):
        store.put("jobs", Job(number=number), lambda to: (to / "out").write_bytes(b"x" * 1000))
    foreign = tmp_path / "jobs" / "notes"
    foreign.mkdir()
    (foreign / "done.json").write_text("{}")
    (tmp_path / "jobs" / "stray.txt").write_text("")
    found = {entry.folder.name: entry for entry in store.entries("jobs")}
    assert set(found) == {spec_hash(Job()), spec_hash(Job(number=1)), "notes"}
    assert found["notes"].spec is None
    assert found[spec_hash(Job(number=1))].spec["number"] == 1
    assert 1000 < found[spec_hash(Job())].nbytes < 2000
    folder = found[spec_hash(Job())].folder
    with (
        holding(tmp_path / "jobs" / f".{folder.name}.lock", wait=True),
        pytest.raises(InputError, match="Another process"),
    ):
        store.remove(folder)
    assert store.has("jobs", Job())
    store.remove(folder)
    store.remove(foreign)
    assert names(tmp_path / "jobs") == {spec_hash(Job(number=1)), "stray.txt"}
    with pytest.raises(WorkError, match="Cannot remove"):
        store.remove(folder)


def test_a_full_disk_is_said_before_anything_starts(tmp_path, monkeypatch):
    store, specs = Store(tmp_path / "not" / "yet"), [Job(number=n) for n in range(4)]
    usage, asked = namedtuple("usage", "total used free"), []

    def disk(path):
        asked.append(path)
        return usage(0, 0, 3 * 2**30)

    monkeypatch.setattr(shutil, "disk_usage", disk)
    store.need_room("jobs", specs, 3 * 2**30)
    with pytest.raises(InputError, match=r"need 4 GiB, and .*yet has only 3 GiB.*--store"):
        store.need_room("jobs", specs, 4 * 2**30)
    assert set(asked) == {tmp_path}
    store.put("jobs", specs[2], lambda folder: (folder / "out").touch())
    store.need_room("jobs", specs, 4 * 2**30)  # a quarter of it is there
    with pytest.raises(InputError, match=r"files still to be made need 5.5 GiB"):
        need_room(tmp_path, 11 * 2**29)


def test_whole_numbers_in_float_fields_have_one_name():
    whole = Job(rate=1, rates=(1, 2), bound=3)  # type: ignore[arg-type]
    exact = Job(rate=1.0, rates=(1.0, 2.0), bound=3.0)
    assert canonical(whole) == canonical(exact)
    text = json.loads(canonical(whole))
    assert (str(text["rate"]), str(text["rates"]), str(text["bound"])) == (
        "1.0",
        "[1.0, 2.0]",
        "3.0",
    )
    assert str(text["count"]) == "1"  # an int is allowed there
    assert str(text["number"]) == "0"
    assert canonical(Job()) == (
        '{"bound":null,"count":1,"number":0,"rate":0.5,"rates":[0.5],"type":"Job"}'
    )
