"""The plain programs of the benchmarks do what ours does, and what is shared counts rightly."""

import json
import math
import os
import time

import pytest
import torch

from potstill.augment import DSA


@pytest.mark.parametrize("op", ["color", "crop", "cutout", "flip", "scale", "rotate"])
@pytest.mark.parametrize("side", [32, 9])
def test_each_operation_equals_ours(bench, op, side):
    chance, shape = torch.Generator().manual_seed(0), (3, side, side)
    x = torch.randn(40, *shape, generator=chance, dtype=torch.float64)
    params = DSA(strategy=op).sample(40, shape, chance)
    batch = bench("checks").translated(torch.arange(40), params)
    got = bench("plain_dsa").augmented(x, batch)
    assert (got - DSA().apply(x, params)).abs().max() < 1e-12
    assert not torch.equal(got, x)


@pytest.mark.parametrize("side", [32, 30])
def test_its_own_numbers_have_the_ranges_of_ours(bench, side):
    """Of 2,000 images an epoch, so many epochs that every operation comes often."""
    chance, found = torch.Generator().manual_seed(0), {}
    for _ in range(20):
        seen = []
        for batch in bench("plain_dsa").drawn(2000, side, chance):
            assert len(batch.index) <= 256
            seen.append(batch.index)
            for name, values in batch.numbers.items():
                found.setdefault(name, []).append(values)
        assert torch.equal(torch.cat(seen).sort().values, torch.arange(2000))
    checks, shape = bench("checks"), (3, side, side)
    ours = {}
    for op in ("color", "crop", "cutout", "flip", "scale", "rotate"):
        params = DSA(strategy=op).sample(4000, shape, chance)
        ours |= checks.translated(torch.arange(4000), params).numbers
    assert set(found) == set(ours)
    for name, parts in found.items():
        values, other = torch.cat(parts).double(), ours[name]
        width = float(other.max() - other.min())
        assert abs(values.min() - other.min()) <= 0.01 * width, name
        assert abs(values.max() - other.max()) <= 0.01 * width, name
        near = 5 * width / math.sqrt(12 * 1000)
        if name != "flip":
            assert abs(values.mean() - other.mean()) < near, name


def test_training_equals_ours(bench):
    assert bench("checks").check_training(width=4) < 1e-12


@pytest.mark.parametrize("wrong", [{"momentum": 0.8}, {"decay": 0.0}, {"drop_after": 0}])
def test_another_training_is_noticed(bench, monkeypatch, wrong):
    checks, plain = bench("checks"), bench("plain")
    train = plain.train
    monkeypatch.setattr(plain, "train", lambda *a, **k: train(*a, **{**k, **wrong}))
    with pytest.raises(SystemExit, match="training differs from the plain one"):
        checks.check_training(width=4)


def test_snapshots_are_copies_of_every_epoch(bench):
    plain, chance = bench("plain"), torch.Generator().manual_seed(0)
    net = plain.convnet(4, side=8, classes=3)
    first = [p.detach().clone() for p in net.parameters()]
    x, y = torch.randn(5, 3, 8, 8, generator=chance), torch.arange(5) % 3
    epochs = ([*bench("plain_dsa").drawn(5, 8, chance)] for _ in range(2))
    kept = plain.train(net, x, y, epochs, lr=0.1, snapshots=True)
    assert len(kept) == 3
    for snapshot, wanted in ((kept[0], first), (kept[2], list(net.parameters()))):
        assert all(torch.equal(a, b) for a, b in zip(snapshot, wanted, strict=True))
    assert not torch.equal(kept[0][0], kept[1][0])


def test_ratios_are_of_pairs(bench):
    rows = bench("rows")
    row = {"n": 2, "cpu_seconds": {"plain": [1.0, 4.0], "eager": [0.5, 1.0]}, "images": 10}
    mean, deviation = rows.ratios(row)["eager"]
    assert mean == pytest.approx(0.375)
    assert deviation == pytest.approx(math.sqrt(2) * 0.125)
    row["accuracies"] = {"plain": [0.5, 0.6], "eager": [0.52, 0.6]}
    text = "\n".join(rows.lines(row, "title", rows.accuracy_notes(row)))
    assert "250.000 ms an image" in text
    assert "2.67x its speed" in text
    assert "56.00 +- 5.66 % right (+1.00 +- 1.41)" in text


@pytest.mark.parametrize(("figure", "near"), [((200, 210), True), ((150, 205), False)])
def test_plain_is_set_beside_the_original(bench, figure, near):
    row = {"n": 1, "cpu_seconds": {"plain": [2.5]}, "images": 10}
    (line,) = bench("rows").beside_original(row, "ms", figure)
    assert ("NOT within" in line) is not near


def test_seconds_of_children_count(bench):
    common = bench("common")
    busy = "import time\nwhile time.process_time() < 0.5: pass"

    def child():
        import subprocess
        import sys

        subprocess.run([sys.executable, "-c", busy], check=True)

    assert 0.4 < common.timed(child)[0] < 5
    assert common.timed(lambda: time.sleep(0.2))[0] < 0.1


def test_the_workplace_is_left_as_it_was_found(bench, monkeypatch):
    common = bench("common")
    monkeypatch.setenv("POTSTILL_CACHE", "mine")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    threads = torch.get_num_threads()
    with common.workplace(threads + 1):
        assert os.environ["POTSTILL_CACHE"] != "mine"
        inside = dict(os.environ)
        with common.workplace(1):  # as in a child
            assert dict(os.environ) == inside
        assert torch.get_num_threads() == threads + 1
    assert os.environ["POTSTILL_CACHE"] == "mine"
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
    assert torch.get_num_threads() == threads


def test_rows_are_json(bench, tmp_path):
    rows, out = bench("rows"), tmp_path / "rows.jsonl"
    kept = rows.keep({"benchmark": "x"}, ["text"], out)
    assert json.loads(out.read_text()) == kept
    assert {"commit", "torch", "machine", "threads", "load"} <= set(kept)
