"""The protocol `ratbptt`: class-balanced draws, its golden trace, and marks."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace

import pytest
import torch

from potstill.artefact import Block
from potstill.augment import DSA, RAT
from potstill.core.errors import InputError
from potstill.core.store import Store
from potstill.evaluation import PROTOCOLS, evaluate
from potstill.functional import Adam, Segment, TrainSpec, accuracy, fit
from potstill.functional.sampling import balanced_rows, members, sampler
from potstill.job import eval_rows, keep_rows
from potstill.nets import FlatNet, build
from potstill.report import text
from recorder import Recorder
from test_evaluate import CLASSES, NET, RECIPE, toy_data, toy_set

OWN = replace(RECIPE, lr=0.03, batch=4, augment=DSA(), segments=(Segment(epochs=2),))


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


LABELS = torch.tensor([4, 0, 2, 0, 4, 4, 2, 0, 4, 5])  # classes 1 and 3 have no image


def test_draws_of_classes_and_images_against_counting():
    n, table, drawn = 6000, members(LABELS), torch.zeros(10)
    assert table.tolist() == [[1, 3, 7, -1], [2, 6, -1, -1], [0, 4, 5, 8], [9, -1, -1, -1]]
    pairs: dict[tuple[int, ...], int] = {}
    chance = rng()
    for _ in range(n):
        rows = balanced_rows(table, classes=2, images=3, generator=chance).tolist()
        assert rows == sorted(set(rows))
        counts = {k: [LABELS[r].item() for r in rows].count(k) for k in LABELS[rows].tolist()}
        assert counts == {k: min(3, LABELS.tolist().count(k)) for k in counts}
        assert len(counts) == 2
        pairs[tuple(sorted(counts))] = pairs.get(tuple(sorted(counts)), 0) + 1
        drawn[rows] += 1
    assert len(pairs) == 6
    assert all(abs(count - n / 6) < 5 * math.sqrt(n * 5 / 36) for count in pairs.values())
    chances = torch.tensor([min(3 / LABELS.tolist().count(k), 1) / 2 for k in LABELS.tolist()])
    assert ((drawn - n * chances).abs() < 5 * (n * chances * (1 - chances)).sqrt()).all()
    everything = balanced_rows(table, classes=9, images=9, generator=rng())
    assert everything.tolist() == list(range(10))


def test_sampler_of_a_spec_and_its_counts():
    spec = replace(RECIPE, batch=4, balanced=2, segments=(Segment(epochs=3), Segment(epochs=4)))
    assert (spec.steps(10), spec.seen(10), spec.seen(3)) == (7, 28, 21)
    passes = replace(spec, balanced=None)
    assert (passes.steps(10), passes.seen(10)) == (21, 70)
    soft = torch.nn.functional.one_hot(LABELS, 6) + 0.1
    for targets in (LABELS, soft):
        (rows,) = sampler(targets, spec)(rng(3))
        assert torch.equal(
            rows, balanced_rows(members(LABELS), classes=2, images=2, generator=rng(3))
        )
    whole = sampler(LABELS, passes)(rng(3))
    assert [len(rows) for rows in whole] == [4, 4, 2]
    assert torch.equal(torch.cat(list(whole)), torch.randperm(10, generator=rng(3)))
    for bad in (0, 3):
        with pytest.raises(InputError, match=f"4 images .* {bad} images each"):
            replace(spec, balanced=bad)


def test_what_the_protocol_takes_from_a_recipe():
    rules = PROTOCOLS.get("ratbptt")
    spec = rules.train_spec(OWN)
    assert (rules.marks, rules.seeds, rules.hard_only) == ((300, 600, 1000, 3000), 10, False)
    assert spec == TrainSpec(
        lr=0.001, segments=(Segment(epochs=3000),), batch=100, balanced=10, optimizer=Adam(),
        augment=RAT(),
    )  # fmt: skip
    tiny = rules.train_spec(replace(OWN, batch=50, balanced=1, loss="soft_ce"))
    assert tiny == replace(spec, batch=50, balanced=1, loss="soft_ce")
    fast = rules.train_spec(replace(OWN, optimizer=Adam(eps=1e-4)))  # students' own step size
    assert fast == replace(spec, lr=0.03)
    assert PROTOCOLS.get("strict").train_spec(tiny) == tiny
    mtt = PROTOCOLS.get("mtt").train_spec(tiny)
    assert (mtt.batch, mtt.balanced) == (256, None)


def test_golden_trace_on_10_images():
    recorder, spec = Recorder(".3g"), PROTOCOLS.get("ratbptt").train_spec(OWN)
    net = FlatNet(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)))
    traced = replace(spec, optimizer=recorder, augment=None)
    fit(net, net.theta0, torch.zeros(10, 1, 2, 2), torch.arange(10) % 2, traced, seed=0)
    assert recorder.calls == ["reset", *(f"0.001 step {step}" for step in range(3000))]


def test_equals_a_torch_loop_on_10_images():
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 5)).double()
    net, chance = FlatNet(module), rng()
    x = torch.randn(10, 1, 2, 2, dtype=torch.float64, generator=chance)
    y = torch.arange(10) % 5
    marks, rules = {}, PROTOCOLS.get("ratbptt")  # 2 images of each of 5 classes: all of them
    spec = replace(rules.train_spec(OWN), augment=None, segments=(Segment(epochs=600),))
    fit(net, net.theta0, x, y, spec, seed=0, on_epoch=lambda e, t, _: marks.update({e + 1: t}))
    optimizer = torch.optim.Adam(module.parameters(), 0.001)
    for step in range(1, 601):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()
        if step in (300, 600):
            wanted = torch.cat([p.detach().flatten() for p in module.parameters()])
            assert (marks[step] - wanted).abs().max() < 1e-12


def test_marks_are_measured_on_the_way_and_chosen_on_validation(tmp_path, monkeypatch):
    data = toy_data()
    s, (segment, marks) = toy_set(data), ((Segment(epochs=9),), (2, 5, 9))
    rules = replace(PROTOCOLS.get("ratbptt"), lr=0.01, segments=segment, marks=marks, seeds=2)
    monkeypatch.setitem(PROTOCOLS._things, "ratbptt", rules)
    result = evaluate(s, protocol="ratbptt", store=Store(tmp_path))
    row = result.rows[0]
    plain = {}
    for epochs in marks:  # each mark is a training of its own length
        spec = replace(rules.train_spec(s.recipe), segments=(Segment(epochs=epochs),))
        plain[epochs] = [_trained(s, data, spec, seed) for seed in range(2)]
    means = {
        e: tuple(statistics.fmean(r[k] for r in runs) for k in (0, 1)) for e, runs in plain.items()
    }
    assert row.marks == tuple((e, *means[e]) for e in marks)
    best = max(marks, key=lambda e: means[e][0])
    assert (row.validation, row.mean) == means[best]
    assert row.accuracies == tuple(run[1] for run in plain[best])
    assert row.note == f"after {best} of 9 steps, best on validation"
    assert row.note in text(result)
    assert "protocol ratbptt, best mark on validation;" in text(result)
    assert [r.name for r in result.rows[1:]] == [
        "random real, own step",
        "k-means medoid, own step",
    ]
    assert all(len(r.marks) == 3 and r.seconds > 0 for r in result.rows)
    assert json.loads(result.lines()[0])["marks"] == [list(mark) for mark in row.marks]


def _trained(s, data, spec, seed):
    net = FlatNet(
        build(NET, channels=1, size=(8, 8), classes=CLASSES, seed=seed, key=("evaluate",))
    )
    theta = fit(net, net.theta0, *s.decoded(), spec, seed=seed, key=("evaluate",))
    parts = (data.val, data.test)
    return [accuracy(net, theta, p.pixels, p.labels, prepare=s.space.forward) for p in parts]


def test_prefix_is_scored_as_a_set_of_its_own(tmp_path):
    data, store = toy_data(), Store(tmp_path)
    blocks = tuple(Block(name=f"block{k}", start=3 * k, stop=3 * k + 3) for k in range(2))
    s = replace(toy_set(data), blocks=blocks)  # of 2 images a class, class by class in turn
    found = evaluate(s, prefix=1, seeds=1, store=store)
    alone = evaluate(s.prefix(1), seeds=1, store=store)
    assert [(r.name, r.accuracies, r.nbytes) for r in found.rows] == [
        (r.name, r.accuracies, r.nbytes) for r in alone.rows
    ]
    assert (found.prefix, found.rows[0].note) == (1, "first 1 of 2 blocks")
    assert found.rows[1].nbytes["images"] == 3 * 64  # as many real images as the prefix has
    assert json.loads(found.lines()[0])["prefix"] == 1
    with pytest.raises(InputError, match="takes the first 1 to 2, not 3"):
        evaluate(s, prefix=3, store=store)


def test_rows_of_a_prefix_are_kept_beside_those_of_the_whole(tmp_path):
    data, store = toy_data(), Store(tmp_path / "store")
    s = replace(toy_set(data), blocks=(Block(name="block0", start=0, stop=6),))
    for prefix in (None, 1, 1, None):
        options = {"seeds": 1, "baselines": False, "store": store}
        keep_rows(tmp_path, evaluate(s, prefix=prefix, **options))
    assert [row["prefix"] for row in eval_rows(tmp_path)] == [1, None]
