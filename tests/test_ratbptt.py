"""RaT-BPTT in float64 against a double loop; windows, real images, outer steps, export."""

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from potstill.artefact import Soft, load
from potstill.core.compute import Compute
from potstill.core.errors import InputError, WorkError
from potstill.core.keys import generator
from potstill.core.state import load_tree, save_tree
from potstill.data import measure_stats, open_data
from potstill.experts import Draw, Fresh
from potstill.functional import SGD, Adam, Batch, accuracy, fit, run_prefix, unroll
from potstill.methods import Context, Loop, Plan, SynthBlock
from potstill.methods.inner import Inner
from potstill.methods.outer import Clip, on_simplex
from potstill.methods.ratbptt import RaTBPTT
from potstill.methods.real import WEIGHTS, RealImages, missed, weighted
from potstill.methods.start import labels_of
from potstill.methods.student import averaged, outer_gradient
from potstill.methods.windows import PATIENCE, Turn, Window, first_turn, turned, witnessed
from potstill.nets import FlatNet, NetSpec, build

NET = NetSpec(name="convnet2", width=8)
METHOD = RaTBPTT(
    iterations=20,
    window=Window(length=3, total=7, place="fixed"),
    inner=Inner(lr=0.01),
    real=RealImages(batch=90),
    image_init="real",
    lr_img=0.01,
    evaluation_steps=40,
)


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)


@dataclass(frozen=True)
class Cast:
    """Another source in another type; the networks of `broken` outer steps are infinite."""

    source: Fresh
    dtype: torch.dtype = torch.float32
    broken: frozenset = field(default_factory=frozenset)

    def draw(self, seed, it):
        theta = self.source.draw(seed, it).theta.to(self.dtype)
        theta = theta + float("inf") if it in self.broken else theta
        return Draw(theta=theta, target=None, expert=0, epoch=0)


def context(*, ipc=1, strategy="graph", synth=None, dtype=torch.float32, broken=(), memory=2**32):
    data = open_data("digits", limit=40)
    module = build(NET, channels=1, size=data.size, classes=10, seed=0, key=("student",))
    one = Compute(threads=1)
    return Context(
        data=data,
        space=measure_stats(data.train),
        net=FlatNet(module),
        net_spec=NET,
        ipc=ipc,
        seed=0,
        plan=Plan(strategy=strategy, window=one, tasks=one, memory=memory),
        synth=synth or (SynthBlock(ipc=ipc),),
        nets=Cast(Fresh(NET, 1, (8, 8), 10), dtype, frozenset(broken)),
    )


