"""Coresets as methods: what they choose, how networks score, and the set that is handed over."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from potstill.artefact import Hard, load
from potstill.core.errors import InputError, WorkError
from potstill.core.keys import generator
from potstill.core.spec import to_json
from potstill.core.store import Store
from potstill.coresets import cluster_seed, herding, highest, k_center, medoids, random_real
from potstill.coresets.scores import mean_scores, score_images
from potstill.data import from_arrays, open_data
from potstill.data.rows import Rows
from potstill.engine import Tasks, run_tasks
from potstill.experts import ExpertPlan, Trajectory
from potstill.functional import SGD, fit, mtt_segments, predict
from potstill.methods import METHODS, SynthBlock
from potstill.methods.chosen import Use
from potstill.methods.coreset import Herding, KCenter, KMedoids, Random
from potstill.methods.scored import EL2N, Forgetting
from potstill.nets import FlatNet, NetSpec, build, variant
from potstill.run import Run, Where, distil, preflight

NET = NetSpec(name="convnet2", width=4)
PLAN = ExpertPlan(count=1, epochs=2, lr=0.05, batch=64)
RULES = {
    "herding": (Herding, lambda points, label: herding(points, 3)),
    "k-center": (KCenter, lambda points, label: k_center(points, 3)),
    "k-medoids": (KMedoids, lambda points, label: medoids(points, 3, seed=cluster_seed(0, label))),
}


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)


def small_run(method, *, data="digits", ipc=3, limit=30, **changes):
    run = Run(method=method, data=data, ipc=ipc, net=NET, limit=limit, threads=1)
    return replace(run, **changes)


def walked(method, tmp_path, **changes):
    """Do all phases of a method; return the loop's context and the last state."""
    run = small_run(method, **changes)
    ctx, _ = preflight(run, open_data(run.data, limit=run.limit))
    done = {}
    while isinstance(phase := method.phases(ctx, done), Tasks):
        done[phase.kind] = run_tasks(phase, Store(tmp_path / "store"))
    ctx, state = replace(ctx, nets=phase.nets, done=done), method.init(ctx)
    assert phase.steps == ctx.data.n_classes
    for it in range(phase.steps):
        state, numbers = method.step(ctx, state, it)
        assert numbers == {"class": it, "images": float((ctx.data.train.labels == it).sum())}
    return ctx, state


def rows_of(ctx, label):
    return torch.nonzero(ctx.data.train.labels == label)[:, 0]


@pytest.mark.parametrize("name", RULES)
def test_choices_by_pixels(name, tmp_path):
    method, rule = RULES[name]
    ctx, state = walked(method(features="pixels"), tmp_path)
    for label, found in enumerate(state["chosen"].view(10, 3)):
        rows = rows_of(ctx, label)
        points = ctx.space.forward(ctx.data.train.pixels[rows]).flatten(1).double()
        assert found.tolist() == rows[rule(points, label)].tolist()


@pytest.mark.parametrize("features", ["own", "convnet1"])
def test_choices_by_a_trained_network(features, tmp_path):
    ctx, state = walked(Herding(features=features, training=PLAN), tmp_path)
    spec = NET if features == "own" else variant("convnet1", NET)
    net = FlatNet(build(spec, channels=1, size=(8, 8), classes=10, seed=0))
    module = net.load(Trajectory(ctx.done["experts"][0]).row(2))
    for label, found in enumerate(state["chosen"].view(10, 3)):
        rows = rows_of(ctx, label)
        with torch.no_grad():
            x = module.features(ctx.space.forward(ctx.data.train.pixels[rows])).flatten(1)
        assert found.tolist() == rows[herding(x.double(), 3)].tolist()


