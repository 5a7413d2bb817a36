"""Runs that are killed, stopped, tampered with, doubled and resumed end with the same bytes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import potstill.run.runner as runner
import potstill.run.select as select
import potstill.run.shared as shared
from potstill.artefact import load
from potstill.core.errors import InputError
from potstill.core.files import locked, write_json
from potstill.core.log import Metrics, Quiet
from potstill.core.spec import canonical
from potstill.core.state import load_tree, save_tree
from potstill.evaluation import evaluate
from potstill.experts import ExpertPlan
from potstill.methods.mtt import MTT
from potstill.nets import NetSpec
from potstill.run import Interrupted, Run, Where, distil, recorded_plan, resume

RUNNER = "potstill.run.runner"

STEPS = 6


def tiny(*, select_every: int = 0, seed: int = 0, iterations: int = STEPS, **changes) -> Run:
    method = MTT(
        iterations=iterations,
        steps=2,
        expert_epochs=1,
        max_start_epoch=2,
        batch_syn=6,
        lr_img=10.0,
        lr_lr=1e-4,
        lr_init=0.05,
        evaluation_epochs=2,
        experts=ExpertPlan(count=2, epochs=2, lr=0.05, batch=64),
    )
    run = Run(
        method=method,
        data="digits",
        ipc=1,
        net=NetSpec(name="convnet2", width=4),
        limit=20,
        threads=1,
        seed=seed,
        select_every=select_every,
        select_nets=1,
    )
    return replace(run, **changes)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return folders of uninterrupted runs, without and with selection."""
    base = tmp_path_factory.mktemp("whole")
    where = Where(store=base / "store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POTSTILL_CACHE", str(base / "cache"))
        for every in (0, 3):
            distil(tiny(select_every=every), base / str(every), where=where)
    return {every: base / str(every) for every in (0, 3)}


def made(out: Path) -> bytes:
    return (out / "distilled" / "set.safetensors").read_bytes()


