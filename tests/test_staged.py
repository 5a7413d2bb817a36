"""Sets with stages: training on S1, then S1 and S2 ..., its budget, rows, protocols, card."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from potstill.artefact import Block, DistilledSet, MultiFormation, Soft, load, set_digest
from potstill.core import keys
from potstill.core.errors import InputError
from potstill.core.spec import from_json, to_json
from potstill.core.store import Store
from potstill.evaluation import PROTOCOLS, evaluate
from potstill.functional import (
    SGD,
    Adam,
    Segment,
    TrainSpec,
    fit,
    idc_segments,
    mtt_segments,
    within,
)
from potstill.functional.advance import Job
from potstill.nets import NetSpec
from potstill.studies.correlation import correlation
from test_evaluate import CLASSES, RECIPE, toy_data, toy_set
from test_train import images as toy_images
from test_train import spec, tiny_net

STAGE = (Segment(epochs=4), Segment(epochs=2, lr_scale=0.1))
NAMES = ["distilled", "distilled, matched budget", "distilled, flat union"]


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)


def blocks_of(size, lrs, train=()):
    """Return blocks of equal size, one for each step size."""
    return tuple(
        Block(name=f"stage{k + 1}", start=k * size, stop=(k + 1) * size, lr=lr, train=train)
        for k, lr in enumerate(lrs)
    )


def staged_set(lrs=(0.05, None), train=STAGE, **changes):
    """Return the toy set of three classes in stages of one image a class."""
    s = toy_set(toy_data(), ipc=len(lrs))  # class by class in turn
    return replace(s, blocks=blocks_of(CLASSES, lrs, train), **changes)


# --- training


@pytest.mark.parametrize("optimizer", [SGD(momentum=0.9, weight_decay=5e-4), Adam()], ids=str)
def test_stages_equal_a_torch_loop(optimizer):
    net, (x, y) = tiny_net(), toy_images(torch.float64)
    ends, asked = (6, 15, 22), []

    def view(blocks):
        asked.append(blocks)
        return x[: ends[blocks - 1]], y[: ends[blocks - 1]]

    segments = (
        Segment(epochs=2, blocks=1),
        Segment(epochs=1, blocks=1, lr_scale=0.1, optimizer="carried"),
        Segment(epochs=2, blocks=2, lr_scale=0.5, optimizer="carried"),
        Segment(epochs=1, optimizer="carried"),
        Segment(epochs=1, blocks=1, optimizer="new"),
    )
    given = spec(segments=segments, optimizer=optimizer)
    theta = fit(net, net.theta0.double(), x, y, given, seed=3, view=view)
    assert asked == [1, 2, 1]

    module = net.load(net.theta0.double())
    options = {"momentum": 0.9, "weight_decay": 5e-4} if isinstance(optimizer, SGD) else {}
    kind = torch.optim.SGD if options else torch.optim.Adam
    counts, lrs = [6, 6, 6, 15, 15, 22, 6], [0.05, 0.05, 0.005, 0.025, 0.025, 0.05, 0.05]
    for epoch, (count, lr) in enumerate(zip(counts, lrs, strict=True)):
        if epoch in (0, 6):
            reference = kind(module.parameters(), lr=lr, **options)
        reference.param_groups[0]["lr"] = lr
        generator = keys.generator(3, "epoch", epoch)
        for rows in torch.randperm(count, generator=generator).split(8):
            reference.zero_grad()
            F.cross_entropy(module(x[rows]), y[rows]).backward()
            reference.step()
    plain = torch.cat([p.detach().flatten() for p in module.parameters()])
    torch.testing.assert_close(theta, plain, rtol=1e-10, atol=1e-12)
    with pytest.raises(InputError, match="needs a set with blocks"):
        fit(net, net.theta0.double(), x, y, given, seed=3)


@pytest.mark.parametrize("balanced", [None, 2])
def test_one_stage_equals_flat_training_bit_for_bit(balanced):
    net, (x, y) = tiny_net(), toy_images()
    places, targets = y.roll(1), F.one_hot(y, 3).float()
    segments = tuple(replace(part, optimizer="carried") for part in mtt_segments(8))
    one = tuple(replace(part, blocks=1) for part in segments)
    given = spec(segments=segments, loss="soft_ce", batch=6, balanced=balanced)
    arguments = (net, net.theta0, x, targets)
    flat = fit(*arguments, given, seed=1, places=places)
    staged = replace(given, segments=one)
    again = fit(*arguments, staged, seed=1, view=lambda _: (x, targets, places))
    assert torch.equal(flat, again)
    without = fit(*arguments, staged, seed=1, places=places, view=lambda _: (x, targets))
    assert torch.equal(flat, without) == (balanced is None)  # the places are those of the view


def test_golden_trace_of_the_published_stages(monkeypatch):
    """Ten images in five stages of two: images, step size, momentum carried, epoch by epoch."""
    trace, update, gradient = [], SGD.update, Job.gradient

    def counting(self, theta, x, y):
        trace.append([len(x)])
        return gradient(self, theta, x, y)

    def spy(self, theta, grad, state, lr, step):
        trace[-1] += [round(float(lr), 6), bool(state[0].any())]
        return update(self, theta, grad, state, lr, step)

    monkeypatch.setattr(Job, "gradient", counting)
    monkeypatch.setattr(SGD, "update", spy)
    s = toy_set(toy_data(), ipc=4).taken(torch.arange(10))
    s = replace(
        s,
        recipe=TrainSpec(lr=0.05, segments=mtt_segments(), augment=None),
        blocks=blocks_of(2, (0.01, 0.02, 0.03, 0.04, None), mtt_segments(500)),
    )
    s.train()
    assert trace == [
        *[[2, 0.01, k > 0] for k in range(252)], *[[2, 0.001, True]] * 249,
        *[[4, 0.02, True]] * 252, *[[4, 0.002, True]] * 249,
        *[[6, 0.03, True]] * 252, *[[6, 0.003, True]] * 249,
        *[[8, 0.04, True]] * 252, *[[8, 0.004, True]] * 249,
        *[[10, 0.05, True]] * 252, *[[10, 0.005, True]] * 249,
    ]  # fmt: skip
    rules = PROTOCOLS.get("staged")
    assert rules.staged(s).segments == s.training.segments
    assert rules.staged(s) == rules.staged(
        replace(s, blocks=blocks_of(2, (0.01, 0.02, 0.03, 0.04, None)))
    )
    trace.clear()
    s.prefix(1).train()
    assert trace == [
        [2, *pair] for pair in [(0.01, k > 0) for k in range(252)] + [(0.001, True)] * 249
    ]


# --- the set


def test_stages_travel_with_the_set(tmp_path):
    s = staged_set((0.05, 0.1, None))
    training = s.training
    assert training == s.staged() == replace(RECIPE, segments=training.segments)
    told = [(p.blocks, p.epochs, RECIPE.lr * p.lr_scale, p.optimizer) for p in training.segments]
    steps = [0.05, 0.005, 0.1, 0.01, 0.02, 0.002]
    assert [row[:2] for row in told] == [(k, n) for k in (1, 2, 3) for n in (4, 2)]
    assert [row[2] for row in told] == pytest.approx(steps, rel=1e-12)
    assert [row[3] for row in told] == ["new", *["carried"] * 5]
    assert s.ends == (3, 6, 9)
    s.save(tmp_path / "set")
    back = load(tmp_path / "set")
    assert (back.training, back.recipe) == (training, s.recipe)
    assert set_digest(back) == set_digest(s) != set_digest(replace(s, blocks=()))
    first = s.prefix(2)
    assert first.recipe.lr == 0.1
    scales = [0.5, 0.05, 1.0, 0.1]
    assert [p.lr_scale for p in first.training.segments] == pytest.approx(scales, rel=1e-12)
    own = staged_set((None, 0.1, None)).prefix(2)  # the first stage has the step size of the whole
    assert own.training.segments[0].lr_scale * own.recipe.lr == pytest.approx(RECIPE.lr)
    for flat in (s.cut(1), s.taken(torch.arange(4)), staged_set(train=())):
        assert flat.training is flat.recipe
    other = s.staged((Segment(epochs=7),))
    assert [(p.blocks, p.epochs) for p in other.segments] == [(1, 7), (2, 7), (3, 7)]
    text = (tmp_path / "set" / "README.md").read_text()
    assert 'model = potstill.load("path/to/this/folder").train("convnet1")' in text
    assert "The set has 3 stages" in text
    assert "(18 steps)" not in text
    assert f"({training.steps(9, s.ends)} steps)" in text
    line = "| blocks.stage2 | 3 to 6, 4 epochs at step size 0.1, 2 epochs at step size 0.01 |"
    assert line in text
    staged_set(train=()).save(tmp_path / "flat")
    assert "stages" not in (tmp_path / "flat" / "README.md").read_text()


def test_training_in_stages_is_on_prefixes_as_they_are_decoded():
    """A bound decoder cuts the prefix otherwise than the whole set."""
    s = staged_set((0.05, None))
    s = replace(s, decode=MultiFormation(factor=2, kind="bound", bound=6))
    assert s.ends == (12, 15) == (len(s.prefix(1).decoded()[0]), len(s.decoded()[0]))
    assert not torch.equal(s.prefix(1).decoded()[0], s.decoded()[0][:12])
    model = s.train(seed=4)
    images, targets = s.decoded()
    first = s.prefix(1).decoded()
    net = flat_net(s, 4, "train")
    theta = fit(
        net,
        net.theta0,
        images,
        targets,
        s.training,
        seed=4,
        key=("train",),
        view=lambda k: first if k == 1 else (images, targets),
    )
    assert torch.equal(torch.cat([p.flatten() for p in model.net.parameters()]), theta)


def flat_net(s: DistilledSet, seed: int, key: str):
    from potstill.nets.spec import flat

    channels, *size = s.decoded()[0].shape[1:]
    classes = len(s.classes)
    return flat(s.net, channels=channels, size=tuple(size), classes=classes, seed=seed, key=(key,))


def test_unsound_stages_are_refused():
    s = staged_set()
    one, two = s.blocks
    with pytest.raises(InputError, match="Either all blocks of a set say how to train on them"):
        replace(s, blocks=(one, replace(two, train=())))
    with pytest.raises(InputError, match="no blocks that follow one another, so it has no stages"):
        replace(s, blocks=(one, replace(two, stop=5)))
    with pytest.raises(InputError, match="name no blocks themselves"):
        replace(one, train=(Segment(epochs=1, blocks=1),))
    with pytest.raises(InputError, match="recipe of a set is for all its images"):
        replace(s, recipe=s.training)
    with pytest.raises(InputError, match="no blocks that follow one another, so it has no stages"):
        replace(s, blocks=()).staged(STAGE)
    with pytest.raises(InputError, match="do not say how to train"):
        staged_set(train=()).staged()
    with pytest.raises(InputError, match="at least 1 block, not 0"):
        Segment(epochs=1, blocks=0)


# --- the budget

FLAT = TrainSpec(lr=0.1, segments=mtt_segments())
PUBLISHED = replace(
    FLAT, segments=tuple(replace(p, blocks=k) for k in range(1, 6) for p in mtt_segments(500))
)


@pytest.mark.parametrize(
    ("stage", "steps", "times"),
    [(20, 2505, 2.5), (100, 4008, 2), (200, 7014, 1.75), (1000, 30060, 1.5)],
)
def test_the_published_budget_is_larger_than_the_flat_one(stage, steps, times):
    """CIFAR-10 at 10 and 50 images a class, CIFAR-100 at 10 and 50, in batches of 256."""
    ends = [stage * k for k in range(1, 6)]
    assert PUBLISHED.steps(ends[-1], ends) == steps
    assert steps / FLAT.steps(ends[-1]) == pytest.approx(times, abs=0.003)
    assert PUBLISHED.seen(ends[-1], ends) / FLAT.seen(ends[-1]) == pytest.approx(1.5, abs=0.002)
    found = within(PUBLISHED, FLAT, ends)
    assert 0.98 < found.steps(ends[-1], ends) / FLAT.steps(ends[-1]) <= 1
    assert found.seen(ends[-1], ends) <= FLAT.seen(ends[-1])


@pytest.mark.parametrize("balanced", [None, 4])
def test_matched_budget_is_the_largest_part_that_fits(balanced):
    flat = spec(segments=(Segment(epochs=30),), batch=16, balanced=balanced)
    parts = [(1, 17), (1, 3), (2, 29), (3, 11), (None, 2)]
    staged = replace(flat, segments=tuple(Segment(epochs=n, blocks=k) for k, n in parts))
    ends, count = (10, 20, 33), 33

    first = [1, 0, 1, 1, 1]  # least epochs: one for the first segment of a stage

    def cut(part):
        pairs = zip(parts, first, strict=True)
        return [max(least, int(part * n + 1e-9)) for (_, n), least in pairs]

    def fits(epochs):
        sizes = [ends[k - 1] if k else count for k, _ in parts]
        each = [1 if balanced else -(-n // 16) for n in sizes]
        steps = sum(n * e for n, e in zip(epochs, each, strict=True))
        seen = sum(n * (min(16, e) if balanced else e) for n, e in zip(epochs, sizes, strict=True))
        whole = (30, 30 * 16) if balanced else (90, 30 * 33)
        return steps <= whole[0] and seen <= whole[1]

    best = max(k / 20_000 for k in range(20_001) if fits(cut(k / 20_000)))
    found = within(staged, flat, ends)
    assert [part.epochs for part in found.segments] == cut(best)
    assert [part.blocks for part in found.segments] == [part.blocks for part in staged.segments]
    assert within(staged, replace(flat, segments=(Segment(epochs=500),)), ends) == staged
    least = within(staged, replace(flat, segments=(Segment(epochs=1),)), ends)
    assert [(part.blocks, part.epochs) for part in least.segments] == [
        (1, 1),
        (2, 1),
        (3, 1),
        (None, 1),
    ]
    with pytest.raises(InputError, match="first 3 blocks; sizes of 2 are known"):
        staged.steps(33, ends[:2])
    assert from_json(json.loads(json.dumps(to_json(staged)))) == staged


# --- evaluation


def by_hand(s: DistilledSet, train: TrainSpec, seed: int, labels=lambda y: y):
    """Return the test accuracy of one network, in plain words."""
    data, net = toy_data(), flat_net(s, seed, "evaluate")

    def view(k):
        part = s.prefix(k)
        return part.images, labels(part.targets.values)

    whole = s.images, labels(s.targets.values)
    theta = fit(net, net.theta0, *whole, train, seed=seed, key=("evaluate",), view=view)
    net.eval()
    logits = net(theta, s.space.forward(data.test.pixels))
    return float((logits.argmax(1) == data.test.labels).double().mean())


def test_three_rows_for_every_network(tmp_path):
    s, store = staged_set(), Store(tmp_path)
    options = {"seeds": 2, "store": store}
    found = evaluate(s, nets=[s.net, NetSpec(name="convnet2", width=4)], **options)
    own, other = ([r for r in found.rows if r.net == f"convnet{k} width 4"] for k in (1, 2))
    assert [row.name for row in own[:3]] == [row.name for row in other[:3]] == NAMES
    staged, flat = s.training, s.recipe  # 6 epochs of one batch a stage; 6 epochs of the union
    matched = within(staged, flat, s.ends)
    assert [part.epochs for part in matched.segments] == [2, 1, 2, 1]
    for row, train in zip(own[:3], (staged, matched, flat), strict=True):
        assert row.accuracies == tuple(by_hand(s, train, seed) for seed in range(2))
    assert [row.note for row in own[:3]] == ["staged, 12 steps", "staged, 6 steps", "flat, 6 steps"]
    plain = evaluate(replace(s, blocks=()), **options)
    assert plain.rows[0].accuracies == own[2].accuracies
    assert plain.rows[0].note == ""
    assert [r.accuracies for r in plain.rows[1:]] == [r.accuracies for r in own[3:]]
    first = evaluate(s, prefix=1, baselines=False, **options)
    notes = ["staged, 6 steps", "staged, 6 steps", "flat, 6 steps"]
    assert [row.note for row in first.rows] == [f"first 1 of 2 blocks; {note}" for note in notes]
    assert [row.lr for row in first.rows] == [0.05] * 3
    beside = evaluate(
        plain_set(), beside=[saved(s, tmp_path / "other")], baselines=False, **options
    )
    assert [row.name for row in beside.rows] == ["distilled", "other, whole"]
    assert beside.rows[1].accuracies == own[0].accuracies
    assert beside.rows[1].note == "staged, 12 steps"


def plain_set():
    s = staged_set()
    return replace(s, images=s.images * 1.1, blocks=())


def saved(s, path):
    s.save(path)
    return path


def test_regimes_are_for_every_stage(tmp_path):
    s, store = staged_set(), Store(tmp_path)
    lean = F.one_hot(s.targets.classes, CLASSES).float() * 0.6 + 0.4 / CLASSES
    soft = replace(s, targets=Soft(lean), recipe=replace(s.recipe, loss="soft_ce"))
    found = evaluate(soft, regimes=("hard", "soft"), seeds=1, baselines=False, store=store)
    assert [(row.regime, row.name) for row in found.rows] == [
        (regime, name) for regime in ("hard", "soft") for name in NAMES
    ]
    hard = replace(soft.training, loss="ce")
    assert found.rows[0].accuracies == (by_hand(soft, hard, 0, lambda y: y.argmax(1)),)
    assert found.rows[3].accuracies == (by_hand(soft, soft.training, 0),)
    taught = evaluate(s, regimes=("soft",), seeds=1, baselines=False, store=store)
    assert [row.name for row in taught.rows] == NAMES
    assert all("soft labels by a" in row.note for row in taught.rows)


def test_protocols_of_stages():
    s = staged_set((0.05, *[0.1] * 5, None))
    s = replace(s, recipe=replace(RECIPE, lr=0.02))
    boosted = replace(s, blocks=tuple(replace(block, train=()) for block in s.blocks))
    over_mtt, over_idc = PROTOCOLS.get("staged"), PROTOCOLS.get("staged-idc")
    for each in (s, boosted):
        train = over_mtt.staged(each)
        assert (train.batch, train.optimizer) == (256, SGD(momentum=0.9, weight_decay=5e-4))
        assert [part.epochs for part in train.segments] == [252, 249] * 7
        assert train.segments[0].lr_scale * train.lr == pytest.approx(0.05)
        assert train.segments[-1].lr_scale * train.lr == pytest.approx(0.002)
        assert over_mtt.train_spec(each.recipe).segments == mtt_segments()
        train = over_idc.staged(each)
        assert (train.lr, train.batch, train.mix) == (0.01, 64, PROTOCOLS.get("idc").mix)
        assert [part.epochs for part in train.segments] == [333, 83, 84] * 7
        scales = [1, 0.2, 0.04] * 5 + [0.5, 0.1, 0.02] * 2
        assert [part.lr_scale for part in train.segments] == pytest.approx(scales)
        assert [part.optimizer for part in train.segments] == ["new", *["carried"] * 20]
        assert over_idc.train_spec(each.recipe).segments == idc_segments()
    assert PROTOCOLS.get("strict").staged(boosted) is None
    assert PROTOCOLS.get("strict").staged(s) == s.training
    # a protocol's step size, optimizer and batch are for all stages, its epochs for the union
    train = PROTOCOLS.get("dc").staged(s)
    assert (train.lr, train.augment, train.batch) == (0.01, None, 256)
    assert [part.epochs for part in train.segments] == [4, 2] * 7
    assert [part.lr_scale for part in train.segments] == pytest.approx([1, 0.1] * 7)
    assert (over_mtt.seeds, over_mtt.ddof, over_idc.seeds, over_idc.ddof) == (5, 0, 5, 1)
    with pytest.raises(InputError, match="'staged' trains in stages; the set has no blocks"):
        evaluate(replace(s, blocks=()), protocol="staged", seeds=1)


def test_a_study_of_subsets_takes_a_set_with_stages(tmp_path):
    s, store = staged_set(), Store(tmp_path)

    def evaluated(*args, **options):
        return evaluate(*args, store=store, **options)

    found = correlation(s, seeds=1, candidates=0, evaluated=evaluated)
    assert [(row["kind"], row["ipc"]) for row in found.rows] == [
        ("first blocks", 1),
        ("random subset", 1),
        ("whole set", 2),
    ]
    assert found.rows[0]["note"] == "staged, 6 steps"
    assert found.rows[2]["accuracies"] == [by_hand(s, s.training, 0)]
