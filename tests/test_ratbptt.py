"""RaT-BPTT: the meta-gradient in float64 against a double loop; resume, export, refusals."""

import json
from collections import Counter
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from metagradients import (
    METHOD,
    NET,
    adam_step,
    cast,
    context,
    logits,
    near,
    placed,
    sgd_step,
    text,
    transcribed,
    walked,
)
from potstill.artefact import Soft, load, set_digest
from potstill.core.compute import Compute
from potstill.core.errors import InputError
from potstill.core.keys import generator
from potstill.core.spec import from_json, to_json
from potstill.core.state import load_tree, save_tree
from potstill.core.store import Store
from potstill.coresets import counts_of
from potstill.data import open_data
from potstill.evaluation import evaluate
from potstill.experts import Draw
from potstill.functional import (
    SGD,
    Adam,
    Batch,
    Segment,
    accuracy,
    ce,
    fit,
    run_prefix,
    training_loss,
    unroll,
)
from potstill.functional.sampling import sampler
from potstill.methods import Loop, Plan, SynthBlock, method_of
from potstill.methods.boost import Boost
from potstill.methods.inner import Inner
from potstill.methods.outer import Clip
from potstill.methods.real import RealImages, missed
from potstill.methods.start import labels_of
from potstill.methods.student import averaged, meta_gradient, outer_gradient
from potstill.methods.windows import Window
from potstill.nets import FlatNet, build
from potstill.run import Run, plan_line, preflight
from potstill.studies.correlation import random_rows

pytestmark = pytest.mark.usefixtures("alone")


# --- the meta-gradient -------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["graph", "adjoint"])
@pytest.mark.parametrize("labels", ["hard", "raw"])
@pytest.mark.parametrize(
    ("optimizer", "step", "eps"),
    [
        (Adam(), adam_step, "higher021"),
        (SGD(momentum=0.9, weight_decay=0.01), sgd_step, None),
    ],
    ids=["adam", "sgd"],
)
@pytest.mark.parametrize("start", [0, 4])
def test_the_gradient_equals_a_double_loop(strategy, labels, optimizer, step, eps, start):
    ctx = context(ipc=2, strategy=strategy, dtype=torch.float64)
    inner = Inner(optimizer=optimizer, window_eps=eps, lr=0.01, classes=6, images=1)
    method = replace(METHOD, inner=inner, labels=labels, tasks=2, lr_lr=0.1)
    state = placed(cast(method.init(ctx), torch.float64), start, 3)
    for k in range(2):
        found = method.task(ctx, state, 3, k)
        outer, u_bar, y_bar, lr_bar = transcribed(method, ctx, state, 3, k, step)
        near(found.loss, outer, 1e-12)
        near(found.images[0], u_bar, 1e-12)
        near(found.lr, lr_bar * state["lr"], 1e-12)
        if labels == "raw":
            near(found.labels[0], y_bar, 1e-12)


@pytest.mark.parametrize("strategy", ["graph", "adjoint"])
@pytest.mark.parametrize("case", [0, 1])
def test_the_window_equals_stored_gradients_of_higher(strategy, case):
    """After a prefix by torch's Adam; one unit of the network is dead."""
    stored = json.loads((Path(__file__).parent / "fixtures" / "higher021.json").read_text())
    case, double = stored["cases"][case], {"dtype": torch.float64}
    start, last = case["start"], case["start"] + case["steps"]

    def net(theta, x):
        w, b, out = theta.split([12, 4, 12])
        return F.relu(x @ w.view(4, 3).t() + b) @ out.view(3, 4).t()

    def loss(theta, rows):
        return F.cross_entropy(net(theta, rows[0]), rows[1])

    x = torch.tensor(stored["x"], **double).requires_grad_()
    data, lr = (x, torch.tensor(stored["y"])), torch.tensor(stored["lr"], **double)
    batches = [Batch(index=torch.tensor(rows)) for rows in stored["batches"][:last]]
    theta = torch.tensor(stored["theta"], **double)
    theta, state = run_prefix(loss, theta, data, lr, batches[:start], optimizer=Adam())
    inside = Adam(eps_mode="higher021")
    theta = unroll(
        loss,
        theta,
        data,
        lr,
        batches[start:],
        optimizer=inside,
        state=state,
        first_step=start,
        strategy=strategy,
    )
    outer = loss(theta, (torch.tensor(stored["real"], **double), torch.tensor(stored["real_y"])))
    near(theta.detach(), torch.tensor(case["theta"], **double), 1e-13)
    near(outer.detach(), torch.tensor(case["loss"], **double), 1e-13)
    (bar,) = torch.autograd.grad(outer, x)
    near(bar, torch.tensor(case["gradient"], **double), 1e-11)


