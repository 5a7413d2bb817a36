"""MKDT against plain transcriptions of its parts; its experts, its first images, its run."""

import json
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from potstill.artefact import Embedding, load
from potstill.augment import DSA
from potstill.core.errors import InputError
from potstill.core.keys import generator
from potstill.core.state import load_tree, save_tree
from potstill.core.store import Store
from potstill.coresets import expert_losses, histogram, subset_rows
from potstill.data import open_data
from potstill.engine import Tasks, run_tasks
from potstill.experts import Draw, ExpertPlan, Trajectories, Trajectory, expert_tasks, read_targets
from potstill.functional import mse, training_loss
from potstill.functional.selfsup import BarlowTwins
from potstill.methods import Loop, method_of
from potstill.methods.encoded import student_of, weights_of
from potstill.methods.matching import follow, minibatches
from potstill.methods.mkdt import EXPERTS, MKDT
from potstill.methods.mtt import MTT
from potstill.nets import NetSpec, build
from potstill.run import Run, Where, distil, preflight
from potstill.teachers import EncoderPlan, SelfSupervised, read_encoder

NET = NetSpec(name="convnet2", width=8)
SELF = SelfSupervised(
    loss=BarlowTwins(lam=1 / 128),
    head="toy",
    epochs=2,
    warmup=1,
    batch=50,
    augment=DSA(strategy="crop"),
)
METHOD = MKDT(
    iterations=4,
    steps=3,
    expert_epochs=1,
    max_start_epoch=2,
    batch_syn=8,
    lr_img=10.0,
    lr_init=0.05,
    teacher=EncoderPlan(training=SELF),
    experts=replace(EXPERTS, count=3, epochs=5, batch=64),
)
RUN = Run(method=METHOD, data="digits", size="5%", net=NET, limit=30, threads=1)


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


def ready(store, method=METHOD, run=RUN):
    """Return the context of the loop of a run, whose tasks are done once for all tests."""
    run = replace(run, method=method)
    data = open_data(run.data, limit=run.limit)
    ctx, done = replace(preflight(run, data)[0], store=store), {}
    while isinstance(phase := method.phases(ctx, done), Tasks):
        done[phase.phase] = run_tasks(phase, store)
    assert isinstance(phase, Loop)
    return replace(ctx, nets=phase.nets, done=done)


def walked(method, ctx, steps, state=None, first=0):
    state, seen = method.init(ctx) if state is None else state, []
    for it in range(first, first + steps):
        state, numbers = method.step(ctx, state, it)
        seen.append(numbers)
    return state, seen


@dataclass(frozen=True)
class Always:
    """A source of one start and target, in the type of theta."""

    one: Draw

    def draw(self, seed, it):
        return self.one


def exact(ctx):
    """Return the context with one draw in float64, and how to cast a state."""
    one = ctx.nets.draw(0, 0)
    one = replace(one, theta=one.theta.double(), target=one.target.double())

    def cast(x):
        if isinstance(x, tuple):
            return tuple(map(cast, x))
        return x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x

    return replace(ctx, nets=Always(one)), lambda state: {k: cast(v) for k, v in state.items()}


def transcribed(method, ctx, state):
    """Return L and its gradients by X, Y and eta from one graph, as section 7 is written."""
    draw = ctx.nets.draw(ctx.seed, 0)
    x, y, eta = (t.clone().requires_grad_() for t in (*state["images"], state["beta"]))
    module = build(NET, channels=1, size=(8, 8), classes=y.shape[1], seed=0).double()
    shapes = {name: p.shape for name, p in module.named_parameters()}

    def student(theta, images):
        parts = theta.split([shape.numel() for shape in shapes.values()])
        pairs = zip(shapes.items(), parts, strict=True)
        return functional_call(module, {n: part.view(s) for (n, s), part in pairs}, (images,))

    theta, chance, pool = draw.theta.clone().requires_grad_(), generator(0, "student", 0), []
    for _ in range(method.steps):
        if not pool:
            pool = list(torch.randperm(len(x), generator=chance).split(method.batch_syn))
        rows = pool.pop()
        loss = ((student(theta, x[rows]) - y[rows]) ** 2).mean()
        theta = theta - eta * torch.autograd.grad(loss, theta, create_graph=True)[0]
    far = ((theta - draw.target) ** 2).sum() / ((draw.theta - draw.target) ** 2).sum()
    return far.detach(), *torch.autograd.grad(far, (x, y, eta))


