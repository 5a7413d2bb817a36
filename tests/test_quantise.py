"""Quantised labels against the published table of what they lose."""

from __future__ import annotations

import weakref

import pytest
import torch

from potstill.artefact.quantise import packed, packed_rows, row_bytes, unpacked
from potstill.core.errors import InputError
from potstill.data import make_space, open_data
from potstill.functional import Segment, TrainSpec, fit, fresh, predict
from potstill.nets import NetSpec

TABLE = {  # KL(p | q) over KL(p | uniform) at T = 1, 4, 20
    "float16": (1e-7, 5e-8, 4e-7),
    "uint8": (1e-5, 7e-5, 8e-5),
    "uint4": (3e-3, 2e-2, 2.4e-2),
}


def simulated(n=400, classes=1000):
    """Return logits as of a ResNet-18: N(0, 2.3^2) and 5 related classes above them."""
    generator = torch.Generator().manual_seed(0)
    logits = 2.3 * torch.randn(n, classes, generator=generator)
    for k in range(5):
        logits[torch.arange(n), (17 * torch.arange(n) + k) % classes] += 10 - 1.5 * k
    return logits


def lost(logits, found, temperature):
    """Return what part of the label's information is gone, in float64."""
    p, q = ((x.double() / temperature).log_softmax(1) for x in (logits, found))
    kl = (p.exp() * (p - q)).sum(1).mean()
    whole = (p.exp() * (p + torch.tensor(float(p.shape[1])).log())).sum(1).mean()
    return float(kl / whole)


@pytest.mark.parametrize("codes", TABLE)
def test_what_is_lost_is_as_published(codes):
    logits = simulated()
    parts = packed(logits, codes)
    found = unpacked(parts, codes, 1000)
    for temperature, want in zip((1, 4, 20), TABLE[codes], strict=True):
        got = lost(logits, found, temperature)
        if codes == "float16":  # the table's own rounding shows
            assert got < 2 * want
        else:
            assert got == pytest.approx(want, rel=1.0 if temperature == 1 else 0.25)
    assert sum(part.nbytes for part in parts.values()) == 400 * row_bytes(codes, 1000)


def test_logits_of_a_trained_network_lose_less(alone):
    """Of ten classes, whose logits lie in a narrower range than the thousand of the table."""
    data = open_data("digits")
    space, net = make_space("measured", data), fresh(NetSpec(name="convnet1", width=16), data)
    spec = TrainSpec(lr=0.05, segments=(Segment(epochs=5),), batch=64, augment=None)
    images, labels = data.train.pixels, data.train.labels
    theta = fit(net, net.theta0, images, labels, spec, seed=0, prepare=space.forward)
    logits = predict(net, theta, data.test.pixels, prepare=space.forward)
    assert (logits.argmax(1) == data.test.labels).float().mean() > 0.8
    for codes, table in TABLE.items():
        found = unpacked(packed(logits, codes), codes, 10)
        gone = [lost(logits, found, temperature) for temperature in (1, 4, 20)]
        assert all(got < 2 * want for got, want in zip(gone, table, strict=True))
        assert all(got > 0 for got in gone)


def test_the_order_is_that_of_the_table():
    logits = simulated()
    for temperature in (1, 4, 20):
        losses = [lost(logits, unpacked(packed(logits, c), c, 1000), temperature) for c in TABLE]
        assert losses == sorted(losses)


@pytest.mark.parametrize(("codes", "levels"), [("uint8", 255), ("uint4", 15)])
@pytest.mark.parametrize("classes", [1, 2, 7, 100])
@pytest.mark.parametrize("offset", [0.0, 30.0, -4000.0])
def test_no_logit_is_off_by_more_than_half_a_step(codes, levels, classes, offset):
    logits = offset + 3 * torch.randn(50, classes, generator=torch.Generator().manual_seed(1))
    parts = packed(logits, codes)
    found = unpacked(parts, codes, classes)
    assert found.shape == logits.shape
    step = parts["step"].float()[:, None]
    assert ((found - logits).abs() <= 0.501 * step + 1e-6 * logits.abs()).all()
    spread = (logits.amax(1) - logits.amin(1)) / levels
    slack = logits.abs().amax(1) * 2.0**-9 / levels  # float16 holds the lowest logit
    assert (parts["step"].float() <= (1.003 * spread + slack).clamp(min=6.2e-5)).all()


def test_packing_what_was_unpacked_changes_next_to_nothing():
    logits = simulated(20)
    for codes in ("uint8", "uint4"):
        once = unpacked(packed(logits, codes), codes, 1000)
        again = unpacked(packed(once, codes), codes, 1000)
        step = packed(logits, codes)["step"].float()[:, None]
        assert ((again - once).abs() <= step).all()
    half = unpacked(packed(logits, "float16"), "float16", 1000)
    assert torch.equal(half, logits.half().float())


def test_rows_of_equal_logits_stay_equal():
    for value in (0.0, 7.3, -1e-7):
        for codes in TABLE:
            found = unpacked(packed(torch.full((2, 9), value), codes), codes, 9)
            assert (found == found[0, 0]).all()
            assert abs(float(found[0, 0]) - value) < 1e-2


def test_rows_can_be_read_alone():
    logits = simulated(30, 11)
    for codes in TABLE:
        parts, rows = packed(logits, codes), torch.tensor([4, 0, 29])
        some = {name: part[rows] for name, part in parts.items()}
        assert torch.equal(unpacked(some, codes, 11), unpacked(parts, codes, 11)[rows])


def test_labels_that_come_in_parts_are_packed_one_by_one():
    chance = torch.Generator().manual_seed(2)
    logits, order = simulated(30, 11), torch.randperm(30, generator=chance)

    def parts(seen):
        for rows in order.split(4):
            some = logits[rows]
            seen.append(weakref.ref(some))
            yield rows, some
            del some
            assert sum(each() is not None for each in seen) == 1

    for codes in TABLE:
        found, want = packed_rows(parts([]), 30, codes), packed(logits, codes)
        assert list(found) == list(want)
        assert all(torch.equal(found[name], want[name]) for name in want)


def test_wrong_labels_are_refused():
    for logits in (torch.tensor([[1.0, torch.nan]]), torch.tensor([[0.0, 1e6]])):
        with pytest.raises(InputError, match="finite"):
            packed(logits, "uint8")
    with pytest.raises(InputError, match="uint8"):
        packed(torch.zeros(1, 2), "uint6")
    with pytest.raises(InputError, match="of 3 classes, not 4"):
        unpacked(packed(torch.zeros(1, 3), "uint8"), "uint8", 4)
