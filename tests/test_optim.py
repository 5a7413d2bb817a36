"""Optimizers against torch.optim, and their pullbacks against autograd."""

from dataclasses import replace

import pytest
import torch

from potstill.core.errors import InputError
from potstill.core.spec import from_json, to_json
from potstill.functional.optim import SGD, Adam, Bars
from potstill.functional.parts import PART, updated

OPTIMIZERS = [
    (SGD(), torch.optim.SGD, {}),
    (SGD(weight_decay=0.1), torch.optim.SGD, {"weight_decay": 0.1}),
    (SGD(momentum=0.9), torch.optim.SGD, {"momentum": 0.9}),
    (
        SGD(momentum=0.9, dampening=0.3, weight_decay=0.1),
        torch.optim.SGD,
        {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
    ),
    (
        SGD(momentum=0.8, nesterov=True, weight_decay=0.1),
        torch.optim.SGD,
        {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
    ),
    (Adam(), torch.optim.Adam, {}),
    (
        Adam(betas=(0.5, 0.9), eps=1e-3, weight_decay=0.1),
        torch.optim.Adam,
        {"betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.1},
    ),
    (
        Adam(weight_decay=0.1, decoupled=True),
        torch.optim.AdamW,
        {"weight_decay": 0.1},
    ),
]
OTHERS = [
    Adam(eps_mode="higher021"),
    Adam(eps_mode="higher021", eps_root=1e-6, weight_decay=0.1),
    Adam(eps_root=1e-2, weight_decay=0.1, decoupled=True),
]
LR = torch.tensor(0.05, dtype=torch.float64)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("ours", "theirs", "options"), OPTIMIZERS)
def test_update_equals_torch_optim(ours, theirs, options):
    theta, grads = numbers(6), numbers(5, 6, seed=1)
    weight = torch.nn.Parameter(theta.clone())
    reference = theirs([weight], lr=float(LR), **options)
    state = ours.init(theta)
    for step, grad in enumerate(grads):
        theta, state = ours.update(theta, grad, state, LR, step)
        weight.grad = grad.clone()
        reference.step()
        torch.testing.assert_close(theta, weight.detach(), rtol=1e-13, atol=1e-14)


def test_higher021_places_eps_beside_the_raw_root():
    grad = torch.full((1,), 1e-7, dtype=torch.float64)
    adam = Adam(eps_mode="higher021")
    theta, _ = adam.update(torch.zeros_like(grad), grad, adam.init(grad), LR / LR * 1e-3, 0)
    # step 1: m = .1 g, v = .001 g^2, so lr sqrt(.001) / .1 * .1 g / (sqrt(.001) g + eps)
    root = 0.001**0.5
    expected = -1e-3 * root * 1e-7 / (root * 1e-7 + 1e-8)
    assert float(theta) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("optimizer", [case[0] for case in OPTIMIZERS] + OTHERS, ids=str)
@pytest.mark.parametrize("step", [0, 1, 7])
def test_pullback_equals_autograd(optimizer, step):
    theta, grad, lr = numbers(6), numbers(6, seed=1), LR.clone()
    state = optimizer.init(theta)
    if step:
        _, state = optimizer.update(theta, numbers(6, seed=2), state, lr, 0)
    inputs = [t.clone().requires_grad_() for t in (theta, grad, lr, *state)]
    after, after_state = optimizer.update(*inputs[:2], tuple(inputs[3:]), inputs[2], step)
    bars = [numbers(6, seed=3 + i) for i in range(1 + len(state))]
    expected = torch.autograd.grad(
        (after, *after_state), inputs, bars, allow_unused=True, materialize_grads=True
    )
    given = Bars(bars[0], torch.full_like(grad, torch.nan), tuple(bars[1:]), torch.ones_like(lr))
    got = optimizer.pullback(theta, grad, state, lr, step, given)
    flat = (got.theta, got.grad, got.lr - 1, *got.state)
    for ours, reference in zip(flat, expected, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("mode", ["torch", "higher021"])
def test_adam_has_finite_derivatives_of_every_order_at_zero_gradient(mode):
    adam = Adam(eps_mode=mode)
    grad = torch.tensor([0.0, 0.3], dtype=torch.float64, requires_grad=True)
    theta, _ = adam.update(torch.zeros_like(grad), grad, adam.init(grad), LR, 0)
    for _ in range(3):
        (theta,) = torch.autograd.grad(theta.sum(), grad, create_graph=True)
        assert theta.isfinite().all()
    bars = Bars(torch.ones(2), torch.ones(2), (torch.ones(2), torch.ones(2)), torch.zeros(()))
    back = adam.pullback(torch.zeros(2), torch.zeros(2), adam.init(torch.zeros(2)), LR, 0, bars)
    assert back.grad.isfinite().all()


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: SGD(momentum=1.0), "momentum"),
        (lambda: SGD(momentum=float("nan")), "momentum"),
        (lambda: SGD(weight_decay=-1.0), "weight_decay"),
        (lambda: SGD(dampening=0.1), "dampening"),
        (lambda: SGD(nesterov=True), "nesterov"),
        (lambda: SGD(momentum=0.9, dampening=0.1, nesterov=True), "nesterov"),
        (lambda: Adam(betas=(0.9, 1.0)), "betas"),
        (lambda: Adam(eps=-1.0), "eps"),
        (lambda: Adam(eps=0.0), "eps"),
        (lambda: Adam(eps_mode="higher"), "eps_mode"),
        (lambda: Adam(decoupled=True), "decoupled"),
    ],
)
def test_wrong_fields_are_refused(make, word):
    with pytest.raises(InputError, match=word):
        make()


def test_records_travel_as_json():
    for optimizer in [case[0] for case in OPTIMIZERS] + OTHERS:
        assert from_json(to_json(optimizer)) == optimizer


@pytest.mark.parametrize("optimizer", [*(first for first, *_ in OPTIMIZERS), *OTHERS])
@pytest.mark.parametrize("count", [PART, 2 * PART + 13])
def test_part_by_part_gives_the_same_bytes(optimizer, count):
    decayed = (numbers(count, seed=9) > 0).float()
    steps = [numbers(count, seed=k).float() for k in range(3)]
    theta = again = numbers(count, seed=5).float()
    if isinstance(optimizer, Adam) and optimizer.decoupled:
        optimizer = replace(optimizer, decays="weights")
        state = there = optimizer.init(theta, decayed=decayed)
    else:
        state = there = optimizer.init(theta)
    for k, grad in enumerate(steps):
        kept = theta.clone()
        with torch.no_grad():
            moved, state = optimizer.update(theta, grad, state, LR.float(), k)
        again, there = updated(optimizer, again, grad, there, LR.float(), k)
        assert torch.equal(moved, again)
        assert all(torch.equal(a, b) for a, b in zip(state, there, strict=True))
        assert torch.equal(theta, kept)
        theta = moved
    assert len(there) < 3 or there[2] is decayed