def test_choices_by_a_network_as_it_is(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def net(*, channels, size, classes):\n"
        "    head = torch.nn.Linear(channels * size[0] * size[1], classes)\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), head)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    ctx, state = walked(Herding(features="module:mine.net"), tmp_path)
    assert "experts" not in ctx.done
    pixels = walked(Herding(features="pixels"), tmp_path)[1]  # what its only layer sees
    assert torch.equal(state["chosen"], pixels["chosen"])


def test_random_takes_what_random_real_takes(tmp_path):
    ctx, state = walked(Random(), tmp_path)
    assert tuple(state["chosen"].tolist()) == random_real(ctx.data.train, [3] * 10, seed=0)


@pytest.mark.parametrize("keep", ["hardest", "easiest"])
def test_forgetting_against_a_count_beside_a_training(keep, tmp_path):
    plan = replace(PLAN, epochs=6, lr=0.2, augment=None)
    ctx, state = walked(Forgetting(training=plan, keep=keep), tmp_path)
    train = ctx.data.train
    net = FlatNet(build(NET, channels=1, size=(8, 8), classes=10, seed=0, key=("scores", 0)))
    counts, ever, last = [0] * len(train), [False] * len(train), [False] * len(train)

    def look(epoch, theta, loss):
        said = predict(net, theta, train.pixels, prepare=ctx.space.forward).argmax(1)
        for i, right in enumerate((said == train.labels).tolist()):
            counts[i] += last[i] and not right
            ever[i], last[i] = ever[i] or right, right

    fit(
        net,
        net.theta0,
        train.pixels,
        train.labels,
        plan.train,
        seed=0,
        key=("scores", 0),
        prepare=ctx.space.forward,
        on_epoch=look,
    )
    wanted = torch.tensor([c if learned else 6 for c, learned in zip(counts, ever, strict=True)])
    assert len(wanted.unique()) > 2  # some forgotten, some never learned
    scores = mean_scores(tuple(ctx.done["scores"]))
    assert scores.tolist() == wanted.tolist()
    sign = 1 if keep == "hardest" else -1
    for label, found in enumerate(state["chosen"].view(10, 3)):
        rows = rows_of(ctx, label)
        chance = generator(0, "equal scores", label)
        assert found.tolist() == rows[highest(sign * scores[rows], 3, chance=chance)].tolist()
        best = (sign * scores[rows]).sort(descending=True).values[:3]
        assert (sign * scores[found]).tolist() == best.tolist()


def test_el2n_is_the_mean_error_of_networks(tmp_path):
    plan = replace(PLAN, count=3)
    ctx, state = walked(EL2N(training=plan), tmp_path)
    train, errors = ctx.data.train, []
    for k in range(3):
        net = FlatNet(build(NET, channels=1, size=(8, 8), classes=10, seed=0, key=("scores", k)))
        theta = fit(
            net,
            net.theta0,
            train.pixels,
            train.labels,
            plan.train,
            seed=0,
            key=("scores", k),
            prepare=ctx.space.forward,
        )
        chances = predict(net, theta, train.pixels, prepare=ctx.space.forward).softmax(1)
        errors.append((chances - torch.nn.functional.one_hot(train.labels, 10)).norm(dim=1))
    scores = mean_scores(tuple(ctx.done["scores"]))
    assert torch.allclose(scores, torch.stack(errors).mean(0).double(), atol=1e-6)
    for label, found in enumerate(state["chosen"].view(10, 3)):
        others = scores[rows_of(ctx, label)]
        assert scores[found].tolist() == others.sort(descending=True).values[:3].tolist()
    facts = json.loads((ctx.done["scores"][0] / "scores.json").read_text())
    assert facts["mean_score"] > 0


def test_a_network_that_diverges_is_no_score(tmp_path):
    method = EL2N(training=replace(PLAN, lr=1e30))
    ctx, _ = preflight(small_run(method), open_data("digits", limit=30))
    (spec, *_) = method.phases(ctx, {}).specs
    with pytest.raises(WorkError, match="Network 0 diverged"):
        score_images(spec, {}, tmp_path)


def few():
    """Class 0 with 3 training images, class 1 with many."""
    labels = [0] * 6 + [1] * 40
    pixels = torch.randint(256, (46, 1, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
    return from_arrays(pixels, labels, classes=("few", "many"), validation=0.2)


@pytest.mark.parametrize("method", [Random(), KCenter(features="pixels"), EL2N(training=PLAN)])
def test_replacement_gives_each_image_once_before_any_twice(method, tmp_path):
    data = few()
    have = int((data.train.labels == 0).sum())
    source = f"cached:{data.ref.identity}"
    run = small_run(method, data=source, ipc=2 * have + 1, limit=None, validation=0.2)
    with pytest.raises(InputError, match=rf"'few'.* {have} "):
        preflight(run, data)
    ctx, _ = preflight(replace(run, replacement=True), data)
    with pytest.raises(InputError, match=rf"Class 'few' has {have} .*--replacement"):
        method.check(replace(ctx, replacement=False))
    done, state = {}, method.init(ctx)
    while isinstance(phase := method.phases(ctx, done), Tasks):
        done[phase.kind] = run_tasks(phase, Store(tmp_path / "store"))
    for it in range(2):
        state, _ = method.step(replace(ctx, done=done), state, it)
    found, many = state["chosen"][: ctx.ipc].tolist(), state["chosen"][ctx.ipc :].tolist()
    assert sorted(found[:have]) == sorted(found[have : 2 * have]) == rows_of(ctx, 0).tolist()
    assert len(set(many)) == ctx.ipc


def test_a_run_hands_over_real_images_with_their_rows(tmp_path):
    method = KMedoids(features="pixels", use=Use(lr=0.03, epochs=4))
    run = small_run(method, ipc=2)
    made = distil(run, tmp_path / "run", where=Where(store=tmp_path / "store"))
    data = open_data("digits", limit=30)
    back = load(tmp_path / "run")
    assert back.origin.rows == made.origin.rows
    assert len(set(back.origin.rows)) == 20
    rows = list(back.origin.rows)
    pixels = data.train.pixels[rows]
    assert torch.equal((back.view() * 255).round().byte(), pixels)
    assert isinstance(back.targets, Hard)
    assert torch.equal(back.targets.labels, data.train.labels[rows])
    assert back.targets.labels.tolist() == sorted(back.targets.labels.tolist())
    assert (back.recipe.lr, back.recipe.batch) == (0.03, 256)
    assert back.recipe.segments == mtt_segments(4)
    assert back.recipe.optimizer == SGD(momentum=0.9, weight_decay=5e-4)
    assert back.recipe.augment == Use().augment
    assert back.origin.iteration == 10
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["class"] for line in lines] == list(range(10))


def test_candidates_of_a_half_chosen_set_are_refused(tmp_path):
    run = small_run(Random(), select_every=3)
    with pytest.raises(InputError, match=r"select_every is for methods .*; random does not"):
        distil(run, tmp_path / "run", where=Where(store=tmp_path / "store"))


def ends_in_a_convolution(*, channels, size, classes):
    head = nn.Conv2d(channels, classes, size)
    return nn.Sequential(nn.Linear(size[1], size[1]), head, nn.Flatten())


def test_settings_that_cannot_work(monkeypatch):
    ctx, _ = preflight(small_run(Random()), open_data("digits", limit=30))
    for kind in (Herding, KCenter, KMedoids):
        with pytest.raises(InputError, match=r"training\.count must be 1 .*not 2"):
            kind(training=ExpertPlan(count=2))
        with pytest.raises(InputError, match="features 'pixel': did you mean 'pixels'"):
            kind(features="pixel").check(ctx)
        with pytest.raises(InputError, match="source of networks 'timn': did you mean 'timm'"):
            kind(features="timn:resnet18").check(ctx)
    monkeypatch.setitem(sys.modules, "mine", SimpleNamespace(conv=ends_in_a_convolution))
    with pytest.raises(InputError, match="does not end in a linear layer"):
        Herding(features="module:mine.conv").check(ctx)
    with pytest.raises(InputError, match=r"training\.epochs must be at least 2.*not 1"):
        Forgetting(training=ExpertPlan(count=1, epochs=1))
    with pytest.raises(InputError, match=r"training\.imported cannot be 'abc'"):
        EL2N(training=ExpertPlan(imported="abc"))
    with pytest.raises(InputError, match=r"use\.epochs.*0"):
        Use(epochs=0)
    with pytest.raises(InputError, match=r"use\.lr.*nan"):
        Use(lr=float("nan"))
    blocks = (SynthBlock(ipc=1), SynthBlock(ipc=2))
    with pytest.raises(InputError, match="one block"):
        Random().check(replace(ctx, synth=blocks))


@pytest.mark.parametrize("name", ["random", *RULES, "forgetting", "el2n"])
def test_costs_and_scales(name):
    method = METHODS.get(name)()
    ctx, cost = preflight(small_run(method), open_data("digits", limit=30))
    assert (cost.graph_bytes, cost.adjoint_bytes, cost.steps) == (0, 0, 10)
    disk = {"random": 0, "forgetting": 8 * 300, "el2n": 80 * 300}
    assert cost.disk_bytes == disk.get(name, 4 * 31 * ctx.net.numel)
    smoke = to_json(method.scaled("smoke"))
    assert smoke["use"]["epochs"] == 10
    if name != "random":
        assert smoke["training"]["epochs"] == 2
        assert smoke["training"]["count"] == (2 if name == "el2n" else 1)


@pytest.mark.parametrize(
    "method", [Herding(training=PLAN), KMedoids(features="pixels"), EL2N(training=PLAN)]
)
def test_images_that_stay_on_disk_are_chosen_alike(method, tmp_path, monkeypatch):
    state = walked(method, tmp_path / "a")[1]
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "other"))
    monkeypatch.setenv("POTSTILL_RESIDENT", "0")
    ctx, mapped = walked(method, tmp_path / "b")
    assert isinstance(ctx.data.train.pixels, Rows)
    assert torch.equal(state["chosen"], mapped["chosen"])
    made = method.export(ctx, mapped)
    assert torch.equal(made.images, ctx.space.forward(ctx.data.train.pixels[mapped["chosen"]]))
