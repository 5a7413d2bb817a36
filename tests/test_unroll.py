"""Unrolled training: graph against plain autograd, adjoint against graph, memory, refusals."""

import weakref
from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from potstill.core.errors import InputError
from potstill.functional.losses import ce, soft_ce
from potstill.functional.optim import SGD, Adam
from potstill.functional.steps import training_loss
from potstill.functional.strategy import choose_strategy, graph_bytes
from potstill.functional.unroll import Batch, run_prefix, unroll
from potstill.nets import FlatNet, NetSpec, build, kept_bytes

N, D, K, HIDDEN = 10, 5, 3, 7
P = D * HIDDEN + HIDDEN + HIDDEN * K
OPTIMIZERS = [
    SGD(),
    SGD(momentum=0.9),
    SGD(momentum=0.9, dampening=0.3, weight_decay=0.01),
    SGD(momentum=0.9, nesterov=True, weight_decay=0.01),
    *(
        Adam(eps_mode=mode, eps_root=root, **decay)
        for mode in ("torch", "higher021")
        for root in (0.0, 1e-6)
        for decay in ({}, {"weight_decay": 0.01}, {"weight_decay": 0.01, "decoupled": True})
    ),
]


def numbers(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def mlp(theta, x, act=torch.tanh):
    w, b, out = theta.split([D * HIDDEN, HIDDEN, HIDDEN * K])
    return act(x @ w.view(D, HIDDEN) + b) @ out.view(HIDDEN, K)


def hard_loss(theta, rows):
    return ce(mlp(theta, rows[0]), rows[1])


def soft_loss(theta, rows):
    return soft_ce(mlp(theta, rows[0]), rows[1])


def scaled(rows, extra):
    return rows[0] * extra, rows[1]


def make_batches(count, seed=0):
    """Chunks of 4 rows of 10 (so the last has 2), row 3 repeated, a random factor per batch."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    while len(batches) < count:
        for index in torch.randperm(N, generator=generator).split(4):
            factor = torch.rand(len(index), 1, generator=generator, dtype=torch.float64) + 0.5
            repeated = torch.cat([index, torch.tensor([3, 3])])
            batches.append(Batch(repeated, torch.cat([factor, factor[:1], factor[:1] + 1])))
    return batches[:count]


def problem(soft):
    labels = numbers(N, K, seed=3).softmax(1) if soft else torch.arange(N) % K
    lr = torch.tensor(0.05, dtype=torch.float64)
    return numbers(P, seed=1) * 0.5, numbers(N, D, seed=2), labels, lr


def meta_gradients(strategy, optimizer, steps, *, soft=True, prefix=0, loss=None):
    """Return [theta_T, and the gradients of its distance to a target in theta, lr, x, (y)]."""
    theta, x, y, lr = problem(soft)
    loss = loss or (soft_loss if soft else hard_loss)
    theta, state = run_prefix(
        loss, theta, (x, y), lr, make_batches(prefix, seed=9), optimizer=optimizer, prepare=scaled
    )
    leaves = [t.clone().requires_grad_() for t in (theta, lr, x)]
    leaves += [y.clone().requires_grad_()] if soft else []
    data = (leaves[2], leaves[3] if soft else y)
    end = unroll(
        loss,
        leaves[0],
        data,
        leaves[1],
        make_batches(steps),
        optimizer=optimizer,
        prepare=scaled,
        state=state,
        first_step=prefix,
        strategy=strategy,
    )
    outer = (end - numbers(P, seed=4)).square().sum()
    return [end.detach(), *torch.autograd.grad(outer, leaves)]


def assert_near(ours, reference, tolerance=1e-10):
    for a, b in zip(ours, reference, strict=True):
        assert b.norm() > 0
        assert float((a - b).norm() / b.norm()) < tolerance


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
@pytest.mark.parametrize(("steps", "prefix"), [(1, 0), (2, 0), (7, 0), (2, 5), (7, 5)])
def test_adjoint_equals_graph(optimizer, steps, prefix):
    for soft in (True, False):
        graph = meta_gradients("graph", optimizer, steps, soft=soft, prefix=prefix)
        adjoint = meta_gradients("adjoint", optimizer, steps, soft=soft, prefix=prefix)
        assert_near(adjoint, graph)


def test_graph_equals_a_plain_transcription_of_sgd():
    momentum, decay = 0.9, 0.01
    theta, x, y, lr = (t.clone().requires_grad_() for t in problem(soft=True))
    weights, buffer = theta, None
    for batch in make_batches(7):
        logits = mlp(weights, x[batch.index] * batch.extra)
        loss = -(y[batch.index] * torch.log(logits.softmax(1))).sum() / len(batch.index)
        grad = torch.autograd.grad(loss, weights, create_graph=True)[0] + decay * weights
        buffer = grad if buffer is None else momentum * buffer + grad
        weights = weights - lr * buffer
    outer = (weights - numbers(P, seed=4)).square().sum()
    reference = [weights.detach(), *torch.autograd.grad(outer, (theta, lr, x, y))]
    optimizer = SGD(momentum=momentum, weight_decay=decay)
    for strategy in ("graph", "adjoint"):
        assert_near(meta_gradients(strategy, optimizer, 7), reference, 1e-12)


def conv_loss(theta, rows):
    kernel, scale, shift, out = theta.split([4 * 3 * 9, 4, 4, 4 * 4 * K])
    y = F.conv2d(rows[0], kernel.view(4, 3, 3, 3), padding=1)
    y = F.avg_pool2d(F.relu(F.group_norm(y, 4, scale, shift)), 2)
    return soft_ce(y.flatten(1) @ out.view(-1, K), rows[1])


@pytest.mark.parametrize("optimizer", [SGD(momentum=0.5), Adam(eps_root=1e-8)], ids=str)
def test_adjoint_equals_graph_for_a_conv_net_with_instance_norm_and_flips(optimizer):
    start = torch.cat([numbers(108, seed=1) * 0.3, torch.ones(4).double(), numbers(52, seed=2)])
    flips = torch.tensor([True, False, True]).view(3, 1, 1, 1)
    batches = [Batch(torch.tensor([0, k % 4, 3]), flips.roll(k, 0)) for k in range(4)]
    results = []
    for strategy in ("graph", "adjoint"):
        x, theta = numbers(4, 3, 4, 4, seed=3).requires_grad_(), start.clone().requires_grad_()
        y = numbers(4, K, seed=4).softmax(1).requires_grad_()
        lr = torch.tensor(0.02, dtype=torch.float64, requires_grad=True)
        end = unroll(
            conv_loss,
            theta,
            (x, y),
            lr,
            batches,
            optimizer=optimizer,
            prepare=lambda rows, flip: (torch.where(flip, rows[0].flip(3), rows[0]), rows[1]),
            strategy=strategy,
        )
        results.append(torch.autograd.grad(end.square().sum(), (theta, lr, x, y)))
    assert_near(results[1], results[0])


@pytest.mark.parametrize("strategy", ["graph", "adjoint"])
def test_a_dead_unit_gives_finite_gradients_with_adam(strategy):
    def loss(theta, rows):
        dead = theta * torch.ones(P).double().index_fill(0, torch.tensor([D * HIDDEN]), 0.0)
        dead = dead - 100 * F.one_hot(torch.tensor(D * HIDDEN), P)  # the first bias
        return soft_ce(mlp(dead, rows[0], act=F.relu), rows[1])

    for mode in ("torch", "higher021"):
        for gradient in meta_gradients(strategy, Adam(eps_mode=mode), 3, loss=loss):
            assert gradient.isfinite().all()


@pytest.mark.parametrize("needs", [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)])
def test_each_input_may_need_a_gradient_alone(needs):
    full = meta_gradients("graph", SGD(momentum=0.9), 3)[1:]
    for strategy in ("graph", "adjoint"):
        theta, x, y, lr = problem(soft=True)
        leaves = [theta, lr, x, y]
        for leaf, need in zip(leaves, needs, strict=True):
            leaf.requires_grad_(bool(need))
        end = unroll(
            soft_loss,
            theta,
            (x, y),
            lr,
            make_batches(3),
            optimizer=SGD(momentum=0.9),
            prepare=scaled,
            strategy=strategy,
        )
        (end - numbers(P, seed=4)).square().sum().backward()
        for leaf, need, reference in zip(leaves, needs, full, strict=True):
            if need:
                assert_near([leaf.grad], [reference])
            else:
                assert leaf.grad is None


def test_run_prefix_equals_the_end_of_unroll_and_splits_anywhere():
    theta, x, y, lr = problem(soft=True)
    adam, batches = Adam(), make_batches(6)
    whole, state = run_prefix(soft_loss, theta, (x, y), lr, batches, optimizer=adam)
    half, middle = run_prefix(soft_loss, theta, (x, y), lr, batches[:2], optimizer=adam)
    rest, last = run_prefix(
        soft_loss, half, (x, y), lr, batches[2:], optimizer=adam, state=middle, first_step=2
    )
    assert torch.equal(whole, rest)
    assert all(torch.equal(a, b) for a, b in zip(state, last, strict=True))
    assert not whole.requires_grad
    for strategy in ("graph", "adjoint"):
        with torch.no_grad():
            end = unroll(
                soft_loss,
                theta,
                (x.requires_grad_(), y),
                lr,
                batches,
                optimizer=adam,
                strategy=strategy,
            )
        assert not end.requires_grad
        assert torch.equal(end, whole)
    same, fresh = run_prefix(soft_loss, theta, (x, y), lr, [], optimizer=adam)
    assert torch.equal(same, theta)
    assert len(fresh) == 2


def peak_saved_bytes(strategy, steps):
    """Return the largest number of bytes of distinct storages that autograd holds at one time."""
    alive, sizes, peak = Counter(), {}, 0

    class Held:
        def __init__(self, tensor):
            self.tensor = tensor

    def forget(pointer):
        alive[pointer] -= 1
        if not alive[pointer]:
            del alive[pointer], sizes[pointer]

    def pack(tensor):
        nonlocal peak
        storage = tensor.untyped_storage()
        pointer = storage.data_ptr()
        alive[pointer] += 1
        sizes[pointer] = storage.nbytes()
        peak = max(peak, sum(sizes.values()))
        held = Held(tensor)
        weakref.finalize(held, forget, pointer)
        return held

    x = numbers(400, D, seed=1).requires_grad_()
    y = torch.arange(400) % K
    lr = torch.tensor(0.1, dtype=torch.float64)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
        end = unroll(
            hard_loss,
            numbers(P, seed=2),
            (x, y),
            lr,
            [Batch(torch.arange(400), 1.0)] * steps,
            optimizer=SGD(),
            strategy=strategy,
        )
        end.square().sum().backward()
    return peak


def test_graph_memory_of_adjoint_does_not_grow_with_the_steps():
    one_step = peak_saved_bytes("graph", 1)
    thetas = 6 * 2 * P * 8  # theta_t and g_t
    assert peak_saved_bytes("adjoint", 8) - peak_saved_bytes("adjoint", 2) <= thetas
    assert peak_saved_bytes("graph", 8) - peak_saved_bytes("graph", 2) > 5 * one_step > 5 * thetas


def test_adjoint_refuses_a_second_derivative_and_changed_data():
    theta, x, y, lr = problem(soft=True)
    x.requires_grad_()
    options = {"optimizer": SGD(), "prepare": scaled, "strategy": "adjoint"}
    end = unroll(soft_loss, theta, (x, y), lr, make_batches(2), **options)
    (first,) = torch.autograd.grad(end.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.autograd.grad(first.sum(), x)
    end = unroll(soft_loss, theta, (x, y), lr, make_batches(2), **options)
    with torch.no_grad():
        x += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        end.sum().backward()


def test_a_loss_linear_in_theta():
    lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    theta = torch.ones(3).double().requires_grad_()
    ones = torch.ones(2, 1).double().requires_grad_()
    for strategy in ("graph", "adjoint"):
        end = unroll(
            lambda theta, rows: theta.sum(),
            theta,
            (ones,),
            lr,
            [Batch(torch.tensor([0]))] * 2,
            optimizer=SGD(),
            strategy=strategy,
        )
        grads = torch.autograd.grad(end.sum(), (theta, lr), retain_graph=True)
        assert torch.equal(grads[0], torch.ones(3).double())
        assert float(grads[1]) == -6


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"strategy": "grahp"}, "graph"),
        ({"batches": []}, "at least one batch"),
        ({"batches": [Batch(torch.arange(2)), Batch(torch.arange(0))]}, "Batch 1"),
        ({"lr": 0.1}, "0-dim"),
        ({"lr": torch.ones(1)}, "0-dim"),
        ({"first_step": 3}, "optimizer state"),
    ],
)
def test_wrong_input_is_refused(change, word):
    theta, x, y, lr = problem(soft=True)
    given = {"lr": lr, "batches": make_batches(2), "strategy": "graph", "first_step": 0} | change
    with pytest.raises(InputError, match=word):
        unroll(
            soft_loss,
            theta,
            (x, y),
            given["lr"],
            given["batches"],
            optimizer=SGD(),
            first_step=given["first_step"],
            strategy=given["strategy"],
        )


@pytest.mark.parametrize("settings", [{}, {"norm": "group"}, {"pool": "none"}], ids=str)
def test_graph_bytes_is_what_autograd_keeps(settings):
    module = build(
        NetSpec(name="convnet2", width=16, **settings),
        channels=3,
        size=(32, 32),
        classes=5,
        seed=0,
    )
    net, kept = FlatNet(module), {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = (
            storage.nbytes(),
            tensor,
        )  # the tensor keeps the address its own
        return tensor

    x, lr = torch.zeros(8, 3, 32, 32).requires_grad_(), torch.tensor(0.1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        end = unroll(
            training_loss(net, ce),
            net.theta0,
            (x, torch.arange(8) % 5),
            lr,
            [Batch(torch.arange(8))] * 4,
            optimizer=SGD(),
            strategy="graph",
        )
    assert end.requires_grad
    predicted = graph_bytes(
        strategy="graph",
        batch=8,
        kept=kept_bytes(module, 3, (32, 32)),
        parameters=net.numel,
        steps=4,
    )
    measured = sum(size for size, _ in kept.values())
    assert measured <= predicted <= 1.2 * measured


def test_graph_bytes_gives_the_measured_table():
    def gib(**changes):
        base = {"strategy": "graph", "kept": kept, "parameters": 320_010}
        return graph_bytes(**(base | changes)) / 2**30

    net = build(NetSpec(name="convnet3"), channels=3, size=(32, 32), classes=10, seed=0)
    kept = kept_bytes(net, 3, (32, 32))

    assert gib(batch=10, steps=50) == pytest.approx(0.96, abs=0.01)
    assert gib(batch=100, steps=30) == pytest.approx(5.0, abs=0.05)
    assert gib(batch=500, steps=30) == pytest.approx(24.6, abs=0.1)
    c100 = {"parameters": 504_420, "batch": 1000, "steps": 20}
    assert gib(**c100) == pytest.approx(32.7, abs=0.3)
    assert gib(strategy="adjoint", **c100) == pytest.approx(1.71, abs=0.02)
    assert gib(strategy="adjoint", moments=2, **c100) > gib(strategy="adjoint", **c100)
    with pytest.raises(InputError, match="adjoint"):
        gib(strategy="adjiont", batch=1, steps=1)


def test_choose_strategy():
    assert choose_strategy("auto", predicted=10, budget=10) == "graph"
    assert choose_strategy("auto", predicted=11, budget=10) == "adjoint"
    assert choose_strategy("graph", predicted=11, budget=10) == "graph"
    assert choose_strategy("adjoint", predicted=1, budget=10) == "adjoint"
    with pytest.raises(InputError, match="tesla"):
        choose_strategy("tesla", predicted=1, budget=1)