@pytest.mark.slow
def test_compiled_tasks_equal_eager_ones():
    ctx = context(ipc=2, strategy="adjoint", dtype=torch.float64)
    fast = Plan(strategy="adjoint", window=Compute(threads=1, compiled=True), tasks=ctx.plan.tasks)
    method = replace(METHOD, labels="raw", inner=Inner(lr=0.01, classes=5, images=1))
    state = placed(cast(method.init(ctx), torch.float64), 2, 3)
    eager, compiled = (method.task(c, state, 0, 0) for c in (ctx, replace(ctx, plan=fast)))
    near(compiled.loss, eager.loss, 1e-10)
    for name in ("images", "labels"):
        near(getattr(compiled, name)[0], getattr(eager, name)[0], 1e-8)
    near(compiled.lr, eager.lr, 1e-8)


def test_the_prefix_gets_no_gradient_and_the_window_all():
    ctx = context(ipc=1, dtype=torch.float64)
    method = replace(METHOD, inner=Inner(lr=0.01, classes=1))
    state = placed(cast(method.init(ctx), torch.float64), 5, 2)
    batches = method.inner.batches(ctx, 7, generator(ctx.seed, "student", 0, 0))
    inside = {int(batch.index) for batch in batches[5:]}
    moved = method.task(ctx, state, 0, 0).images[0].flatten(1).norm(dim=1).nonzero().flatten()
    assert set(moved.tolist()) == inside != {int(batch.index) for batch in batches}


def test_eps_placement_matters_only_inside_the_window():
    ctx = context(dtype=torch.float64)
    plain = replace(METHOD, inner=Inner(lr=0.01))
    legacy = replace(METHOD, inner=Inner(lr=0.01, window_eps="higher021"))
    state = placed(cast(plain.init(ctx), torch.float64), 3, 2)
    student = legacy.inner.student(ctx, soft=False, part=9)
    assert student.before == Adam()
    assert student.inside == Adam(eps_mode="higher021")
    a, b = plain.task(ctx, state, 0, 0), legacy.task(ctx, state, 0, 0)
    assert not torch.equal(a.images[0], b.images[0])


@pytest.mark.parametrize("strategy", ["graph", "adjoint"])
def test_a_dead_network_gives_finite_gradients(strategy):
    ctx = context(strategy=strategy)
    state = placed(METHOD.init(ctx), 1, 2)

    @dataclass(frozen=True)
    class Dead:
        def draw(self, seed, it):
            return Draw(theta=torch.zeros(ctx.net.numel), target=None, expert=0, epoch=0)

    found = METHOD.task(replace(ctx, nets=Dead()), state, 0, 0)
    assert all(bool(torch.isfinite(each).all()) for each in (found.loss, *found.images, found.lr))


def test_the_outer_loss_in_parts_equals_the_whole():
    ctx = context(dtype=torch.float64)
    theta = ctx.nets.draw(0, 0).theta
    x, y = RealImages(batch=90).drawn(ctx, None, 0, 0, like=theta)
    leaf = theta.clone().requires_grad_()
    whole = F.cross_entropy(logits(leaf, x), y)
    (bar,) = torch.autograd.grad(whole, leaf)
    for part in (1, 7, 45, 90, 500):
        student = METHOD.inner.student(ctx, soft=False, part=part)
        loss, found = outer_gradient(student, theta, x, y)
        near(loss, whole.detach(), 1e-12)
        near(found, bar, 1e-12)


def test_the_memory_budget_decides_the_parts_and_on_request_the_batch():
    sizes = []
    for memory in (1, 10**6, 10**12):
        ctx = context(memory=memory)
        asked, free = RealImages(batch=90), RealImages(batch=None)
        assert asked.size(ctx) == 90
        assert asked.part(ctx) == min(90, free.size(ctx)) == min(90, free.part(ctx))
        sizes.append(free.size(ctx))
    assert 1 == sizes[0] < sizes[1] < sizes[2] == len(ctx.data.train)


