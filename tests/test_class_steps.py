"""Image steps of gradient matching: one for all classes, or one after each."""

import pytest
import torch

from potstill.data import MeanStd
from potstill.methods.class_steps import Steps, clipped, pixel_scale


def steps(classes, *, in_turn=True, lr=0.1, momentum=0.5, scale=None):
    scale = torch.ones(1, 1, 1, dtype=torch.float64) if scale is None else scale
    return Steps(classes=classes, lr=lr, momentum=momentum, in_turn=in_turn, scale=scale)


def naive(x, gradient_of, *, rounds, classes, lr, momentum, turns):
    """Step the whole tensor by torch's SGD after each class in turn, or once a round."""
    leaf = torch.nn.Parameter(x.clone())
    optimizer = torch.optim.SGD([leaf], lr=lr, momentum=momentum)
    ipc = len(x) // classes
    for k in range(rounds):
        leaf.grad = torch.zeros_like(leaf)
        for c in range(classes):
            rows = slice(c * ipc, (c + 1) * ipc)
            if turns:
                leaf.grad.zero_()
            leaf.grad[rows] = gradient_of(leaf.detach()[rows], c, k)
            if turns:
                optimizer.step()
        if not turns:
            optimizer.step()
    return leaf.detach()


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("turns", [True, False])
def test_rounds_equal_the_loop_over_classes(turns, momentum):
    chance = torch.Generator().manual_seed(0)
    x = torch.randn(8, 3, 4, 4, generator=chance, dtype=torch.float64)
    pull = torch.randn(4, generator=chance, dtype=torch.float64)

    def gradient_of(images, c, k):
        return images.tanh() * pull[c] + k

    own = steps(4, in_turn=turns, momentum=momentum)
    images, velocity = x, torch.zeros_like(x)
    for k in range(5):
        there, v = own.before(images, velocity)
        grads = [gradient_of(there[2 * c : 2 * c + 2], c, k) for c in range(4)]
        images, velocity = own.after(there, v, torch.cat(grads))
    wanted = naive(x, gradient_of, rounds=5, classes=4, lr=0.1, momentum=momentum, turns=turns)
    torch.testing.assert_close(images, wanted, rtol=1e-12, atol=1e-12)


def test_unit_gradients_move_the_first_class_twice_as_far_as_the_last():
    x = torch.zeros(10, 1, 1, 1, dtype=torch.float64)
    own = steps(10, lr=1.0)
    moved, _ = own.after(*own.before(x, x), -torch.ones_like(x))
    wanted = [2 * (1 - 0.5 ** (10 - c)) for c in range(10)]
    torch.testing.assert_close(moved.flatten(), torch.tensor(wanted, dtype=torch.float64))


def test_in_turn_is_plain_descent_of_twice_the_step_size():
    """Momentum 0.5 doubles the step size and carries 0.001 of it over, no more."""
    x = torch.zeros(10, 1, 1, 1, dtype=torch.float64)
    own, places = steps(10, lr=1.0), [x]
    v = torch.zeros_like(x)
    for _ in range(4):
        there, v = own.before(places[-1], v)
        moved, v = own.after(there, v, -torch.ones_like(x))
        places.append(moved)
    torch.testing.assert_close(places[4] - places[3], torch.full_like(x, 2), rtol=1e-3, atol=0)


def test_raw_pixels_move_in_their_own_units():
    space = MeanStd(mean=(0.5, 0.4), std=(0.25, 0.2))
    chance = torch.Generator().manual_seed(0)
    raw = torch.rand(2, 2, 3, 3, generator=chance, dtype=torch.float64)
    pull = torch.randn(raw.shape, generator=chance, dtype=torch.float64)
    leaf = raw.clone().requires_grad_()
    grad = torch.autograd.grad((space.forward(leaf) * pull).sum(), leaf)[0]
    own = steps(2, in_turn=False, scale=pixel_scale(space).double())
    moved, v = own.after(space.forward(raw), torch.zeros_like(raw), pull)
    torch.testing.assert_close(v, grad, rtol=1e-6, atol=0)
    torch.testing.assert_close(moved, space.forward(raw - 0.1 * grad), rtol=1e-6, atol=1e-7)


def test_clipping_is_that_of_raw_pixels():
    space = MeanStd(mean=(0.5,), std=(0.25,))
    raw = torch.tensor([-0.5, 0.0, 0.3, 1.0, 1.5]).view(5, 1, 1, 1)
    found = clipped(space.forward(raw), space)
    torch.testing.assert_close(found, space.forward(raw.clamp(0, 1)))
