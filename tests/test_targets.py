"""Targets: encoded in batches, named by what they depend on, refused where they do not belong."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from potstill.core.compute import Compute
from potstill.core.errors import InputError
from potstill.core.keys import generator
from potstill.core.store import Store
from potstill.data import MeanStd, from_arrays
from potstill.engine import run_tasks
from potstill.experts import read_moments, read_targets, targets_facts
from potstill.functional import predict
from potstill.nets import FlatNet, NetSpec, build
from potstill.teachers import keep_encoder, open_encoder, target_tasks

SPACE = MeanStd(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))
SHAPE = (3, 8, 8)
NET = NetSpec(name="convnet2", width=5, norm="batch")
CPU = Compute(threads=1)


@pytest.fixture
def data(alone):
    pixels = torch.randint(0, 256, (170, *SHAPE), generator=generator(0, "test"))
    return from_arrays(pixels.byte(), torch.arange(170) % 2, validation=0.2)


@pytest.fixture
def encoder(tmp_path):
    """Return an encoder with running statistics of some noise, and its folder."""
    module = build(NET, channels=3, size=SHAPE[1:], classes=2, seed=0).train()
    with torch.no_grad():
        module(torch.randn(32, *SHAPE, generator=generator(0, "noise")))
    (folder := tmp_path / "encoder").mkdir()
    return keep_encoder(module, folder, net=NET, space=SPACE, shape=SHAPE), folder


def made(data, encoder, tmp_path, **options):
    tasks = target_tasks(data, *encoder, compute=CPU, **options)
    (folder,) = run_tasks(tasks, Store(tmp_path / "store"))
    return folder


def test_batches_equal_one_image_at_a_time(data, encoder, tmp_path):
    """Encode 109 images, of which the last batch has fewer than the others."""
    assert len(data.train) % 64
    folder = made(data, encoder, tmp_path)
    found = read_targets(folder, data=data.ref, width=encoder[0].width)
    net = FlatNet(open_encoder(*encoder)).theta0
    module = open_encoder(*encoder).double()
    with torch.no_grad():
        want = torch.cat([module(SPACE.forward(x[None].double() / 255)) for x in data.train.pixels])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, want.float(), rtol=1e-5, atol=1e-5)
    assert found.std(0).mean() > 0.02
    flat = FlatNet(open_encoder(*encoder))
    exact = predict(
        flat, net.double(), data.train.pixels.double() / 255, prepare=SPACE.forward, batch=64
    )
    torch.testing.assert_close(exact, want, rtol=1e-12, atol=1e-12)
    mean, std = read_moments(folder)
    torch.testing.assert_close(mean, want.mean(0).float())
    torch.testing.assert_close(std, want.std(0, correction=0).float())
    facts = targets_facts(folder)
    assert facts["encoder"] == encoder[0].digest
    assert facts["scale"] == "raw"
    assert facts["shape"] == list(found.shape)


def test_standardised_targets(data, encoder, tmp_path):
    raw = read_targets(made(data, encoder, tmp_path), data=data.ref)
    folder = made(data, encoder, tmp_path, scale="standardised")
    found, (mean, std) = read_targets(folder, data=data.ref), read_moments(folder)
    live = std > 0
    torch.testing.assert_close(found.mean(0), torch.zeros(len(std)), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std(0, correction=0), live.float(), atol=1e-5, rtol=0)
    torch.testing.assert_close(found * std + mean, raw, atol=1e-5, rtol=1e-5)
    with pytest.raises(InputError, match="targets' scale"):
        made(data, encoder, tmp_path, scale="centred")


def test_targets_are_named_by_their_content(data, encoder, tmp_path):
    first = made(data, encoder, tmp_path)
    (again := tmp_path / "again").mkdir()
    same = keep_encoder(open_encoder(*encoder), again, net=NET, space=SPACE, shape=SHAPE)
    assert made(data, (same, again), tmp_path) == first
    (other := tmp_path / "other").mkdir()
    fresh = build(NET, channels=3, size=SHAPE[1:], classes=2, seed=9)
    changed = keep_encoder(fresh, other, net=NET, space=SPACE, shape=SHAPE)
    assert made(data, (changed, other), tmp_path) != first
    with pytest.raises(InputError, match="another encoder"):
        made(data, (replace(changed, digest="0" * 64), other), tmp_path)


def test_targets_that_do_not_belong_are_refused(data, encoder, tmp_path):
    folder = made(data, encoder, tmp_path)
    other = from_arrays(data.train.pixels.flip(0), data.train.labels, validation=0.2)
    with pytest.raises(InputError, match="belong to another data set"):
        read_targets(folder, data=other.ref)
    with pytest.raises(InputError, match="another part of the data"):
        read_targets(folder, data=replace(data.ref, limit=3))
    with pytest.raises(InputError, match=r"have 20 dimensions, not 512"):
        read_targets(folder, data=data.ref, width=512)
    with pytest.raises(InputError, match="There is no file"):
        read_targets(tmp_path, data=data.ref)
    (tmp_path / "targets.json").write_text("[]")
    with pytest.raises(InputError, match="does not describe targets"):
        read_targets(tmp_path, data=data.ref)
    small = from_arrays(data.train.pixels[..., :7, :7], data.train.labels)
    with pytest.raises(InputError, match=r"for images \(3, 8, 8\), the data have \(3, 7, 7\)"):
        made(small, encoder, tmp_path)
    content = (folder / "targets.safetensors").read_bytes()
    (folder / "targets.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match="altered"):
        read_targets(folder, data=data.ref)


@pytest.mark.slow
def test_compiled_encoding_is_the_same(data, encoder, tmp_path):
    eager = read_targets(made(data, encoder, tmp_path), data=data.ref)
    compute = Compute(threads=1, compiled=True)
    (folder,) = run_tasks(target_tasks(data, *encoder, compute=compute), Store(tmp_path / "store"))
    torch.testing.assert_close(read_targets(folder, data=data.ref), eager, rtol=1e-4, atol=1e-5)