def test_k_students_are_averaged():
    ctx = context(ipc=2, dtype=torch.float64)
    method = replace(METHOD, tasks=3, labels="raw")
    state = placed(cast(method.init(ctx), torch.float64), 1, 2)
    found = [method.task(ctx, state, 2, k) for k in range(3)]
    mean = averaged(found)
    near(mean.images[0], sum(f.images[0] for f in found) / 3, 1e-14)
    near(mean.labels[0], sum(f.labels[0] for f in found) / 3, 1e-14)
    near(mean.lr, sum(f.lr for f in found) / 3, 1e-14)
    near(mean.loss, sum(f.loss for f in found) / 3, 1e-14)
    assert len({float(f.loss) for f in found}) == 3
    one = replace(method, tasks=1)
    assert torch.equal(one.task(ctx, state, 6, 0).loss, averaged([one.task(ctx, state, 6, 0)]).loss)


def test_a_student_step_sees_classes_and_images_as_asked():
    ctx = context(ipc=3)
    labels, seen, pairs = labels_of(ctx), Counter(), Counter()
    inner = Inner(classes=4, images=2)
    for batch in inner.batches(ctx, 400, generator(0, "test")):
        assert len(batch.index.unique()) == 8
        assert sorted(Counter(labels[batch.index].tolist()).values()) == [2, 2, 2, 2]
        seen.update(batch.index.tolist())
        pairs[tuple(sorted(set(labels[batch.index].tolist())))] += 1
    mean, spread = 400 * 8 / 30, (400 * 8 / 30 * (1 - 8 / 30)) ** 0.5
    assert all(abs(count - mean) < 4.5 * spread for count in seen.values())
    assert len(seen) == 30
    assert len(pairs) > 150  # of 210
    (batch, _) = Inner().batches(ctx, 2, generator(0, "test"))
    assert batch.index.tolist() == list(range(30))


def test_the_loss_falls_on_digits():
    ctx = context(ipc=1)
    window = Window(length=4, total=12, least=3, redraw="step")
    inner, real = Inner(lr=0.03, augment=None), RealImages(batch=90, augment=None)
    method = replace(METHOD, window=window, inner=inner, real=real)
    method = replace(method, image_init="unit-noise", lr_img=0.1)
    state, rows = walked(method, ctx, method.init(ctx), 0, 40)
    first, last = (sum(r["loss"] for r in part) / 10 for part in (rows[:10], rows[-10:]))
    assert last < 0.9 * first
    made = method.export(ctx, state)
    scores = []
    for images in (made.images, method.init(ctx)["images"][0]):
        theta = fit(ctx.net, ctx.net.theta0, images, labels_of(ctx), made.recipe, seed=1)
        test = ctx.data.test
        prepare = ctx.space.forward
        scores.append(accuracy(ctx.net, theta, test.pixels, test.labels, prepare=prepare))
    assert scores[0] > scores[1] + 0.2


@pytest.mark.parametrize("place", ["moving", "adaptive", "random-length"])
def test_resume_in_the_middle_of_an_epoch_gives_the_same_bytes(place, tmp_path):
    ctx = context()
    real = RealImages(batch=100, sampling="prob", rescore_every=2, rescore_nets=1)
    window = Window(length=1, total=4, place=place)
    method = replace(
        METHOD, window=window, real=real, labels="raw", lr_lr=0.1, tasks=2, evaluation_steps=3
    )
    whole, _ = walked(method, ctx, method.init(ctx), 0, 6)
    half, _ = walked(method, ctx, method.init(ctx), 0, 3)
    save_tree(tmp_path / "half", half)
    end, _ = walked(method, context(), load_tree(tmp_path / "half"), 3, 6)
    assert text(end, tmp_path) == text(whole, tmp_path) != text(half, tmp_path)


def test_running_statistics_are_no_hidden_state(tmp_path):
    module = build(replace(NET, norm="batch"), channels=1, size=(8, 8), classes=10, seed=0)
    real = RealImages(batch=100, sampling="prob", rescore_every=2, rescore_nets=2)
    method = replace(METHOD, real=real, evaluation_steps=3)
    ends = []
    for earlier in (0, 3):
        ctx = replace(context(), net=FlatNet(module))
        method.check(ctx)
        walked(method, ctx, method.init(ctx), 0, earlier)
        state, _ = walked(method, ctx, method.init(ctx), 0, 3)
        ends.append(text(state, tmp_path))
    assert ends[0] == ends[1]


# --- beginnings, export, refusals -----------------------------------------------------


