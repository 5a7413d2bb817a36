"""Gradients and logits as a `Compute` asks: compiled and eager, in parts, in bfloat16."""

import math
import multiprocessing
from dataclasses import replace

import pytest
import torch
from torch import nn

from potstill.augment import DSA
from potstill.core import keys
from potstill.core.compute import Compute
from potstill.core.errors import InputError, WorkError
from potstill.data import measure_stats, open_data
from potstill.functional import (
    SGD,
    Segment,
    TrainSpec,
    accuracy,
    ce,
    fit,
    kernels,
    predict,
    soft_ce,
)
from potstill.functional.compiling import compiled
from potstill.nets import FlatNet, NetSpec, flat

ONE = Compute(threads=1)
COMPILED = replace(ONE, compiled=True)
HALF, HALF_EAGER = (replace(each, precision="bfloat16") for each in (COMPILED, ONE))
NORMS = ("none", "batch", "instance", "group", "layer")
SIDE, K = 8, 3


@pytest.fixture(autouse=True, scope="module")
def _alone(tmp_path_factory):
    before, patch = torch.get_num_threads(), pytest.MonkeyPatch()
    torch.set_num_threads(1)
    patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "compiled"))
    yield
    patch.undo()
    torch.set_num_threads(before)


def net_of(name="convnet1", seed=0, **settings):
    spec = NetSpec(name=name, width=settings.pop("width", 8), **settings)
    return flat(spec, channels=3, size=(SIDE, SIDE), classes=K, seed=seed)


def dense(seed=0):
    """Return a network that compiles in seconds."""
    with keys.forked(seed):
        layers = nn.Flatten(), nn.Tanh(), nn.Linear(3 * SIDE * SIDE, K)
        return FlatNet(nn.Sequential(*layers), recipe="dense")


def batch_of(count, dtype=torch.float32):
    noise = torch.randn(count, 3, SIDE, SIDE, generator=keys.generator(0, "x"))
    return noise.to(dtype), torch.arange(count) % K


def compiles():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def close(found, wanted, scale=1e-5):
    """Compare with float64 up to rounding of float32, in the size of the largest entry."""
    error = float((found.double() - wanted).abs().max() / wanted.abs().max())
    assert error < scale, error


def check_gradient(net, x, y, loss_of, compute, *, batch):
    """Compare gradient, loss and running statistics with eager float64."""
    theta = net.theta0
    before = {name: each.clone() for name, each in net.statistics(theta).items()}
    loss, grad = kernels.gradient(net, theta, x, y, loss_of, compute=compute, batch=batch)
    after = {name: each.clone() for name, each in net.statistics(theta).items()}
    for name, value in net.statistics(theta).items():
        value.copy_(before[name])
    leaf = theta.double().requires_grad_()
    targets = y.double() if y.is_floating_point() else y
    value = loss_of(net(leaf, x.double()), targets)
    (wanted,) = torch.autograd.grad(value, leaf)
    close(loss, value.detach())
    close(grad, wanted)
    for name, wanted in net.statistics(theta.double()).items():
        close(after[name], wanted.double())
        assert not torch.equal(after[name], before[name])
    return grad


def test_compiled_parts_equal_eager_and_a_second_network_is_not_compiled_again(monkeypatch):
    monkeypatch.setattr("potstill.functional.losses.PART", 5 * SIDE * SIDE)
    x, y = batch_of(14)
    net = dense()
    net.train()
    first = compiles()
    for count in (14, 9, 1):  # 5 5 4, 5 4, 1: parts of one size, filled up
        check_gradient(net, x[:count], y[:count], ce, COMPILED, batch=14)
    other = dense(seed=1)
    other.train()
    check_gradient(other, x, y, ce, COMPILED, batch=14)
    assert compiles() - first == 1
    assert not multiprocessing.active_children()


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_compiled_gradients_and_logits_equal_eager_for_every_norm(norm):
    x, y = batch_of(10)
    soft = torch.rand(10, K, generator=keys.generator(0, "y"))
    net = net_of("convnet2", norm=norm)
    net.train()
    check_gradient(net, x, y, ce, COMPILED, batch=10)
    if norm == "instance":
        check_gradient(net, x, soft, soft_ce, COMPILED, batch=10)
    check_gradient(net, x[:7], y[:7], ce, COMPILED, batch=10)
    found = predict(net, net.theta0, x, batch=4, compute=COMPILED)
    close(found, predict(net, net.theta0.double(), x))


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_a_compiled_residual_network_equals_eager(norm):
    spec = NetSpec(name="resnet10", width=4, norm=norm)
    # at 16 pixels its last maps have 4 points, which costs eager float32 as well 3e-5
    net = flat(spec, channels=3, size=(32, 32), classes=K, seed=0)
    x, y = torch.randn(6, 3, 32, 32, generator=keys.generator(0)), torch.arange(6) % K
    net.train()
    for _ in range(2):  # the statistics move on
        check_gradient(net, x, y, ce, COMPILED, batch=6)
    found = predict(net, net.theta0, x, batch=4, compute=COMPILED)
    close(found, predict(net, net.theta0.double(), x))


@pytest.mark.slow
def test_bfloat16_gradients_point_the_same_way():
    x, y = batch_of(32)
    net = net_of("convnet2", width=16)
    net.train()
    exact = kernels.gradient(net, net.theta0, x, y, ce, batch=32)[1]
    for compute, least in ((COMPILED, 0.999999), (HALF, 0.995), (HALF_EAGER, 0.995)):
        loss, grad = kernels.gradient(net, net.theta0, x, y, ce, compute=compute, batch=32)
        assert grad.dtype == loss.dtype == torch.float32
        assert float(torch.cosine_similarity(grad, exact, dim=0)) > least
    logits = predict(net, net.theta0, x, compute=HALF)
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, predict(net, net.theta0, x, compute=COMPILED))


