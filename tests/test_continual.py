"""Classes in steps: what is trained on, what is tested, and the means over steps."""

from __future__ import annotations

import itertools
import statistics
from dataclasses import replace

import pytest
import torch

from potstill import cli
from potstill.artefact import Block, DistilledSet, Hard, Provenance, Soft
from potstill.core.errors import InputError
from potstill.core.spec import to_json
from potstill.core.store import Store
from potstill.data import from_arrays, measure_stats
from potstill.evaluation import Distilled, evaluate
from potstill.evaluation.continual import seen_at
from potstill.evaluation.specs import EvalSpec, among
from potstill.functional import Segment, TrainSpec, fit, predict
from potstill.nets import NetSpec, flat

NET, CLASSES = NetSpec(name="convnet1", width=4), 6
RECIPE = TrainSpec(lr=0.02, segments=(Segment(epochs=4),), batch=8, augment=None)
pytestmark = pytest.mark.usefixtures("alone")


def pictures(count, noise, seed):
    templates = torch.rand(CLASSES, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels, chance = torch.arange(CLASSES).repeat(count), torch.Generator().manual_seed(seed)
    x = templates[labels] + noise * torch.randn(len(labels), 1, 8, 8, generator=chance)
    return (x.clamp(0, 1) * 255).to(torch.uint8), labels


@pytest.fixture
def data():
    tests = dict(zip(("test_images", "test_labels"), pictures(10, 0.5, 2), strict=True))
    return from_arrays(*pictures(20, 0.5, 1), **tests, validation=0.2)


def a_set(data, **changes):
    space, (images, labels) = measure_stats(data.train), pictures(2, 0.05, 3)
    s = DistilledSet(
        images=space.forward(images),
        targets=Hard(labels),
        space=space,
        recipe=RECIPE,
        net=NET,
        classes=data.classes,
        ref=data.ref,
        origin=Provenance(method="{}", data="toy", identity="x", seed=0, version="0"),
    )
    return replace(s, **changes)


def test_groups_of_a_random_order_join_the_classes_seen():
    for seed in (0, 1):
        steps = seen_at(10, 4, seed)
        assert [len(seen) for seen in steps] == [3, 6, 8, 10]
        assert all(set(a) < set(b) for a, b in itertools.pairwise(steps))
        assert all(list(seen) == sorted(seen) for seen in steps)
    assert seen_at(10, 4, 0) == seen_at(10, 4, 0) != seen_at(10, 4, 1)


def plain(s, data, seed, seen):
    """Return the test accuracy of a network trained on, and asked about, some classes."""
    images, labels = s.decoded()
    rows = [k for k, label in enumerate(labels.tolist()) if label in seen]
    net = flat(NET, channels=1, size=(8, 8), classes=CLASSES, seed=seed, key=("evaluate",))
    key = ("evaluate",)
    theta = fit(net, net.theta0, images[rows], labels[rows], RECIPE, seed=seed, key=key)
    right = total = 0
    for image, label in zip(data.test.pixels, data.test.labels.tolist(), strict=True):
        if label in seen:
            logits = predict(net, theta, s.space.forward(image[None]))[0].tolist()
            right += max(seen, key=lambda k: logits[k]) == label
            total += 1
    return right / total


def test_each_step_is_trained_and_tested_on_the_classes_seen(data, tmp_path):
    s, store = a_set(data), Store(tmp_path)
    options = {"data": data, "seeds": 2, "store": store}
    result = evaluate(s, continual=3, **options)
    of = ("2 of 6 classes", "4 of 6 classes", "6 of 6 classes", "mean of 3 steps")
    names = ("distilled", "random real", "k-means medoid")
    assert [row.name for row in result.rows] == [f"{n}, {part}" for n in names for part in of]
    for k in range(3):
        want = [plain(s, data, seed, seen_at(6, 3, seed)[k]) for seed in (0, 1)]
        assert result.rows[k].accuracies == pytest.approx(want, abs=1e-12)
    own, random = result.rows[:4], result.rows[4:8]
    for rows in (own, random):
        means = [statistics.fmean(row.accuracies[d] for row in rows[:3]) for d in (0, 1)]
        assert rows[3].accuracies == pytest.approx(means)
        assert rows[3].mean == pytest.approx(statistics.fmean(means))
        assert rows[3].n == 2
        assert rows[3].seconds == pytest.approx(sum(row.seconds for row in rows[:3]))
    parts = [row.nbytes["images"] for row in own[:3]]
    assert parts == [4 * 64 * 4, 8 * 64 * 4, 12 * 64 * 4]
    assert [row.nbytes["images"] for row in random[:3]] == [4 * 64, 8 * 64, 12 * 64]
    assert {row.nbytes["normaliser"] for row in own} == {8}
    whole = evaluate(s, baselines=False, **options).rows[0]
    assert whole.accuracies == own[2].accuracies
    assert whole.seconds == own[2].seconds  # the same work, found in the store


@pytest.mark.parametrize("regime", ["soft", "online"])
def test_other_labels_come_in_steps_too(data, tmp_path, regime, monkeypatch):
    whole = TrainSpec(lr=0.05, segments=(Segment(epochs=2),), batch=30)
    monkeypatch.setattr("potstill.evaluation.regimes.whole_recipe", lambda: whole)
    options = {"data": data, "seeds": 1, "store": Store(tmp_path), "baselines": False}
    result = evaluate(a_set(data), regimes=[regime], continual=2, **options)
    assert [row.regime for row in result.rows] == [regime] * 3
    soft = a_set(
        data,
        targets=Soft(torch.nn.functional.one_hot(pictures(2, 0, 3)[1], CLASSES).float()),
        recipe=replace(RECIPE, loss="soft_ce"),
    )
    assert len(evaluate(soft, continual=2, **options).rows) == 3


def test_stages_are_left_out_and_what_does_not_fit_is_refused(data, tmp_path):
    options = {"data": data, "seeds": 1, "store": Store(tmp_path), "baselines": False}
    stage = (Segment(epochs=2),)
    ends = ((0, 6), (6, 12))
    blocks = tuple(Block(name=str(a), start=a, stop=b, train=stage) for a, b in ends)
    rows = evaluate(a_set(data, blocks=blocks), continual=2, **options).rows
    assert [row.name.split(",")[:2] for row in rows] == [["distilled", " flat union"]] * 3
    for steps in (0, 1, 4):
        with pytest.raises(InputError, match=f"6 classes cannot come in {steps}"):
            evaluate(a_set(data), continual=steps, **options)


def test_earlier_results_keep_their_names():
    spec = EvalSpec(
        what=Distilled(digest="0"), net=NET, train=RECIPE, seed=0, data=None, space=None,
        compute=None,
    )  # fmt: skip
    assert "seen" not in to_json(spec)
    assert to_json(replace(spec, seen=(1, 2)))["seen"] == [1, 2]
    assert among(torch.tensor([2, 0, 1, 2]), (1, 2)).tolist() == [0, 2, 3]


def test_command_line(data, tmp_path, capsys):
    a_set(data).save(tmp_path / "set")
    command = ["evaluate", str(tmp_path / "set"), "--data", f"cached:{data.ref.identity}"]
    command += ["--store", str(tmp_path / "store"), "--seeds", "1", "--no-baselines"]
    assert cli.run([*command, "--continual", "3"]) == 0
    said = capsys.readouterr().out
    assert "distilled, 2 of 6 classes" in said
    assert "distilled, mean of 3 steps" in said
    assert cli.run([*command, "--continual", "4"]) == 2
    assert "cannot come in 4" in capsys.readouterr().err
