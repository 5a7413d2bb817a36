"""Methods with labels of views, and the regime `stored`: made, resumed, compared, counted."""

from __future__ import annotations

import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from labels import whole_logits
from potstill.artefact import Hard, LabelStore, label_store, load, set_digest
from potstill.augment import CutMix, MixUp
from potstill.core.compute import Compute
from potstill.core.errors import InputError
from potstill.core.files import file_hash
from potstill.core.spec import canonical
from potstill.core.store import Store
from potstill.coresets import random_real
from potstill.data import open_data, reopen
from potstill.evaluation import PROTOCOLS, evaluate
from potstill.functional import Segment, accuracy, fit
from potstill.methods.chosen import Use
from potstill.methods.labelled import ViewLabels
from potstill.methods.rded import RDED
from potstill.methods.recovering import CDA, SRe2L
from potstill.nets import NetSpec, flat
from potstill.recover import SRE2L_TINY, kept_images, relabel
from potstill.recover.relabel import asking, relabel_tasks
from potstill.report import cells
from potstill.run import Run, Where, distil, preflight, resume
from potstill.run.plan import plan_lines
from potstill.teachers import Squeeze, TeacherPlan, open_teacher, read_teacher

SQUEEZE = Squeeze(lr=0.1, epochs=6, warmup=1, batch=20, augment=None)
TEACHER = TeacherPlan(norm="batch", training=SQUEEZE)
LABELS = ViewLabels(epochs=3, training=4, batch=8, lr=0.01, codes="uint4", least=0.5)
SMALL = SRe2L(teacher=TEACHER, recovery=replace(SRE2L_TINY, iterations=3), labels=LABELS)
TILES = RDED(teacher=TEACHER, labels=LABELS)
MIXED = replace(LABELS, mixup=0.8, cutmix=0.0, mix_scope="image")
CPU = Compute(threads=1)
pytestmark = pytest.mark.usefixtures("alone")


def run_of(method, **options):
    net = NetSpec(name="convnet2", width=8)
    run = Run(method=method, data="digits", ipc=2, net=net, limit=40, threads=1)
    return replace(run, **options)


def made(method, folder):
    where = Where(store=folder / "store")
    return distil(run_of(method), folder / "run", where=where), Store(folder / "store")


def asked(teacher, folder, space):
    return asking(open_teacher(teacher, folder), teacher.space, space, CPU, batch=8)


def finished(store, kind):
    return [entry.folder for entry in store.entries(kind)]


@pytest.mark.parametrize("method", [SMALL, replace(TILES, labels=MIXED)])
def test_a_run_gives_a_set_with_labels_of_its_views(tmp_path, method):
    s, store = made(method, tmp_path)
    assert isinstance(s.targets, LabelStore)
    assert s.images.dtype == torch.uint8
    assert s.targets.labels.tolist() == [c for c in range(10) for _ in range(2)]
    plan = method.labels.plan(0)
    assert s.targets.plan == plan
    assert plan.mix == (CutMix(prob=1.0) if method == SMALL else MixUp(alpha=0.8))
    (folder,) = finished(store, "teachers")
    teacher = read_teacher(folder)
    assert s.targets.teachers == (teacher.digest,)
    assert s.recipe == method.labels.recipe
    assert (s.recipe.epochs, s.recipe.batch) == (4, 8)
    ask = asked(teacher, folder, s.space)
    for e in range(3):
        want = whole_logits([ask], s.space, s.images, plan, e, compute=CPU)
        step = (want.amax(1) - want.amin(1)) / 15
        assert ((s.targets.logits(e) - want).abs().amax(1) <= 0.52 * step).all()
    again = load(tmp_path / "run")
    assert set_digest(again) == set_digest(s)
    model = again.train()
    with torch.no_grad():
        assert model(s.images).shape == (20, 10)
    first = finished(store, "labels")[0] / relabel.FILE
    assert first.stat().st_nlink > 1  # the set's labels take no room of their own


def test_a_committee_gives_the_mean_of_its_logits(tmp_path):
    s, store = made(replace(SMALL, teacher=replace(TEACHER, nets=("own", "own"))), tmp_path)
    folders = {read_teacher(folder).digest: folder for folder in finished(store, "teachers")}
    assert len(folders) == len(s.targets.teachers) == 2
    asks = [asked(read_teacher(folders[d]), folders[d], s.space) for d in s.targets.teachers]
    each = [whole_logits([ask], s.space, s.images, s.targets.plan, 1, compute=CPU) for ask in asks]
    want = (each[0] + each[1]) / 2
    step = (want.amax(1) - want.amin(1)) / 15
    assert ((s.targets.logits(1) - want).abs().amax(1) <= 0.52 * step).all()


