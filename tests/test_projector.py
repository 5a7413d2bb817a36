"""Projectors on encoders: layers as on record, features, training; counts of the networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from potstill.core.errors import InputError
from potstill.core.spec import from_json, to_json
from potstill.functional.selfsup import BarlowTwins, SimCLR
from potstill.nets import FlatNet, NetSpec, build
from potstill.nets.hidden import Projected
from potstill.nets.projector import HEADS, HeadSpec, encoder_of, projected, projector

torch.set_num_threads(1)
SMALL = HeadSpec(widths=(6, 4))
FAMILIES = {
    "convnet3": (4, 8),
    "resnet10-bn": (4, 10),
    "alexnet": (4, 8),
    "vgg11": (2, 32),
    "vit": (16, 8),
    "mlp": (8, 4),
    "lenet": (None, 16),
}
"""A small member of each family: width and side."""


def images(side: int, count: int = 6) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, side, side, dtype=torch.float64, generator=g)


def made(name: str, head: HeadSpec = SMALL) -> FlatNet:
    width, side = FAMILIES[name]
    return projected(
        NetSpec(name=name, width=width), head, channels=3, size=(side, side), seed=3, key=("a",)
    )


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("sololearn", "L512,2048b N2048 R L2048,2048b N2048 R L2048,2048b"),
        ("mixbt", "L512,512 N512 R L512,1024b"),
        ("sas", "L512,512 N512 R L512,128 n128"),
        ("toy", "L512,512 N512 R L512,128b"),
    ],
)
def test_heads_as_on_record(name, layers):
    with torch.device("meta"):
        head = projector(HEADS[name], 512)
    said = []
    for part in head:
        if isinstance(part, nn.Linear):
            bias = "b" if part.bias is not None else ""
            said.append(f"L{part.in_features},{part.out_features}{bias}")
        elif isinstance(part, nn.BatchNorm1d):
            said.append(f"{'N' if part.affine else 'n'}{part.num_features}")
        else:
            assert isinstance(part, nn.ReLU)
            said.append("R")
    assert " ".join(said) == layers
    assert from_json(to_json(HEADS[name])) == HEADS[name]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_encoder_gives_the_features_of_the_network(name):
    width, side = FAMILIES[name]
    spec = NetSpec(name=name, width=width)
    plain = build(spec, channels=3, size=(side, side), classes=4, seed=3, key=("a",))
    whole, x = FlatNet(plain), images(side)
    net = made(name)
    theta = net.theta0.double()
    count = sum(p.numel() for p in encoder_of(plain, name=name)[0].parameters())
    assert torch.equal(net.theta0[:count], whole.theta0[:count])
    assert all(part.startswith("encoder.") == (at < count) for part, at in places(net))
    for each in (net, whole):
        each.eval()
    want = whole.features(whole.theta0.double(), x)
    got = net.features(theta, x)
    assert torch.equal(got, want)
    module = net.load(theta)
    assert isinstance(module, Projected)
    assert torch.equal(module.features(x), want)
    assert torch.equal(net(theta, x), module.head(want))
    assert not net.training


def places(net: FlatNet) -> list[tuple[str, int]]:
    """Return each parameter's name and where it begins in theta."""
    sizes = [shape.numel() for shape in net.shapes]
    return [(name, sum(sizes[:k])) for k, name in enumerate(net.names)]


def test_a_network_that_is_its_last_layer():
    encoder, inputs = encoder_of(nn.Linear(12, 3), name="it")
    assert inputs == 12
    assert encoder(images(2)).shape == (6, 12)


def test_recipe_batch_and_head_of_one_layer():
    assert made("convnet3").recipe == made("convnet3").recipe
    assert made("convnet3").recipe != made("convnet3", HEADS["toy"]).recipe
    assert made("convnet3").known
    net, linear = made("convnet3"), made("convnet3", HeadSpec(widths=(5,)))
    assert (net.separable, linear.separable) == (False, True)
    again = made("convnet3")
    assert torch.equal(net.theta0, again.theta0)
    wider = made("convnet3", HEADS["toy"]).theta0
    assert torch.equal(net.theta0[:200], wider[:200])  # an encoder does not depend on its head


@pytest.mark.parametrize("loss", [BarlowTwins(lam=0.05), SimCLR()], ids=["barlow", "simclr"])
@pytest.mark.parametrize("name", ["convnet3", "resnet10-bn"])
def test_pairs_of_views_train_it(loss, name):
    """A few plain steps on noisy views: the loss falls, and every parameter has a gradient."""
    net, x = made(name), images(FAMILIES[name][1], 12)
    theta, losses = net.theta0.double(), []
    g = torch.Generator().manual_seed(2)
    for _ in range(12):
        leaf = theta.requires_grad_()
        views = [x + 0.1 * torch.randn(x.shape, dtype=x.dtype, generator=g) for _ in range(2)]
        value = loss(*(net(leaf, view) for view in views))
        (grad,) = torch.autograd.grad(value, leaf)
        assert all(part.abs().max() > 0 for part in net.views(grad).values()) or losses
        losses.append(float(value.detach()))
        theta = theta.detach() - 0.02 * grad
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


def test_wrong_input_is_one_sentence():
    for widths, said in (((), r"\[\]"), ((8, 0), r"\[8, 0\]")):
        with pytest.raises(InputError, match=f"widths of at least 1, not {said}"):
            HeadSpec(widths=widths)
    with pytest.raises(InputError, match="it does not end in a linear layer"):
        encoder_of(nn.Conv2d(3, 4, 1), name="it")


@pytest.mark.parametrize(
    ("name", "side", "features", "parameters"),
    [
        ("convnet3", 32, 2048, 1_348_608),
        ("convnet4", 64, 2048, 1_496_448),
        ("resnet10-bn", 32, 512, 5_160_768),
        ("resnet18-bn", 32, 512, 11_431_488),
        ("resnet18-sololearn", 64, 512, 11_431_488),
    ],
)
def test_counts_and_features_on_record(name, side, features, parameters):
    with torch.device("cpu" if name.startswith("convnet") else "meta"):
        net = build(NetSpec(name=name), channels=3, size=(side, side), classes=512, seed=0)
        encoder, width = encoder_of(net, name=name)
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert width == features
    left = sum(p.numel() for p in encoder.parameters())
    assert left == parameters - 512 * features - 512