def cast(tree, dtype):
    if isinstance(tree, dict):
        return {name: cast(value, dtype) for name, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple(cast(value, dtype) for value in tree)
    real = isinstance(tree, torch.Tensor) and tree.is_floating_point()
    return tree.to(dtype) if real else tree


def placed(state, start, length):
    return {**state, "turn": Turn(number=0, start=start, length=length, seen=(0.0, 0), memory={})}


def walked(method, ctx, state, start, stop):
    rows = []
    for it in range(start, stop):
        state, numbers = method.step(ctx, state, it)
        rows.append(numbers)
    return state, rows


def text(state, folder):
    save_tree(folder / "tree", state)
    return (folder / "tree").read_bytes()


def logits(theta, x):
    """A ConvNet-D2 of width 8 written out for a vector of parameters."""
    shapes = [(8, 1, 3, 3), (8,), (8,), (8,), (8, 8, 3, 3), (8,), (8,), (8,), (10, 32), (10,)]
    sizes = [torch.Size(shape).numel() for shape in shapes]
    parts = [p.view(shape) for p, shape in zip(theta.split(sizes), shapes, strict=True)]
    w1, b1, g1, h1, w2, b2, g2, h2, w, b = parts
    x = F.avg_pool2d(F.relu(F.group_norm(F.conv2d(x, w1, b1, padding=1), 8, g1, h1)), 2)
    x = F.avg_pool2d(F.relu(F.group_norm(F.conv2d(x, w2, b2, padding=1), 8, g2, h2)), 2)
    return x.flatten(1) @ w.t() + b


def adam_step(theta, grad, state, lr, s, *, inside):
    """Step s (from 1): torch's Adam, inside the window that of `higher` 0.2.1; no dead unit."""
    m, v = state
    m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad * grad
    c1, c2 = 1 - 0.9**s, 1 - 0.999**s
    root = torch.where(v > 0, v, 1).sqrt() * (v > 0)
    if inside:
        return theta - lr * c2**0.5 / c1 * m / (root + 1e-8), (m, v)
    return theta - lr / c1 * m / (root / c2**0.5 + 1e-8), (m, v)


def sgd_step(theta, grad, state, lr, s, *, inside):
    b = grad + 0.01 * theta
    b = b if s == 1 else 0.9 * state[0] + b
    return theta - lr * b, (b,)


def transcribed(method, ctx, state, it, k, step):
    """Return L, dL/dU, dL/dy, dL/dlr by one graph through the window, for hard labels dL/dy 0."""
    start, length = state["turn"]["start"], state["turn"]["length"]
    u = torch.cat(state["images"]).clone().requires_grad_()
    hard = labels_of(ctx)
    y = torch.cat(state["labels"]) if state["labels"] else F.one_hot(hard, 10).to(u)
    y = y.clone().requires_grad_()
    lr = state["lr"].clone().requires_grad_()
    theta = ctx.nets.draw(ctx.seed, it * method.tasks + k).theta
    chance = generator(ctx.seed, "student", it, k)
    batches = method.inner.batches(ctx, start + length, chance)
    moments = (torch.zeros_like(theta), torch.zeros_like(theta))
    for t, batch in enumerate(batches):
        inside = t >= start
        x, labels, rate = (each if inside else each.detach() for each in (u, y, lr))
        if t == start:
            theta = theta.detach()
            moments = tuple(m.detach() for m in moments)
        theta = theta if inside and t > start else theta.requires_grad_()
        x = x[batch.index]
        if method.inner.augment is not None:
            x = method.inner.augment.apply(x, batch.extra)
        loss = -(labels[batch.index] * F.log_softmax(logits(theta, x), 1)).sum(1).mean()
        (grad,) = torch.autograd.grad(loss, theta, create_graph=inside)
        theta, moments = step(theta, grad, moments, rate, t + 1, inside=inside)
        if not inside:
            theta = theta.detach()
    x, labels = method.real.drawn(ctx, state["missed"], it, k, like=theta)
    outer = F.cross_entropy(logits(theta, x), labels)
    return outer.detach(), *torch.autograd.grad(outer, [u, y, lr], allow_unused=True)


def near(a, b, limit):
    assert (a - b).norm() <= limit * b.norm(), float((a - b).norm() / b.norm())


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


# --- windows -----------------------------------------------------------------------------------


def no_norms(steps):
    raise AssertionError("only `adaptive` asks for norms")


def starts(window, turns, norms=no_norms, loss=None):
    turn, found = first_turn(), []
    for number in range(turns):
        turn = turned(window, turn, number, seed=0, norms=norms)
        found.append((turn["start"], turn["length"]))
        if loss is not None:
            turn = witnessed(turn, loss(number))
    return found


def test_random_windows_are_uniform_with_both_ends():
    found = Counter(starts(Window(length=3, total=12, least=2), 4000))
    assert set(found) == {(start, 3) for start in range(2, 10)}
    mean, spread = 500, (4000 / 8 * 7 / 8) ** 0.5
    assert all(abs(count - mean) < 4.5 * spread for count in found.values())


def test_windows_of_random_length_begin_at_zero():
    window = Window(length=3, total=8, place="random-length")
    found = Counter(starts(window, 3000))
    assert set(found) == {(0, length) for length in range(3, 9)}
    assert all(abs(count - 500) < 4.5 * (500 * 5 / 6) ** 0.5 for count in found.values())
    assert window.longest == 8


def test_fixed_windows():
    assert set(starts(Window(length=3, total=8, place="fixed"), 5)) == {(5, 3)}
    assert set(starts(Window(length=3, total=8, place="zero"), 5)) == {(0, 3)}
    assert set(starts(Window(length=8, total=8), 5)) == {(0, 8)}


def test_moving_windows_follow_a_naive_loop():
    window = Window(length=3, total=9, place="moving", least=1)
    losses = [1 / (1 + n) if n < 5 else 0.5 + n % 3 for n in range(4 * PATIENCE)]
    found = starts(window, len(losses), loss=lambda number: losses[number])
    wanted, start, best, waited = [], 1, float("inf"), 0
    for loss in losses:
        wanted.append((start, 3))
        waited += 1
        if loss < best:
            best, waited = loss, 0
        elif waited >= PATIENCE:
            start, best, waited = min(start + 3, 6), float("inf"), 0
    assert found == wanted
    assert {start for start, _ in found} == {1, 4, 6}


def test_adaptive_windows_start_by_softmax_of_the_norms():
    norms = torch.tensor([5.0, 0.1, 1.0, 2.0, 0.5])
    window = Window(length=3, total=7, place="adaptive", least=1)
    found = Counter(start for start, _ in starts(window, 4000, lambda steps: norms[:steps]))
    chances = norms[1:].double().softmax(0)
    for start, chance in enumerate(chances.tolist(), 1):
        assert abs(found[start] - 4000 * chance) < 4.5 * (4000 * chance * (1 - chance)) ** 0.5
    assert sum(found.values()) == 4000
    assert set(found) == {1, 2, 3, 4}
    assert starts(window, 3, lambda steps: torch.full((steps,), float("nan")))


def test_the_method_measures_the_norms_of_plain_steps():
    ctx = context(dtype=torch.float64)
    method = replace(METHOD, inner=Inner(lr=0.01, augment=None))
    state = cast(method.init(ctx), torch.float64)
    seen = []

    def probe(window, memory, chance, norms):
        seen.append(norms(4))
        return 0, 2

    from potstill.methods import windows

    windows.PLACEMENTS._things["probe"] = windows.Placement(help="", place=probe)
    try:
        probing = replace(method, window=Window(length=2, total=5, place="probe"))
        probing.step(ctx, state, 0)
    finally:
        del windows.PLACEMENTS._things["probe"]
    from potstill.core.keys import integer

    theta = ctx.nets.draw(integer(ctx.seed, "norms"), 0).theta
    u, y, moments = state["images"][0], labels_of(ctx), (torch.zeros_like(theta),) * 2
    for s, norm in enumerate(seen[0].tolist(), 1):
        leaf = theta.clone().requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(logits(leaf, u), y), leaf)
        assert norm == pytest.approx(float(grad.norm()), rel=1e-9)
        theta, moments = adam_step(theta, grad, moments, state["lr"], s, inside=False)
    assert s == 4


