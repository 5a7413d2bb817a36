"""Processes of torchrun share the outer steps: the bytes of one, one voice, no one left behind."""

import os
import subprocess
import sys

import pytest
import torch

from potstill.cli import run
from potstill.core.state import load_tree
from potstill.engine import Ranks, joined
from potstill.run.spent import Spent

COMMON = """--data digits --limit 20 --net.name convnet2 --net.width 8 --threads 1 --device cpu
--no-evaluate"""
PLAIN = f"""--method ratbptt --method.iterations 6 --method.tasks 2 --method.window.length 2
--method.window.total 4 --method.inner.lr 0.01 --method.real.batch 30 --method.evaluation-steps 5
--ipc 1 --select-every 2 {COMMON}"""
BOOSTED = f"""--method boost:ratbptt --method.base.iterations 3 --method.base.tasks 4
--method.base.labels raw --method.base.window.length 2 --method.base.window.total 4
--method.base.window.place adaptive --method.base.window.redraw step --method.base.inner.lr 0.01
--method.base.real.batch 30 --method.base.real.sampling hard --method.base.real.rescore-every 2
--method.base.real.rescore-nets 1 --method.base.evaluation-steps 5 --ipc 2 {COMMON}"""
WORKER = """
import os, signal
from potstill.cli import main
from potstill.methods.ratbptt import RaTBPTT

step = RaTBPTT.step

def broken(self, ctx, state, it):
    if it == 2 and os.environ["RANK"] == "1":
        {what}
    return step(self, ctx, state, it)

RaTBPTT.step = broken
main()
"""


@pytest.fixture(autouse=True)
def _alone(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path_factory.getbasetemp() / "ranks-cache"))
    torch.set_num_threads(1)


def distill(flags, out):
    return ["distill", *flags.split(), "--out", str(out)]


def two(*arguments):
    """Run potstill in two processes of torchrun (-m potstill, or a script)."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*start, *map(str, arguments)], env=env, capture_output=True, text=True, timeout=150
    )


def worker(folder, what):
    (folder / "worker.py").write_text(WORKER.format(what=what))
    return folder / "worker.py"


def words(done):
    return [line for line in done.stderr.splitlines() if line.startswith("potstill:")]


def same_as_one(flags, out):
    one = out.with_name("one")
    assert run(distill(flags, one)) == 0
    for name in ("distilled/set.safetensors", "metrics.jsonl", "config.json"):
        assert (out / name).read_bytes() == (one / name).read_bytes(), name


@pytest.mark.slow
def test_two_processes_equal_one_and_speak_once(tmp_path):
    out = tmp_path / "run"
    done = two("-m", "potstill", *distill(BOOSTED, out))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("digits: ") == done.stderr.count("distilled set: ") == 1
    same_as_one(BOOSTED, out)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_and_both_go_on(tmp_path):
    out, script = tmp_path / "run", worker(tmp_path, "os.kill(os.getpid(), signal.SIGINT)")
    stopped = two(script, *distill(PLAIN, out))
    assert stopped.returncode, stopped.stderr
    assert words(stopped) == [f"potstill: stopped; to go on: potstill resume {out}"]
    assert load_tree(out / "state" / "checkpoint.safetensors")["it"] == 3
    done = two("-m", "potstill", "resume", out, "--no-evaluate")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Going on at outer step 3 of 6.") == 1
    same_as_one(PLAIN, out)


@pytest.mark.slow
def test_a_failure_in_one_process_ends_both(tmp_path):
    out, script = tmp_path / "run", worker(tmp_path, "raise OSError('no such luck')")
    done = two(script, *distill(PLAIN, out))
    assert done.returncode != 0
    assert not (out / "distilled").exists()
    said = words(done)
    assert any("no such luck" in line for line in said)
    assert all("no such luck" in line or "Another process" in line for line in said)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--method ratbptt --method.tasks 3", "ratbptt, which has 3 tasks"),
        ("--method mtt", "mtt, which has 1 task:"),
    ],
)
def test_processes_must_divide_the_tasks(flags, said, tmp_path):
    out = tmp_path / "run"
    done = two("-m", "potstill", *distill(f"{flags} --ipc 1 {COMMON}", out))
    assert done.returncode != 0
    assert "exitcode  : 2" in done.stderr
    (line,) = words(done)
    assert f"2 processes cannot share an outer step of {said}" in line
    assert not out.exists()


def test_one_process_waits_for_nobody():
    alone, rows = joined(), torch.randn(3, 2)
    assert alone == Ranks()
    assert alone.gathered(rows) is rows
    assert alone.first(lambda: 4) == alone.in_turn(lambda: 4) == 4
    assert alone.total(2.5) == 2.5


def test_the_seconds_of_other_processes_count(tmp_path):
    spent = Spent(tmp_path / "spent.json")
    spent.add(1000.0)
    spent.save()
    assert 1000 <= Spent(tmp_path / "spent.json").total()["cpu_seconds"] < 1500


def test_tasks_are_dealt_out():
    assert [list(Ranks(r, 3).mine(6)) for r in range(3)] == [[0, 3], [1, 4], [2, 5]]
    assert list(Ranks().mine(3)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("line", "code"),
    [("methods", 0), ("distill --help", 0), ("distill --ipc x", 2)],
)
def test_only_the_first_process_speaks(line, code, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert run(line.split()) == code
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("RANK", "0")
    assert run(line.split()) == code
    assert any(capsys.readouterr())


def test_a_stray_number_of_processes_means_nothing(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.delenv("RANK", raising=False)
    assert joined() == Ranks()