def test_first_images():
    ctx = context(ipc=3)
    images = {
        init: replace(METHOD, image_init=init).init(ctx)["images"][0]
        for init in ("unit-noise", "cluster", "noise")
    }
    for init in ("unit-noise", "cluster"):
        assert torch.allclose(images[init].flatten(1).norm(dim=1), torch.ones(30))
    assert abs(float(images["noise"].std()) - 1) < 0.1
    rows = images["cluster"].flatten(1).view(10, 3, -1)
    within = (rows - rows.mean(1, keepdim=True)).norm(dim=2).mean()
    means = rows.mean(1)
    assert float(within) < float(torch.nn.functional.pdist(means).min())


@pytest.mark.parametrize("labels", ["hard", "raw"])
def test_the_export_trains_as_its_students(labels, tmp_path):
    ctx = context(ipc=2)
    method = replace(METHOD, labels=labels, inner=Inner(lr=0.01, classes=5, images=1), lr_lr=0.1)
    state, _ = walked(method, ctx, method.init(ctx), 0, 2)
    method.export(ctx, state).save(tmp_path / "set")
    made = load(tmp_path / "set")
    recipe = made.recipe
    assert (recipe.batch, recipe.balanced, recipe.epochs) == (5, 1, 40)
    assert recipe.optimizer == Adam()
    assert recipe.augment == method.inner.augment
    assert recipe.lr == pytest.approx(float(state["lr"]))
    assert recipe.lr != 0.01
    assert recipe.loss == ("ce" if labels == "hard" else "soft_ce")
    assert isinstance(made.targets, Soft) == (labels == "raw")
    assert torch.equal(made.images, state["images"][0])
    if labels == "raw":
        assert torch.equal(made.targets.probabilities, state["labels"][0])
    (batch,) = method.inner.batches(ctx, 1, generator(0, "test"))
    (rows,) = sampler(made.targets.values, recipe, made.places())(generator(0, "test"))
    assert torch.equal(rows, batch.index)
    whole = replace(method, inner=Inner())
    recipe = whole.export(ctx, whole.init(ctx)).recipe
    assert (recipe.batch, recipe.balanced) == (20, 2)


def test_images_keep_their_classes_when_labels_leave_them(tmp_path, monkeypatch):
    ctx = context(ipc=2)
    method = replace(METHOD, labels="raw", inner=Inner(lr=0.01, classes=5, images=1))
    state = method.init(ctx)
    state = {**state, "labels": (state["labels"][0].roll(5, 0),)}  # most are another class's now
    made, places = method.export(ctx, state), labels_of(ctx)
    assert made.targets.probabilities.argmax(1).tolist() != places.tolist()
    made.save(tmp_path / "set")
    s = load(tmp_path / "set")
    assert torch.equal(s.targets.classes, places)
    assert s.ipc == counts_of(s) == (2,) * 10
    assert torch.equal(s.cut(1).targets.classes, torch.arange(10))
    assert torch.equal(s.taken(random_rows(s, 1, 0)).targets.classes, torch.arange(10))
    (batch,) = method.inner.batches(ctx, 1, generator(0, "test"))
    (rows,) = sampler(s.targets.values, s.recipe, s.places())(generator(0, "test"))
    assert torch.equal(rows, batch.index)
    bare = replace(s, targets=Soft(s.targets.probabilities))
    bare.save(tmp_path / "bare")
    assert load(tmp_path / "bare").targets.own is None
    assert set_digest(s) != set_digest(bare)
    with pytest.raises(InputError, match="There are 20 images but 19 classes of them"):
        replace(s, targets=Soft(s.targets.probabilities, places[1:]))
    seen = []

    def noted(targets, spec, places=None):
        seen.append(places)
        return sampler(targets, spec, places)

    monkeypatch.setattr("potstill.functional.train.sampler", noted)
    short = replace(s, recipe=replace(s.recipe, segments=(Segment(epochs=1),)))
    short.train()
    missed(ctx, s.images, s.targets.values, short.recipe, nets=1, it=0)
    evaluate(short, data=ctx.data, seeds=1, baselines=False, store=Store(tmp_path / "store"))
    assert len(seen) == 3
    assert all(torch.equal(each, places) for each in seen)


# --- precision ---------------------------------------------------------------------------------


