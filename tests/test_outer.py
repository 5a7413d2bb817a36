"""Real images of the outer loss, and outer steps: clipping, Adam, labels, skipping."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from metagradients import METHOD, cast, context, logits, near, walked
from potstill.augment import RAT
from potstill.core.errors import WorkError
from potstill.core.keys import generator
from potstill.functional import fit
from potstill.methods import SynthBlock
from potstill.methods.outer import Clip, on_simplex
from potstill.methods.real import WEIGHTS, RealImages, missed, weighted
from potstill.methods.start import labels_of

pytestmark = pytest.mark.usefixtures("alone")


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


def test_real_images_are_augmented_anew_each_step_and_student():
    ctx, policy = context(), RAT()
    real, theta = RealImages(batch=90, augment=policy), ctx.nets.draw(0, 0).theta
    plain = replace(real, augment=None)
    for it, task in ((0, 0), (1, 0), (0, 1)):
        x, y = real.drawn(ctx, None, it, task, like=theta)
        raw, labels = plain.drawn(ctx, None, it, task, like=theta)
        params = policy.sample(len(raw), (1, 8, 8), generator(ctx.seed, "augment", it, task))
        assert torch.equal(x, policy.apply(raw, params))
        assert torch.equal(y, labels)
        assert not torch.equal(x, raw)


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
    for name in ("images", "lr", "updates", "norm"):
        assert later[name] is state[name] or all(map(torch.equal, later[name], state[name]))
    for mine, before in zip(later["moments"], state["moments"], strict=True):
        assert len(mine) == len(before)
        assert all(map(torch.equal, mine, before))
    assert state["moments"][0][0].abs().sum() > 0
    assert [(row["skipped"], row["undone"]) for row in rows] == [(1, 1), (2, 1)]
    assert "loss" not in rows[0]
    last, (row,) = walked(METHOD, ctx, later, 3, 4)
    assert not torch.equal(last["images"][0], later["images"][0])
    assert (last["skipped"], last["failed"], last["updates"]) == (2, 0, 2)
    assert torch.isfinite(torch.tensor(row["loss"]))
    assert "undone" not in row
    endless = context(broken=range(100))
    with pytest.raises(WorkError, match=r"20 outer steps in a row.*inner\.lr"):
        walked(METHOD, endless, METHOD.init(endless), 0, 30)


def test_learned_numbers_keep_their_type():
    ctx, method = context(), replace(METHOD, labels="raw", lr_lr=0.1)
    state, _ = walked(method, ctx, method.init(ctx), 0, 2)
    learned = [*state["images"], *state["labels"], state["lr"]]
    learned += [moment for moments in state["moments"] for moment in moments]
    assert {each.dtype for each in learned} == {torch.float32}
    assert float(state["lr"]) != 0.01


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