def test_both_strategies_are_the_transcription_in_float64(store):
    ctx, cast = exact(ready(store))
    state = cast(METHOD.init(ctx))
    loss, x_bar, y_bar, eta_bar = transcribed(METHOD, ctx, state)
    for strategy in ("graph", "adjoint"):
        at = replace(ctx, plan=replace(ctx.plan, strategy=strategy))
        new, numbers = METHOD.step(at, state, 0)
        assert numbers["loss"] == pytest.approx(float(loss), rel=1e-12)
        for found, wanted in zip(new["velocity"], (x_bar, y_bar), strict=True):
            assert wanted.abs().max() > 0
            assert (found - wanted).norm() < 1e-10 * wanted.norm()
        torch.testing.assert_close(new["beta_velocity"], eta_bar, rtol=1e-10, atol=0)
        moved = state["images"][1] - METHOD.lr_target * y_bar
        torch.testing.assert_close(new["images"][1], moved, rtol=1e-12, atol=1e-12)


def test_a_student_that_stands_still_is_at_distance_one(store):
    ctx, state = ready(store), METHOD.init(ready(store))
    net, (x, y) = student_of(METHOD.teacher, ctx), state["images"]
    batches = minibatches(x.shape, 8, 3, None, generator(0, "test"))
    for head in (1.0, 0.25, 0.0):
        found = follow(
            training_loss(net, mse),
            ctx.nets.draw(0, 0),
            [leaf := x.clone().requires_grad_()],
            (leaf, y),
            torch.tensor(0.0),
            batches,
            prepare=None,
            strategy="adjoint",
            compute=ctx.plan.window,
            weights=weights_of(net, head),
        )
        assert float(found.loss) == 1.0


def test_the_loss_falls_for_one_expert_and_epoch(store):
    ctx = ready(store)
    ctx = replace(ctx, nets=Always(ctx.nets.draw(0, 0)))
    method = replace(METHOD, lr_img=100.0, lr_lr=1e-3)
    seen = [numbers["loss"] for numbers in walked(method, ctx, 8)[1]]
    assert seen[-1] < seen[2] < seen[0]


def test_weights_of_the_head_count_in_the_distance(store):
    ctx = ready(store)
    net, draw = student_of(METHOD.teacher, ctx), ctx.nets.draw(0, 0)
    weights = weights_of(net, 0.5)
    last = sum(shape.numel() for shape in net.shapes[-2:])
    assert weights_of(net, 1.0) is None
    assert weights.tolist() == [1.0] * (net.numel - last) + [0.5] * last
    half, whole = (
        walked(replace(METHOD, head_weight=head), ctx, 1)[1][0]["loss"] for head in (0.5, 1.0)
    )
    assert half != whole
    assert draw.theta.numel() == net.numel


def test_epochs_that_are_not_read_change_nothing(store):
    ctx = ready(store)
    assert {Trajectory(folder).shape[0] for folder in ctx.done["experts"]} == {3}
    longer = expert_tasks(
        METHOD.experts,
        ctx.data,
        ctx.space,
        NET,
        seed=0,
        compute=ctx.plan.tasks,
        targets=ctx.done["targets"][0],
    )
    folders = run_tasks(longer, store)
    assert {Trajectory(folder).shape[0] for folder in folders} == {6}
    source = Trajectories.open(folders, start_epochs=2, span=1)
    short, long = (walked(METHOD, at, 4)[0] for at in (ctx, replace(ctx, nets=source)))
    for a, b in zip(short["images"], long["images"], strict=True):
        assert torch.equal(a, b)
    assert torch.equal(short["beta"], long["beta"])


