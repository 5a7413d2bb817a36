"""Blocks with derivatives written out: against stock operators in float64, refusals, memory."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from potstill.functional import SGD, Batch, training_loss, unroll
from potstill.functional.losses import ce
from potstill.nets import FlatNet, NetSpec, bilinear, build, fused, instance

MODES = {
    "contiguous": torch.contiguous_format,
    "channels last": torch.channels_last,
}


def layers(channels=3, width=4, *, bias=True, **options):
    options = {"padding": 1} | options
    chance = torch.Generator().manual_seed(1)
    conv = nn.Conv2d(channels, width, 3, bias=bias, **options).double()
    norm = nn.GroupNorm(width, width).double()
    with torch.no_grad():
        for p in (*conv.parameters(), *norm.parameters()):
            p.copy_(torch.randn(p.shape, generator=chance, dtype=torch.float64))
    return conv, norm


def images(*shape, order=torch.contiguous_format):
    chance = torch.Generator().manual_seed(2)
    return torch.randn(shape, generator=chance, dtype=torch.float64).to(memory_format=order)


def stock(x, conv, norm, pool):
    y = F.relu(norm(conv(x)))
    return F.avg_pool2d(y, 2) if pool else y


def waves(t):
    """Return weights that differ from number to number."""
    return torch.linspace(-2, 3, t.numel(), dtype=t.dtype).sin().view(t.shape)


def derivatives(run, leaves):
    """Return the value, its gradients, and the gradients of a function of these gradients."""
    y = run()
    first = torch.autograd.grad((y.sin() * waves(y)).sum(), leaves, create_graph=True)
    outer = sum((g * waves(g)).sum() + g.square().sum() for g in first)
    second = torch.autograd.grad(outer, leaves, allow_unused=True, materialize_grads=True)
    return [y, *first, *second]


def assert_equal(ours, reference, tolerance=1e-12):
    for a, b in zip(ours, reference, strict=True):
        assert a.shape == b.shape
        a, b = a.detach(), b.detach()
        assert float((a - b).abs().max()) <= tolerance * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("pool", [True, False])
@pytest.mark.parametrize("order", MODES)
@pytest.mark.parametrize(
    ("batch", "channels", "width", "size"),
    [
        (3, 3, 4, (8, 8)),
        (1, 3, 4, (7, 5)),
        (2, 1, 4, (4, 6)),
        (1, 2, 4, (2, 2)),
        (3, 3, 64, (4, 4)),
    ],
)
def test_derivatives_equal_those_of_stock_operators(
    batch, channels, width, size, order, pool, first
):
    conv, norm = layers(channels, width)
    x = images(batch, channels, *size, order=MODES[order]).requires_grad_()
    leaves = [x, *conv.parameters(), *norm.parameters()]
    ours = derivatives(lambda: fused.block(x, conv, norm, pool=pool, first=first), leaves)
    assert_equal(ours, derivatives(lambda: stock(x, conv, norm, pool), leaves))


@pytest.mark.parametrize(
    "options", [{"stride": 2}, {"dilation": 2, "padding": 2}, {"padding": (0, 1)}, {"bias": False}]
)
def test_derivatives_of_other_convolutions(options):
    conv, norm = layers(**options)
    x = images(2, 3, 9, 8).requires_grad_()
    leaves = [x, *conv.parameters(), *norm.parameters()]
    ours = derivatives(lambda: fused.block(x, conv, norm, pool=True, first=True), leaves)
    assert_equal(ours, derivatives(lambda: stock(x, conv, norm, True), leaves))


def test_groups_of_channels():
    conv, norm = layers(4, 4, groups=2)
    x = images(2, 4, 6, 6).requires_grad_()
    leaves = [x, *conv.parameters(), *norm.parameters()]
    ours = derivatives(lambda: fused.block(x, conv, norm, pool=True), leaves)
    assert_equal(ours, derivatives(lambda: stock(x, conv, norm, True), leaves))


def test_parts_give_the_same_as_the_whole(monkeypatch):
    conv, norm = layers()
    x = images(5, 3, 6, 6).requires_grad_()
    leaves = [x, *conv.parameters(), *norm.parameters()]

    def run():
        return derivatives(lambda: fused.block(x, conv, norm, pool=True), leaves)

    whole = run()
    monkeypatch.setattr(instance, "PART", 2 * 4 * 36)  # 2, 2 and 1 images
    assert_equal(run(), whole)


def test_gradcheck_and_gradgradcheck():
    conv, norm = layers(2, 2)

    def run(x, weight, scale, shift):
        conv_and_norm = (("weight", weight, conv), ("weight", scale, norm), ("bias", shift, norm))
        for name, value, module in conv_and_norm:
            module._parameters[name] = value
        return fused.block(x, conv, norm, pool=True, first=True)

    with torch.no_grad():
        leaves = [t.clone() for t in (conv.weight, norm.weight, norm.bias)]
    leaves = [t.requires_grad_() for t in (images(2, 2, 4, 4), *leaves)]
    assert gradcheck(run, leaves)
    assert gradgradcheck(run, leaves)


def test_the_bias_of_the_convolution_has_a_gradient_of_exactly_zero():
    conv, norm = layers()
    y = fused.block(images(2, 3, 4, 4), conv, norm, pool=True)
    (gradient,) = torch.autograd.grad(y.square().sum(), conv.bias)
    assert torch.equal(gradient, torch.zeros_like(conv.bias))


def test_a_third_derivative_is_refused():
    conv, norm = layers()
    x = images(2, 3, 4, 4).requires_grad_()
    value = fused.block(x, conv, norm, pool=True).square().sum()
    for _ in range(2):
        (gradient,) = torch.autograd.grad(value, x, create_graph=True)
        value = gradient.square().sum()
    with pytest.raises(RuntimeError, match="no third derivative"):
        torch.autograd.grad(value, x)


def test_derivatives_by_torch_func():
    conv, norm = layers()
    x, other = images(2, 3, 4, 4), conv.weight.detach()

    def loss(weight, x, run):
        names = {"0.weight": weight}
        module = nn.Sequential(conv, norm)
        module.forward = lambda x: run(x, module[0], module[1])
        y = torch.func.functional_call(module, names, (x,))
        return (y * waves(y)).square().sum()

    def ours(x, conv, norm):
        return fused.block(x, conv, norm, pool=True, first=True)

    def reference(x, conv, norm):
        return stock(x, conv, norm, True)

    def outer(weight, x, run):
        return torch.func.grad(loss)(weight, x, run).square().sum()

    found, wanted = (
        torch.func.grad(outer, argnums=(0, 1))(other, x, run) for run in (ours, reference)
    )
    assert_equal(found, wanted, 1e-11)


def test_the_gradient_in_images_is_left_out_where_only_weights_need_theirs(monkeypatch):
    conv, norm = layers()
    x = images(2, 3, 4, 4).requires_grad_()
    calls = []
    for name in ("_by_input", "_by_weight"):
        made = getattr(bilinear, name)
        monkeypatch.setattr(
            bilinear, name, lambda *a, name=name, made=made: calls.append(name) or made(*a)
        )
    y = fused.block(x, conv, norm, pool=True, first=True)
    torch.autograd.grad(y.square().sum(), conv.weight, create_graph=True)
    assert calls == ["_by_weight"]


# ---- where it is used -------------------------------------------------------------------------


@pytest.fixture
def used(monkeypatch):
    """Count the blocks that are computed here."""
    calls, block = [], fused.block
    monkeypatch.setattr(fused, "block", lambda *a, **k: calls.append(k) or block(*a, **k))
    return calls


def net(**settings):
    settings = {"name": "convnet2", "width": 16} | settings
    return build(NetSpec(**settings), channels=3, size=(32, 32), classes=10, seed=0)


@pytest.mark.parametrize(
    ("settings", "blocks"),
    [
        ({}, 2),
        ({"pool": "none"}, 2),
        ({"pool": "max"}, 2),
        ({"width": 12}, 0),  # too small to gain
        ({"norm": "batch"}, 0),
        ({"norm": "group"}, 0),
        ({"norm": "layer"}, 0),
        ({"norm": "none"}, 0),
        ({"act": "swish"}, 0),
        ({"act": "leaky"}, 0),
    ],
)
def test_blocks_are_used_only_where_they_are_right(settings, blocks, used, monkeypatch):
    module = net(**settings).double()
    x = images(2, 3, 32, 32).requires_grad_()
    leaves = [x, *module.parameters()]
    used.clear()  # of the trial
    ours = derivatives(lambda: module(x), leaves)
    assert len(used) == blocks
    assert [call["pool"] for call in used] == [settings.get("pool", "avg") == "avg"] * blocks
    monkeypatch.setattr(fused, "usable", lambda *_: False)
    assert_equal(ours, derivatives(lambda: module(x), leaves), 1e-10)


def test_stock_layers_under_hooks_autocast_and_in_half_precision(used):
    module, x = net(), images(1, 3, 32, 32).float()
    seen = []
    used.clear()  # of the trial
    hook = module.features[2].register_forward_hook(lambda *_: seen.append(1))
    module(x)
    hook.remove()
    assert len(seen) == 1
    assert len(used) == 1  # the other block
    with torch.autocast("cpu", torch.bfloat16):
        module(x)
    module.bfloat16()(x.bfloat16())
    assert len(used) == 1


def test_compiled_calls_take_stock_layers(used):
    module, x = net(), images(1, 3, 32, 32).float()
    used.clear()  # of the trial
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph.code)
        return graph.forward

    y = torch.compile(module, fullgraph=True, backend=backend)(x)
    assert not used
    assert graphs[0].count("group_norm(") == 2
    assert torch.allclose(y, module(x), atol=1e-5)
    assert len(used) == 2


def test_names_and_order_of_parameters_are_those_of_a_plain_sequence():
    names = [f"features.{k}.{part}" for k in (0, 1, 4, 5) for part in ("weight", "bias")]
    assert [n for n, _ in net().named_parameters()] == [
        *names,
        "classifier.weight",
        "classifier.bias",
    ]


@pytest.mark.parametrize("strategy", ["graph", "adjoint"])
def test_an_unroll_of_a_convnet_equals_one_of_stock_layers(strategy, used, monkeypatch):
    flat = FlatNet(net())

    def meta_gradients():
        x, lr = images(4, 3, 32, 32).requires_grad_(), torch.tensor(0.05).double().requires_grad_()
        batches = [Batch(torch.tensor(rows)) for rows in ([0, 1], [2, 3, 0], [1])]
        end = unroll(
            training_loss(flat, ce),
            flat.theta0.double(),
            (x, torch.arange(4)),
            lr,
            batches,
            optimizer=SGD(momentum=0.5),
            strategy=strategy,
        )
        return [end.detach(), *torch.autograd.grad(end.sin().sum(), (x, lr))]

    ours = meta_gradients()
    assert used
    monkeypatch.setattr(fused, "usable", lambda *_: False)
    for a, b in zip(ours, meta_gradients(), strict=True):
        assert float((a - b).norm() / b.norm()) < 1e-10
