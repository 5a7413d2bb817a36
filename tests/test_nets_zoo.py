"""The other networks: sizes, counts, definitions, and what training and distilling asks of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from potstill.core.errors import InputError
from potstill.core.keys import forked
from potstill.core.vision import import_torchvision
from potstill.functional import Adam, Segment, TrainSpec, fit
from potstill.nets import (
    NET_POOLS,
    NETS,
    FlatNet,
    NetSpec,
    build,
    describe,
    filled,
    fitting,
    hindrance,
    kept_bytes,
    narrowed,
    variant,
)

torch.set_num_threads(1)
OTHERS = [name for name in NETS.names() if not name.startswith("convnet")]
DEEP = [f"resnet{depth}{norm}" for depth in (34, 101, 152) for norm in ("", "-bn")]
FAMILIES = {
    "alexnet": (4, 8),
    "alexnet-bn": (4, 8),
    "vgg11": (2, 32),
    "resnet10": (4, 10),
    "resnet18-bn-ap": (2, 16),
    "resnet50": (2, 10),
    "resnetap10-idc": (4, 16),
    "densenet-idc": (2, 16),
    "lenet": (None, 16),
    "mlp": (8, 4),
    "vit": (16, 8),
}
"""A small member of each family: width and side."""


def made(name: str, *, channels: int = 3, size=32, classes: int = 10, seed: int = 0, **settings):
    size = size if isinstance(size, tuple) else (size, size)
    spec = NetSpec(name=name, **settings)
    return build(spec, channels=channels, size=size, classes=classes, seed=seed)


def small(name: str, classes: int = 4) -> nn.Module:
    width, side = FAMILIES[name]
    return made(name, size=side, classes=classes, width=width)


def pictures(name: str, count: int = 4, dtype=torch.float64) -> torch.Tensor:
    side, g = FAMILIES[name][1], torch.Generator().manual_seed(1)
    return torch.randn(count, 3, side, side, dtype=dtype, generator=g)


def narrow(name: str) -> int | None:
    return NETS.get(name).step if NETS.get(name).width else None


# ---- counts on record -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "channels", "size", "classes", "parameters"),
    [
        ("mlp", 3, 32, 10, 411_146),
        ("mlp", 3, 32, 100, 422_756),
        ("mlp", 1, 28, 10, 118_282),
        ("lenet", 3, 32, 10, 62_006),
        ("lenet", 3, 32, 100, 69_656),
        ("lenet", 1, 28, 10, 61_706),
        ("lenet", 3, 64, 10, 62_006),
        ("alexnet", 3, 32, 10, 1_872_202),
        ("alexnet", 3, 32, 100, 2_148_772),
        ("alexnet", 1, 28, 10, 1_865_802),
        ("alexnet", 3, 64, 10, 1_872_202),
        ("alexnet-bn", 3, 32, 10, 1_874_122),
        ("alexnet-bn", 3, 32, 100, 2_150_692),
        ("vgg11", 3, 32, 10, 9_231_114),
        ("vgg11", 3, 32, 100, 9_277_284),
        ("vgg11", 1, 28, 10, 9_229_962),
        ("vgg11", 3, 64, 10, 9_231_114),
        ("vgg11-bn", 3, 32, 10, 9_231_114),
        ("resnet10-bn", 3, 32, 512, 5_160_768),
        ("resnet18", 3, 32, 10, 11_173_962),
        ("resnet18", 3, 32, 100, 11_220_132),
        ("resnet18", 1, 28, 10, 11_172_810),
        ("resnet18", 3, 64, 10, 11_173_962),
        ("resnet18-bn", 3, 32, 10, 11_173_962),
        ("resnet18-bn", 3, 32, 512, 11_431_488),
        ("resnet18-ap", 3, 32, 10, 11_250_762),
        ("resnet18-ap", 3, 32, 100, 11_988_132),
        ("resnet18-ap", 1, 28, 10, 11_213_770),
        ("resnet18-bn-ap", 3, 32, 10, 11_250_762),
        ("resnet10-idc", 3, 32, 10, 1_228_970),
        ("resnet10-idc", 3, 32, 100, 1_252_100),
        ("resnet18-idc", 3, 32, 10, 2_797_610),
        ("resnet18-idc", 3, 32, 100, 2_820_740),
        ("resnet10-idc-wide", 3, 32, 10, 4_903_242),
        ("resnet18-idc-wide", 3, 224, 10, 11_181_642),
        ("resnet18-idc-wide", 3, 224, 100, 11_227_812),
        ("resnetap10-idc", 3, 224, 10, 4_910_922),
        ("resnetap10-idc", 3, 224, 100, 4_957_092),
        ("densenet-idc", 3, 32, 10, 1_000_618),
        ("densenet-idc", 3, 32, 100, 1_035_268),
    ],
)
def test_parameter_counts(name, channels, size, classes, parameters):
    """As the references measured them."""
    with torch.device("meta"):
        net = made(name, channels=channels, size=size, classes=classes)
    assert sum(p.numel() for p in net.parameters()) == parameters


def test_parameter_counts_that_are_not_on_record():
    """Of the vision transformer by its formula, of the others by the sum of their layers."""

    def count(name: str, **images) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in made(name, **images).parameters())

    d = 512
    block = 3 * d * d + (d * d + d) + 2 * (d * d + d) + 4 * d
    assert count("vit") == (48 * d + d) + d + 65 * d + 6 * block + 2 * d + (10 * d + 10)
    assert count("resnet18-tiny", size=64, classes=200) == 11_173_962 + 190 * 513
    assert count("resnet18-sololearn", classes=512) == 11_431_488
    assert count("resnet18-imagenet", size=64) == 11_173_962 + 3 * 64 * (49 - 9)
    deep = {34: 21_282_122, 50: 23_520_842, 101: 42_512_970, 152: 58_156_618}
    assert {depth: count(f"resnet{depth}") for depth in deep} == deep


# ---- definitions, against torchvision's code or plain formulas --------------------------------


def same(got: nn.Module, want: nn.Module, x: torch.Tensor) -> None:
    """Assert that two networks with equal parameters agree in training and in evaluation mode."""
    for training in (True, False):
        assert torch.allclose(
            got.train(training)(x), want.train(training)(x), rtol=1e-9, atol=1e-10
        )


@pytest.fixture(scope="module")
def models():
    try:
        return import_torchvision().models
    except InputError as error:
        pytest.skip(f"the oracle is torchvision: {error}")


@pytest.mark.parametrize(
    ("name", "of", "padding"),
    [
        ("resnet18-bn", "resnet18", 1),
        ("resnet50-bn", "resnet50", 1),
        ("resnet18-tiny", "resnet18", 1),
        ("resnet18-sololearn", "resnet18", 2),
    ],
)
def test_residual_networks_are_torchvisions_with_another_stem(models, name, of, padding):
    want = models.get_model(of, weights=None, num_classes=10, width_per_group=64)
    want.conv1 = nn.Conv2d(3, 64, 3, padding=padding, bias=False)
    want.maxpool = nn.Identity()
    got = made(name, size=20)
    assert [n for n, _ in got.named_parameters()] == [n for n, _ in want.named_parameters()]
    want.load_state_dict(got.state_dict())
    x = torch.randn(2, 3, 20, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    same(got.double(), want.double(), x)


def test_the_densenet_is_torchvisions_with_another_stem(models):
    want = models.DenseNet(12, (6, 12, 24, 16), 24, bn_size=4, num_classes=10)
    want.features.conv0 = nn.Conv2d(3, 24, 3, padding=1, bias=False)
    want.features.norm0 = want.features.relu0 = want.features.pool0 = nn.Identity()
    got = made("densenet-idc", size=16)
    nn.utils.vector_to_parameters(
        nn.utils.parameters_to_vector(got.parameters()), want.parameters()
    )
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    same(got.double(), want.double(), x)


def test_vgg11_has_torchvisions_features(models):
    got = made("vgg11-bn", width=64)
    want = models.vgg.make_layers(models.vgg.cfgs["A"], batch_norm=True)
    want.load_state_dict(got.get_submodule("features").state_dict())
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    same(got.get_submodule("features").double(), want.double(), x)


def pool(x: torch.Tensor) -> torch.Tensor:
    b, c, h, w = x.shape
    x = x[..., : h // 2 * 2, : w // 2 * 2].reshape(b, c, h // 2, 2, w // 2, 2)
    return x.amax((3, 5))


def test_alexnet_is_the_formula():
    net = made("alexnet", width=8, size=32).double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    got, p = net(x), iter(net.parameters())
    for k, padding in enumerate((2, 2, 1, 1, 1)):
        x = F.conv2d(x, next(p), next(p), padding=padding).clamp(min=0)
        x = pool(x) if k in (0, 1, 4) else x
    assert torch.allclose(got, x.reshape(2, -1) @ next(p).T + next(p), rtol=1e-10, atol=1e-12)
    assert [m.out_channels for m in net.modules() if isinstance(m, nn.Conv2d)] == [
        8,
        12,
        16,
        12,
        12,
    ]


def test_lenet_and_mlp_are_the_formulas():
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for name, convolutions in (("lenet", 2), ("mlp", 0)):
        net, y = made(name).double(), x
        p = iter(net.parameters())
        for _ in range(convolutions):
            y = pool(F.conv2d(y, next(p), next(p)).clamp(min=0))
        y = y.reshape(2, -1)
        for layer in range(3):
            y = y @ next(p).T + next(p)
            y = y.clamp(min=0) if layer < 2 else y
        assert torch.allclose(net(x), y, rtol=1e-10, atol=1e-12)


def test_the_transformers_blocks_are_torchs():
    net = made("vit", width=32, size=8).double().eval()
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    got = net(x)
    tokens = F.unfold(x, 4, stride=4).transpose(1, 2)
    weight, bias = net.patches.weight.flatten(1), net.patches.bias
    tokens = torch.cat([net.token.expand(3, 1, 32), tokens @ weight.T + bias], 1) + net.positions
    for block in net.blocks:
        layer = nn.TransformerEncoderLayer(
            32, 8, 32, activation="gelu", batch_first=True, norm_first=True, dtype=torch.float64
        ).eval()
        named = dict(block.named_parameters())
        state = {
            "self_attn.in_proj_weight": named["attention.qkv.weight"],
            "self_attn.in_proj_bias": torch.zeros(96, dtype=torch.float64),
            **{f"self_attn.out_proj.{k}": named[f"attention.out.{k}"] for k in ("weight", "bias")},
            **{
                f"linear{i + 1}.{k}": named[f"hidden.{3 * i}.{k}"]
                for i in range(2)
                for k in ("weight", "bias")
            },
            **{f"norm{i}.{k}": named[f"norm{i}.{k}"] for i in (1, 2) for k in ("weight", "bias")},
        }
        layer.load_state_dict(state)
        tokens = layer(tokens)
    assert torch.allclose(got, net.head(net.norm(tokens[:, 0])), rtol=1e-9, atol=1e-10)


def test_average_pooling_in_blocks_is_the_formula():
    """One shrinking block of `resnet18-bn-ap`: conv, norm, ReLU, pool, conv, norm; same aside."""
    net = made("resnet18-bn-ap", width=4, size=16).double()
    block = net.layer2[0]
    x = torch.randn(2, 4, 7, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def norm(y: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(y, None, None, training=True)

    p = dict(block.named_parameters())
    y = norm(F.conv2d(x, p["conv1.weight"], padding=1)).clamp(min=0)
    y = norm(F.conv2d(F.avg_pool2d(y, 2), p["conv2.weight"], padding=1))
    aside = norm(F.avg_pool2d(F.conv2d(x, p["downsample.0.weight"]), 2))
    assert torch.allclose(block(x), (y + aside).clamp(min=0), rtol=1e-10, atol=1e-12)


def test_maps_of_the_large_stem():
    """ResNetAP-10 at 224 pixels, as the references list its maps."""
    with torch.device("meta"):
        net, x, shapes = made("resnetap10-idc", size=224), torch.zeros(1, 3, 224, 224), []
        for name in ("conv1", "bn1", "maxpool", "layer1", "layer2", "layer3", "layer4"):
            x = net.get_submodule(name)(x)
            shapes.append(tuple(x.shape[1:]))
    assert shapes[0] == (64, 224, 224)
    assert shapes[2:] == [(64, 56, 56), (64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)]


def first_map(name: str, side: int) -> tuple[int, ...]:
    with torch.device("meta"):
        net = made(name, size=side, width=narrow(name))
        conv = next(m for m in net.modules() if isinstance(m, nn.Conv2d))
        return tuple(conv(torch.zeros(1, 3, side, side)).shape[2:])


def test_stems_and_padding_follow_the_side():
    for name in ("alexnet", "alexnet-bn", "vgg11", "vgg11-bn"):
        assert first_map(name, 28) == (32, 32)
    assert first_map("lenet", 28) == first_map("lenet", 32) == (28, 28)
    for name in ("resnet18", "resnet18-ap", "resnet152", "alexnet"):
        assert (first_map(name, 63), first_map(name, 64)) == ((63, 63), (32, 32))
    assert first_map("lenet", 64) == (30, 30)
    assert first_map("resnet18-tiny", 64) == first_map("resnet18-idc", 64) == (64, 64)
    assert first_map("resnet18-sololearn", 32) == (34, 34)
    assert first_map("resnet18-imagenet", 64) == (32, 32)
    stems = [
        (64, 64, "Identity"),
        (65, 65, "MaxPool2d"),
        (128, 128, "MaxPool2d"),
        (129, 65, "MaxPool2d"),
    ]
    for side, rows, pooling in stems:
        assert first_map("resnet10-idc-wide", side) == (rows, rows)
        found = made("resnet10-idc-wide", width=1, size=side).get_submodule("maxpool")
        assert type(found).__name__ == pooling


def test_first_weights():
    """PyTorch's default, or N(0, 2 / (k k outputs)); `-tiny` keeps the default in its stem."""

    def spread(net: nn.Module, name: str) -> float:
        weight = net.get_parameter(name)
        return weight.std().item() * (weight.shape[0] * weight.shape[2] ** 2 / 2) ** 0.5

    deep = "layer3.0.conv2.weight"
    for name in ("resnet10-idc", "resnetap10-idc", "resnet18-tiny", "resnet18-sololearn"):
        assert spread(made(name), deep) == pytest.approx(1, abs=0.02)
    assert spread(made("resnet10"), deep) == pytest.approx(6**-0.5, abs=0.02)
    assert spread(made("resnet10-idc"), "conv1.weight") == pytest.approx(1, abs=0.1)
    stem = made("resnet18-tiny").get_parameter("conv1.weight")
    assert 0.95 / 27**0.5 < stem.abs().max() <= 1 / 27**0.5


