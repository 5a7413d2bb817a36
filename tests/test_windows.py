"""Where windows lie."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from metagradients import METHOD, adam_step, cast, context, logits, walked
from potstill.engine import Ranks
from potstill.methods.inner import Inner
from potstill.methods.real import RealImages
from potstill.methods.start import labels_of
from potstill.methods.windows import PATIENCE, Window, first_turn, turned, witnessed

pytestmark = pytest.mark.usefixtures("alone")


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


class Far(torch.Tensor):
    """Numbers on a device from which chance on the CPU cannot draw."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        assert function is not torch.multinomial
        found = super().__torch_function__(function, types, args, kwargs or {})
        return found.as_subclass(torch.Tensor) if function is torch.Tensor.cpu else found


def test_norms_of_adaptive_windows_come_from_any_device():
    norms = torch.tensor([0.0, 30.0, 0.0]).as_subclass(Far)
    window = Window(length=3, total=5, place="adaptive")
    assert set(starts(window, 5, lambda steps: norms[:steps])) == {(1, 3)}


def test_outer_steps_move_a_moving_window(monkeypatch):
    monkeypatch.setattr("potstill.methods.windows.PATIENCE", 2)
    ctx, window = context(), Window(length=1, total=6, place="moving", redraw="step")
    method = replace(METHOD, window=window)
    _, rows = walked(method, ctx, method.init(ctx), 0, 12)
    losses = [row["loss"] for row in rows]
    found = starts(window, len(losses), loss=lambda number: losses[number])
    assert [(row["start"], row["length"]) for row in rows] == found
    assert len(set(found)) > 1


def test_processes_hear_of_a_window_once_a_turn():
    class Told(Ranks):
        heard = 0

        def first(self, thing):
            Told.heard += 1
            return super().first(thing)

    ctx = replace(context(), ranks=Told())
    method = replace(METHOD, real=RealImages(batch=120))
    epoch = -(-len(ctx.data.train) // 120)
    walked(method, ctx, method.init(ctx), 0, 2 * epoch)
    assert Told.heard == 2 < 2 * epoch


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
