"""The ConvNets of the papers, and networks as functions of one flat vector."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from potstill.core.errors import InputError
from potstill.core.spec import from_json, to_json
from potstill.nets import NETS, FlatNet, NetSpec, build

NORMS = ("none", "batch", "layer", "instance", "group")


def small(norm: str = "instance", **changes) -> nn.Module:
    spec = NetSpec(**{"name": "convnet2", "width": 8, "norm": norm, **changes})
    return build(spec, channels=3, size=(8, 8), classes=4, seed=0)


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("depth", "changes", "channels", "size", "classes", "parameters"),
    [
        (3, {}, 3, 32, 10, 320_010),
        (3, {}, 3, 32, 100, 504_420),
        (1, {}, 3, 32, 10, 331_530),
        (2, {}, 3, 32, 10, 233_610),
        (4, {}, 3, 32, 10, 452_490),
        (4, {}, 3, 64, 200, 857_160),
        (5, {}, 3, 128, 10, 615_690),
        (3, {"width": 32}, 3, 32, 10, 24_714),
        (3, {"width": 64}, 3, 32, 10, 86_282),
        (3, {"width": 256}, 3, 32, 10, 1_229_834),
        (3, {}, 1, 28, 10, 317_706),
        (3, {"norm": "none"}, 3, 32, 10, 319_242),
        (3, {"norm": "layer"}, 3, 32, 10, 663_306),
        (3, {"norm": "batch"}, 3, 32, 10, 320_010),
        (3, {"norm": "group"}, 3, 32, 10, 320_010),
        (4, {}, 1, 64, 8, 461_448),
        (4, {}, 3, 64, 1000, 2_496_360),
        (3, {}, 3, 32, 512, 1_348_608),
        (4, {}, 3, 64, 512, 1_496_448),
    ],
)
def test_parameter_counts(depth, changes, channels, size, classes, parameters):
    """As the references measured them."""
    spec = NetSpec(name=f"convnet{depth}", **changes)
    net = build(spec, channels=channels, size=(size, size), classes=classes, seed=0)
    assert count(net) == parameters


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(28, 28), (32, 32), (20, 33), (28, 8)])
@pytest.mark.parametrize("pool", ["none", "avg", "max"])
def test_any_size_and_channels_fit(channels, size, pool):
    spec = NetSpec(width=4, pool=pool)
    net = build(spec, channels=channels, size=size, classes=7, seed=0)
    assert net(torch.randn(2, channels, *size)).shape == (2, 7)


def test_a_side_of_28_becomes_32():
    net = build(NetSpec(), channels=1, size=(28, 28), classes=10, seed=0)
    assert net.get_submodule("features.0")(torch.zeros(1, 1, 28, 28)).shape[2:] == (32, 32)
    assert net.get_submodule("classifier").in_features == 2048


@pytest.mark.parametrize("act", ["relu", "sigmoid", "leaky", "swish"])
@pytest.mark.parametrize("norm", NORMS)
def test_forward_is_the_formula(norm, act):
    """Against the blocks written out with plain arithmetic, in float64."""
    net = small(norm, act=act).double()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(3)) * 0.1)
    x = torch.randn(5, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    got = net(x)
    parameters = iter(net.parameters())
    for _ in range(2):
        weight, bias = next(parameters), next(parameters)
        x = torch.conv2d(x, weight, bias, padding=1)
        if norm != "none":
            scale, shift = next(parameters), next(parameters)
            if norm != "layer":
                scale, shift = scale[:, None, None], shift[:, None, None]
            b, c, h, w = x.shape
            groups = {"batch": 0, "layer": 1, "instance": c, "group": 4}[norm]
            y = x.reshape(b, groups, -1) if groups else x.transpose(0, 1).reshape(1, c, -1)
            y = (y - y.mean(-1, keepdim=True)) / (
                y.var(-1, keepdim=True, correction=0) + 1e-5
            ).sqrt()
            x = y.reshape(b, c, h, w) if groups else y.reshape(c, b, h, w).transpose(0, 1)
            x = x * scale + shift
        x = {
            "relu": lambda t: t.clamp(min=0),
            "sigmoid": lambda t: 1 / (1 + torch.exp(-t)),
            "leaky": lambda t: torch.where(t > 0, t, 0.01 * t),
            "swish": lambda t: t / (1 + torch.exp(-t)),
        }[act](x)
        x = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
    weight, bias = parameters
    assert torch.allclose(got, x.reshape(5, -1) @ weight.T + bias, rtol=1e-12, atol=1e-12)


def test_channels_last_works():
    x = torch.randn(2, 3, 8, 8)
    net = small()
    assert torch.allclose(net(x.contiguous(memory_format=torch.channels_last)), net(x), atol=1e-6)


def test_same_key_same_weights_and_global_rng_untouched():
    spec = NetSpec(width=8)
    before = torch.random.get_rng_state()

    def weights(seed: int, *key: str | int) -> torch.Tensor:
        return FlatNet(build(spec, channels=3, size=(8, 8), classes=2, seed=seed, key=key)).theta0

    assert torch.equal(weights(1, "expert", 2), weights(1, "expert", 2))
    assert not torch.equal(weights(1, "expert", 2), weights(1, "expert", 3))
    assert not torch.equal(weights(1), weights(2))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("changes", "size", "message"),
    [
        (
            {"name": "convnet6"},
            32,
            "at least 64x64 pixels, not 32x32.*deepest that fits is convnet5",
        ),
        ({"name": "convnet6"}, 28, "at least 64x64 .*convnet5"),
        ({"name": "convnet3"}, 1, r"at least 8x8 pixels, not 1x1\.$"),
        ({"name": "convnet9"}, 32, "did you mean 'convnet"),
        ({"norm": "instanse"}, 32, "norm 'instanse': did you mean 'instance'"),
        ({"act": "reluu"}, 32, "act 'reluu': did you mean 'relu'"),
        ({"pool": "mix"}, 32, "pool 'mix': did you mean 'max'"),
        ({"norm": "group", "width": 6}, 32, "divisible by 4, not 6"),
        ({"width": 0}, 32, "width of at least 1, not 0"),
        ({"name": "auto"}, 32, "Unknown network 'auto'"),
    ],
)
def test_wrong_input_is_one_sentence(changes, size, message):
    with pytest.raises(InputError, match=message):
        build(NetSpec(**changes), channels=3, size=(size, size), classes=10, seed=0)


def test_smallest_sizes_do_fit():
    for depth in range(1, 9):
        spec = NetSpec(name=f"convnet{depth}", width=1)
        net = build(spec, channels=1, size=(2**depth, 2**depth), classes=2, seed=0)
        assert net(torch.zeros(3, 1, 2**depth, 2**depth)).shape == (3, 2)
    build(NetSpec(name="convnet5", width=1), channels=1, size=(28, 28), classes=2, seed=0)
    build(
        NetSpec(name="convnet8", width=1, pool="none"), channels=1, size=(3, 3), classes=2, seed=0
    )


def test_names_and_record():
    assert {f"convnet{d}" for d in range(1, 9)} <= set(NETS.names())
    spec = NetSpec(name="convnet4", norm="batch")
    assert from_json(to_json(spec)) == spec


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_flat_equals_module(norm, training):
    module = small(norm).double().train(training)
    net = FlatNet(module)
    theta = net.theta0.requires_grad_()
    x = torch.randn(6, 3, 8, 8, dtype=torch.float64)
    want, got = module(x), net(theta, x)
    assert torch.equal(got, want)
    (flat,) = torch.autograd.grad(got.square().sum(), theta)
    parts = torch.autograd.grad(want.square().sum(), list(module.parameters()))
    assert torch.allclose(flat, torch.cat([p.flatten() for p in parts]), rtol=1e-12, atol=1e-14)
    assert net.numel == count(module) == len(theta)
    assert net.names == tuple(name for name, _ in module.named_parameters())
    assert net.shapes == tuple(p.shape for p in module.parameters())


@pytest.mark.parametrize("norm", NORMS)
def test_double_backward_through_two_steps(norm):
    """The derivative of theta_2 (two SGD steps) by the images, against central differences."""
    net = FlatNet(small(norm, act="sigmoid", width=4).double())
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=g).requires_grad_()
    away = torch.randn(x.shape, dtype=torch.float64, generator=g)
    probe = torch.randn(net.numel, dtype=torch.float64, generator=g)

    def trained(images: torch.Tensor) -> torch.Tensor:
        theta = net.theta0.clone().requires_grad_()
        for _ in range(2):
            loss = nn.functional.cross_entropy(net(theta, images), torch.arange(4))
            (grad,) = torch.autograd.grad(loss, theta, create_graph=True)
            theta = theta - 0.1 * grad
        return theta @ probe

    (grad,) = torch.autograd.grad(trained(x), x)
    numeric = (trained(x + 1e-5 * away) - trained(x - 1e-5 * away)) / 2e-5
    assert (grad * away).sum().item() == pytest.approx(numeric.item(), rel=1e-6)


def test_batch_norm_statistics_follow_and_the_given_module_stays():
    module = small("batch")
    start = {name: value.clone() for name, value in module.state_dict().items()}
    net, x = FlatNet(module), torch.randn(6, 3, 8, 8, dtype=torch.float64)
    theta = net.theta0.double() * 1.5
    reference = small("batch").double()
    nn.utils.vector_to_parameters(theta, reference.parameters())
    for _ in range(3):
        net(theta, x)
        reference(x)
    assert all(torch.equal(value, start[name]) for name, value in module.state_dict().items())
    net.eval()
    reference.eval()
    assert torch.equal(net(theta, x), reference(x))
    loaded = net.load(theta)
    assert not loaded.training
    for name, value in reference.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    net.train()
    assert net.load(theta).training


def test_load_is_a_copy():
    net = FlatNet(small())
    theta = torch.randn(net.numel, requires_grad=True)
    loaded, x = net.load(theta), torch.randn(2, 3, 8, 8)
    assert torch.equal(loaded(x), net(theta, x))
    other = net.load(theta * 2)
    assert torch.equal(loaded(x), net(theta, x))
    assert torch.equal(other(x), net(theta * 2, x))
    assert all(p.requires_grad and p.is_leaf for p in loaded.parameters())


def test_vector_of_wrong_length():
    net = FlatNet(small())
    with pytest.raises(InputError, match=rf"has {net.numel} parameters; a vector of shape \[3\]"):
        net(torch.zeros(3), torch.zeros(1, 3, 8, 8))