@pytest.mark.slow
def test_compiled_dropout_follows_the_key():
    layers = (nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * SIDE * SIDE, K))
    with keys.forked(0):
        net = FlatNet(nn.Sequential(*layers))
    x, y = batch_of(20)
    spec = TrainSpec(lr=0.01, segments=(Segment(epochs=2),), batch=8, augment=DSA())

    def end(seed, compute):
        return fit(net, net.theta0, x, y, spec, seed=seed, compute=compute)

    state = torch.random.get_rng_state()
    first = end(1, COMPILED)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(end(1, COMPILED), first)
    assert not torch.equal(end(2, COMPILED), first)
    whole = replace(spec, batch=20)  # nothing is filled up: the numbers of eager mode
    torch.testing.assert_close(
        fit(net, net.theta0, x, y, whole, seed=1, compute=COMPILED),
        fit(net, net.theta0, x, y, whole, seed=1),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.slow
def test_networks_trained_in_compiled_bfloat16_are_as_accurate():
    data = open_data("digits")
    space = measure_stats(data.train)
    spec = TrainSpec(
        lr=0.02, segments=(Segment(epochs=6),), batch=64, augment=DSA(), optimizer=SGD(momentum=0.9)
    )
    found = {}
    for compute in (None, HALF):
        hits = []
        for seed in range(3):
            net = flat(
                NetSpec(name="convnet2", width=16), channels=1, size=(8, 8), classes=10, seed=seed
            )
            theta = fit(
                net,
                net.theta0,
                data.train.pixels,
                data.train.labels,
                spec,
                seed=seed,
                prepare=space.forward,
                compute=compute,
            )
            test = data.test
            options = {"prepare": space.forward, "compute": compute}
            hits.append(accuracy(net, theta, test.pixels, test.labels, **options))
        found[compute] = sum(hits) / 3
    assert found[None] > 0.9
    assert abs(found[HALF] - found[None]) < 0.015


def test_eager_computes_are_what_they_were():
    net, (x, y) = net_of(), batch_of(22)
    spec = TrainSpec(lr=0.05, segments=(Segment(epochs=2),), batch=8)
    plain = fit(net, net.theta0, x, y, spec, seed=0)
    assert torch.equal(fit(net, net.theta0, x, y, spec, seed=0, compute=ONE), plain)
    assert torch.equal(predict(net, plain, x), predict(net, plain, x, compute=ONE))
    half = predict(net, plain, x, compute=HALF_EAGER)
    assert not torch.equal(predict(net, plain, x), half)
    torch.testing.assert_close(predict(net, plain, x), half, rtol=0.05, atol=0.05)


def test_threads_are_those_of_the_compute_and_only_inside():
    net, (x, y), seen = net_of(), batch_of(4), []
    spec = TrainSpec(lr=0.05, segments=(Segment(epochs=1),))
    two = Compute(threads=2)
    options = {"seed": 0, "on_epoch": lambda *_: seen.append(torch.get_num_threads())}
    fit(net, net.theta0, x, y, spec, compute=two, **options)
    fit(net, net.theta0, x, y, spec, **options)
    assert seen == [2, 1]


def test_a_wrong_device_is_refused():
    net, (x, y) = net_of(), batch_of(4)
    cuda = replace(ONE, device="cuda")
    spec = TrainSpec(lr=0.05, segments=(Segment(epochs=1),))
    with pytest.raises(InputError, match="cpu cannot be used on 'cuda'"):
        fit(net, net.theta0, x, y, spec, seed=0, compute=cuda)
    with pytest.raises(InputError, match="cpu cannot be used on 'cuda'"):
        predict(net, net.theta0, x, compute=cuda)


def test_what_is_compiled_for_a_function_of_the_users_is_for_that_network_only(
    monkeypatch, tmp_path
):
    (tmp_path / "moody.py").write_text(
        "from torch import nn\n"
        "acts = [nn.Tanh, nn.Sigmoid]\n"
        "def net(*, channels, size, classes):\n"
        "    layer = nn.Linear(channels * size[0] * size[1], classes)\n"
        "    return nn.Sequential(nn.Flatten(), acts.pop()(), layer)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    shape, x = {"channels": 3, "size": (SIDE, SIDE), "classes": K}, batch_of(2)[0]
    for name, alike in (("module:moody.net", False), ("convnet1", True)):
        nets = [flat(NetSpec(name=name), **shape, seed=seed) for seed in range(2)]
        one, other = (kernels._Kind.of(net, net.theta0, x, 2) for net in nets)
        assert (one == other) == alike


def test_what_cannot_be_compiled_is_said(monkeypatch, tmp_path):
    def odd(x):
        print("a graph cannot print")
        return x + 1

    with pytest.raises(WorkError, match=r"torch\.compile failed"):
        compiled(odd)(torch.zeros(2))
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(WorkError, match=r"torch\.compile failed .*file.*use --compile off"):
        compiled(lambda x: x.cos() + 2)(torch.zeros(2))


def test_the_compilers_cache_lies_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path))
    assert float(compiled(lambda x: x.sin() + 1)(torch.zeros(()))) == pytest.approx(math.sin(0) + 1)
    assert any((tmp_path / "compiled").rglob("*.so"))
