"""Batch-norm statistics against NumPy, and the taps against hooks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from potstill.core.errors import InputError
from potstill.core.keys import forked
from potstill.functional.statistics import moments, statistics_loss
from potstill.nets import NetSpec, build
from potstill.nets.taps import Tapped


def draw(*shape, seed=2, **options):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **options)


def trained(name="resnet10-bn", size=16, width=4, dtype=torch.float32):
    """Return a network in evaluation mode whose running statistics are those of some noise."""
    net = build(NetSpec(name=name, width=width), channels=3, size=(size, size), classes=5, seed=0)
    net.train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _ in range(3):
            net(torch.randn(16, 3, size, size, generator=generator) + 0.3)
    return net.eval().to(dtype)


def hooked(net, x):
    """Return logits and what every batch norm was given, by hooks."""
    seen = []
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    hooks = [n.register_forward_pre_hook(lambda _, given: seen.append(given[0])) for n in norms]
    logits = net(x)
    for hook in hooks:
        hook.remove()
    return logits, seen, norms


def plain_loss(inputs, norms, *, first, relative, groups):
    """Compute the loss in float64 with NumPy, sum by sum."""
    found = []
    for g in range(groups):
        total, weights = 0.0, 0.0
        for k, (x, norm) in enumerate(zip(inputs, norms, strict=True)):
            a = x.detach().double().numpy()
            size = len(a) // groups
            a = np.moveaxis(a[g * size : (g + 1) * size], 1, 0).reshape(a.shape[1], -1)
            mean = a.sum(1) / a.shape[1]
            var = ((a - mean[:, None]) ** 2).sum(1) / a.shape[1]
            run_mean, run_var = (b.double().numpy() for b in (norm.running_mean, norm.running_var))
            far_var = np.sqrt(((run_var - var) ** 2).sum())
            far_mean = np.sqrt(((run_mean - mean) ** 2).sum())
            if relative:
                far_var /= np.sqrt((run_var**2).sum())
                far_mean /= np.sqrt(run_var.sum())
            weight = first if k == 0 else 1.0
            total, weights = total + weight * (far_var + far_mean), weights + weight
        found.append(total / weights if relative else total)
    return np.array(found)


@pytest.mark.parametrize("name", ["resnet10-bn", "resnet18-tiny", "convnet3"])
def test_taps_see_what_hooks_see(name):
    net = build(
        NetSpec(name=name, width=4, norm="batch"), channels=3, size=(16, 16), classes=5, seed=0
    )
    net.eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    x = draw(6, 3, 16, 16)
    tapped = Tapped(net)
    want, seen, norms = hooked(net, x)
    for _ in range(2):
        logits, inputs = tapped(x)
        assert torch.equal(logits, want)
        assert len(inputs) == len(norms) == len(tapped.norms)
        assert all(torch.equal(a, b) for a, b in zip(inputs, seen, strict=True))
    assert not any(p.requires_grad for p in tapped.parameters())
    assert all(p.requires_grad for p in net.parameters())
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert not tapped.training


def test_taps_of_norms_that_do_more_than_norm():
    class Active(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x).relu()

    with forked(0):
        net = nn.Sequential(nn.Conv2d(3, 4, 3), Active(4), nn.Flatten(), nn.BatchNorm1d(4 * 36))
    net.eval()
    x = draw(2, 3, 8, 8)
    logits, inputs = Tapped(net)(x)
    assert torch.equal(logits, net(x))
    assert [list(a.shape) for a in inputs] == [[2, 4, 6, 6], [2, 144]]


def test_a_teacher_without_statistics_is_refused():
    for norm in ("instance", "group", "none"):
        net = build(NetSpec(norm=norm, width=4), channels=3, size=(16, 16), classes=5, seed=0)
        with pytest.raises(InputError, match="no batch norm"):
            Tapped(net)
    with pytest.raises(InputError, match="no batch norm"):
        Tapped(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)))


@pytest.mark.parametrize("norm", ["l2", "relative"])
@pytest.mark.parametrize("groups", [1, 3])
def test_the_loss_equals_numpy(norm, groups):
    tapped = Tapped(trained())
    _, inputs = tapped(draw(12, 3, 16, 16))
    loss = statistics_loss(inputs, tapped.norms, norm=norm, groups=groups)
    want = plain_loss(inputs, tapped.norms, first=10.0, relative=norm == "relative", groups=groups)
    assert loss.shape == (groups,)
    assert np.allclose(loss.detach().numpy(), want, rtol=2e-6)
    plain = statistics_loss(inputs, tapped.norms, first=1.0, norm=norm, groups=groups)
    assert (plain < loss).all() if norm == "l2" else not torch.equal(plain, loss)


def test_groups_are_batches_side_by_side():
    tapped = Tapped(trained())
    x = draw(9, 3, 16, 16, seed=3)
    whole = statistics_loss(tapped(x)[1], tapped.norms, groups=3)
    parts = torch.cat([statistics_loss(tapped(p)[1], tapped.norms) for p in x.split(3)])
    assert torch.allclose(whole, parts, rtol=1e-6)
    assert not torch.allclose(whole, statistics_loss(tapped(x)[1], tapped.norms).expand(3))


def test_the_gradient_equals_that_of_the_formula_in_float64():
    net = trained(dtype=torch.float64)
    x = draw(4, 3, 16, 16, dtype=torch.float64).requires_grad_()
    _, seen, norms = hooked(net, x)
    total = torch.zeros((), dtype=torch.float64)
    for k, (a, norm) in enumerate(zip(seen, norms, strict=True)):
        flat = a.transpose(0, 1).flatten(1)
        var = (flat - flat.mean(1, keepdim=True)).square().mean(1)
        far = (norm.running_var - var).norm() + (norm.running_mean - flat.mean(1)).norm()
        total = total + (10 if k == 0 else 1) * far
    (want,) = torch.autograd.grad(total, x)
    tapped, leaf = Tapped(net.float()), x.detach().float().requires_grad_()
    (got,) = torch.autograd.grad(statistics_loss(tapped(leaf)[1], tapped.norms).sum(), leaf)
    assert (got.double() - want).norm() < 1e-6 * want.norm()


def test_relative_does_not_mind_units_and_l2_does():
    tapped = Tapped(trained())
    _, inputs = tapped(draw(8, 3, 16, 16))
    norms = tapped.norms
    relative, l2 = (statistics_loss(inputs, norms, norm=n) for n in ("relative", "l2"))
    assert 0 < float(relative.detach()) < 10
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean *= 16
        norm.running_var *= 256
    inputs = [16 * x for x in inputs]
    assert torch.allclose(statistics_loss(inputs, norms, norm="relative"), relative)
    assert statistics_loss(inputs, norms) > 15 * l2


def test_moments_of_bfloat16_are_computed_in_float32():
    x = (draw(64, 4, 32, 32) + 100).bfloat16()
    var, mean = moments(x)
    assert var.dtype == mean.dtype == torch.float32
    exact = x.double().transpose(0, 1).flatten(1)
    assert torch.allclose(mean[0].double(), exact.mean(1), rtol=1e-6)
    assert torch.allclose(var[0].double(), exact.var(1, correction=0), rtol=1e-4)


def test_statistics_that_fit_exactly_have_a_gradient():
    norm = nn.BatchNorm2d(2)
    norm.running_mean, norm.running_var = torch.zeros(2), torch.ones(2)
    x = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1).repeat(1, 2, 1, 1).requires_grad_()
    loss = statistics_loss([x], [norm])
    assert float(loss.detach()) == 0
    assert torch.autograd.grad(loss.sum(), x)[0].isfinite().all()