@pytest.mark.parametrize("redraw", ["epoch", "step"])
def test_a_window_stays_for_an_epoch_or_a_step(redraw):
    ctx = context()
    window = Window(length=1, total=9, redraw=redraw)
    method = replace(METHOD, window=window, real=RealImages(batch=120))
    epoch = -(-len(ctx.data.train) // 120)
    assert epoch > 2
    _, rows = walked(method, ctx, method.init(ctx), 0, 4 * epoch)
    found = [row["start"] for row in rows]
    parts = [found[k : k + epoch] for k in range(0, len(found), epoch)]
    assert all(len(set(part)) == 1 for part in parts) == (redraw == "epoch")
    assert len(set(found)) > 1


# --- real images -------------------------------------------------------------------------------


def test_an_epoch_takes_each_real_image_once():
    ctx, real = context(), RealImages(batch=150)
    n = len(ctx.data.train)
    per = -(-n // 150)
    epochs = []
    for epoch in range(2):
        rows = [real.rows(ctx, None, epoch * per + k, 0) for k in range(per)]
        assert [len(r) for r in rows] == [150] * (per - 1) + [n - 150 * (per - 1)]
        epochs.append(torch.cat(rows))
        assert epochs[-1].sort().values.tolist() == list(range(n))
    assert not torch.equal(*epochs)
    assert not torch.equal(real.rows(ctx, None, 0, 0), real.rows(ctx, None, 0, 1))


def test_weights_of_missed_images():
    scores = torch.tensor([0, 1, 4, 7, 8], dtype=torch.uint8)
    assert WEIGHTS["hard"](scores, 8).tolist() == [0, 1, 1, 1, 1]
    assert WEIGHTS["prob"](scores, 8).tolist() == [5, 6, 9, 12, 13]
    assert WEIGHTS["quaprob"](scores, 8).tolist() == [4 - abs(s - 4) + 5 for s in (0, 1, 4, 7, 8)]
    weights = torch.tensor([0.0, 1.0, 3.0])
    first = Counter(int(weighted(weights, 1, generator(0, k))) for k in range(2000))
    assert set(first) == {1, 2}
    assert abs(first[2] - 1500) < 4.5 * (2000 * 0.75 * 0.25) ** 0.5
    assert sorted(weighted(weights, 9, generator(0)).tolist()) == [1, 2]
    assert sorted(weighted(torch.zeros(3), 9, generator(0)).tolist()) == [0, 1, 2]


def test_missed_images_are_counted_and_drawn():
    ctx = context()
    real = RealImages(batch=50, sampling="hard", rescore_every=2, rescore_nets=3)
    method = replace(METHOD, real=real, evaluation_steps=5)
    state, _ = walked(method, ctx, method.init(ctx), 0, 2)
    assert state["missed"] is None
    spec = method.inner.recipe(ctx, float(state["lr"]), steps=5, soft=False)
    images, labels = state["images"][0], labels_of(ctx)
    found = missed(ctx, images, labels, spec, nets=3, it=2)
    count = torch.zeros(len(ctx.data.train), dtype=torch.int64)
    from potstill.core.keys import integer

    for k in range(3):
        theta = ctx.nets.draw(integer(ctx.seed, "missed", 2), k).theta
        theta = fit(ctx.net, theta, images, labels, spec, seed=0, key=("missed", 2, k))
        out = logits(theta, ctx.space.forward(ctx.data.train.pixels))
        count += out.argmax(1) != ctx.data.train.labels
    assert found.tolist() == count.tolist()
    state, _ = method.step(ctx, state, 2)
    assert torch.equal(state["missed"], found)
    assert 0 < int((found > 0).sum()) < len(found)
    assert bool((found[real.rows(ctx, found, 3, 0)] > 0).all())


# --- outer steps -------------------------------------------------------------------------------


def test_clipping_follows_a_naive_loop():
    norms = [1.0, 1.5, 40.0, 0.2, 0.0, 3.0, 100.0]
    clip, mean, s = Clip(weight=0.9, factor=2.0), None, None
    for norm in norms:
        mean, cut = clip.cut(mean, norm)
        s = norm if s is None else 0.9 * s + 0.1 * norm
        assert mean == pytest.approx(s)
        assert norm * cut == pytest.approx(min(norm, 2 * s))
    assert Clip(weight=None).cut(None, 5.0) == (None, 1.0)


@pytest.mark.parametrize("together", [False, True])
def test_outer_steps_equal_adam_of_torch(together):
    ctx = context(ipc=2, dtype=torch.float64)
    clip = Clip(weight=0.5, factor=0.6, labels=together)
    method = replace(METHOD, labels="raw", lr_label=0.02, lr_lr=0.1, clip=clip)
    state = cast(method.init(ctx), torch.float64)
    u, y = (torch.nn.Parameter(torch.cat(state[name]).clone()) for name in ("images", "labels"))
    log_lr = torch.nn.Parameter(state["lr"].log())
    groups = [(u, 0.01), (y, 0.02), (log_lr, 0.1)]
    adam = torch.optim.Adam([{"params": [p], "lr": lr} for p, lr in groups])
    s, cuts = None, 0
    for it in range(6):
        ready = method._made_ready(ctx, state, it)
        found = method.task(ctx, ready, it, 0)
        u.grad, y.grad, log_lr.grad = found.images[0], found.labels[0], found.lr
        whole = [u.grad, y.grad] if together else [u.grad]
        g = sum(float(x.square().sum()) for x in whole) ** 0.5
        s = g if s is None else 0.5 * s + 0.5 * g
        if g > 0.6 * s:
            cuts += 1
            for x in whole:
                x.mul_(0.6 * s / g)
        adam.step()
        with torch.no_grad():
            y.clamp_(min=0)
        state, numbers = method.step(ctx, state, it)
        assert numbers["norm"] == pytest.approx(g)
        assert numbers["loss"] == pytest.approx(float(found.loss))
        near(state["images"][0], u.detach(), 1e-12)
        near(state["labels"][0], y.detach(), 1e-12)
        near(state["lr"], log_lr.detach().exp(), 1e-12)
    assert cuts


def test_steps_that_are_not_finite_are_left_out():
    ctx = context(broken=(1, 2))
    state, _ = METHOD.step(ctx, METHOD.init(ctx), 0)
    later, rows = walked(METHOD, ctx, state, 1, 3)
    for name in ("images", "lr", "moments", "updates", "norm"):
        assert str(later[name]) == str(state[name])
    assert torch.equal(later["images"][0], state["images"][0])
    assert [row["skipped"] for row in rows] == [1, 2]
    assert "loss" not in rows[0]
    last, (row,) = walked(METHOD, ctx, later, 3, 4)
    assert not torch.equal(last["images"][0], later["images"][0])
    assert (last["skipped"], last["failed"], last["updates"]) == (2, 0, 2)
    assert torch.isfinite(torch.tensor(row["loss"]))
    endless = context(broken=range(100))
    with pytest.raises(WorkError, match=r"20 outer steps in a row.*inner\.lr"):
        walked(METHOD, endless, METHOD.init(endless), 0, 30)


def test_the_projection_onto_the_simplex():
    rows = 2 * torch.randn(50, 7, generator=generator(0, "rows"), dtype=torch.float64)
    for row, point in zip(rows, on_simplex(rows), strict=True):
        low, high = row.min() - 1, row.max()
        for _ in range(100):  # by bisection: sum max(row - shift, 0) = 1
            shift = (low + high) / 2
            low, high = (shift, high) if (row - shift).clamp(min=0).sum() > 1 else (low, shift)
        near(point, (row - low).clamp(min=0), 1e-12)
    inside = torch.tensor([[0.2, 0.8, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    near(on_simplex(inside), inside, 1e-15)


@pytest.mark.parametrize("labels", ["raw", "simplex"])
def test_learned_labels_stay_valid_and_leave_the_corners(labels):
    ctx = context(ipc=2)
    method = replace(METHOD, labels=labels, lr_label=0.05)
    state = method.init(ctx)
    assert torch.equal(state["labels"][0], F.one_hot(labels_of(ctx), 10).float())
    state, _ = walked(method, ctx, state, 0, 8)
    y = state["labels"][0]
    assert bool((y >= 0).all())
    assert not torch.equal(y, F.one_hot(labels_of(ctx), 10).float())
    sums = y.sum(1)
    assert torch.allclose(sums, torch.ones(20), atol=1e-5) == (labels == "simplex")


def test_frozen_and_slow_blocks():
    old = torch.randn(10, 1, 8, 8, generator=generator(0, "old"))
    still = context(synth=(SynthBlock(ipc=1, lr_scale=0, images=old), SynthBlock(ipc=2)))
    method = replace(METHOD, labels="raw")
    method.check(still)
    state = method.init(still)
    state, _ = walked(method, still, state, 0, 3)
    assert torch.equal(state["images"][0], old)
    assert torch.equal(state["labels"][0], torch.eye(10))
    assert state["moments"][0] == state["moments"][2] == ()
    made = method.export(still, state)
    assert torch.equal(made.images[:10], old)
    assert [block.stop for block in made.blocks] == [10, 30]
    slow = context(synth=(SynthBlock(ipc=1, lr_scale=0.1, images=old), SynthBlock(ipc=2)))
    after, _ = method.step(slow, method.init(slow), 0)
    steps = [
        (a - b).abs().max()
        for a, b in zip(after["images"], method.init(slow)["images"], strict=True)
    ]
    assert float(steps[0]) == pytest.approx(0.001, rel=1e-3)  # the first step of Adam is its lr
    assert float(steps[1]) == pytest.approx(0.01, rel=1e-3)


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
    whole = replace(method, inner=Inner())
    recipe = whole.export(ctx, whole.init(ctx)).recipe
    assert (recipe.batch, recipe.balanced) == (20, 2)


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


def test_a_set_of_frozen_blocks_is_refused():
    old = torch.zeros(10, 1, 8, 8)
    ctx = context(synth=(SynthBlock(ipc=1, lr_scale=0, images=old),))
    with pytest.raises(InputError, match="At least one block"):
        METHOD.check(ctx)
