"""MKDT against a plain transcription; its experts, and what counts in its distance."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch.func import functional_call

from mkdt_small import METHOD, NET, ready, walked
from potstill.core.keys import generator
from potstill.core.store import Store
from potstill.engine import run_tasks
from potstill.experts import Draw, Trajectories, Trajectory, expert_tasks
from potstill.functional import mse, training_loss
from potstill.methods.encoded import student_of, weights_of
from potstill.methods.matching import follow, minibatches
from potstill.nets import build


@pytest.fixture(autouse=True)
def _alone(alone):
    pass


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


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