def test_every_expert_is_drawn_and_by_the_released_code_one(store):
    _, seen = walked(METHOD, ready(store), 3)
    assert {numbers["expert"] for numbers in seen} == {0, 1, 2}
    legacy = replace(METHOD, legacy=True)
    _, seen = walked(legacy, ctx := ready(store, legacy), 3)
    assert {numbers["expert"] for numbers in seen} == {0}
    assert len(ctx.done["experts"]) == 3  # the first images are those that all of them fit worst
    random = replace(legacy, image_init="random")
    assert len(ready(store, random).done["experts"]) == 1


def test_the_first_images_are_those_that_experts_fit_worst(store):
    ctx = ready(store)
    train, losses = ctx.data.train, 0
    targets = read_targets(ctx.done["targets"][0], data=ctx.data.ref)
    module = build(NET, channels=1, size=(8, 8), classes=targets.shape[1], seed=0)
    for folder in ctx.done["experts"]:
        torch.nn.utils.vector_to_parameters(Trajectory(folder).row(1), module.parameters())
        with torch.no_grad():
            out = module.eval()(ctx.space.forward(train.pixels))
        losses += F.mse_loss(out, targets, reduction="none").mean(1) / 3
    state = METHOD.init(ctx)
    rows = losses.argsort(descending=True)[: len(state["rows"])]
    assert ctx.count == len(rows) == int(0.05 * len(train)) > 10
    assert state["rows"].sort().values.tolist() == rows.sort().values.tolist()
    assert torch.equal(state["images"][1], targets[state["rows"]])
    assert torch.equal(state["images"][0], ctx.space.forward(train.pixels[state["rows"]]))
    text = METHOD.phases(ctx, ctx.done).opening(ctx, state)
    assert histogram(train.labels, rows, 10).text() in text


def test_subsets(store):
    ctx = ready(store)
    targets = read_targets(ctx.done["targets"][0], data=ctx.data.ref)
    losses, labels = expert_losses(tuple(ctx.done["losses"])), ctx.data.train.labels
    given = {"labels": labels, "targets": targets, "losses": losses, "seed": 0}
    for name in ("high-loss", "high-loss-balanced", "random", "random-balanced"):
        large, small = (subset_rows(name, n, **given) for n in (60, 20))
        assert torch.equal(large[:20], small)
        counts = histogram(labels, small, 10).counts
        assert (set(counts) == {2}) == name.endswith("balanced")
        assert len(set(large.tolist())) == 60
    assert set(histogram(labels, subset_rows("sas", 20, **given), 10).counts) == {2}
    others = {**given, "seed": 1}
    assert not torch.equal(subset_rows("random", 20, **given), subset_rows("random", 20, **others))
    with pytest.raises(InputError, match=r"subset.*fancy"):
        subset_rows("fancy", 20, **given)


def test_a_run_saves_its_last_state_and_goes_on_from_any(store, tmp_path, capsys):
    where = Where(store=store.root)
    made = distil(RUN, tmp_path / "run", where=where)
    ctx = ready(store)
    state, _ = walked(METHOD, ctx, 2)
    save_tree(tmp_path / "tree", state)
    state, _ = walked(METHOD, ctx, 2, load_tree(tmp_path / "tree"), first=2)
    back = load(tmp_path / "run")
    assert torch.equal(back.images, state["images"][0])
    assert torch.equal(made.images, back.images)
    assert isinstance(back.targets, Embedding)
    assert torch.equal(back.targets.values, state["images"][1].half().float())
    assert torch.equal(back.targets.own, ctx.data.train.labels[state["rows"]])
    encoder = read_encoder(ctx.done["encoders"][0])
    assert (back.targets.by.digest, back.targets.by.scale) == (encoder.digest, "raw")
    assert back.recipe.lr == float(state["beta"])
    assert (back.recipe.loss, back.recipe.epochs) == ("mse", 20)
    assert back.origin.iteration == 4
    rows = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    features = back.pretrain(seed=0)(ctx.data.test.pixels)
    assert features.shape == (len(ctx.data.test), 32)