# ---- images -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OTHERS)
def test_the_least_size_is_exact(name):
    """It trains even one image at a time (no norm sees a single pixel); one pixel less does not."""
    least = NETS.get(name).least
    with torch.device("meta"):
        sizes = [(least, least), (least, 2 * least), (28 if least < 33 else 36, least)]
        for size in sizes[: 1 if name in DEEP else 3]:
            net = made(name, channels=2, size=size, classes=5, width=narrow(name)).train()
            assert net(torch.zeros(1, 2, *size)).shape == (1, 5)
        if least > 1:
            side = least - 1
            with pytest.raises(InputError) as said:
                made(name, size=(side, 4 * least), width=narrow(name))
            assert str(said.value) == (
                f"{name} needs images of at least {least}x{least} pixels, not {side}x{4 * least}."
            )


def test_nothing_smaller_would_do():
    """What is refused below the least size would fail or be blind: a norm over one pixel."""
    for name in OTHERS:
        net = NETS.get(name)
        if net.least in (1, 4) or name.startswith(("alexnet", "lenet", "vgg11")) or name in DEEP:
            continue
        side, spec = net.least - 1, filled(NetSpec(name=name, width=narrow(name)))
        with torch.device("meta"):
            module, x = net.make(spec, 3, (side, side), 10).train(), torch.zeros(1, 3, side, side)
        with pytest.raises((ValueError, RuntimeError)):
            module(x)