def metrics(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def same(a: Path, b: Path) -> None:
    assert made(a) == made(b)
    assert metrics(a) == metrics(b)


DRIVER = """
import importlib, os, signal, sys
from pathlib import Path
import potstill.methods, potstill.run
from potstill.core.spec import from_json
import json

spec, out, owner, name, count, when, seconds = json.loads(sys.argv[1])
module, _, inner = owner.partition(":")
thing = importlib.import_module(module)
thing = getattr(thing, inner) if inner else thing
real, seen = getattr(thing, name), 0

def deadly(*args, **kwargs):
    global seen
    seen += 1
    if seen == count and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = real(*args, **kwargs)
    if seen == count:
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(thing, name, deadly)
where = potstill.run.Where(checkpoint_seconds=seconds)
potstill.run.distil(from_json(spec), Path(out), where=where)
"""

MOMENTS = {
    "configuration": (0, "potstill.core.files:os", "replace", 2, "before", 0.0, None),
    "experts": (0, "potstill.core.store", "write_json", 2, "before", 0.0, None),
    "no checkpoint yet": (0, "potstill.core.log:Metrics", "write", 4, "after", 999.0, None),
    "after a checkpoint": (0, RUNNER, "save_tree", 3, "after", 0.0, 3),
    "before a checkpoint": (0, RUNNER, "save_tree", 3, "before", 0.0, 2),
    "between candidate and checkpoint": (
        3,
        RUNNER,
        "better",
        1,
        "after",
        999.0,
        None,
    ),
    "before the set is saved": (3, "potstill.run.runner:DistilledSet", "save", 3, "before", 0.0, 6),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_resumed_gives_the_same_bytes(moment, tmp_path, whole):
    every, owner, name, count, when, seconds, reached = MOMENTS[moment]
    out, run = tmp_path / "run", tiny(select_every=every)
    spec = json.loads(canonical(run))
    argument = json.dumps([spec, str(out), owner, name, count, when, seconds])
    killed = subprocess.run(
        [sys.executable, "-c", DRIVER, argument], capture_output=True, text=True, timeout=60
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (out / "distilled").exists()
    checkpoint = out / "state" / "checkpoint.safetensors"
    assert (load_tree(checkpoint)["it"] if checkpoint.exists() else None) == reached
    distil(run, out)
    same(out, whole[every])
    assert not [path for path in out.rglob(".*") if path.name != ".lock"]


def test_killed_while_a_checkpoint_is_written(tmp_path, whole):
    out, run = tmp_path / "run", tiny()
    distil(run, out)  # fills the cache, so that the saves below are checkpoints
    out = tmp_path / "second"
    eighth = ("potstill.core.state", "_header", 8, "before")  # a save writes its head twice
    argument = [json.loads(canonical(run)), str(out), *eighth, 0.0]
    killed = subprocess.run([sys.executable, "-c", DRIVER, json.dumps(argument)], timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert len(list((out / "state").glob(".*.tmp"))) == 1  # half of the fourth checkpoint
    assert load_tree(out / "state" / "checkpoint.safetensors")["it"] == 3
    resume(out)
    same(out, whole[0])
    assert not list((out / "state").glob(".*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [0, 3, STEPS - 1])
def test_signal_in_the_loop_saves(number, step, tmp_path, whole, monkeypatch):
    out, write = tmp_path / "run", Metrics.write

    def signalled(self, it, numbers):
        write(self, it, numbers)
        if it == step:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(Metrics, "write", signalled)
        with pytest.raises(Interrupted, match=f"potstill resume {out}"):
            distil(tiny(), out)
    assert signal.getsignal(number) is before
    assert load_tree(out / "state" / "checkpoint.safetensors")["it"] == step + 1
    assert [line["it"] for line in metrics(out)] == list(range(step + 1))
    resume(out)
    same(out, whole[0])


def test_signal_in_the_experts_keeps_the_finished_ones(tmp_path, whole):
    class Stops(Quiet):
        @contextmanager
        def phase(self, label, total, done=0):
            assert label == "experts"

            def advance(done, note=""):
                if done == 1:  # after the first expert, not within it
                    os.kill(os.getpid(), signal.SIGTERM)

            yield advance

    out = tmp_path / "run"
    with pytest.raises(Interrupted, match="potstill resume"):
        distil(tiny(), out, report=Stops())
    assert len(list((tmp_path / "cache" / "experts").iterdir())) == 1
    resume(out)
    same(out, whole[0])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_to_the_command(number, tmp_path):
    out = tmp_path / "run"
    arguments = ["distill", "--method", "mtt", "--data", "digits", "--ipc", "1"]
    arguments += [
        "--scale",
        "smoke",
        "--threads",
        "1",
        "--out",
        str(out),
        "--method.iterations",
        "100000",
        "--net.name",
        "convnet1",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "potstill", *arguments], stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 40
    while not (out / "metrics.jsonl").exists() and time.monotonic() < end:
        time.sleep(0.02)
    time.sleep(0.1)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert said.splitlines()[-1] == f"potstill: stopped; to go on: potstill resume {out}"
    assert "Traceback" not in said
    assert load_tree(out / "state" / "checkpoint.safetensors")["it"] == len(metrics(out))


def test_stop_at_the_last_step_is_a_stop(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(runner, "save_tree", lambda *_: saved.append(os.kill(os.getpid(), 15)))
    with pytest.raises(Interrupted):
        distil(tiny(), tmp_path / "run")
    assert len(saved) == 1
    assert not (tmp_path / "run" / "distilled").exists()


def test_the_folder_belongs_to_one_process_and_one_configuration(tmp_path, whole):
    out = tmp_path / "run"
    with locked(out), pytest.raises(InputError, match="Another process is working in"):
        distil(tiny(), out)
    write_json(out / ".config.json.0000.tmp", {})  # what a kill right then leaves
    distil(tiny(), out)
    same(out, whole[0])
    with pytest.raises(InputError, match=r"another configuration \(method.lr_img: 10.0 -> 5.0;"):
        distil(replace(tiny(seed=1), method=replace(tiny().method, lr_img=5.0)), out)
    with pytest.raises(InputError, match=r"validation: 0.1 -> 0.2"):
        distil(tiny(validation=0.2), out)
    same(out, whole[0])


def test_a_race_for_one_folder_has_one_winner(tmp_path, monkeypatch):
    out, real = tmp_path / "run", shared.preflight

    def overtaken(run, data, plan=None, **more):
        monkeypatch.setattr(shared, "preflight", real)
        distil(tiny(seed=1), out)
        return real(run, data, plan, **more)

    monkeypatch.setattr(shared, "preflight", overtaken)
    with pytest.raises(InputError, match="seed: 1 -> 0"):
        distil(tiny(), out)
    assert runner.read_run(out).seed == 1


def test_other_folders_are_refused_and_left_alone(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.txt").write_text("me")
    (tmp_path / "file").write_text("a file")
    for name in ("photos", "file"):
        with pytest.raises(InputError, match="is not a run"):
            distil(tiny(), tmp_path / name)
    for name in ("photos", "file", "missing"):
        with pytest.raises(InputError, match="is not a run"):
            resume(tmp_path / name)
    assert [f.name for f in (tmp_path / "photos").iterdir()] == ["me.txt"]


@pytest.mark.parametrize(
    "config", ["", "[]", "{}", '{"run": {"type": "MTT"}}', '{"run": {"a": 1}}']
)
def test_a_spoilt_configuration_is_one_sentence(config, tmp_path):
    (tmp_path / "config.json").write_text(config)
    for work in (lambda: distil(tiny(), tmp_path), lambda: resume(tmp_path)):
        with pytest.raises(InputError, match="config"):
            work()


def test_resume_of_a_finished_run_does_nothing(whole, monkeypatch):
    monkeypatch.setattr(shared, "open_run_data", None)
    times = {path: path.stat().st_mtime_ns for path in whole[0].rglob("*")}
    assert torch.equal(resume(whole[0]).images, load(whole[0]).images)
    assert times == {path: path.stat().st_mtime_ns for path in whole[0].rglob("*")}


def half_way(out: Path, monkeypatch, run: Run, step: int = 2) -> Path:
    """Stop a run after an outer step and return its checkpoint."""
    write = Metrics.write
    with monkeypatch.context() as patch:
        patch.setattr(
            Metrics,
            "write",
            lambda self, it, n: (write(self, it, n), it == step and os.kill(os.getpid(), 15)),
        )
        with pytest.raises(Interrupted):
            distil(run, out)
    return out / "state" / "checkpoint.safetensors"


def test_a_spoilt_checkpoint_is_refused_and_can_be_removed(tmp_path, whole, monkeypatch):
    out = tmp_path / "run"
    checkpoint = half_way(out, monkeypatch, tiny())
    sound = checkpoint.read_bytes()
    spoilt = [b"", sound[:-1], sound[: len(sound) // 2], sound + b"x", b"{}" * 99]
    spoilt += [
        sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1 :]
        for at in random.Random(0).sample(range(len(sound)), 12)
    ]
    for data in spoilt:
        checkpoint.write_bytes(data)
        with pytest.raises(InputError, match=r"checkpoint.*Remove") as error:
            resume(out)
        assert str(checkpoint) in str(error.value)
        assert "\n" not in str(error.value)
    checkpoint.write_bytes((whole[0] / "distilled" / "set.safetensors").read_bytes())
    with pytest.raises(InputError, match=r"checkpoint.*Remove"):
        resume(out)
    checkpoint.unlink()
    resume(out)
    same(out, whole[0])


def test_outer_steps_do_not_go_on_with_other_experts(tmp_path, monkeypatch):
    out = tmp_path / "run"
    checkpoint = half_way(out, monkeypatch, tiny())
    saved = load_tree(checkpoint)
    (name,) = json.loads(saved["rests"])
    save_tree(checkpoint, {**saved, "rests": json.dumps({name: ["another"]})})
    with pytest.raises(InputError, match="experts are no longer those that this run began with"):
        resume(out)
    save_tree(checkpoint, saved)
    resume(out)


def test_a_spoilt_expert_is_refused_and_can_be_removed(tmp_path, whole, monkeypatch):
    out = tmp_path / "run"
    half_way(out, monkeypatch, tiny())
    folder = sorted((tmp_path / "cache" / "experts").iterdir())[0]
    for file in ("trajectory.safetensors", "done.json"):
        data = bytearray((folder / file).read_bytes())
        data[-9] ^= 1
        (folder / file).write_bytes(data)
        with pytest.raises(InputError, match=f"remove {folder} "):
            resume(out)
    (folder / "done.json").write_text("[]")
    with pytest.raises(InputError, match=f"remove {folder} "):
        resume(out)
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    resume(out)
    same(out, whole[0])


def test_metrics_are_cut_back_to_the_checkpoint(tmp_path, whole, monkeypatch):
    out = tmp_path / "run"
    half_way(out, monkeypatch, tiny())
    with open(out / "metrics.jsonl", "ab") as file:
        file.write(b'{"it": 3, "loss": 9}\n{"it": 4, "loss": 9}\n\xff{"it": 5, "lo')
    resume(out)
    same(out, whole[0])
    assert [line["it"] for line in metrics(out)] == list(range(STEPS))


def test_the_callers_randomness_and_threads_stay(tmp_path):
    number, threads = torch.get_num_threads(), torch.get_num_threads() + 1
    torch.set_num_threads(threads)
    try:
        state = torch.random.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        distil(tiny(), tmp_path / "run")
        evaluate(tmp_path / "run", seeds=1)
        assert torch.equal(torch.random.get_rng_state(), state[0])
        assert np.random.get_state()[1].tolist() == state[1]
        assert random.getstate() == state[2]
        assert torch.get_num_threads() == threads
        assert torch.is_grad_enabled()
    finally:
        torch.set_num_threads(number)


def test_processes_give_the_bytes_of_inline(tmp_path, whole):
    where = Where(engine="processes", workers=2)
    distil(tiny(), tmp_path / "run", where=where)
    same(tmp_path / "run", whole[0])


def test_the_seed_decides(tmp_path, whole):
    distil(tiny(), tmp_path / "again")
    same(tmp_path / "again", whole[0])
    distil(tiny(seed=1), tmp_path / "other")
    assert made(tmp_path / "other") != made(whole[0])


def test_a_resumed_run_keeps_its_plan(tmp_path, whole, monkeypatch):
    run, out = tiny(threads=None), tmp_path / "run"
    half_way(out, monkeypatch, run)
    plan, threads = recorded_plan(out), torch.get_num_threads()
    assert (plan.window.threads, plan.tasks.threads) == (threads, threads)
    torch.set_num_threads(threads + 1)
    try:
        resume(out)
    finally:
        torch.set_num_threads(threads)
    assert recorded_plan(out) == plan


@pytest.mark.slow
def test_a_compiled_run_resumes_compiled_with_the_same_bytes(tmp_path, monkeypatch):
    run = tiny(compile="on", precision="bfloat16")
    distil(run, tmp_path / "whole")
    half_way(tmp_path / "run", monkeypatch, run)
    resume(tmp_path / "run")
    same(tmp_path / "run", tmp_path / "whole")
    assert recorded_plan(tmp_path / "run").window.compiled


def test_selection_keeps_the_best_candidate(tmp_path, monkeypatch):
    scores = iter([0.2, 0.6, 0.4, 0.6])
    seen = []

    def judged(path):
        if path.name != "result.json":
            return real(path)
        seen.append(path)
        return {"val": next(scores)}

    real = select.read_json
    monkeypatch.setattr(select, "read_json", judged)
    out = tmp_path / "run"
    s = distil(tiny(iterations=8, select_every=2), out)
    assert len(seen) == 4
    assert s.origin.iteration == 4  # the first of two equals
    assert s.origin.selection == "best of validation checks every 2 outer steps"
    assert torch.equal(s.images, load(out / "candidates" / "4").images)
    assert not torch.equal(s.images, load(out / "candidates" / "8").images)


@pytest.mark.parametrize(
    "wrong",
    [
        {"engine": "proceses"},
        {"workers": 0},
        {"workers": 2},
        {"engine": "processes", "workers": -1},
    ],
)
def test_where_refuses_what_cannot_work(wrong):
    with pytest.raises(InputError):
        Where(**wrong)


def test_costs_add_up_over_sessions(tmp_path, monkeypatch):
    out = tmp_path / "run"
    half_way(out, monkeypatch, tiny())
    spent = json.loads((out / "state" / "spent.json").read_text())
    assert spent["cpu_seconds"] > 0
    known = {**spent, "cpu_seconds": 1000.0, "seconds": 2000.0}
    (out / "state" / "spent.json").write_text(json.dumps(known))
    costs = resume(out).origin.costs
    assert costs["cpu_seconds"] > 1000
    assert costs["seconds"] > 2000