def test_prefix_and_window_have_their_own_precision():
    ctx = context()
    state = placed(METHOD.init(ctx), 3, 2)
    low, plain = replace(ctx, plan=replace(ctx.plan, prefix="bfloat16")), METHOD.task
    called = []
    student = METHOD.inner.student(low, soft=False, part=9)
    batches = METHOD.inner.batches(low, 5, generator(0, "test"))
    theta, real = ctx.nets.draw(0, 0).theta, METHOD.real.drawn(ctx, None, 0, 0, like=torch.ones(1))
    for precision, loss in (("bfloat16", student.plain), ("float32", student.loss)):
        assert loss is training_loss(ctx.net, ce, precision=precision)
    told = {
        name: lambda theta, rows, name=name: (
            called.append(name) or getattr(student, name)(theta, rows)
        )
        for name in ("plain", "loss")
    }
    data = state["images"], (labels_of(ctx),), state["lr"]
    meta_gradient(replace(student, **told), theta, *data, batches, real, start=3, scales=[1.0])
    assert called == ["plain"] * 3 + ["loss"] * 2
    assert not torch.equal(plain(low, state, 0, 0).loss, plain(ctx, state, 0, 0).loss)
    first = placed(state, 0, 2)
    assert torch.equal(plain(low, first, 0, 0).loss, plain(ctx, first, 0, 0).loss)
    both = replace(ctx.plan, window=replace(ctx.plan.window, precision="bfloat16"))
    old = METHOD.inner.student(replace(ctx, plan=both), soft=False, part=9)  # a plan without prefix
    assert old.plain is old.loss is training_loss(ctx.net, ce, precision="bfloat16")


@pytest.mark.parametrize(
    ("wish", "prefix", "window"),
    [
        ({"compile": "on"}, "bfloat16", "float32"),
        ({"compile": "off"}, "float32", "float32"),
        ({"compile": "on", "precision": "float32"}, "float32", "float32"),
        ({"compile": "off", "precision": "bfloat16"}, "bfloat16", "bfloat16"),
    ],
)
def test_the_plan_resolves_the_precision_of_plain_steps(wish, prefix, window, monkeypatch):
    monkeypatch.setattr("potstill.core.compute.fast_bfloat16", lambda device: True)
    monkeypatch.setattr("potstill.core.compute.no_compiler", lambda device: "")
    run = Run(method=METHOD, data="digits", ipc=1, net=NET, limit=40, device="cpu", **wish)
    data = open_data("digits", limit=40)
    ctx, cost = preflight(run, data)
    assert (ctx.plan.prefix, ctx.plan.window.precision) == (prefix, window)
    assert ("plain steps before it in bfloat16" in plan_line(run, ctx, cost)) == (prefix != window)
    other = replace(run, method=method_of("mtt").scaled("smoke"))
    assert preflight(other, data)[0].plan.prefix is None
    need = cost.graph_bytes if ctx.plan.strategy == "graph" else cost.adjoint_bytes
    assert ctx.plan.memory == run.budget - need
    tight = replace(run, memory=f"{need + need // 20}B")
    assert preflight(tight, data)[0].plan.memory == tight.budget // 8
    assert from_json({**to_json(ctx.plan), "prefix": None}).prefix is None
    old = {name: value for name, value in to_json(ctx.plan).items() if name != "prefix"}
    assert preflight(run, data, from_json(old))[0].plan == replace(ctx.plan, prefix=None)


# --- memory and time ---------------------------------------------------------------------------


def test_memory_and_time_of_a_window():
    """The adjoint keeps 4 vectors a step; the work is linear in the steps."""
    ctx, peaks, work = context(strategy="adjoint"), {}, {}
    for length in (8, 16, 32):
        method = replace(METHOD, window=Window(length=length, total=length))
        state = placed(method.init(ctx), 0, length)
        method.task(ctx, state, 0, 0)
        with torch.profiler.profile(profile_memory=True) as seen:
            method.task(ctx, state, 0, 0)
        events = seen.profiler.kineto_results.events()
        changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
        peaks[length] = max(accumulate(change for _, change in changes))
        work[length] = sum(e.name() == "aten::convolution_backward" for e in events)
    assert peaks[32] - peaks[8] < 24 * 4 * 4 * ctx.net.numel + 0.05 * peaks[8]
    assert work[32] - work[16] == 2 * (work[16] - work[8]) > 0


# --- phases, cost, refusals --------------------------------------------------------------------


def test_phases_need_no_experts():
    ctx = context()
    loop = METHOD.phases(ctx, {})
    assert isinstance(loop, Loop)
    assert loop.steps == 20
    a, b = (loop.nets.draw(0, it).theta for it in range(2))
    assert torch.equal(a, loop.nets.draw(0, 0).theta)
    assert not torch.equal(a, b)
    assert METHOD.phases(ctx, {"loop": []}) is None