def test_the_transformer_needs_whole_patches():
    assert made("vit", width=8, size=(8, 12))(torch.zeros(2, 3, 8, 12)).shape == (2, 10)
    message = r"patches of 4x4 pixels, which do not divide 30x7; 32x8 would do\."
    with pytest.raises(InputError, match=message):
        made("vit", width=8, size=(30, 7))


@pytest.mark.parametrize("name", FAMILIES)
def test_channels_last_works(name):
    net, x = small(name).double().eval(), pictures(name)
    want = net(x)
    got = net.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    assert torch.allclose(got, want, rtol=1e-9, atol=1e-10)


# ---- what training and distilling asks --------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_flat_equals_module_and_second_derivatives_are_right(name):
    """Dropout and all, in float64; by the images through one step, against differences."""
    module, x = small(name).double(), pictures(name)
    net, y = FlatNet(module), torch.arange(4)
    with forked(0, "dropout"):
        want = module(x)
    with forked(0, "dropout"):
        assert torch.equal(net(net.theta0, x), want)
    g = torch.Generator().manual_seed(0)
    away = torch.randn(x.shape, dtype=torch.float64, generator=g)
    probe = torch.randn(net.numel, dtype=torch.float64, generator=g)

    def trained(images: torch.Tensor) -> torch.Tensor:
        theta = net.theta0.clone().requires_grad_()
        with forked(0, "dropout"):
            loss = F.cross_entropy(net(theta, images), y)
        (grad,) = torch.autograd.grad(loss, theta, create_graph=True)
        return (theta - 0.1 * grad) @ probe

    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(trained(leaf), leaf)
    numeric = (trained(x + 1e-7 * away) - trained(x - 1e-7 * away)) / 2e-7
    assert (grad * away).sum().item() == pytest.approx(numeric.item(), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", [name for name in OTHERS if name not in DEEP])
def test_fit_trains_it(name):
    """A few steps at small width on eight pictures: the loss falls, evaluation mode is finite."""
    entry, losses = NETS.get(name), []
    width = entry.width and max(entry.step, round(entry.width / 16))
    side = max(entry.least, 4)
    net = FlatNet(made(name, size=side, classes=2, width=width))
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(8) % 2
    x = torch.randn(8, 3, side, side, generator=g) + labels[:, None, None, None]
    spec = TrainSpec(lr=0.01, segments=(Segment(epochs=10),), optimizer=Adam(), augment=None)
    state = torch.random.get_rng_state()
    theta = fit(net, net.theta0, x, labels, spec, seed=0, on_epoch=lambda e, t, s: losses.append(s))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert losses[-1] < 0.9 * losses[0]
    net.eval()
    assert net(theta, x).isfinite().all()


class Crooked(nn.Module):
    """Distances to prototypes, by an operator that torch cannot differentiate twice."""

    def __init__(self):
        super().__init__()
        self.prototypes = nn.Parameter(torch.ones(2, 3))

    def forward(self, x):
        return torch.cdist(x.mean((2, 3)), self.prototypes)


def test_what_hinders_distilling_is_known():
    for name in FAMILIES:
        net = small(name)
        before = {key: value.clone() for key, value in net.state_dict().items()}
        found = hindrance(net.eval(), 3, (FAMILIES[name][1],) * 2)
        assert ("dropout" in found) if name == "vit" else found == ""
        assert not any(part.training for part in net.modules())
        assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
        assert all(p.grad is None for p in net.parameters())
    assert "'_cdist_backward' is not implemented" in hindrance(Crooked(), 3, (4, 4))


def test_kept_bytes_is_what_a_convnet_keeps():
    """The image; in each block the maps after ReLU and pooling, and those that a norm takes.

    The blocks of `nets.fused` keep no map after ReLU.
    """
    images, sides = 3 * 32 * 32, (32, 16, 8)
    maps = sum(16 * side**2 + 16 * (side // 2) ** 2 for side in sides)
    group = sum(16 * side**2 + 2 * 4 for side in sides)
    expected = {"none": maps, "instance": maps + 3 * 2 * 16, "group": maps + group}
    for norm, numbers in ((norm, images + numbers) for norm, numbers in expected.items()):
        net = made("convnet3", width=16, norm=norm)
        assert kept_bytes(net, 3, (32, 32)) == 4 * numbers
    assert kept_bytes(made("resnet18-bn", width=16, size=16), 3, (16, 16)) > 0


# ---- settings ---------------------------------------------------------------------------------


def test_filled_puts_the_published_numbers_in():
    convnet = NetSpec(name="convnet3", width=128, norm="instance", act="relu", pool="avg")
    assert filled(NetSpec()) == convnet
    assert filled(NetSpec(name="resnet18")) == NetSpec(name="resnet18", width=64, norm="instance")
    assert filled(NetSpec(name="resnet18-bn", width=8)) == NetSpec(
        name="resnet18-bn", width=8, norm="batch"
    )
    assert filled(NetSpec(name="vgg11")) == NetSpec(
        name="vgg11", width=64, norm="instance", pool="max"
    )
    assert filled(NetSpec(name="lenet")) == NetSpec(name="lenet")
    for name in NETS.names():
        spec = filled(NetSpec(name=name))
        assert filled(spec) == spec


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "resnet18", "act": "relu"}, "resnet18 has no setting act .*only width, norm"),
        ({"name": "lenet", "width": 6}, r"lenet has no setting width \(6\); it has no settings"),
        ({"name": "vit", "norm": "layer"}, "vit has no setting norm .*only width"),
        ({"name": "vit", "width": 20}, "vit needs a width divisible by 8, not 20"),
        ({"name": "resnet18", "norm": "layer"}, "Unknown norm 'layer'"),
        ({"name": "vgg11", "pool": "avgg"}, "Unknown pool 'avgg': did you mean 'avg'"),
        ({"name": "resnet81"}, "Unknown network 'resnet81': did you mean 'resnet18'"),
    ],
)
def test_wrong_settings_are_one_sentence(settings, message):
    with pytest.raises(InputError, match=message):
        build(NetSpec(**settings), channels=3, size=(32, 32), classes=10, seed=0)


