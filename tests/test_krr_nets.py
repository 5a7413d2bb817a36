"""KRR-ST's networks: their numbers, and running statistics that are somebody's state."""

import pytest
import torch
from torch import nn

from potstill.nets import NETS, NetSpec, filled, fitting, flat, narrowed, variant


def made(name, side, **own):
    net = flat(NetSpec(name=name, **own), channels=3, size=(side, side), classes=512, seed=0)
    net.eval()
    return net, net.features(net.theta0, torch.zeros(2, 3, side, side)).shape[1]


@pytest.mark.parametrize(
    ("name", "side", "widths", "features"),
    [
        ("convnet3-krrst", 32, (128, 256, 512), 8192),
        ("convnet4-krrst", 64, (64, 128, 256, 512), 8192),
        ("convnet5-krrst", 64, (32, 64, 128, 256, 512), 2048),
    ],
)
def test_widths_double_and_features_are_the_published_ones(name, side, widths, features):
    net, found = made(name, side)
    assert found == features
    module = net.load(net.theta0)
    maps = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
    assert tuple(part.out_channels for part in maps) == widths
    assert len([p for p in module.modules() if type(p) is nn.BatchNorm2d and p.affine]) == len(maps)
    inner = sum(9 * a * b + 3 * b for a, b in zip((3, *widths), widths, strict=False))
    assert net.numel == inner + (features + 1) * 512
    assert (net.numel == 5_675_520) == (name == "convnet3-krrst")


def test_they_have_the_settings_of_a_convnet():
    net, found = made("convnet3-krrst", 32, width=8, norm="instance", act="leaky", pool="max")
    assert found == 512
    assert [type(part) for part in net.load(net.theta0).features][1:4] == [
        nn.GroupNorm,
        nn.LeakyReLU,
        nn.MaxPool2d,
    ]
    assert narrowed(filled(NetSpec(name="convnet4-krrst")), 1 / 4).width == 16


def test_others_do_not_take_their_settings_and_they_none_of_others():
    plain, own = (
        filled(NetSpec(name="convnet3", width=32)),
        NetSpec(name="convnet3-krrst", width=64),
    )
    assert variant("convnet4", plain) == filled(NetSpec(name="convnet4", width=32))
    assert variant("convnet3-krrst", plain) == filled(NetSpec(name="convnet3-krrst", width=32))
    assert variant("convnet3", own) == filled(NetSpec(name="convnet3", width=64))
    assert variant("convnet4-krrst", own) == filled(NetSpec(name="convnet4-krrst", width=32))
    assert fitting(NetSpec(name="auto"), (32, 32)).name == "convnet3"
    assert sum(name.endswith("-krrst") for name in NETS.names()) == 3


def test_a_network_uses_statistics_of_others_and_moves_them():
    net, _ = made("convnet3-krrst", 32, width=4)
    x = torch.rand(6, 3, 32, 32)
    own = {name: each.clone() for name, each in net.statistics(net.theta0).items()}
    held = {name: each.clone() for name, each in own.items()}
    net.train()
    with net.using(held):
        net(net.theta0, x)
        net.eval()
        moved = net(net.theta0, x)
    assert all(torch.equal(each, own[name]) for name, each in net.statistics(net.theta0).items())
    assert not any(torch.equal(each, own[name]) for name, each in held.items())
    wanted = net.load(net.theta0).train()
    wanted(x)
    torch.testing.assert_close(moved, wanted.eval()(x), rtol=1e-5, atol=1e-6)
    assert not torch.equal(moved, net(net.theta0, x))
    with pytest.raises(KeyError), net.using(held):
        raise KeyError
    assert torch.equal(net.statistics(net.theta0)["features.1.running_mean"], torch.zeros(4))
