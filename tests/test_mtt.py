"""MTT against a plain transcription of its algorithm, its guard, its export, golden losses."""

import json
from dataclasses import dataclass, field, replace

import pytest
import torch
import torch.nn.functional as F

from potstill.artefact import load
from potstill.augment import DSA
from potstill.core.compute import Compute
from potstill.core.errors import InputError, WorkError
from potstill.core.keys import generator
from potstill.core.store import Store, default_cache
from potstill.data import measure_stats, open_data
from potstill.engine import run_tasks
from potstill.experts import Draw, ExpertPlan, Trajectories
from potstill.functional import SGD, Segment
from potstill.methods import Context, Loop, Plan, SynthBlock
from potstill.methods.matching import minibatches
from potstill.methods.mtt import MTT
from potstill.nets import FlatNet, NetSpec, build

NET = NetSpec(name="convnet2", width=8)
METHOD = MTT(
    iterations=30,
    steps=4,
    expert_epochs=1,
    max_start_epoch=2,
    batch_syn=7,
    lr_img=10.0,
    lr_lr=1e-5,
    lr_init=0.05,
    experts=ExpertPlan(count=2, epochs=2, lr=0.05, batch=64),
)


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)


@dataclass(frozen=True)
class Near:
    """A source of a start and a target a short way off, keyed by the outer step."""

    numel: int
    dtype: torch.dtype = torch.float32
    far: float = 0.02
    broken: frozenset = field(default_factory=frozenset)

    def draw(self, seed, it):
        chance = generator(seed, "near", it)
        theta = 0.1 * torch.randn(self.numel, generator=chance, dtype=self.dtype)
        move = self.far * torch.randn(self.numel, generator=chance, dtype=self.dtype)
        target = theta + (float("inf") if it in self.broken else move)
        return Draw(theta=theta, target=target, expert=0, epoch=0)


def plan(strategy, *, compiled=False):
    one = Compute(threads=1)
    return Plan(strategy=strategy, window=replace(one, compiled=compiled), tasks=one)


def context(*, ipc=1, strategy="graph", synth=None, nets=None, dtype=torch.float32, broken=()):
    data = open_data("digits")
    module = build(NET, channels=1, size=data.size, classes=10, seed=0, key=("student",))
    net = FlatNet(module)
    return Context(
        data=data,
        space=measure_stats(data.train),
        net=net,
        net_spec=NET,
        ipc=ipc,
        seed=0,
        plan=plan(strategy),
        synth=synth or (SynthBlock(ipc=ipc),),
        nets=nets or Near(net.numel, dtype, broken=frozenset(broken)),
    )


def real_context(method=METHOD):
    """Return a context with trained experts, as the runner makes it."""
    ctx = context()
    method.check(ctx)
    folders = run_tasks(method.phases(ctx, {}), Store(default_cache()))
    loop = method.phases(ctx, {"experts": folders})
    assert isinstance(loop, Loop)
    assert loop.steps == method.iterations
    assert isinstance(loop.nets, Trajectories)
    assert method.phases(ctx, {"experts": folders, "loop": []}) is None
    return replace(ctx, nets=loop.nets)


def cast(state, dtype):
    def to(x):
        if isinstance(x, tuple):
            return tuple(map(to, x))
        return x.to(dtype) if isinstance(x, torch.Tensor) else x

    return {name: to(x) for name, x in state.items()}


def logits(parameters, x):
    """A ConvNet-D2 written out; `parameters` in the order of the module."""
    w1, b1, g1, h1, w2, b2, g2, h2, w, b = parameters
    x = F.avg_pool2d(F.relu(F.group_norm(F.conv2d(x, w1, b1, padding=1), 8, g1, h1)), 2)
    x = F.avg_pool2d(F.relu(F.group_norm(F.conv2d(x, w2, b2, padding=1), 8, g2, h2)), 2)
    return x.flatten(1) @ w.t() + b