def test_norm_and_pool_of_a_name_can_be_changed():
    """RaT-BPTT's AlexNet: instance norm, average pooling."""
    net = made("alexnet", norm="instance", pool="avg", width=8)
    kinds = [type(part).__name__ for part in net.get_submodule("features")]
    assert kinds.count("GroupNorm") == 5
    assert kinds.count("AvgPool2d") == 3
    batch = made("resnet18", norm="batch", width=4)
    assert [n for n, _ in batch.named_buffers()] == [
        n for n, _ in made("resnet18-bn", width=4).named_buffers()
    ]


def test_variant_keeps_options_among_convnets_and_proportion_elsewhere():
    own = NetSpec(name="convnet3", width=32, norm="batch", act="swish", pool="max")
    assert variant("convnet4", own) == NetSpec(
        name="convnet4", width=32, norm="batch", act="swish", pool="max"
    )
    assert variant("own", own) == variant("convnet3", own) == own
    assert variant("resnet18", own) == NetSpec(name="resnet18", width=16, norm="instance")
    assert variant("vit", own).width == 128
    assert variant("densenet-idc", own).width == 3
    assert variant("lenet", own) == NetSpec(name="lenet")
    assert variant("vit", NetSpec(width=1)).width == 8
    assert variant("convnet3", NetSpec(name="resnet18", width=16)) == NetSpec(
        name="convnet3", width=32, norm="instance", act="relu", pool="avg"
    )
    assert variant("vgg11", NetSpec(name="lenet")) == filled(NetSpec(name="vgg11"))
    assert variant("timm:resnet18", own) == NetSpec(name="timm:resnet18")
    assert variant("vgg11", NetSpec(name="timm:resnet18")) == filled(NetSpec(name="vgg11"))


