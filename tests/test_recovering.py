"""SRe2L, CDA and RDED as methods: from data to a set, by hand and by the runner."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from potstill.artefact import Hard, Soft, load
from potstill.core.errors import InputError
from potstill.core.files import file_hash
from potstill.core.keys import forked
from potstill.core.log import Quiet
from potstill.core.store import Store
from potstill.coresets.patch_tasks import read_patches
from potstill.data import open_data
from potstill.engine import Tasks, run_tasks
from potstill.methods import METHODS, SynthBlock
from potstill.methods.chosen import Use
from potstill.methods.rded import RDED
from potstill.methods.recovering import CDA, SRe2L
from potstill.methods.tutors import Patches
from potstill.nets import NetSpec, build
from potstill.recover import (
    CDA_IN1K,
    CDA_IN21K,
    CDA_TINY,
    SRE2L_CIFAR100,
    SRE2L_IN1K,
    SRE2L_TINY,
    read_unit,
)
from potstill.recover import unit as unit_module
from potstill.recover.picture import draw
from potstill.run import Run, Where, distil, preflight, resume
from potstill.run.plan import plan_lines
from potstill.teachers import Squeeze, TeacherPlan, open_teacher, read_teacher, teacher_facts

SQUEEZE = Squeeze(lr=0.1, epochs=6, warmup=1, batch=20, augment=None)
TEACHER = TeacherPlan(norm="batch", training=SQUEEZE)
USE = Use(lr=0.05, epochs=60)
SHORT = replace(SRE2L_TINY, iterations=6)
SMALL = SRe2L(teacher=TEACHER, recovery=SHORT, batch=5, use=USE)


@pytest.fixture(autouse=True)
def _alone(alone):
    """Give every test a cache of its own, and one thread."""


def run_of(method, **options):
    run = Run(
        method=method,
        data="digits",
        ipc=2,
        net=NetSpec(name="convnet2", width=8),
        limit=40,
        threads=1,
    )
    return replace(run, **options)


class Said(Quiet):
    """Keeps what is said to people."""

    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


def made(method, folder, **options):
    """Carry out a run; return its set, its rows and its store."""
    store = folder / "store"
    s = distil(run_of(method, **options), folder / "run", where=Where(store=store))
    return s, rows_of(folder / "run"), store


def rows_of(run):
    return [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]


def finished(store, kind):
    return sorted(f for f in (store / kind).iterdir() if not f.name.startswith("."))


def test_recovered_images_arrive_as_they_are_stored(tmp_path):
    said, store = Said(), tmp_path / "store"
    s = distil(run_of(SMALL), tmp_path / "run", where=Where(store=store), report=said)
    rows = rows_of(tmp_path / "run")
    (folder,) = finished(store, "teachers")
    right = teacher_facts(folder)["validation_accuracy"]
    assert said.lines[-1] == f"The teacher is right on {right:.1%} of the validation images."
    teacher, units = read_teacher(folder), finished(store, "recovered")
    assert len(units) == 4  # of five classes, two images each
    assert s.origin.parents == (f"teacher {teacher.digest}",)
    assert isinstance(s.targets, Hard)
    assert s.targets.values.tolist() == [c for c in range(10) for _ in range(2)]
    seen = torch.zeros(20)
    for unit in map(read_unit, units):
        for pixels, c, k in zip(unit["images"], unit["labels"], unit["indices"], strict=True):
            assert torch.equal(s.images[2 * c + k], pixels)
            seen[2 * c + k] += 1
    assert (seen == 1).all()
    module = open_teacher(teacher, folder)
    with torch.no_grad():
        logits = module(s.inputs).double()
    entropy = -logits.log_softmax(1)[torch.arange(20), s.targets.values]
    assert len(rows) == 10
    for c, row in enumerate(rows):
        own = slice(2 * c, 2 * c + 2)
        assert row["class"] == c
        assert row["right"] == float((logits[own].argmax(1) == c).double().mean())
        assert row["entropy"] == pytest.approx(float(entropy[own].mean()), abs=1e-5)
    assert load(tmp_path / "run").origin.method_spec == s.origin.method_spec
    assert not finished(store, "recovered")[0].joinpath("snapshots.png").exists()


def test_soft_labels_are_the_teachers(tmp_path):
    plan = replace(TEACHER, nets=("own", "own"))
    method = CDA(
        teacher=plan,
        recovery=replace(CDA_TINY, iterations=3, start="real"),
        temperature=3.0,
        use=USE,
    )
    s, _, store = made(method, tmp_path)
    folders = finished(store, "teachers")
    assert len(folders) == len(s.origin.parents) == 2
    with torch.no_grad():
        each = [open_teacher(read_teacher(f), f)(s.inputs) / 3 for f in folders]
    want = (each[0].softmax(1) + each[1].softmax(1)) / 2
    assert isinstance(s.targets, Soft)
    assert (s.targets.values - want).abs().max() < 1e-6
    assert s.targets.classes.tolist() == [c for c in range(10) for _ in range(2)]
    assert s.recipe == replace(USE.recipe, loss="soft_ce")
    plain, _, _ = made(replace(method, temperature=None), tmp_path / "plain")
    assert torch.equal(plain.images, s.images)


def test_recovery_begins_with_what_rded_makes(tmp_path):
    patches = Patches(images=20, crops=3)
    recovery = replace(CDA_TINY, iterations=4, start="patches", snapshots=(0, 2))
    method = CDA(teacher=TEACHER, recovery=recovery, patches=patches, use=USE)
    made(method, tmp_path)
    store = tmp_path / "store"
    (unit,) = finished(store, "recovered")
    rded, rows, other = made(RDED(teacher=TEACHER, patches=patches, use=USE), tmp_path / "rded")
    found = read_unit(unit)
    first = torch.empty_like(found["images"])
    first[found["labels"] * 2 + found["indices"]] = found["snapshots"][0]
    assert torch.equal(rded.images, first)
    assert sum(row["right"] for row in rows) > 8  # the easiest crops of each class
    kept = [read_patches(f)["images"] for f in finished(store, "patches")]
    assert len(kept) == 10
    assert {file_hash(f / "patches.safetensors") for f in finished(store, "patches")} == {
        file_hash(f / "patches.safetensors") for f in finished(other, "patches")
    }
    from PIL import Image

    with Image.open(unit / "snapshots.png") as picture:
        assert picture.size == (3 * (48 + 2), 10 * (48 + 2))
        corner = picture.crop((0, 0, 48, 48)).resize((8, 8), Image.Resampling.NEAREST)
        assert np.array_equal(np.asarray(corner)[..., 0], first[0, 0].numpy())


def test_a_picture_shows_few_of_many(tmp_path):
    from PIL import Image

    gray = torch.arange(1, 40, dtype=torch.uint8)[:, None, None, None, None]
    snapshots = gray.expand(39, 24, 1, 2, 2)
    images = torch.full((24, 1, 2, 2), 40, dtype=torch.uint8)
    draw(tmp_path / "p.png", images, snapshots, torch.arange(24) % 12)
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.size == (20 * 50, 10 * 50)
        shown = np.asarray(picture)
    columns = [1 + round(k * 39 / 19) for k in range(20)]
    for row in range(10):
        assert shown[50 * row, ::50, 0].tolist() == columns
        assert (shown[50 * row + 48] == 255).all()


def test_tiles_of_four_patches(tmp_path):
    patches = Patches(factor=2, images=30)
    s, _, store = made(RDED(teacher=TEACHER, patches=patches, use=USE), tmp_path)
    parts = [read_patches(f) for f in finished(store, "patches")]
    assert all(part["scores"].shape == (1, 2, 4) for part in parts)
    wanted = {p["images"][0].numpy().tobytes() for p in parts}
    assert {s.images[k : k + 2].numpy().tobytes() for k in range(0, 20, 2)} == wanted


class Killed(BaseException):
    """As if the process had been killed."""


def test_a_killed_run_goes_on_and_gives_the_same_bytes(tmp_path, monkeypatch):
    whole, rows, _ = made(SMALL, tmp_path / "whole")
    real, calls = unit_module.recovered, []

    def counted(*args, **options):
        calls.append(args)
        if len(calls) == 3:
            raise Killed
        return real(*args, **options)

    monkeypatch.setattr(unit_module, "recovered", counted)
    with pytest.raises(Killed):
        made(SMALL, tmp_path / "cut")
    found = resume(tmp_path / "cut" / "run", where=Where(store=tmp_path / "cut" / "store"))
    assert len(calls) == 5  # two units were finished
    assert torch.equal(found.images, whole.images)
    files = [tmp_path / k / "run" / "distilled" / "set.safetensors" for k in ("whole", "cut")]
    assert file_hash(files[0]) == file_hash(files[1])
    again = rows_of(tmp_path / "cut" / "run")
    assert [row["entropy"] for row in again] == [row["entropy"] for row in rows]


def test_workers_give_the_same_bytes(tmp_path):
    one, _, store = made(SMALL, tmp_path / "one")
    shutil.copytree(store / "teachers", tmp_path / "two" / "store" / "teachers")
    where = Where(engine="processes", workers=2, store=tmp_path / "two" / "store")
    two = distil(run_of(SMALL), tmp_path / "two" / "run", where=where)
    assert torch.equal(one.images, two.images)


def test_a_finished_teacher_is_checked_before_anything_starts(tmp_path):
    _, _, store = made(SMALL, tmp_path)
    (folder,) = finished(store, "teachers")
    state = open_teacher(read_teacher(folder), folder).state_dict()
    good = replace(SMALL, teacher=TeacherPlan(nets=(f"own@{tmp_path / 'good.pth'}",), norm="batch"))
    torch.save(state, tmp_path / "good.pth")
    s, _, _ = made(good, tmp_path / "again")
    assert len(s) == 20
    order = torch.arange(10).roll(1)
    with forked(0, "test"):
        fresh = build(
            NetSpec(name="convnet2", width=8, norm="batch"),
            channels=1, size=(8, 8), classes=10, seed=3,
        )  # fmt: skip
    ends = [name for name in state if state[name].shape[:1] == (10,)]
    cases = {
        "random": fresh.state_dict(),
        "shuffled": {n: t[order] if n in ends else t for n, t in state.items()},
    }
    for name, weights in cases.items():
        torch.save(weights, tmp_path / f"{name}.pth")
        plan = TeacherPlan(nets=(f"own@{tmp_path / name}.pth",), norm="batch")
        run = run_of(replace(SMALL, teacher=plan))
        with pytest.raises(InputError, match="in the order of the"):
            distil(run, tmp_path / name, where=Where(store=store))
        assert not (tmp_path / name / "config.json").exists()


def test_a_teacher_that_learned_nothing_ends_the_run(tmp_path):
    plan = replace(TEACHER, training=replace(SQUEEZE, lr=1e-9, epochs=1, warmup=0))
    with pytest.raises(InputError, match=r"right on .* of the validation images"):
        made(replace(SMALL, teacher=plan), tmp_path)
    assert not (tmp_path / "store" / "recovered").exists()


def test_a_disk_that_is_too_small_is_told(tmp_path, monkeypatch):
    _, _, store = made(SMALL, tmp_path)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("potstill.core.store.shutil.disk_usage", lambda folder: usage)
    more = replace(SMALL, recovery=replace(SHORT, iterations=7))
    with pytest.raises(InputError, match="The recovered images still to be made need"):
        distil(run_of(more), tmp_path / "more", where=Where(store=store))
    other = distil(run_of(SMALL), tmp_path / "again", where=Where(store=store))  # all is there
    assert len(other) == 20


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"teacher": TeacherPlan()}, {}, "no batch norm"),
        ({}, {"normaliser": "zca-mtt"}, "leave out --normaliser zca"),
        (
            {"recovery": replace(SHORT, start="patches"), "patches": Patches(images=1)},
            {},
            r"needs 2 images for its patches; it has \d+, of which 1",
        ),
        (
            {"recovery": replace(SHORT, start="patches"), "patches": Patches(factor=3)},
            {},
            "cannot be tiled",
        ),
        ({"order": "permuted", "batch": 10}, {}, "all 10 classes share a unit"),
        ({}, {"select_every": 2}, "select_every is for methods that improve"),
    ],
)
def test_what_cannot_work_is_said_first(changes, options, message):
    run = run_of(replace(SMALL, **changes), **options)
    with pytest.raises(InputError, match=message):
        preflight(run, open_data("digits", limit=40))


def test_settings_without_effect_are_refused():
    with pytest.raises(InputError, match="patches are for the start 'patches', not for 'noise'"):
        SRe2L(patches=Patches(images=5))
    with pytest.raises(InputError, match="rded has one teacher, not 2"):
        RDED(teacher=TeacherPlan(nets=("own", "own")))
    for name in ("factor", "images", "crops"):
        with pytest.raises(InputError, match=rf"patches\.{name}.*0"):
            Patches(**{name: 0})
    run = run_of(SMALL)
    ctx, _ = preflight(run, open_data("digits", limit=40))
    with pytest.raises(InputError, match="one block"):
        SMALL.check(replace(ctx, synth=(SynthBlock(ipc=1), SynthBlock(ipc=1))))


def test_an_unfinished_set_and_another_teacher_are_refused(tmp_path):
    ctx, _ = preflight(run_of(SMALL), open_data("digits", limit=40))
    ctx, done = replace(ctx, store=Store(tmp_path)), {}
    while isinstance(phase := SMALL.phases(ctx, done), Tasks):
        done[phase.phase] = run_tasks(phase, ctx.store)
    ctx = replace(ctx, done=done)
    state = SMALL.init(ctx)
    with pytest.raises(InputError, match="after its last class"):
        SMALL.export(ctx, state)
    state, _ = SMALL.step(ctx, state, 0)
    with pytest.raises(InputError, match="weights were altered"):
        SMALL.step(ctx, {**state, "teachers": "0" * 64}, 1)


def test_costs_are_said(tmp_path):
    data = open_data("digits", limit=40)
    method = replace(SMALL, recovery=replace(SHORT, snapshots=(0, 3)))
    _, cost = preflight(run_of(method), data)
    train, images = len(data.train), 20
    numel = sum(
        t.numel()
        for t in build(
            NetSpec(name="convnet2", width=8, norm="batch"),
            channels=1, size=(8, 8), classes=10, seed=0,
        ).state_dict().values()
    )  # fmt: skip
    assert cost.task_images == 6 * train + 6 * images
    assert cost.task_steps == 6 * -(-train // 20) + 6 * 4
    assert cost.disk_bytes == 4 * numel + 3 * images * 64
    assert cost.steps == 10
    lines = plan_lines(run_of(SRe2L(teacher=replace(TEACHER, training=Squeeze()))), data)
    assert "recovery: 20 images in 1 unit of up to 20, 4,000 steps each" in lines
    assert any("--method.teacher.training.batch" in line for line in lines)
    lines = plan_lines(run_of(RDED(teacher=TEACHER)), data)
    assert "patches: up to 2,000 crops of real images are looked at" in lines  # 400 images


def test_presets_are_the_published_ones():
    table = {  # lr, bn, iterations, first and last smallest crop, flip, shift of a side, two-sided
        SRE2L_TINY: (0.1, 1.0, 4000, 0.08, 0.08, 0.5, (4, 64), True),
        SRE2L_IN1K: (0.25, 0.01, 4000, 0.08, 0.08, 0.5, (32, 224), False),
        SRE2L_CIFAR100: (0.25, 0.01, 1000, 1.0, 1.0, 0.0, (4, 32), True),
        CDA_TINY: (0.4, 0.05, 4000, 1.0, 0.08, 0.5, (4, 64), False),
        CDA_IN1K: (0.25, 0.01, 4000, 1.0, 0.08, 0.5, (32, 224), False),
        CDA_IN21K: (0.05, 0.25, 2000, 1.0, 0.08, 0.5, (32, 224), False),
    }
    for found, (lr, bn, steps, first, last, flip, (shift, side), both) in table.items():
        assert (found.lr, found.bn, found.iterations) == (lr, bn, steps)
        assert found.curriculum.at(0, steps) == pytest.approx(first)
        assert found.curriculum.at(steps - 1, steps) == pytest.approx(last, abs=1e-6)
        assert (found.flip_prob, found.two_sided) == (flip, both)
        assert round(found.roll * side) == shift
        assert found.optimizer.betas == (0.5, 0.9)
        assert (found.first, found.norm, found.sharing) == (10.0, "l2", "batch")
    assert METHODS.get("sre2l")().recovery == SRE2L_TINY
    assert METHODS.get("cda")().recovery == CDA_TINY
