"""Which images a matching takes: batches of real ones, some decoded ones, and clipped pixels."""

import dataclasses

import pytest
import torch

from potstill.experts import NetworkPath
from potstill.methods.by_class import distances, real_rows
from test_gradient_matching import context, run, small

MEMBERS = torch.arange(100, 117)  # 17 images: three batches of 5, and two left over
pytestmark = pytest.mark.usefixtures("alone")


def epoch(number, key=(0, "real", 3), members=MEMBERS):
    return torch.stack([real_rows(members, 5, 3 * number + k, key) for k in range(3)])


def test_the_real_batches_of_an_epoch_are_whole_and_disjoint():
    for number in range(4):
        rows = epoch(number).flatten().tolist()
        assert len(set(rows)) == 15
        assert set(rows) <= set(MEMBERS.tolist())


def test_every_epoch_has_an_order_of_its_own():
    first, second = epoch(0), epoch(1)
    assert not torch.equal(first, second)
    left = {tuple(sorted({*MEMBERS.tolist()} - {*epoch(k).flatten().tolist()})) for k in range(6)}
    assert len(left) > 1  # nor are the same images left over
    assert torch.equal(first, epoch(0))


def test_the_key_separates_classes_and_seeds():
    own = epoch(0)
    for other in ((0, "real", 4), (1, "real", 3)):
        assert not torch.equal(own, epoch(0, other))
    shifted = epoch(0, members=MEMBERS + 50)
    assert torch.equal(shifted, own + 50)  # the places alone are drawn


def matched_cells(method, ctx, it):
    """Return which cells (row, cell) of each class an image step moves."""
    images = method.init(ctx)["images"][0]
    found = distances(method, ctx, ctx.nets.draw(0, 0).theta, [images], it)
    cells = found.images[0].reshape(10, ctx.ipc, 1, 2, 4, 2, 4)
    moved = cells.abs().amax((2, 4, 6)).flatten(2) > 0  # [class, row, cell]
    return [{tuple(place) for place in each.nonzero().tolist()} for each in moved]


def test_a_matching_takes_some_decoded_images_at_random():
    method = small("idc", batch_syn=3, augment=None)
    ctx = context(method, ipc=2)
    taken = [matched_cells(method, ctx, it) for it in range(3)]
    assert all(len(cells) == 3 for step in taken for cells in step)
    for label in range(10):
        assert len({frozenset(step[label]) for step in taken}) > 1  # each step draws anew
    every = set().union(*(cells for step in taken for cells in step))
    assert every == {(row, cell) for row in range(2) for cell in range(4)}
    assert len({frozenset(cells) for cells in taken[0]}) > 1  # and so does each class
    assert taken[0] == matched_cells(method, ctx, 0)
    whole = dataclasses.replace(method, batch_syn=8)
    assert all(len(cells) == 8 for cells in matched_cells(whole, ctx, 0))


def test_pixels_are_clipped_when_the_second_network_begins():
    method = small("idc", lr_img=1e4, networks=2, matches=2, path=NetworkPath(images=0))
    ctx = context(method)
    state, _ = run(method, ctx, 2)
    outside = ctx.space.inverse(state["images"][0])
    assert float(outside.min()) < -0.1
    assert float(outside.max()) > 1.1
    still = {**state, "velocity": tuple(map(torch.zeros_like, state["velocity"]))}
    slow = dataclasses.replace(method, lr_img=1e-12)
    amid, _ = slow.step(ctx, still, 1)
    begun, _ = slow.step(ctx, still, 2)
    torch.testing.assert_close(ctx.space.inverse(amid["images"][0]), outside)
    torch.testing.assert_close(
        ctx.space.inverse(begun["images"][0]), outside.clamp(0, 1), rtol=0, atol=1e-5
    )


def test_normalised_images_are_never_clipped():
    method = small("dm", lr_img=1e4, networks=2)
    ctx = context(method)
    state, _ = run(method, ctx, 1)
    outside = state["images"][0]
    assert float(ctx.space.inverse(outside).max()) > 1.1
    still = {**state, "velocity": tuple(map(torch.zeros_like, state["velocity"]))}
    after, _ = dataclasses.replace(method, lr_img=1e-12).step(ctx, still, 1)
    torch.testing.assert_close(after["images"][0], outside)
    assert torch.equal(method.export(ctx, state).images, outside)