def test_fitting_narrowed_and_described():
    auto = NetSpec(name="auto")
    assert [fitting(auto, (s, s)).name for s in (8, 28, 32, 64, 128)] == [
        f"convnet{d}" for d in (1, 3, 3, 4, 5)
    ]
    assert fitting(NetSpec(name="vgg11"), (32, 32)) == filled(NetSpec(name="vgg11"))
    assert narrowed(auto, 1 / 4) == NetSpec(name="auto", width=32)
    assert narrowed(NetSpec(name="resnet18"), 1 / 4) == NetSpec(name="resnet18", width=16)
    assert narrowed(NetSpec(name="resnet18", width=2), 1 / 4).width == 2
    assert narrowed(NetSpec(name="lenet"), 1 / 4) == NetSpec(name="lenet")
    assert narrowed(NetSpec(name="timm:resnet18"), 1 / 4) == NetSpec(name="timm:resnet18")
    assert describe(filled(NetSpec())) == describe(NetSpec()) == "convnet3"
    assert describe(NetSpec(width=32, norm="batch")) == "convnet3 width 32 norm batch"
    assert describe(NetSpec(name="resnet18-bn", norm="batch")) == "resnet18-bn"
    assert describe(NetSpec(name="timm:resnet18")) == "timm:resnet18"


def test_pools_hold_known_networks():
    own = NetSpec(name="convnet3", width=32)
    for pool in NET_POOLS.values():
        assert variant(pool[0], own) == filled(own)
        for name in pool[1:]:
            assert variant(name, own).name == name