class Killed(BaseException):
    """As if the process had been killed."""


def test_labels_are_made_once_and_a_run_goes_on_after_them(tmp_path, monkeypatch):
    whole, _ = made(SMALL, tmp_path / "whole")
    write, calls = relabel.write_labels, []

    def dying(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise Killed
        write(*arguments)

    monkeypatch.setattr(relabel, "write_labels", dying)
    with pytest.raises(Killed):
        made(SMALL, tmp_path / "cut")
    found = resume(tmp_path / "cut" / "run", where=Where(store=tmp_path / "cut" / "store"))
    assert len(calls) == 1 + 1 + 2  # one before, one that died, the two that were left
    assert found.targets.digests == whole.targets.digests
    files = [tmp_path / name / "run" / "distilled" / "set.safetensors" for name in ("whole", "cut")]
    assert file_hash(files[0]) == file_hash(files[1])


@pytest.mark.slow
def test_processes_give_the_same_labels(tmp_path):
    one, _ = made(SMALL, tmp_path / "one")
    where = Where(store=tmp_path / "two" / "store", engine="processes", workers=2)
    two = distil(run_of(SMALL), tmp_path / "two" / "run", where=where)
    assert two.targets.digests == one.targets.digests
    assert torch.equal(two.images, one.images)


def test_what_labels_need_is_said_and_missing_room_before_anything(tmp_path, monkeypatch):
    data = open_data("digits", limit=40)
    _, without = preflight(run_of(replace(SMALL, labels=ViewLabels())), data)
    _, cost = preflight(run_of(SMALL), data)
    plan = LABELS.plan(0)
    assert plan.nbytes(20, 10) == 3 * 20 * (5 + 4)
    assert cost.disk_bytes == without.disk_bytes + plan.nbytes(20, 10) + 20 * 64
    assert cost.task_images == without.task_images + 3 * 20 // 3
    lines = plan_lines(run_of(SMALL), data)
    assert "labels: views of 20 images in 3 epochs, 0.0 MiB" in lines
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1000))
    with pytest.raises(InputError, match=r"The labels still to be made .*; lower labels\.epoch"):
        made(SMALL, tmp_path)
    assert not (tmp_path / "run").exists()


def test_another_disk_of_the_set_is_looked_at_too(tmp_path, monkeypatch):
    (elsewhere := tmp_path / "elsewhere").mkdir()
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda f: usage(9 if f == elsewhere else 10**9))
    where, run = Where(store=tmp_path / "store"), run_of(SMALL)
    disks = {elsewhere: Path("/proc"), where.store: tmp_path}
    monkeypatch.setattr("potstill.run.shared.existing", lambda f: disks.get(f, disks[elsewhere]))
    with pytest.raises(InputError, match=r"The labels of the set still to be made .* --out"):
        distil(run, elsewhere / "run", where=where)
    assert not list(elsewhere.iterdir())


def test_settings_without_effect_are_refused():
    for changes, words in (
        ({"labels": replace(LABELS, epochs=0)}, r"say nothing without labels\.epochs"),
        ({"labels": LABELS, "temperature": 4.0}, "not both"),
        ({"labels": LABELS, "use": Use(lr=0.1)}, "use is for images with one label"),
    ):
        for method in (SRe2L, CDA, RDED):
            with pytest.raises(InputError, match=words):
                method(**changes)
    for changes, words in (
        ({"epochs": 5}, "has no use for labels of 5"),
        ({"epochs": -1}, "at least 0"),
        ({"batch": 0}, "at least 1"),
        ({"codes": "uint2"}, "uint2"),
        ({"mix_scope": "all"}, "mix_scope"),
        ({"temperature": 0.0}, "above 0"),
        ({"mixup": 0.8}, r"labels.mixup needs labels\.cutmix 0"),
        ({"mixup": -1.0, "cutmix": 0.0}, "alpha of MixUp must be above 0"),
    ):
        with pytest.raises(InputError, match=words):
            replace(LABELS, **changes)
    assert "mixup" not in canonical(SMALL)
    assert "labels" not in canonical(SRe2L())  # stored work keeps its names
    assert SMALL.scaled("smoke").labels == replace(LABELS, training=3)
    assert SMALL.scaled("cpu").labels == LABELS
    for scale in ("smoke", "cpu"):  # a flag may come after the scale
        assert replace(SRe2L().scaled(scale), labels=LABELS).labels == LABELS


