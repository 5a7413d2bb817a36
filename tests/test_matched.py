"""Distances between mean gradients or features, and their gradients by the images."""

import math

import pytest
import torch
import torch.nn.functional as F

from potstill.core.compute import Compute
from potstill.functional.matched import (
    DISTANCES,
    LAYERS,
    chosen,
    match_gradients,
    matched,
    mean_features,
    taken,
    weight_gradients,
)
from potstill.nets import NetSpec, bilinear, flat, fused

SIZE = (8, 8)


def net(name="convnet2", **options):
    spec = NetSpec(name=name, **{"width": 8, **options})
    made = flat(spec, channels=3, size=SIZE, classes=4, seed=3)
    made.train()
    return made, made.theta0.double()


def images(n, seed=0):
    chance = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, *SIZE, generator=chance, dtype=torch.float64)
    return x, torch.arange(n) % 4


def naive_gradients(module, x, y, keep):
    """Return the gradients of an ordinary module, those of the weights that `keep` takes."""
    weights = [p for p in module.parameters() if keep(p)]
    return torch.autograd.grad(F.cross_entropy(module(x), y), weights, create_graph=True)


def naive_distance(name, a, b):
    """Return a distance by loops over layers, rows and numbers."""
    total = torch.zeros((), dtype=torch.float64)
    for one, other in zip(a, b, strict=True):
        for row, target in zip(one, other, strict=True):
            if name == "mse":
                total = total + ((row - target) ** 2).sum()
            elif name == "l1":
                total = total + (row - target).abs().sum()
            elif name == "l1_mean":
                total = total + (row - target).abs().mean()
            elif one.dim() > 1:
                dot = (row.flatten() * target.flatten()).sum()
                total = total + 1 - dot / (row.norm() * target.norm() + 1e-6)
    return total


@pytest.mark.parametrize("norm", ["instance", "batch", "layer", "none"])
@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("distance", ["mse", "l1", "l1_mean", "cos"])
def test_distances_equal_loops_over_layers(norm, layers, distance):
    made, theta = net(norm=norm)
    (x, y), (real, labels) = images(5), images(7, seed=1)
    names = chosen(made, layers)
    statistic = weight_gradients(made, theta, names)
    target = statistic(real, labels, graph=False)
    found = matched(statistic, x, y, target, DISTANCES[distance], part=99)
    module = made.load(theta).train()
    leaf = x.clone().requires_grad_()
    other = [g.detach() for g in naive_gradients(module, real, labels, LAYERS[layers])]
    loss = naive_distance(distance, naive_gradients(module, leaf, y, LAYERS[layers]), other)
    torch.testing.assert_close(found.loss, loss.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        found.images, torch.autograd.grad(loss, leaf)[0], rtol=1e-7, atol=1e-12
    )


def test_cos_all_is_one_angle():
    a = (torch.tensor([[1.0, 0.0]]), torch.tensor([2.0]))
    b = (torch.tensor([[1.0, 2.0]]), torch.tensor([0.0]))
    wanted = 1 - 1 / (5**0.5 * 5**0.5 + 1e-6)
    assert float(DISTANCES["cos_all"](a, b)) == pytest.approx(wanted)


def test_kernels_and_linear_layers_are_chosen_by_name():
    made, _ = net("convnet3")
    assert len(chosen(made, "conv")) == 3
    assert len(chosen(made, "weights")) == 4
    assert chosen(made, "all") == made.names


@pytest.mark.parametrize("part", [1, 2, 3, 4])
@pytest.mark.parametrize("distance", ["mse", "l1", "cos", "cos_all"])
def test_parts_equal_the_whole(part, distance):
    made, theta = net()
    (x, y), (real, labels) = images(5), images(7, seed=1)
    statistic = weight_gradients(made, theta, chosen(made, "weights"))
    target = statistic(real, labels, graph=False)
    whole = matched(statistic, x, y, target, DISTANCES[distance], part=5)
    parts = matched(statistic, x, y, target, DISTANCES[distance], part=part)
    torch.testing.assert_close(parts.loss, whole.loss, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(parts.images, whole.images, rtol=1e-9, atol=1e-14)


def test_features_are_the_input_of_the_classifier():
    made, theta = net()
    (x, y), (real, labels) = images(5), images(7, seed=1)
    statistic = mean_features(made, theta)
    target = statistic(real, labels, graph=False)
    module = made.load(theta)
    leaf = x.clone().requires_grad_()
    features = [module.features(each).flatten(1).mean(0) for each in (leaf, real)]
    loss = (features[0] - features[1].detach()).square().sum()
    for part in (2, 5):
        found = matched(statistic, x, y, target, DISTANCES["mse"], part=part)
        torch.testing.assert_close(found.loss, loss.detach(), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(
            found.images, torch.autograd.grad(loss, leaf, retain_graph=True)[0]
        )


def test_parts_of_a_whole_gradient():
    made, theta = net()
    x, y = images(6)
    names = chosen(made, "conv")
    whole = torch.cat(
        [g.flatten() for g in weight_gradients(made, theta, made.names)(x, y, graph=False)]
    )
    own = weight_gradients(made, theta, names)(x, y, graph=False)
    for a, b in zip(taken(made, whole, names), own, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "distance"), [("instance", "mse"), ("batch", "cos")])
def test_compiled_equals_eager(norm, distance, alone):
    made, theta = net(norm=norm)
    (x, y), (real, labels) = images(5), images(7, seed=1)
    names = chosen(made, "weights")
    target = weight_gradients(made, theta, names)(real, labels, graph=False)
    found = [
        match_gradients(made, theta, names, x, y, target, distance, part=5, compute=compute)
        for compute in (Compute(threads=1), Compute(threads=1, compiled=True))
    ]
    torch.testing.assert_close(found[1].loss, found[0].loss, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found[1].images, found[0].images, rtol=1e-8, atol=1e-12)


def test_fast_layers_leave_out_the_gradients_of_weights_that_nobody_wants(monkeypatch):
    monkeypatch.setattr(fused, "LEAST", 0)
    made, theta = net("convnet3")
    (x, y), (real, labels) = images(5), images(7, seed=1)
    names = chosen(made, "conv")
    statistic = weight_gradients(made, theta, names)
    target = statistic(real, labels, graph=False)
    calls, by_weight = [], bilinear._by_weight

    def counted(*arguments):
        calls.append(1)
        return by_weight(*arguments)

    monkeypatch.setattr(bilinear, "_by_weight", counted)
    found = matched(statistic, x, y, target, DISTANCES["mse"], part=5)
    lean = len(calls)
    monkeypatch.setattr(bilinear, "_wanted", lambda ctx, k: ctx.needs_input_grad[k])
    every = matched(statistic, x, y, target, DISTANCES["mse"], part=5)
    assert len(calls) - lean == lean + 4  # two layers that lie deeper, in both of their maps
    assert torch.equal(found.images, every.images)
    monkeypatch.setattr(fused, "LEAST", math.inf)
    plain = matched(statistic, x, y, target, DISTANCES["mse"], part=5)
    torch.testing.assert_close(found.images, plain.images, rtol=1e-9, atol=1e-13)