def test_standardised_targets_have_mean_0_and_std_1(store):
    method = replace(METHOD, targets="standardised", image_init="random", experts=ONE)
    ctx = ready(store, method)
    targets = read_targets(ctx.done["targets"][0], data=ctx.data.ref)
    assert float(targets.mean(0).abs().max()) < 1e-5
    assert method.export(ctx, method.init(ctx)).targets.by.scale == "standardised"


ONE = replace(METHOD.experts, count=1)


def test_targets_of_other_data_or_another_width_are_refused(store):
    ctx = ready(store)
    other = open_data("digits", limit=29)
    with pytest.raises(InputError, match="belong to another part of the data"):
        METHOD.init(replace(ctx, data=other))
    narrow = replace(METHOD, teacher=replace(METHOD.teacher, net="convnet1"))
    with pytest.raises(InputError, match="have 32 dimensions, not"):
        narrow.init(ctx)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"method": METHOD, "size": "2 percent"}, "size is a percentage such as 2%"),
        ({"method": METHOD, "size": "0%"}, "size must be 1 to all of the"),
        ({"method": METHOD, "size": "9999"}, "size must be 1 to all of the 300 images.*'9999'"),
        ({"method": METHOD, "size": None}, "ipc.*or size"),
        ({"method": METHOD, "ipc": 3}, "not both"),
        ({"method": METHOD, "ipc": 31, "size": None}, "ipc 31 of 10 classes makes 310 images"),
        ({"method": METHOD, "replacement": True}, "replacement says nothing"),
        ({"method": METHOD, "select_every": 1}, "no labels"),
        ({"method": method_of("mtt")}, "size '5%' is for methods without classes.*mtt"),
        ({"method": method_of("boost:mtt")}, "size '5%'.*boost:mtt"),
        ({"method": replace(METHOD, max_start_epoch=6)}, "need experts of 6 epochs"),
        ({"method": replace(METHOD, teacher=EncoderPlan(net="resnet18@none.pt"))}, "none.pt"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused_before_anything_starts(changes, match):
    with pytest.raises(InputError, match=match):
        preflight(replace(RUN, **changes), open_data("digits", limit=30))


@pytest.mark.parametrize("wrapper", ["boost", "progressive"])
def test_schedules_over_classes_do_not_take_it(wrapper):
    with pytest.raises(InputError, match="not mkdt"):
        method_of(f"{wrapper}:mkdt")


def test_experts_of_the_other_kind_are_refused():
    with pytest.raises(InputError, match="'kd_mse', not 'ce'"):
        MKDT(experts=ExpertPlan())
    with pytest.raises(InputError, match="'ce', not 'kd_mse'"):
        MTT(experts=EXPERTS)


def test_a_set_by_ipc_has_as_many_images():
    run = replace(RUN, ipc=3, size=None)
    assert preflight(run, open_data("digits", limit=30))[0].count == 30


@pytest.mark.slow
def test_compiled_steps_are_the_eager_ones(store):
    ctx = ready(store)
    found = []
    for compiled in (False, True):
        window = replace(ctx.plan.window, compiled=compiled)
        plan = replace(ctx.plan, strategy="adjoint", window=window)
        found.append(walked(METHOD, replace(ctx, plan=plan), 1)[0]["velocity"])
    for eager, fast in zip(*found, strict=True):
        assert (eager - fast).norm() < 1e-4 * eager.norm()


def test_losses_of_a_network_with_batch_norm_use_its_own_statistics(store):
    net = replace(NET, norm="batch")
    ctx = ready(store, run=replace(RUN, net=net))
    found = expert_losses(tuple(ctx.done["losses"]))[0]
    targets = read_targets(ctx.done["targets"][0], data=ctx.data.ref)
    module, images = (
        student_of(METHOD.teacher, ctx).load(Trajectory(ctx.done["experts"][0]).row(1)),
        ctx.space.forward(ctx.data.train.pixels),
    )
    with torch.no_grad():
        blind, own = (F.mse_loss(module.train(mode)(images), targets) for mode in (False, True))
    assert float(found.mean()) == pytest.approx(float(own), rel=0.02)
    assert abs(blind - own) > 0.1 * own
