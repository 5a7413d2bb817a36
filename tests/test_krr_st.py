"""KRR-ST's steps against a plain transcription; its pool, its real batches, and what is resumed."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from krr_small import METHOD, RUN, cast, first_steps, ready, transcribed
from mkdt_small import walked
from potstill.augment import DSA
from potstill.core.errors import InputError, WorkError
from potstill.core.store import Store
from potstill.experts import read_targets
from potstill.functional.kernel_ridge import PoolAges
from potstill.methods.krr_real import real_batch, real_rows
from potstill.nets import NetSpec
from potstill.teachers import read_encoder


@pytest.fixture(autouse=True)
def _alone(alone):
    pass


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


@pytest.mark.parametrize("changes", [{}, {"clip": 1e-3}, {"legacy": True}], ids=str)
def test_steps_are_the_transcription_in_float64(store, changes):
    method = replace(METHOD, iterations=14, **changes)
    ctx = ready(store, method)
    first = state = method.init(ctx)
    seen = []
    for it in range(first_steps(method, ctx) + method.iterations):
        state, numbers = method.step(ctx, cast(state), it)  # a new network is of float32
        seen.append(numbers)
    slots = [numbers["network"] for numbers in seen]
    x, y, outer, pool, losses = transcribed(method, ctx, first, slots)
    assert [row["loss"] for row in seen if "loss" in row] == pytest.approx(losses, rel=1e-9)
    far = {"rtol": 1e-8, "atol": 1e-10}
    for found, wanted, moments in zip(state["images"], (x, y), state["moments"], strict=True):
        assert (wanted - first["images"][wanted is y]).abs().max() > 1e-3
        torch.testing.assert_close(found, wanted.detach(), **far)
        torch.testing.assert_close(moments[0], outer.state[wanted]["exp_avg"], **far)
        torch.testing.assert_close(moments[1], outer.state[wanted]["exp_avg_sq"], **far)
    assert state["ages"] == tuple(one.age for one in pool)
    if not method.legacy:
        assert max(state["ages"]) < method.life
    for member, one in zip(cast(state["members"]), pool, strict=True):
        weights = nn.utils.parameters_to_vector(one.net.parameters())
        torch.testing.assert_close(member["theta"], weights.detach(), **far)
        for (name, found), wanted in zip(
            member["statistics"].items(), one.net.buffers(), strict=True
        ):
            torch.testing.assert_close(found, wanted, msg=name, **far)
        if one.sgd.state:
            moved = [one.sgd.state[p]["momentum_buffer"].flatten() for p in one.net.parameters()]
            torch.testing.assert_close(member["velocity"][0], torch.cat(moved), **far)


def test_the_loss_falls(store):
    method = replace(METHOD, iterations=24, lr=0.03, batch_real=270, life=20, augment=None)
    ctx = ready(store, method)
    _, seen = walked(method, ctx, method.cost(ctx).steps)
    losses = [row["loss"] for row in seen if "loss" in row]
    assert sum(losses[-6:]) < 0.75 * sum(losses[:6])


def test_real_batches_are_full_and_each_image_comes_once_an_epoch():
    drawn = torch.cat([real_rows(10, 4, seed=3, turn=turn) for turn in range(10)])
    assert len(drawn) == 40
    orders = drawn.split(10)
    for order in orders:
        assert sorted(order.tolist()) == list(range(10))
    assert not torch.equal(orders[0], orders[1])
    again = torch.cat([real_rows(10, 20, seed=3, turn=turn) for turn in range(2)])
    assert torch.equal(again, drawn)
    assert not torch.equal(real_rows(10, 4, seed=4, turn=0), drawn[:4])


@pytest.mark.parametrize("scale", ["raw", "standardised"])
def test_encoder_and_networks_see_the_same_pixels_each_normalised_as_its_own(store, scale):
    """Without a change of the images the encoder says what it said once and for all."""
    still = replace(METHOD, targets=scale, augment=DSA(strategy="flip", mode="M", flip_prob=0))
    ctx = ready(store, still)
    assert read_encoder(ctx.done["encoders"][0]).space != ctx.space
    stored = read_targets(ctx.done["targets"][0], data=ctx.data.ref)
    for turn in (0, 11):
        rows = real_rows(len(ctx.data.train), METHOD.batch_real, seed=ctx.seed, turn=turn)
        for method in (still, replace(still, augment=None)):
            x, y = real_batch(method, ctx, turn)
            assert torch.equal(x, ctx.space.forward(ctx.data.train.pixels[rows]))
            torch.testing.assert_close(y, stored[rows], rtol=1e-4, atol=1e-5)
    assert torch.equal(y, stored[rows])
    x, y = real_batch(replace(still, augment=METHOD.augment), ctx, 0)
    black = float(ctx.space.forward(torch.zeros(1, 1, 1, 1)))
    assert float(x.min()) == pytest.approx(black)  # what a crop brings in
    assert (y - stored[real_rows(len(stored), 32, seed=ctx.seed, turn=0)]).abs().max() > 0.01


def test_first_images_are_normalised_and_by_the_released_code_are_not(store):
    ctx = ready(store)
    pixels = ctx.data.train.pixels
    for legacy in (False, True):
        state = replace(METHOD, legacy=legacy).init(ctx)
        x, y = state["images"]
        own = pixels[state["rows"]]
        assert torch.equal(x, own / 255 if legacy else ctx.space.forward(own))
        stored = read_targets(ctx.done["targets"][0], data=ctx.data.ref)
        assert torch.equal(y, stored[state["rows"]])


def test_networks_begin_as_old_as_the_pool_says(store):
    method = replace(METHOD, models=4, life=9)
    ctx = ready(store, method)
    first = PoolAges.begun(4, seed=ctx.seed, life=9).ages
    state, seen = walked(method, ctx, sum(first))
    assert state["ages"] == first
    assert state["updates"] == 0
    assert torch.equal(state["images"][0], method.init(ctx)["images"][0])
    for slot, age in enumerate(first):
        own = [row["age"] for row in seen if row["network"] == slot]
        assert own == list(range(age))
    once = replace(METHOD, life=1)
    assert once.cost(ready(store, once)).steps == once.iterations


def test_a_network_that_is_not_finite_is_made_anew_and_20_in_a_row_are_given_up(store):
    ctx = ready(store)
    first = first_steps(METHOD, ctx)
    state, _ = walked(METHOD, ctx, first)
    broken = {**state["members"][0], "theta": torch.full_like(state["members"][0]["theta"], 1e30)}
    sick = {**state, "members": (broken,) * METHOD.models}
    after, numbers = METHOD.step(ctx, sick, first)
    assert numbers == {"undone": 1.0}
    assert after["failed"] == 1
    assert after["ages"].count(0) == 1
    pairs = zip(after["images"], sick["images"], strict=True)
    assert all(torch.equal(found, wanted) for found, wanted in pairs)
    assert after["updates"] == sick["updates"]
    slot = after["ages"].index(0)
    assert float(after["members"][slot]["theta"].abs().max()) < 10
    well, numbers = METHOD.step(ctx, {**after, "members": state["members"]}, first + 1)
    assert well["failed"] == 0
    assert numbers["loss"] > 0
    with pytest.raises(WorkError, match=r"20 outer steps in a row.*lower lr \(now 0\.01\)"):
        METHOD.step(ctx, {**sick, "failed": 19}, first)


def test_a_kernel_that_is_not_positive_definite_is_told_in_a_sentence(store):
    method = replace(METHOD, lam=1e-300)
    ctx = ready(store, method)
    state, _ = walked(method, ctx, first_steps(method, ctx))
    x, y = state["images"]
    flat = {**state, "images": (torch.zeros_like(x), y)}
    with pytest.raises(InputError, match=r"15 rows is not positive definite with lam 1e-300"):
        method.step(ctx, flat, first_steps(method, ctx))


@pytest.mark.parametrize("norm", ["none", "instance"])
def test_networks_without_statistics_have_none(store, norm):
    method = replace(METHOD, iterations=2)
    ctx = ready(store, method, replace(RUN, net=NetSpec(name="convnet2", width=4, norm=norm)))
    state, seen = walked(method, ctx, method.cost(ctx).steps)
    assert all(member["statistics"] == {} for member in state["members"])
    assert seen[-1]["loss"] > 0