def test_the_regime_stored_labels_real_images_by_the_same_plan_and_teacher(tmp_path, monkeypatch):
    s, store = made(TILES, tmp_path)
    strict = replace(PROTOCOLS.get("strict"), lr_grid=())
    monkeypatch.setitem(PROTOCOLS._things, "strict", strict)
    regimes = ("hard", "online", "stored")
    result = evaluate(tmp_path / "run", seeds=2, regimes=regimes, store=store, whole=None)
    assert list(dict.fromkeys(row.regime for row in result.rows)) == list(regimes)
    plan, images = s.targets.plan, 20 * 64
    for row in (row for row in result.rows if row.name == "distilled"):
        parts = {"images": images, "targets": 160, "normaliser": 8}
        if row.regime == "stored":
            parts["labels"] = s.targets.nbytes
        assert {k: v for k, v in row.nbytes.items() if k != "teacher"} == parts
        assert ("teacher" in row.nbytes) == (row.regime == "online")
    rows = {row.name: row for row in result.rows if row.regime == "stored"}
    for name in ("random real", "k-means medoid", "RDED"):
        row = rows[f"{name}, own step"]
        assert row.nbytes["labels"] == s.targets.nbytes  # as many images
        assert "labels of views by the teacher of the set, a convnet2" in row.note
    table = [line for line in cells(result) if line[2] == "stored"]
    assert all("labels" in line[7] for line in table)
    assert rows["distilled"].note == "labels of 3 epochs (uint4)"

    # what networks learned is what a plain training on these labels makes of it
    (folder,) = finished(store, "teachers")
    data, teacher, forward = reopen(s.ref), read_teacher(folder), s.space.forward
    chosen = torch.tensor(random_real(data.train, [2] * 10, seed=0, replacement=True))
    pixels, labels = data.train.pixels[chosen], data.train.labels[chosen]
    digest, where = kept_images(store, pixels, labels)
    tasks = relabel_tasks(digest, where, {teacher: folder}, plan, space=s.space, compute=CPU)
    files = [store.verify("labels", spec) / relabel.FILE for spec in tasks.specs]  # all there
    others = label_store(labels, plan, files, classes=10)
    pairs = (("distilled", s.images, s.targets), ("random real, own step", pixels, others))
    for name, x, targets in pairs:
        net = flat(s.net, channels=1, size=(8, 8), classes=10, seed=0, key=("evaluate",))
        theta = fit(
            net,
            net.theta0,
            forward(x),
            targets.labels,
            s.recipe,
            seed=0,
            key=("evaluate",),
            replay=targets.replay((1, 8, 8)),
            compute=CPU,
        )
        got = accuracy(net, theta, data.test.pixels, data.test.labels, prepare=forward, compute=CPU)
        assert got == rows[name].accuracies[0]


def test_whose_labels_a_set_with_stored_ones_takes_by_default(tmp_path, monkeypatch):
    s, store = made(replace(SMALL, labels=replace(LABELS, least=0.08)), tmp_path)
    for name in ("strict", "cda-in1k", "tiny-kd"):
        rules = PROTOCOLS.get(name)
        short = None if rules.segments is None else (Segment(epochs=1),)
        monkeypatch.setitem(PROTOCOLS._things, name, replace(rules, segments=short, seeds=1))

    def regimes(protocol, x=s, **options):
        options = {"data": None, "store": store, "baselines": False, **options}
        return [row.regime for row in evaluate(x, protocol=protocol, **options).rows]

    assert regimes("strict") == ["stored"]
    assert regimes("cda-in1k") == ["stored"]  # whose views are those of the labels
    assert regimes("tiny-kd") == ["online"]
    with pytest.raises(InputError, match="'tiny-kd' makes other views"):
        regimes("tiny-kd", regimes=("stored",))
    with pytest.raises(InputError, match="trains on hard labels only"):
        regimes("mtt")
    with pytest.raises(InputError, match="no stored labels"):
        regimes("strict", s.hardened(), regimes=("stored",))
    with pytest.raises(InputError, match="of all images together"):
        regimes("strict", continual=2)
    shutil.rmtree(store.root / "teachers")
    result = evaluate(s, seeds=1, store=store)
    assert [row.name for row in result.rows] == ["distilled"]
    assert "teacher, which is not in the store" in result.rows[0].note
    (tmp_path / "run" / "distilled" / "labels" / "epoch-001.safetensors").unlink()
    shutil.rmtree(store.root / "evaluations")
    again = load(tmp_path / "run")
    with pytest.raises(InputError, match=r"epoch 1 of 3 .* are missing"):
        regimes("strict", tmp_path / "run")
    assert regimes("strict", tmp_path / "run", regimes=("hard",)) == ["hard"]
    assert isinstance(again.cut(1).targets, Hard)