def transcribed(method, ctx, images, beta, it):
    """Return L, dL/dX, dL/dbeta of section 3.3 of the reference, by one autograd graph."""
    draw = ctx.nets.draw(ctx.seed, it)
    x = images.clone().requires_grad_()
    lr = beta.clone().requires_grad_()
    y = torch.tensor([c for c in range(10) for _ in range(len(images) // 10)])
    shapes = [p.shape for p in build(NET, channels=1, size=(8, 8), classes=10, seed=0).parameters()]
    sizes = [shape.numel() for shape in shapes]
    theta = [
        part.reshape(shape).clone().requires_grad_()
        for part, shape in zip(draw.theta.split(sizes), shapes, strict=True)
    ]
    chance = generator(ctx.seed, "student", it)
    n, b, chunks, seen = len(x), method.batch_syn or len(x), [], []
    for _ in range(method.steps):
        if not chunks:
            order = torch.randperm(n, generator=chance).tolist()
            chunks = [order[i : i + b] for i in range(0, n, b)]
        chunk = chunks[-1]
        chunks = chunks[:-1]
        seen.append(len(chunk))
        batch = x[chunk]
        if method.augment:
            parameters = method.augment.sample(len(chunk), (1, 8, 8), chance)
            batch = method.augment.apply(batch, parameters)
        loss = F.cross_entropy(logits(theta, batch), y[chunk])
        grads = torch.autograd.grad(loss, theta, create_graph=True)
        theta = [p - lr * g for p, g in zip(theta, grads, strict=True)]
    end = torch.cat([p.flatten() for p in theta])
    distance = torch.sum((end - draw.target) ** 2) / torch.sum((draw.theta - draw.target) ** 2)
    return distance.detach(), *torch.autograd.grad(distance, [x, lr]), seen


@pytest.mark.parametrize("strategy", ["graph", "adjoint"])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize(("batch", "sizes"), [(None, [20] * 6), (7, [6, 7, 7, 6, 7, 7])])
def test_outer_steps_equal_a_plain_transcription(strategy, dtype, limit, batch, sizes):
    ctx = context(ipc=2, strategy=strategy, dtype=dtype)
    # the published mode S draws one operation a batch; M has all of them in every batch
    augment = DSA(mode="M") if batch else DSA()
    method = replace(METHOD, steps=6, batch_syn=batch, augment=augment)
    state = cast(method.init(ctx), dtype)
    images, beta = state["images"][0].clone(), state["beta"].clone()
    velocity, beta_velocity = torch.zeros_like(images), torch.zeros_like(beta)
    for it in range(3 if dtype == torch.float64 else 1):
        loss, grad, beta_grad, seen = transcribed(method, ctx, images, beta, it)
        assert seen == sizes
        velocity = 0.5 * velocity + grad
        images = images - 10.0 * velocity
        beta_velocity = 0.5 * beta_velocity + beta_grad
        beta = beta * torch.exp(-1e-5 * beta_velocity / beta)
        state, numbers = method.step(ctx, state, it)
        assert numbers["loss"] == pytest.approx(float(loss), rel=limit)
        pairs = (
            (state["velocity"][0], velocity),
            (state["images"][0], images),
            (state["beta_velocity"], beta_velocity),
            (state["beta"], beta),
        )
        for ours, plain in pairs:
            assert ours.dtype == dtype
            assert float((ours - plain).norm() / plain.norm()) < limit
        assert float(velocity.norm()) > 1e-4


@pytest.mark.slow
def test_compiled_outer_steps_equal_those_of_the_graph():
    method = replace(METHOD, lr_img=1.0)
    ctx = context(dtype=torch.float64)
    fast = replace(ctx, plan=plan("adjoint", compiled=True))
    state = other = cast(method.init(ctx), torch.float64)
    for it in range(3):
        state, numbers = method.step(ctx, state, it)
        other, found = method.step(fast, other, it)
        assert found["loss"] == pytest.approx(numbers["loss"], rel=1e-10)
    for name in ("images", "velocity"):
        torch.testing.assert_close(other[name][0], state[name][0], rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(other["beta"], state["beta"], rtol=1e-10, atol=0)


@pytest.mark.parametrize(("count", "size"), [(10, 4), (10, None), (9, 3), (4, 9)])
def test_minibatches(count, size):
    shape = (count, 1, 8, 8)
    batches = minibatches(shape, size, 7, DSA(), generator(0, "b"))
    lengths = {(10, 4): [2, 4, 4] * 3, (10, None): [10] * 7, (9, 3): [3] * 7, (4, 9): [4] * 7}
    assert [len(b.index) for b in batches] == lengths[count, size][:7]
    assert all(len(b.extra.values) == len(b.index) for b in batches)
    every = -(-count // (size or count))
    rounds = [torch.cat([b.index for b in batches[i : i + every]]) for i in range(0, 7, every)]
    for one in rounds[: 7 // every]:
        assert sorted(one.tolist()) == list(range(count))
    assert rounds[0].tolist() != rounds[1].tolist()
    assert all(b.extra is None for b in minibatches(shape, size, 7, None, generator(0, "b")))


def test_beta_at_most_doubles_or_halves_whatever_its_step_size():
    ctx = context()
    start = METHOD.init(ctx)
    plain, _ = METHOD.step(ctx, start, 0)
    grad, beta = plain["beta_velocity"], start["beta"]
    small, _ = replace(METHOD, lr_lr=1e-6).step(ctx, start, 0)
    assert float(small["beta"] - beta) == pytest.approx(-1e-6 * float(grad), rel=0.02)
    for lr_lr in (0.0, 1e-3, 1.0, 1e6, 1e30):
        state, before = start, float(beta)
        for it in range(6):
            state, numbers = replace(METHOD, lr_lr=lr_lr).step(ctx, state, it)
            assert float(state["beta"]) == numbers["beta"]
            assert 0.4999 < numbers["beta"] / before < 2.0001
            before = numbers["beta"]
            assert state["images"][0].isfinite().all()
        if lr_lr == 0:
            assert torch.equal(state["beta"], start["beta"])
        assert state["rolled_back"] == 0
    huge, _ = replace(METHOD, lr_lr=1e30).step(ctx, start, 0)
    assert float(huge["beta"]) == pytest.approx(0.05 * (0.5 if float(grad) > 0 else 2))


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_the_guard_goes_back_to_the_start_within_the_first_steps():
    ctx, start = context(broken={0, 1}), METHOD.init(context())
    state = start
    for it in range(2):
        state, numbers = METHOD.step(ctx, state, it)
        assert numbers == {"rolled_back": it + 1, "beta": pytest.approx(0.05), "undone": 1}
        assert (state["failed"], state["rolled_back"]) == (it + 1, it + 1)
        assert same(state["images"], start["images"])
        assert torch.equal(state["beta"], start["beta"])
        assert not state["velocity"][0].any()
        assert not state["beta_velocity"].any()
    state, numbers = METHOD.step(ctx, state, 2)
    assert numbers["loss"] > 0
    assert (state["failed"], state["rolled_back"]) == (0, 2)
    assert state["velocity"][0].any()


def test_the_guard_goes_back_to_the_last_safe_state():
    ctx, state = context(broken={53}), METHOD.init(context())
    for it in range(49, 53):
        if it == 50:
            safe = state  # what step 50 found a finite loss with
        state, _ = METHOD.step(ctx, state, it)
    moved = state
    state, _ = METHOD.step(ctx, state, 53)
    assert same(state["images"], safe["images"])
    assert torch.equal(state["beta"], safe["beta"])
    assert not same(state["images"], moved["images"])
    assert not state["velocity"][0].any()


def test_twenty_failures_in_a_row_end_the_run():
    ctx, state = context(broken=range(100)), METHOD.init(context())
    for it in range(19):
        state, _ = METHOD.step(ctx, state, it)
    with pytest.raises(WorkError, match=r"20 outer steps in a row up to step 19.*lr_lr \(now 1e"):
        METHOD.step(ctx, state, 19)
    state, _ = METHOD.step(context(), state, 19)
    assert state["failed"] == 0


@pytest.mark.parametrize("strategy", ["graph", "adjoint"])
def test_a_frozen_block_and_a_slow_block(strategy):
    fixed = torch.randn(20, 1, 8, 8, generator=generator(0, "fixed"))
    kept = fixed.clone()
    blocks = (SynthBlock(ipc=2, lr_scale=0.0, images=fixed), SynthBlock(ipc=1))
    ctx = context(synth=blocks, strategy=strategy)
    start = METHOD.init(ctx)
    assert [len(x) for x in start["images"]] == [20, 10]
    state = start
    for it in range(4):
        state, numbers = METHOD.step(ctx, state, it)
        assert numbers["loss"] > 0
    assert torch.equal(state["images"][0], kept)
    assert torch.equal(fixed, kept)
    assert not same(state["images"][1:], start["images"][1:])
    frozen = METHOD.export(ctx, state)
    assert torch.equal(frozen.images[:20], kept)
    assert [(b.start, b.stop) for b in frozen.blocks] == [(0, 20), (20, 30)]
    assert frozen.targets.values.tolist() == [c for c in range(10) for _ in "ab"] + [*range(10)]

    whole, _ = METHOD.step(ctx, start, 0)
    slow = replace(ctx, synth=(blocks[0], replace(blocks[1], lr_scale=0.5)))
    half, _ = METHOD.step(slow, start, 0)
    full_move = whole["images"][1] - start["images"][1]
    torch.testing.assert_close(half["images"][1] - start["images"][1], full_move / 2)
    assert same(half["velocity"], whole["velocity"])


def test_blocks_are_checked():
    with pytest.raises(InputError, match="must bring its images"):
        SynthBlock(ipc=1, lr_scale=0.0)
    with pytest.raises(InputError, match="ipc of at least 1"):
        SynthBlock(ipc=0)
    ctx = context(synth=(SynthBlock(ipc=1, images=torch.zeros(9, 1, 8, 8)),))
    with pytest.raises(InputError, match=r"Block 0 needs images \[10, 1, 8, 8\]"):
        METHOD.init(ctx)


def test_first_images():
    ctx = context(ipc=3)
    (x,) = METHOD.init(ctx)["images"]
    pool = {
        row.numpy().tobytes(): int(y)
        for row, y in zip(
            ctx.space.forward(ctx.data.train.pixels), ctx.data.train.labels, strict=True
        )
    }
    found = [pool[row.numpy().tobytes()] for row in x]
    assert found == [c for c in range(10) for _ in range(3)]
    assert len({row.numpy().tobytes() for row in x}) == 30
    two = METHOD.init(context(synth=(SynthBlock(ipc=1), SynthBlock(ipc=2))))["images"]
    assert torch.equal(
        torch.cat([two[0].view(10, 1, 64), two[1].view(10, 2, 64)], 1).flatten(), x.flatten()
    )
    noisy = replace(METHOD, image_init="noise")
    (z,) = noisy.init(context(ipc=200))["images"]
    assert z.shape == (2000, 1, 8, 8)
    assert abs(float(z.mean())) < 0.01
    assert float(z.std()) == pytest.approx(1, abs=0.01)
    with pytest.raises(InputError, match=r"fewer than ipc 200"):
        METHOD.init(context(ipc=200))


GOLDEN = [0.6686553, 0.8024274, 0.5442542, 0.6607978, 0.5717291]


@pytest.mark.parametrize("strategy", ["graph", "adjoint"])
def test_golden_losses_and_the_loss_falls(strategy):
    ctx = real_context()
    ctx = replace(ctx, plan=plan(strategy))
    state, losses = METHOD.init(ctx), []
    before = torch.random.get_rng_state()
    for it in range(30):
        state, numbers = METHOD.step(ctx, state, it)
        losses.append(numbers["loss"])
        assert (numbers["expert"], numbers["epoch"]) in {(k, s) for k in (0, 1) for s in (0, 1)}
    assert losses[:5] == pytest.approx(GOLDEN, rel=1e-4)
    assert sum(losses[-10:]) < 0.93 * sum(losses[:10])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_export_is_an_artefact_with_the_published_recipe(tmp_path):
    ctx, method = context(ipc=2), replace(METHOD, evaluation_epochs=1000)
    state, _ = method.step(ctx, method.init(ctx), 0)
    made = method.export(ctx, state)
    made.save(tmp_path / "set")
    back = load(tmp_path / "set")
    assert torch.equal(back.images, state["images"][0])
    assert back.targets.values.tolist() == [c for c in range(10) for _ in range(2)]
    assert back.recipe.segments == (
        Segment(epochs=502),
        Segment(epochs=499, lr_scale=0.1, optimizer="new"),
    )
    assert back.recipe.epochs == 1001
    assert back.recipe.lr == float(state["beta"]) != method.lr_init
    assert back.recipe.optimizer == SGD(momentum=0.9, weight_decay=5e-4)
    assert (back.recipe.batch, back.recipe.loss, back.recipe.augment) == (256, "ce", DSA())
    assert (back.net, back.space, back.ref) == (NET, ctx.space, ctx.data.ref)
    assert back.origin.identity == ctx.data.ref.identity
    assert json.loads(back.origin.method)["steps"] == 4
    made.images.zero_()
    assert state["images"][0].any()


def test_cost():
    cost = METHOD.cost(context(ipc=3))
    assert cost.disk_bytes == 2 * 3 * context().net.numel * 4
    assert cost.steps == 30
    assert (
        cost.adjoint_bytes
        < cost.graph_bytes
        < replace(METHOD, batch_syn=None).cost(context(ipc=3)).graph_bytes
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_syn": 11}, "batch_syn must be at most the 10 images of the set, not 11"),
        ({"max_start_epoch": 3}, "need experts of 3 epochs; these have 2"),
    ],
)
def test_settings_that_do_not_fit_the_run(change, words):
    METHOD.check(context())
    with pytest.raises(InputError, match=words):
        replace(METHOD, **change).check(context())


def test_scaled_never_raises_a_count():
    small = MTT(
        iterations=2,
        steps=1,
        expert_epochs=1,
        max_start_epoch=1,
        evaluation_epochs=3,
        experts=ExpertPlan(count=1, epochs=1),
    )
    assert small.scaled("smoke") == small.scaled("cpu") == small
    wide = MTT(expert_epochs=30, max_start_epoch=20)
    for scale in ("smoke", "cpu"):
        made = wide.scaled(scale)
        assert made.max_start_epoch - 1 + made.expert_epochs <= made.experts.epochs


def test_experts_of_few_steps_an_epoch_are_advised_against():
    ctx = context()
    count = len(ctx.data.train)
    batches = {n: replace(METHOD.experts, batch=-(-count // n)) for n in (2, 20)}
    assert "only 2 steps" in replace(METHOD, experts=batches[2]).cost(ctx).notes[0]
    assert replace(METHOD, experts=batches[20]).cost(ctx).notes == ()
