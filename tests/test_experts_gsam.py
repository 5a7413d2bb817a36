"""GSAM against a plain transcription with modules and torch.optim, in float64."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from potstill.augment import DSA
from potstill.core import keys
from potstill.core.errors import InputError
from potstill.core.spec import from_json, spec_hash, to_json
from potstill.experts import ExpertPlan
from potstill.functional import GSAM, SGD, Segment, TrainSpec, fit
from potstill.nets import FlatNet

N, K, SIDE, BATCH = 20, 3, 6, 8
SPEC = TrainSpec(
    lr=0.05,
    segments=(Segment(epochs=2),),
    batch=BATCH,
    optimizer=SGD(momentum=0.9, weight_decay=1e-3),
    augment=DSA(strategy="color_crop_flip"),
    sharpness=GSAM(rho=0.3, alpha=0.7),
)


def module(norm: str) -> nn.Module:
    norms = {"batch": nn.BatchNorm2d(4), "instance": nn.GroupNorm(4, 4), "none": nn.Identity()}
    with keys.forked(0, "net"):
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3), norms[norm], nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, K)
        )
    return net.double()


def images() -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(N) % K
    noise = torch.randn(N, 1, SIDE, SIDE, generator=keys.generator(0, "x"))
    return (noise + labels.view(N, 1, 1, 1)).double(), labels


def transcribed(net: nn.Module, gsam: GSAM, *, seed: int = 3) -> nn.Module:
    """Train with GSAM parameter by parameter, two passes a step, as the paper of FTD has it."""
    x, y = images()
    sgd = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    weights = list(net.parameters())
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    dot = lambda a, b: sum((p * q).sum() for p, q in zip(a, b, strict=True))  # noqa: E731
    for epoch in range(2):
        chance = keys.generator(seed, "epoch", epoch)
        for index in torch.randperm(N, generator=chance).split(BATCH):
            assert SPEC.augment is not None
            drawn = SPEC.augment.sample(len(index), (1, SIDE, SIDE), chance)
            batch = SPEC.augment.apply(x[index], drawn)
            g = torch.autograd.grad(F.cross_entropy(net(batch), y[index]), weights)
            w = [p.detach().clone() for p in weights]
            part = w if gsam.adaptive else [torch.ones_like(p) for p in w]
            norm = dot(*[[p.abs() * q for p, q in zip(part, g, strict=True)]] * 2).sqrt()
            e = [p**2 * q * gsam.rho / (norm + 1e-12) for p, q in zip(part, g, strict=True)]
            with torch.no_grad():
                for p, step in zip(weights, e, strict=True):
                    p.add_(step)
            for bn in norms:
                bn.momentum = 0.0
            there = torch.autograd.grad(F.cross_entropy(net(batch), y[index]), weights)
            for bn in norms:
                bn.momentum = 0.1
                bn.num_batches_tracked -= 1
            size, size_there = dot(g, g).sqrt(), dot(there, there).sqrt()
            cos = dot(g, there) / (size * size_there)
            with torch.no_grad():
                for p, here, old, new in zip(weights, w, g, there, strict=True):
                    p.copy_(here)
                    p.grad = new - gsam.alpha * (old - cos * size * new / size_there)
            sgd.step()
    return net


def ours(net: nn.Module, spec: TrainSpec, *, seed: int = 3) -> nn.Module:
    flat, (x, y) = FlatNet(net), images()
    return flat.load(fit(flat, flat.theta0, x, y, spec, seed=seed))


@pytest.mark.parametrize("norm", ["none", "instance", "batch"])
@pytest.mark.parametrize(
    "gsam", [GSAM(rho=0.3, alpha=0.7), GSAM(rho=0.3, alpha=0.7, adaptive=False)], ids="ap"
)
def test_gsam_equals_the_transcription(norm, gsam):
    expected = transcribed(module(norm), gsam).state_dict()
    found = ours(module(norm), replace(SPEC, sharpness=gsam)).state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-12)
    plain = ours(module(norm), replace(SPEC, sharpness=None)).state_dict()
    assert float((plain["0.weight"] - found["0.weight"]).norm()) > 1e-4  # it is not plain SGD


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_without_rho_and_alpha_it_is_sgd_to_the_bit(norm):
    nothing = ours(module(norm), replace(SPEC, sharpness=GSAM(rho=0.0, alpha=0.0))).state_dict()
    plain = ours(module(norm), replace(SPEC, sharpness=None)).state_dict()
    assert all(torch.equal(nothing[name], plain[name]) for name in plain)


def test_a_vanishing_gradient_gives_no_nan():
    theta, zero = torch.ones(4), torch.zeros(4)
    gsam = GSAM(rho=0.1, alpha=1.0)
    assert torch.equal(gsam.perturbation(theta, zero), zero)
    assert torch.equal(gsam.combined(zero, zero), zero)
    # an expert at its minimum: the part along g' of an orthogonal g is 0
    a, b = torch.tensor([1.0, 0, 0, 0]), torch.tensor([0, 2.0, 0, 0])
    torch.testing.assert_close(gsam.combined(a, b), b - a)


def test_plans():
    plain = ExpertPlan()
    assert plain.train.sharpness is None
    flat = ExpertPlan(gsam=GSAM(rho=0.01, alpha=0.3))
    assert flat.train.sharpness == GSAM(rho=0.01, alpha=0.3)
    assert spec_hash(flat.train) != spec_hash(plain.train)
    assert from_json(to_json(flat)) == flat
    assert from_json({k: v for k, v in to_json(plain.train).items() if k != "sharpness"}) == (
        plain.train
    )
    for wrong in ({"alpha": 0.3}, {"adaptive": False, "alpha": 0.0}):
        with pytest.raises(InputError, match="no effect without a gsam"):
            ExpertPlan(gsam=GSAM(**({"rho": 0.0} | wrong)))
    for name in ("rho", "alpha"):
        for value in (-0.1, float("nan"), float("inf")):
            with pytest.raises(InputError, match=f"{name} must be at least 0"):
                GSAM(**{name: value})