def test_cost_counts_the_differentiated_steps():
    ctx = context(ipc=2)
    method = replace(METHOD, tasks=2, inner=Inner(classes=5, images=1))
    cost = method.cost(ctx)
    assert (cost.steps, cost.window_steps, cost.window_images) == (20, 120, 600)
    assert cost.disk_bytes == 0
    longer = replace(method, window=Window(length=3, total=7, place="random-length"))
    assert longer.cost(ctx).graph_bytes == pytest.approx(7 / 3 * cost.graph_bytes, rel=1e-6)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: Window(length=0), "window.length"),
        (lambda: Window(length=9, total=8), "window.length must be at most"),
        (lambda: Window(length=3, total=8, least=6), "window.least"),
        (lambda: Window(length=3, total=8, least=-1), "window.least"),
        (lambda: Window(length=3, total=8, least=1, place="zero"), "says nothing to 'zero'"),
        (lambda: Window(redraw="year"), "window.redraw"),
        (lambda: Window(place="randm"), "random"),
        (lambda: Inner(lr=0), "inner.lr"),
        (lambda: Inner(lr=float("nan")), "inner.lr"),
        (lambda: Inner(classes=0), "inner.classes"),
        (lambda: Inner(images=-1), "inner.images"),
        (lambda: Inner(window_eps="torsch"), "torsch"),
        (lambda: Inner(optimizer=SGD(), window_eps="torch"), "SGD"),
        (lambda: RealImages(batch=0), "real.batch"),
        (lambda: RealImages(rescore_nets=0), "real.rescore_nets"),
        (lambda: RealImages(rescore_every=0), "real.rescore_every"),
        (lambda: RealImages(sampling="hardest"), "real.sampling"),
        (lambda: Clip(weight=1.0), "clip.weight"),
        (lambda: Clip(factor=0.0), "clip.factor"),
        (lambda: replace(METHOD, inner=Inner(classes=11)).check(context()), "at most 10"),
        (lambda: replace(METHOD, inner=Inner(images=2)).check(context()), "at most 1"),
    ],
)
def test_wrong_settings_are_refused(make, word):
    with pytest.raises(InputError, match=word):
        make()


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"real": RealImages(rescore_every=9)}, r"real.rescore_every \(9\) .* 'uniform'"),
        ({"real": RealImages(rescore_nets=2)}, r"real.rescore_nets \(2\) .* leave it at 8"),
        ({"lr_label": 0.1}, r"lr_label \(0.1\) says nothing to hard labels: leave it at 0.001"),
        ({"clip": Clip(labels=True)}, "clip.labels"),
        ({"clip": Clip(weight=None, factor=3.0)}, r"clip.factor \(3.0\) .* not cut"),
        ({"window": Window(place="fixed", redraw="step")}, "window.redraw .* 'fixed'"),
        ({"window": Window(place="zero", redraw="step")}, "window.redraw .* 'zero'"),
        ({"real": RealImages(sampling="hard")}, r"outer step 250 .*20 iterations do not reach"),
    ],
)
def test_settings_without_effect_are_refused_but_in_runs_that_began(changes, word):
    ctx, method = context(), replace(METHOD, **changes)
    with pytest.raises(InputError, match=word):
        method.check(ctx)
    with pytest.raises(InputError, match=word):
        Boost(base=method).check(replace(ctx, ipc=2))
    method.check(replace(ctx, recorded=True))
    run = Run(method=method, data="digits", ipc=1, net=NET, limit=40, threads=1)
    data = open_data("digits", limit=40)
    preflight(run, data, ctx.plan)
    preflight(run, data, recorded=True)
    with pytest.raises(InputError, match=word):
        preflight(run, data)


@pytest.mark.parametrize("scale", ["cpu", "smoke"])
def test_scales_leave_no_setting_without_effect(scale):
    for changes in ({}, {"real": RealImages(sampling="hard")}, {"window": Window(place="zero")}):
        method = replace(METHOD, iterations=1000, **changes).scaled(scale)
        method.check(context())
        assert method.scaled(scale) == method
    notes = method.cost(context()).notes
    assert notes == ("Note: window.total says nothing to windows at the beginning (zero).",)
    assert METHOD.cost(context()).notes == ()


def test_a_set_of_frozen_blocks_is_refused():
    old = torch.zeros(10, 1, 8, 8)
    ctx = context(synth=(SynthBlock(ipc=1, lr_scale=0, images=old),))
    with pytest.raises(InputError, match="At least one block"):
        METHOD.check(ctx)
