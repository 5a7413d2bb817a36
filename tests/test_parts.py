"""Parts of a run: units by hand, and a teacher's training shared by processes of torchrun."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F

from potstill.augment import Crops
from potstill.cli import run
from potstill.core.errors import InputError, PartDone
from potstill.core.store import Store
from potstill.engine import Ranks, run_tasks
from potstill.functional import SGD, TrainSpec, fit
from potstill.functional.cosine import cosine_segments
from potstill.methods.chosen import Use
from potstill.methods.recovering import SRe2L
from potstill.nets import NetSpec, flat
from potstill.recover import SRE2L_TINY
from potstill.recover.unit import KIND
from potstill.run import Run, Where, distil
from potstill.teachers import Squeeze, TeacherPlan, teacher_tasks

FLAGS = """distill --method sre2l --data digits --limit 20 --ipc 2 --net.name convnet2 --net.width 8
--method.teacher.norm batch --method.teacher.training.lr 0.1 --method.teacher.training.epochs 4
--method.teacher.training.warmup 1 --method.teacher.training.batch 20
--method.recovery.iterations 4 --method.batch 5 --method.use.epochs 10
--threads 1 --device cpu --no-evaluate"""
SMALL = SRe2L(
    teacher=TeacherPlan(norm="batch", training=Squeeze(lr=0.1, epochs=4, warmup=1, batch=20)),
    recovery=replace(SRE2L_TINY, iterations=4),
    batch=5,
    use=Use(epochs=10),
)


@pytest.fixture(autouse=True)
def _alone(alone):
    """Give every test a cache of its own, and one thread."""


def small():
    net = NetSpec(name="convnet2", width=8)
    return Run(method=SMALL, data="digits", ipc=2, net=net, limit=20, threads=1, device="cpu")


def finished(store):
    folder = store / KIND
    return sorted(f for f in folder.iterdir() if f.name[0] != ".") if folder.is_dir() else []


def test_units_by_hand_on_two_machines_have_the_bytes_of_one_run(tmp_path, capsys):
    one, here, there = tmp_path / "one", tmp_path / "here", tmp_path / "there"
    whole = distil(small(), tmp_path / "whole", where=Where(store=one))
    own = ["--out", str(tmp_path / "a"), "--store", str(here), "--units", "0:1"]
    assert run([*FLAGS.split(), *own]) == 0
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("potstill: units 0 to 0 of 4 (counted from 0) are finished; ")
    assert not (tmp_path / "a" / "distilled").exists()
    shutil.copytree(here / "teachers", there / "teachers")
    with pytest.raises(PartDone, match="units 1 to 3 of 4"):
        distil(small(), tmp_path / "b", where=Where(store=there, units=(1, 4)))
    assert [len(finished(s)) for s in (one, here, there)] == [4, 1, 3]
    shutil.copytree(there / KIND, here / KIND, dirs_exist_ok=True)
    before = {f: f.stat().st_mtime_ns for f in finished(here)}
    s = distil(small(), tmp_path / "a", where=Where(store=here))
    assert torch.equal(s.images, whole.images)
    assert {f: f.stat().st_mtime_ns for f in finished(here)} == before
    assert [f.name for f in finished(one)] == [f.name for f in finished(here)]


def test_units_of_another_configuration_are_never_taken(tmp_path):
    store = tmp_path / "store"
    with pytest.raises(PartDone):
        distil(small(), tmp_path / "a", where=Where(store=store, units=(0, 4)))
    old = set(finished(store))
    method = replace(SMALL, recovery=replace(SMALL.recovery, bn=0.02))
    distil(replace(small(), method=method), tmp_path / "b", where=Where(store=store))
    assert old < set(finished(store))
    assert len(finished(store)) == 8


@pytest.mark.parametrize(
    ("units", "said"),
    [
        ((0, 5), "within 0:4 that is not empty, not 0:5"),
        ((2, 2), "not empty, not 2:2"),
        ((3, 1), "not 3:1"),
    ],
)
def test_ranges_that_are_none(units, said, tmp_path):
    with pytest.raises(InputError, match=said):
        distil(small(), tmp_path / "run", where=Where(units=units))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["1", "a:b", "-1:2", "0:", "0:1:2"])
def test_texts_that_are_no_range(text, capsys):
    assert run([*FLAGS.split(), f"--units={text}"]) == 2
    assert "two numbers such as 0:50" in capsys.readouterr().err


def test_other_methods_have_no_units(tmp_path, capsys):
    line = f"distill --method mtt --data digits --ipc 1 --units 0:1 --out {tmp_path / 'run'}"
    assert run(line.split()) == 2
    assert "recover images unit by unit" in capsys.readouterr().err


@dataclass(frozen=True)
class Meeting(Ranks):
    """Two processes as threads that meet."""

    rows: object = None
    barrier: object = None

    def gathered(self, rows):
        self.rows[self.rank] = rows
        self.barrier.wait(timeout=20)
        every = torch.cat(self.rows)
        self.barrier.wait(timeout=20)
        return every


def test_shared_batches_are_those_of_two_plain_processes():
    chance = torch.Generator().manual_seed(0)
    images = torch.rand(23, 1, 8, 8, generator=chance, dtype=torch.float64)
    labels = torch.randint(0, 3, (23,), generator=chance)
    spec = TrainSpec(
        lr=0.1,
        segments=cosine_segments(3, warmup=1),
        batch=9,
        optimizer=SGD(momentum=0.9, weight_decay=1e-2),
        augment=Crops(),
    )
    made = [
        flat(NetSpec(name="convnet2", width=4, norm="batch"), channels=1, size=(8, 8), classes=3,
             seed=0) for _ in range(3)
    ]  # fmt: skip
    start = made[0].theta0.double()
    rows, barrier, found = [None, None], threading.Barrier(2), [None, None]

    def train(rank):
        ranks = Meeting(rank, 2, rows, barrier)
        found[rank] = fit(made[rank], start, images, labels, spec, seed=3, ranks=ranks)

    threads = [threading.Thread(target=train, args=(rank,)) for rank in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    theta, plain = simulated(made[2], start, images, labels, spec)
    assert torch.equal(found[0], found[1])
    torch.testing.assert_close(found[0], theta, rtol=1e-11, atol=1e-12)
    for rank in range(2):
        kept = made[rank].statistics(theta)
        for name, buffer in plain[rank].named_buffers():
            torch.testing.assert_close(kept[name], buffer.to(kept[name]), rtol=1e-11, atol=1e-12)
    alone = fit(made[2], start, images, labels, spec, seed=3)
    assert (alone - theta).abs().max() > 1e-4  # batch norm saw whole batches


def simulated(net, theta, images, labels, spec):
    """Train by hand as two processes do that each have a copy with statistics of its own."""
    from potstill.core.keys import generator

    copies = [net.load(theta).train() for _ in range(2)]
    momentum, step = torch.zeros_like(theta), 0
    scales = [segment.lr_scale for segment in spec.segments for _ in range(segment.epochs)]
    for epoch, scale in enumerate(scales):
        chance = generator(3, "epoch", epoch)
        for batch in torch.randperm(len(images), generator=chance).split(spec.batch):
            x = images[batch]
            x = spec.augment.apply(x, spec.augment.sample(len(x), (1, 8, 8), chance))
            total, half = torch.zeros_like(theta), -(-len(batch) // 2)
            for copy, part in zip(copies, (slice(0, half), slice(half, None)), strict=True):
                torch.nn.utils.vector_to_parameters(theta.clone(), copy.parameters())
                loss = F.cross_entropy(copy(x[part]), labels[batch][part], reduction="sum")
                grads = torch.autograd.grad(loss / len(batch), list(copy.parameters()))
                total += torch.cat([grad.flatten() for grad in grads])
            momentum = 0.9 * momentum + total + 1e-2 * theta
            theta, step = theta - spec.lr * scale * momentum, step + 1
    return theta, copies


def two(*arguments):
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*start, "-m", "potstill", *map(str, arguments)],
        env=env, capture_output=True, text=True, timeout=150,
    )  # fmt: skip


@pytest.mark.slow
def test_torchrun_shares_the_training_of_the_teacher(tmp_path, capsys):
    flags, store, out = FLAGS.split(), tmp_path / "store", tmp_path / "run"
    done = two(*flags, "--out", out, "--store", store)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("distilled set: ") == 1
    (teacher,) = (f for f in (store / "teachers").iterdir() if f.name[0] != ".")
    assert '"ranks": 2' in (teacher / "done.json").read_text()
    again = two(*flags, "--out", tmp_path / "again", "--store", tmp_path / "other")
    assert again.returncode == 0, again.stderr
    for name in ("distilled/set.safetensors", "metrics.jsonl", "config.json"):
        assert (out / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
    for folder in ("distilled", "state"):
        shutil.rmtree(out / folder)
    assert run(["resume", str(out), "--store", str(store), "--no-evaluate"]) == 0
    shutil.rmtree(out / "distilled")
    shutil.rmtree(teacher)
    capsys.readouterr()
    assert run(["resume", str(out), "--store", str(store), "--no-evaluate"]) == 2
    assert "trained by 2 processes of torchrun, not by 1" in capsys.readouterr().err
    odd = two(*[f.replace("20", "21") for f in flags], "--out", tmp_path / "odd")
    assert odd.returncode
    assert "a step has 21 images: their number must divide" in odd.stderr


def test_a_shared_teacher_has_another_name_and_needs_its_processes(tmp_path):
    from potstill.core.compute import Compute
    from potstill.data import make_space, open_data

    data = open_data("digits", limit=20)
    given = (data, make_space("measured", data), NetSpec(name="convnet2", width=8, norm="batch"))
    made = [
        teacher_tasks(*given, SMALL.teacher.training.spec, seed=0, compute=Compute(threads=1),
                      ranks=ranks) for ranks in (1, 2)
    ]  # fmt: skip
    store = Store(tmp_path)
    names = [store.path("teachers", tasks.specs[0]) for tasks in made]
    assert names[0] != names[1]
    assert [tasks.together for tasks in made] == [False, True]
    with pytest.raises(InputError, match="trained by 2 processes of torchrun, not by 1"):
        run_tasks(made[1], store)


def test_decay_of_weights_alone_is_for_plain_trainings():
    from potstill.functional import Adam
    from potstill.methods.inner import Inner

    optimizer = Adam(weight_decay=0.01, decays="weights")
    with pytest.raises(InputError, match=r"inner\.optimizer\.decays 'weights'"):
        Inner(optimizer=optimizer)
    with pytest.raises(InputError, match=r"optimizer\.decays 'weights' is for networks"):
        replace(SRE2L_TINY, optimizer=optimizer)
