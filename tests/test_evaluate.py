"""Evaluation: matched baselines, honest selection, protocols, statistics and scores."""

from __future__ import annotations

import io
import json
import math
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from scipy import stats

from potstill.artefact import DistilledSet, Hard, Provenance, Soft
from potstill.augment import DSA
from potstill.core.compute import Compute, Wish
from potstill.core.errors import InputError
from potstill.core.spec import from_json, to_json
from potstill.core.store import Store
from potstill.coresets import random_real
from potstill.data import DataSet, from_arrays, measure_stats
from potstill.evaluation import (
    PROTOCOLS,
    Result,
    augment_robust,
    evaluate,
    label_robust,
    spread,
)
from potstill.evaluation.regimes import teacher_of
from potstill.experts import Trajectory
from potstill.functional import SGD, Segment, TrainSpec, accuracy, fit, predict
from potstill.nets import FlatNet, NetSpec, build
from potstill.report import cells, markdown, matrix, rich_table, text
from recorder import Recorder

NET = NetSpec(name="convnet1", width=4)
RECIPE = TrainSpec(lr=0.02, segments=(Segment(epochs=6),), batch=8, augment=None)
CLASSES, SIDE = 3, 8


def toy_images(count: int, noise: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Class templates with noise: uint8 [3 count, 1, 8, 8] and labels."""
    templates = torch.rand(CLASSES, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(CLASSES).repeat(count)
    chance = torch.Generator().manual_seed(seed)
    x = templates[labels] + noise * torch.randn(len(labels), 1, SIDE, SIDE, generator=chance)
    return (x.clamp(0, 1) * 255).to(torch.uint8), labels


def toy_data(*, shuffle_test: bool = False) -> DataSet:
    images, labels = toy_images(30, 0.5, 1)
    test_images, test_labels = toy_images(20, 0.5, 2)
    if shuffle_test:
        test_labels = test_labels.roll(7)
    return from_arrays(
        images, labels, test_images=test_images, test_labels=test_labels, validation=0.2
    )


def toy_set(data: DataSet, *, ipc: int = 2, recipe: TrainSpec = RECIPE) -> DistilledSet:
    space = measure_stats(data.train)
    images, labels = toy_images(ipc, 0.05, 3)
    origin = Provenance(
        method='{"type": "Toy"}', data="toy", identity="x", seed=0, version="0", iteration=0
    )
    return DistilledSet(
        images=space.forward(images),
        targets=Hard(labels),
        space=space,
        recipe=recipe,
        net=NET,
        classes=data.classes,
        ref=data.ref,
        origin=origin,
    )


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))


def numbers(result: Result) -> list[tuple]:
    return [(row.name, row.accuracies, row.validation, row.lr) for row in result.rows]


def test_rows_engines_store_and_global_generator(tmp_path, monkeypatch):
    data = toy_data()
    s = toy_set(data)
    torch.manual_seed(5)
    before, seen = torch.get_rng_state(), []
    options = {"data": data, "seeds": 2}
    one = evaluate(s, **options, store=Store(tmp_path / "a"), on_done=lambda *at: seen.append(at))
    assert torch.equal(before, torch.get_rng_state())
    assert seen[-1] == (18, 18)  # 2 seeds x (set + 2 baselines x 4 steps)
    names = [row.name for row in one.rows]
    assert names[0] == "distilled"
    assert [n for n in names if "own" in n] == ["random real, own step", "k-means medoid, own step"]
    assert one.rows[0].mean > 0.5  # the templates teach the classes
    assert one.row("random real, own step").lr == RECIPE.lr
    assert one.row("k-means medoid, own step").note == "k-means on normalised pixels"
    monkeypatch.setattr("potstill.evaluation.images.CLASS_CAP", 20)  # of 24 images a class
    noted = evaluate(s, **options, store=Store(tmp_path / "a")).row("k-means medoid, own step").note
    assert noted == "k-means on normalised pixels, 20 images of each larger class"

    s.save(tmp_path / "set")
    store = Store(tmp_path / "b")
    two = evaluate(tmp_path / "set", seeds=2, store=store, engine="processes", workers=2)
    assert numbers(one) == numbers(two)
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "b").rglob("*.json")}
    again = evaluate(tmp_path / "set", seeds=2, store=store)
    assert again == two
    assert made == {path: path.stat().st_mtime_ns for path in (tmp_path / "b").rglob("*.json")}

    lines = [json.loads(line) for line in one.lines()]
    assert [line["name"] for line in lines] == names
    assert {line["protocol"] for line in lines} == {"strict"}
    assert {line["identity"] for line in lines} == {data.ref.identity}
    assert lines[0]["nbytes"] == s.nbytes()
    assert lines[1]["nbytes"] == {"images": 6 * 64, "targets": 6 * 8, "normaliser": 8}
    assert all(line[key] > 0 for line in lines for key in ("seconds", "cpu_seconds", "peak_bytes"))
    assert one.to_json()["cpu_seconds"] > 0


def test_steps_are_chosen_on_validation_and_never_on_test(tmp_path):
    chosen = []
    for shuffled in (False, True):
        data = toy_data(shuffle_test=shuffled)
        recipe = replace(RECIPE, lr=1e-6)  # learns nothing, so another step size must win
        result = evaluate(toy_set(data, recipe=recipe), seeds=2, store=Store(tmp_path))
        own, best = (result.row(f"random real, {word} step") for word in ("own", "best"))
        assert best.validation > own.validation
        grid = dict(_random_validation(tmp_path, data))
        assert best.validation == max(grid.values()) == grid[best.lr]
        chosen.append([(row.name, row.lr, row.validation) for row in result.rows])
        assert (best.mean > 0.5) != shuffled
    assert chosen[0] == chosen[1]


def _random_validation(root: Path, data: DataSet) -> list[tuple[float, float]]:
    """Mean validation accuracy of each step size over the random draws, read from the store."""
    draws = [random_real(data.train, (2, 2, 2), seed=d) for d in range(2)]
    found: dict[float, list[float]] = {}
    for done in (root / "evaluations").glob("*/done.json"):
        spec = from_json(json.loads(done.read_text())["spec"])
        if spec.data == data.ref and getattr(spec.what, "indices", None) == draws[spec.seed]:
            value = json.loads((done.parent / "result.json").read_text())["val"]
            found.setdefault(spec.train.lr, []).append(value)
    assert all(len(values) == 2 for values in found.values())
    return [(lr, statistics.fmean(values)) for lr, values in found.items()]


def test_networks_whole_set_soft_labels_and_tables(tmp_path):
    data = toy_data()
    hard = toy_set(data)
    soft = replace(
        hard,
        targets=Soft(torch.nn.functional.one_hot(hard.targets.labels, CLASSES).float()),
        recipe=replace(RECIPE, loss="soft_ce"),
    )
    whole = replace(RECIPE, segments=(Segment(epochs=1),))
    nets = ["convnet1", replace(NET, name="convnet2")]
    store = Store(tmp_path)
    result = evaluate(soft, nets=nets, seeds=1, whole=whole, store=store)
    assert {row.net for row in result.rows} == {"convnet1 width 4", "convnet2 width 4"}
    assert result.row("whole set", "convnet2 width 4").std is None
    same = evaluate(hard, seeds=1, baselines=False, store=store)
    assert [row.name for row in same.rows] == ["distilled"]
    assert same.rows[0].accuracies == result.rows[0].accuracies
    head, first, *rest = matrix(result)
    assert head == ("trained on", "labels", "convnet1 width 4", "convnet2 width 4")
    one, two = result.rows[0], result.row("distilled", "convnet2 width 4")
    assert first == ("distilled", "soft", *(f"{100 * row.mean:.2f}" for row in (one, two)))
    assert all(len(row) == 4 for row in rest)
    for shown in (text(result), markdown(result)):
        assert all(cell in shown for row in cells(result) for cell in row)
    console = Console(width=160, file=io.StringIO())
    console.print(rich_table(result))
    assert "k-means medoid, own step" in console.file.getvalue()
    with pytest.raises(InputError, match="hard labels"):
        evaluate(soft, protocol="mtt", store=store)


def test_regimes_side_by_side(tmp_path):
    data, store = toy_data(), Store(tmp_path)
    s = toy_set(data)
    result = evaluate(s, regimes=["hard", "soft"], seeds=2, store=store)
    assert [r.regime for r in result.rows if r.name == "distilled"] == ["hard", "soft"]
    plain = evaluate(s, seeds=2, store=store)
    assert evaluate(s, seeds=2, nets="convnet1", regimes="hard", store=store).rows == plain.rows
    assert plain.rows == tuple(row for row in result.rows if row.regime == "hard")
    soft = [row for row in result.rows if row.regime == "soft"]
    assert {row.name.split(",")[0] for row in soft} == {
        row.name.split(",")[0] for row in plain.rows
    }
    assert all("soft labels by a convnet1 width 4" in row.note for row in soft)
    assert all(row.nbytes["targets"] == 6 * CLASSES * 4 for row in soft)
    assert soft[0].mean > 0.5
    # the labels are what the teacher says: train on them plainly and compare
    teacher = teacher_of(s, data, Wish(threads=1))
    expert = Trajectory(store.verify("experts", teacher))
    assert expert.facts["source"] == s.origin.data  # what `potstill experts list` shows
    net = FlatNet(build(NET, channels=1, size=(8, 8), classes=3, seed=0, key=("expert", 0)))
    targets = predict(net, expert.row(teacher.train.epochs), s.images).softmax(1)
    fresh = FlatNet(build(NET, channels=1, size=(8, 8), classes=3, seed=1, key=("evaluate",)))
    train = replace(RECIPE, loss="soft_ce")
    theta = fit(fresh, fresh.theta0, s.images, targets, train, seed=1, key=("evaluate",))
    got = accuracy(fresh, theta, data.test.pixels, data.test.labels, prepare=s.space.forward)
    assert got == soft[0].accuracies[1]


def test_hard_regime_of_a_soft_set_takes_the_likeliest_class(tmp_path):
    data, store = toy_data(), Store(tmp_path)
    hard = toy_set(data)
    chances = 0.4 * torch.nn.functional.one_hot(hard.targets.labels, CLASSES) + 0.2
    soft = replace(hard, targets=Soft(chances.float()), recipe=replace(RECIPE, loss="soft_ce"))
    options = {"seeds": 1, "baselines": False, "store": store}
    found = evaluate(soft, regimes=["hard", "soft"], **options)
    assert found.rows[0].accuracies == evaluate(hard, **options).rows[0].accuracies
    assert [row.regime for row in found.rows] == ["hard", "soft"]
    assert found.rows[1].note == ""  # its own soft labels, no teacher
    assert evaluate(soft, protocol="mtt", regimes=["hard"], **options).rows[0].regime == "hard"


def test_pools_and_small_classes(tmp_path):
    data, store = toy_data(), Store(tmp_path)
    few = evaluate(toy_set(data, ipc=25), seeds=1, store=store)  # 24 training images a class
    assert "small classes give images twice" in few.row("random real, own step").note
    with pytest.raises(InputError, match=r"^lenet needs images of at least"):
        evaluate(toy_set(data), nets=["dc"], seeds=1, store=store)  # 8 px are too small for it


def test_wrong_input_is_refused(tmp_path):
    data = toy_data()
    s, store = toy_set(data), Store(tmp_path)
    with pytest.raises(InputError, match="is not the data set"):
        evaluate(s, data=toy_data(shuffle_test=True), store=store)
    with pytest.raises(InputError, match=r"validation part of 0\.2"):
        evaluate(s, data=replace(data, ref=replace(data.ref, validation=0.1)), store=store)
    with pytest.raises(InputError, match=r"limit=None training images a class, not limit=7"):
        evaluate(s, data=replace(data, ref=replace(data.ref, limit=7)), store=store)
    with pytest.raises(InputError, match="3 classes of images"):
        evaluate(replace(s, images=s.images[:, :, :4, :4]), data=data, store=store)
    with pytest.raises(InputError, match="did you mean 'soft'"):
        evaluate(s, regimes=["sof"], store=store)
    with pytest.raises(InputError, match="'dc' trains on hard labels only"):
        evaluate(s, regimes=["hard", "soft"], protocol="dc", store=store)
    with pytest.raises(InputError, match="seeds=0"):
        evaluate(s, seeds=0, store=store)
    with pytest.raises(InputError, match="did you mean 'strict'"):
        evaluate(s, protocol="stric", store=store)


# As the references print them: step size, nominal epochs, DSA, networks, divisor of the std.
PUBLISHED = {
    "mtt": (0.03, 1000, True, 5, 0),  # the set's own step size and augmentation
    "dc": (0.01, 300, False, 20, 0),
    "dsa": (0.01, 1000, True, 20, 0),
    "dc-bench": (0.01, 1000, True, 5, 1),
    "dc-bench-plain": (0.01, 300, False, 5, 1),
}


def as_printed(name: str) -> TrainSpec:
    own = replace(RECIPE, lr=0.03, batch=4, augment=DSA(), segments=(Segment(epochs=2),))
    return PROTOCOLS.get(name).train_spec(own)


@pytest.mark.parametrize(("name", "row"), PUBLISHED.items())
def test_golden_trace_on_10_images(name, row):
    lr, nominal, dsa, seeds, ddof = row
    recorder, spec, rules = Recorder(".3g"), as_printed(name), PROTOCOLS.get(name)
    assert (spec.batch, spec.optimizer) == (256, SGD(momentum=0.9, weight_decay=5e-4))
    assert (spec.augment, rules.seeds, rules.ddof) == (DSA() if dsa else None, seeds, ddof)
    assert rules.lr_grid == ()
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    net, images = FlatNet(module), torch.zeros(10, 1, 2, 2)
    traced = replace(spec, optimizer=recorder, augment=None)
    fit(net, net.theta0, images, torch.arange(10) % 2, traced, seed=0)
    # the loop as published: epochs 0..E, the step size falls after epoch E // 2 + 1
    expected, step = ["reset"], 0
    for epoch in range(nominal + 1):
        expected.append(f"{lr:.3g} step {step}")
        step += 1
        if epoch == nominal // 2 + 1:
            lr, step = 0.1 * lr, 0
            expected.append("reset")
    assert recorder.calls == expected


def test_protocol_dc_equals_a_torch_loop_on_10_images():
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)).double()
    net, chance = FlatNet(module), torch.Generator().manual_seed(0)
    x = torch.randn(10, 1, 2, 2, dtype=torch.float64, generator=chance)
    y = torch.arange(10) % 2
    found = fit(net, net.theta0, x, y, as_printed("dc"), seed=0)
    lr, optimizer = 0.01, torch.optim.SGD(module.parameters(), 0.01, 0.9, weight_decay=5e-4)
    for epoch in range(301):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()
        if epoch == 151:
            lr *= 0.1
            optimizer = torch.optim.SGD(module.parameters(), lr, 0.9, weight_decay=5e-4)
    wanted = torch.cat([p.detach().flatten() for p in module.parameters()])
    assert torch.allclose(found, wanted, rtol=0, atol=1e-12)


def test_protocols_as_data():
    strict = PROTOCOLS.get("strict")
    assert strict.train_spec(RECIPE) == RECIPE
    assert (strict.ddof, strict.seeds, strict.lr_grid) == (1, 5, (0.001, 0.01, 0.1))
    for name in PROTOCOLS.names():
        rules = PROTOCOLS.get(name)
        assert from_json(json.loads(json.dumps(to_json(rules)))) == rules


def test_spread_against_scipy_and_statistics():
    values = [0.61, 0.64, 0.58, 0.66, 0.6]
    mean, std, half = spread(values, ddof=1)
    low, high = stats.t.interval(0.95, 4, loc=statistics.fmean(values), scale=stats.sem(values))
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert std == pytest.approx(statistics.stdev(values))
    assert half == pytest.approx(2.7764451 * statistics.stdev(values) / 5**0.5)
    assert spread(values, ddof=0)[1:] == pytest.approx((statistics.pstdev(values), half))
    assert spread([0.5], ddof=1) == (0.5, None, None)


# HLR %, IOR %, alpha, LRS %
GOLDEN = {
    "DC": [
        (52.66, 12.40, -0.20130, 19.137),
        (36.70, 18.54, -0.09080, 23.201),
        (26.31, 12.34, -0.06985, 24.024),
    ],
    "DSA": [
        (58.93, 13.16, -0.22885, 18.191),
        (35.14, 19.62, -0.07760, 23.717),
        (27.41, 10.96, -0.08225, 23.535),
    ],
    "DM": [
        (61.37, 8.73, -0.26320, 17.049),
        (39.37, 16.12, -0.11625, 22.225),
        (25.06, 12.66, -0.06200, 24.336),
    ],
    "MTT": [
        (42.21, 27.62, -0.07295, 23.901),
        (23.73, 30.90, 0.03585, 28.447),
        (16.52, 20.52, 0.02000, 27.754),
    ],
    "DATM": [(26.84, 35.05, 0.04105, 28.677), (18.89, 23.89, 0.02500, 27.971)],
    "SRe2L": [(69.86, -0.27, -0.35065, 14.310), (67.82, -5.77, -0.36795, 13.796)],
    "RDED": [(60.58, 2.38, -0.29100, 16.152), (50.65, 1.11, -0.24770, 17.559)],
    "D4M": [(51.06, 6.68, -0.22190, 18.427), (39.88, 9.12, -0.15380, 20.829)],
}
ROWS = [(method, *row) for method, rows in GOLDEN.items() for row in rows]


@pytest.mark.parametrize(("method", "hlr", "ior", "alpha", "lrs"), ROWS)
def test_label_robust_golden_rows(method, hlr, ior, alpha, lrs):
    found = label_robust(
        real_hard=0.9, syn_hard=0.9 - hlr / 100, syn_any=0.3 + ior / 100, rdm_any=0.3
    )
    assert found.alpha == pytest.approx(alpha, abs=5e-6)
    assert 100 * found.lrs == pytest.approx(lrs, abs=5e-4)
    assert (100 * found.hlr, 100 * found.ior) == pytest.approx((hlr, ior))


@pytest.mark.parametrize(("gap", "score"), [(-1, 0.0), (0, 0.26894), (1, 1.0)])
def test_score_edges_and_percentages_refused(gap, score):
    high, low = max(gap, 0), max(-gap, 0)
    label = label_robust(real_hard=low, syn_hard=high, syn_any=high, rdm_any=low)
    augment = augment_robust(syn_aug=high, rdm_aug=low, syn_naug=high, rdm_naug=low)
    assert (label.lrs, augment.ars) == pytest.approx((score, score), abs=1e-5)
    for bad in (63.7, -0.1, math.nan):
        with pytest.raises(InputError, match=r"syn_any=.*fractions"):
            label_robust(real_hard=0.8, syn_hard=0.5, syn_any=bad, rdm_any=0.3)


def test_what_the_machine_cannot_do_is_refused_before_images_are_compared(tmp_path, monkeypatch):
    monkeypatch.setattr("potstill.evaluation.matched.images_of", lambda *_: pytest.fail("too late"))
    monkeypatch.setattr("potstill.core.compute.no_compiler", lambda device: "no hammer")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    s, store = toy_set(toy_data()), Store(tmp_path)
    for wish, why in ((Wish(device="cuda"), "no GPU"), (Wish(compile="on"), "no hammer")):
        with pytest.raises(InputError, match=why):
            evaluate(s, store=store, wish=wish)


def test_how_to_compute_is_chosen_a_network_from_all_its_work(tmp_path, monkeypatch):
    asked, bfloat16 = [], Compute(threads=1, precision="bfloat16")

    def chosen(wish, **work):
        asked.append((wish, work))
        return bfloat16 if len(asked) == 2 else Compute(threads=1)

    monkeypatch.setattr("potstill.evaluation.computing.choose", chosen)
    monkeypatch.setattr("potstill.core.compute.no_compiler", lambda device: "")
    data, store, wish = toy_data(), Store(tmp_path), Wish(threads=1, compile="on")
    whole = replace(RECIPE, segments=(Segment(epochs=2),), batch=64)
    nets = ("convnet1", "mlp")
    result = evaluate(toy_set(data), nets=nets, seeds=3, whole=whole, store=store, wish=wish)
    trained = 3 * 6 * 6 * (1 + 2 * 4) + 3 * 2 * len(
        data.train
    )  # seeds, epochs, images, steps sizes
    predicted = 3 * (1 + 2 * 4 + 1) * (len(data.val) + len(data.test)) // 3
    steps = 3 * 6 * (1 + 2 * 4) + 3 * 2 * 2
    assert [given for given, _ in asked] == [wish, wish]
    assert all(work["images"] == trained + predicted for _, work in asked)
    assert all(work["steps"] == steps and work["compiles"] for _, work in asked)
    assert asked[0][1]["flops"] == 2 * 8 * 8 * 4 * 9 + 2 * 4 * 4 * 4 * 3
    by_net = {row.net.split()[0]: row.compute for row in result.rows}
    assert by_net == {
        "convnet1": "1 thread, eager float32",
        "mlp": "1 thread, eager bfloat16",
    }
    assert all(json.loads(line)["compute"] in by_net.values() for line in result.lines())
