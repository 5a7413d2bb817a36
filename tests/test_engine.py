"""The engine: same results for any number of workers, finished work skipped, failures named."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from potstill.core.compute import Compute
from potstill.core.errors import InputError, WorkError
from potstill.core.log import Console
from potstill.core.spec import record
from potstill.core.store import Store
from potstill.engine import Tasks, progress, run_tasks


@record
@dataclass(frozen=True, kw_only=True)
class SquareSpec:
    number: int
    compute: Compute = Compute(threads=1)


@record
@dataclass(frozen=True, kw_only=True)
class PlainSpec:
    number: int


def square(spec: SquareSpec, context: dict[str, str], folder: Path) -> None:
    if spec.number == 99:
        raise KeyError("ninety-nine")
    if spec.number == 98:
        raise InputError("98 is too large.")
    if spec.number == 97:
        os._exit(3)
    if "log" in context:
        with open(context["log"], "a") as log:
            log.write(f"{spec.number}\n")
    (folder / "out.txt").write_text(f"{spec.number**2} {torch.get_num_threads()}")


def outputs(paths: list[Path]) -> list[str]:
    return [(path / "out.txt").read_text() for path in paths]


def tasks(*numbers: int, log: Path | None = None) -> Tasks:
    context = {} if log is None else {"log": str(log)}
    specs = tuple(SquareSpec(number=n) for n in numbers)
    return Tasks(kind="squares", fn=square, specs=specs, context=context, label="square")


def test_inline_keeps_order_skips_finished_and_restores_threads(tmp_path):
    store, log, seen = Store(tmp_path / "store"), tmp_path / "log", []
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run_tasks(tasks(3, 1, log=log), store)
        paths = run_tasks(
            tasks(2, 3, 1, 2, log=log), store, on_done=lambda done, n: seen.append((done, n))
        )
        assert torch.get_num_threads() == 2
        plain = Tasks(kind="plain", fn=square, specs=(PlainSpec(number=5),))
        assert outputs(run_tasks(plain, store)) == ["25 2"]
    finally:
        torch.set_num_threads(before)
    assert outputs(paths) == ["4 1", "9 1", "1 1", "4 1"]
    assert log.read_text().split() == ["3", "1", "2"]
    assert seen == [(3, 3)]


def stepping(spec: SquareSpec, context: dict[str, str], folder: Path) -> None:
    for k in range(4):
        progress(k + 1, 4, "epoch")
    square(spec, context, folder)


def test_a_task_tells_how_far_it_is_where_it_is_done_inline(tmp_path, capsys):
    told = []
    tell = {"on_done": lambda done, n: told.append(done)}
    tell["on_part"] = lambda done, what: told.append((done, what))
    two = replace(tasks(1, 2), fn=stepping)
    run_tasks(replace(two, specs=two.specs[:1]), Store(tmp_path / "a"), **tell)
    assert told == [(0.25, "epoch 1 of 4"), (0.5, "epoch 2 of 4"), (0.75, "epoch 3 of 4"), 1]
    told.clear()
    run_tasks(two, Store(tmp_path / "a"), **tell)
    assert told == [(1.25, "epoch 1 of 4"), (1.5, "epoch 2 of 4"), (1.75, "epoch 3 of 4"), 2]
    told.clear()
    run_tasks(two, Store(tmp_path / "b"), engine="processes", workers=1, **tell)
    assert told == [1, 2]
    progress(1, 4, "epoch")  # outside a task nobody listens
    assert told == [1, 2]
    with Console().phase("teacher", 1) as advance:
        run_tasks(two, Store(tmp_path / "c"), on_part=advance)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "teacher: 0/1, about 0 s left  epoch 1 of 4"
    assert lines[2].endswith("left  epoch 3 of 4")


def test_processes_give_the_same_and_failures_come_after_the_others(tmp_path):
    inline, pooled = Store(tmp_path / "a"), Store(tmp_path / "b")
    with pytest.raises(WorkError, match=r"square 1 of 3 \(\w+\) failed: KeyError: 'ninety-nine'"):
        run_tasks(tasks(99, 4, 5), pooled, engine="processes", workers=2)
    assert pooled.has("squares", SquareSpec(number=4))
    assert not list((tmp_path / "b" / "squares").glob(".*"))
    with pytest.raises(WorkError, match="worker process died"):
        run_tasks(tasks(97), pooled, engine="processes", workers=1)
    same = [
        outputs(run_tasks(tasks(4, 5, 6), inline)),
        outputs(run_tasks(tasks(4, 5, 6), pooled, engine="processes", workers=2)),
    ]
    assert same[0] == same[1] == ["16 1", "25 1", "36 1"]


def test_inline_failures_and_wrong_settings(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(InputError, match=r"square 2 of 2 .*98 is too large"):
        run_tasks(tasks(1, 98), store)
    with pytest.raises(WorkError, match="KeyError"):
        run_tasks(tasks(99), store)
    assert not list((tmp_path / "squares").glob(".*"))
    with pytest.raises(InputError, match="did you mean 'processes'"):
        run_tasks(tasks(1), store, engine="process")
    for engine, workers in (("inline", 2), ("processes", 0)):
        with pytest.raises(InputError, match=f"not {workers} for {engine!r}"):
            run_tasks(tasks(1), store, engine=engine, workers=workers)


def sleeping(tmp_path: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Start a process with one busy worker; return it and the worker's number."""
    script = tmp_path / "slow.py"
    script.write_text(
        textwrap.dedent("""
        import os, sys, time
        from pathlib import Path
        from potstill.core.spec import record
        from potstill.core.store import Store
        from potstill.engine import Tasks, run_tasks
        from dataclasses import dataclass

        @record
        @dataclass(frozen=True, kw_only=True)
        class SleepSpec:
            number: int

        def sleep(spec, context, folder):
            Path(context["at"]).write_text(f"{os.getpid()}.")
            time.sleep(60)

        if __name__ == "__main__":
            root = Path(sys.argv[1])
            specs = tuple(SleepSpec(number=n) for n in range(4))
            context = {"at": str(root / "started")}
            tasks = Tasks(kind="sleep", fn=sleep, specs=specs, context=context)
            try:
                run_tasks(tasks, Store(root), engine="processes", workers=1)
            except KeyboardInterrupt:
                sys.exit(130)
        """)
    )
    run = subprocess.Popen([sys.executable, str(script), str(tmp_path)], start_new_session=True)
    started = tmp_path / "started"
    while not started.exists() or not started.read_text().endswith("."):
        assert run.poll() is None
        time.sleep(0.05)
    return run, int(started.read_text()[:-1])


def ended(process: int) -> bool:
    for _ in range(200):
        try:
            os.kill(process, 0)
            if Path(f"/proc/{process}/stat").read_text().split()[2] == "Z":
                return True  # ended, and nobody reaps orphans here
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False


def test_interrupt_ends_the_workers_and_leaves_no_rubbish(tmp_path):
    run, worker = sleeping(tmp_path)
    os.killpg(run.pid, signal.SIGINT)
    assert run.wait(timeout=20) == 130
    assert not list((tmp_path / "sleep").iterdir())
    assert ended(worker)


def test_workers_end_with_a_killed_parent(tmp_path):
    run, worker = sleeping(tmp_path)
    run.kill()
    run.wait()
    assert ended(worker)
