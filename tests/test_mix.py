"""CutMix against loops over pixels, in training too; and steps on chosen rows."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

from potstill.artefact import Soft
from potstill.augment import DSA, IDC, CutMix, Mixing
from potstill.core import keys
from potstill.core.compute import Compute
from potstill.core.errors import InputError
from potstill.core.spec import from_json, to_json
from potstill.evaluation import evaluate
from potstill.functional import GSAM, SGD, Adam, Segment, TrainSpec, fit, predict, take_steps
from potstill.functional.sampling import sampler
from potstill.nets import FlatNet, NetSpec, build
from test_evaluate import RECIPE, toy_data, toy_set

N, K, SHAPE = 22, 3, (1, 6, 6)


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tiny_net(*extra: nn.Module) -> FlatNet:
    with keys.forked(0, "net"):
        module = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), *extra, nn.Linear(64, K + 1)
        )
    return FlatNet(module.double())


def images() -> tuple[Tensor, Tensor]:
    labels = torch.arange(N) % K  # the network has a class more
    noise = torch.randn(N, *SHAPE, generator=rng(), dtype=torch.float64)
    return noise + labels.view(N, 1, 1, 1), labels


def spec(**changes) -> TrainSpec:
    base = {"lr": 0.05, "segments": (Segment(epochs=2),), "batch": 8, "augment": None}
    return TrainSpec(**(base | changes))


def slow(x: Tensor, mixing: Mixing) -> tuple[Tensor, float]:
    """Paste the box pixel by pixel; return the images and the share of pixels that stay."""
    out, stay = x.clone(), 0
    for i in range(x.shape[2]):
        for j in range(x.shape[3]):
            taken = mixing.rows.start <= i < mixing.rows.stop
            taken = taken and mixing.columns.start <= j < mixing.columns.stop
            stay += not taken
            for n, partner in enumerate(mixing.partner.tolist()):
                out[n, :, i, j] = x[partner, :, i, j] if taken else x[n, :, i, j]
    return out, stay / (x.shape[2] * x.shape[3])


@pytest.mark.parametrize("size", [(32, 32), (7, 10), (1, 5)])
def test_box_partner_and_ratio_of_every_draw(size):
    x = torch.randn(5, 2, *size, generator=rng(9))
    y = torch.rand(5, 4, generator=rng(8), dtype=torch.float64)
    mix, areas = CutMix(prob=1), set()
    for seed in range(25):
        mixing = mix.sample(5, (2, *size), rng(seed))
        u = torch.rand(4, generator=rng(seed), dtype=torch.float64).tolist()
        for box, side, at in zip((mixing.rows, mixing.columns), size, u[2:], strict=True):
            half, centre = int(side * math.sqrt(1 - u[1])) // 2, math.floor(at * side)
            inside = [i for i in range(side) if centre - half <= i < centre + half]
            assert list(range(side))[box] == inside
        assert sorted(mixing.partner.tolist()) == list(range(5))
        images, ratio = slow(x, mixing)
        assert mixing.ratio == pytest.approx(ratio, abs=1e-15)
        before = x.clone()
        got, targets = mix.apply(x, y, mixing)
        assert torch.equal(got, images)
        assert torch.equal(x, before)
        wanted = ratio * y + (1 - ratio) * y[mixing.partner]
        assert (targets - wanted).abs().max() < 1e-15
        areas.add(ratio)
    assert len(areas) > (10 if size == (32, 32) else 0)


def test_chance_of_mixing_and_the_share_that_stays():
    n, shape = 4000, (1, 1000, 1000)
    drawn = [CutMix(prob=0.3).sample(2, shape, rng(seed)) for seed in range(n)]
    assert abs(sum(m is not None for m in drawn) - 0.3 * n) < 5 * math.sqrt(0.21 * n)
    assert CutMix(prob=0).sample(2, shape, rng()) is None
    x, y = torch.randn(2, *SHAPE), torch.ones(2, 2)
    assert CutMix().apply(x, y, None) == (x, y)
    for beta in (1.0, 0.5, 3.0):
        mix, shares = CutMix(prob=1, beta=beta), []
        for seed in range(500):
            mixing = mix.sample(2, shape, rng(seed))
            rows, columns = mixing.rows, mixing.columns
            if rows.start > 0 and rows.stop < 1000 and columns.start > 0 and columns.stop < 1000:
                u = float(torch.rand(4, generator=rng(seed), dtype=torch.float64)[1])
                assert mixing.ratio == pytest.approx(stats.beta.ppf(u, beta, beta), abs=0.01)
                shares.append(mixing.ratio)
        assert len(shares) > 30


def mixed_loss(net: FlatNet, theta: Tensor, x: Tensor, y: Tensor, mixing: Mixing | None) -> Tensor:
    """Return the published loss: of own and of partners' labels, weighted by area."""
    if mixing is None:
        return F.cross_entropy(net(theta, x), y)
    x, ratio = slow(x, mixing)
    logits = net(theta, x)
    own, other = F.cross_entropy(logits, y), F.cross_entropy(logits, y[mixing.partner])
    return ratio * own + (1 - ratio) * other


@pytest.mark.parametrize("augment", [None, IDC(strategy="color_crop_scale_rotate_flip")])
@pytest.mark.parametrize("soft", [False, True])
def test_fit_equals_a_loop_with_the_two_term_loss(augment, soft):
    net, (x, y) = tiny_net(nn.Dropout(0.0)), images()
    mix, optimizer = CutMix(prob=0.5), SGD(momentum=0.9, weight_decay=5e-4)
    given = spec(mix=mix, augment=augment, optimizer=optimizer)
    targets = F.one_hot(y, K + 1).double() if soft else y
    loss = "soft_ce" if soft else "ce"
    found, losses = net.theta0, []
    found = fit(net, found, x, targets, replace(given, loss=loss), seed=3,
                on_epoch=lambda e, theta, mean: losses.append(mean))  # fmt: skip
    theta = net.theta0.clone().requires_grad_()
    reference, kinds = torch.optim.SGD([theta], 0.05, 0.9, weight_decay=5e-4), []
    for epoch in range(2):
        chance, sums = keys.generator(3, "epoch", epoch), []
        for rows in torch.randperm(N, generator=chance).split(8):
            images_ = x[rows]
            if augment is not None:
                images_ = augment.apply(images_, augment.sample(len(rows), SHAPE, chance))
            mixing = mix.sample(len(rows), SHAPE, chance)
            kinds.append(mixing is not None)
            reference.zero_grad()
            loss = mixed_loss(net, theta, images_, y[rows], mixing)
            loss.backward()
            reference.step()
            sums += [loss.item()] * len(rows)
        assert losses[epoch] == pytest.approx(sum(sums) / N, rel=1e-12)
    assert set(kinds) == {True, False}
    assert (found - theta.detach()).abs().max() < 1e-12


@pytest.mark.slow
def test_compiled_steps_on_mixed_hard_labels():
    net = FlatNet(
        build(NetSpec(name="convnet1", width=4), channels=1, size=(8, 8), classes=K, seed=0)
    )
    x, y = torch.randn(N, 1, 8, 8, generator=rng()), torch.arange(N) % K
    given = spec(mix=CutMix(prob=1), augment=IDC(), segments=(Segment(epochs=1),))
    how = Compute(device="cpu", threads=1, precision="float32", compiled=True)
    plain = fit(net, net.theta0, x, y, given, seed=0)
    assert (fit(net, net.theta0, x, y, given, seed=0, compute=how) - plain).abs().max() < 1e-5


def test_mixing_leaves_batch_statistics_as_plain_steps_do():
    """The trial that tells how many classes there are moves nothing."""
    with keys.forked(0, "net"):
        module = nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, K)
        )
    x, y = images()
    plain, mixed = (FlatNet(module.double()) for _ in range(2))
    for net, mix in ((plain, None), (mixed, CutMix(prob=0))):
        fit(net, net.theta0, x, y, spec(mix=mix), seed=0)
    for name, buffer in plain.statistics(plain.theta0).items():
        assert torch.equal(buffer, mixed.statistics(mixed.theta0)[name])
    assert mixed.training


def test_a_set_whose_recipe_mixes_trains_and_is_evaluated():
    data = toy_data()
    s = replace(toy_set(data), recipe=replace(RECIPE, mix=CutMix(prob=1)))
    pictures = data.test.pixels
    assert s.train(seed=1)(pictures).shape == (len(pictures), 3)
    plain = replace(s, recipe=RECIPE).train(seed=1)(pictures)
    assert not torch.allclose(s.train(seed=1)(pictures), plain)
    (row,) = evaluate(s, seeds=2, baselines=False).rows
    (same,) = evaluate(replace(s, recipe=RECIPE), seeds=2, baselines=False).rows
    assert row.accuracies != same.accuracies or row.validation != same.validation
    taught = replace(
        s, targets=Soft(F.one_hot(s.targets.values, 3).float()),
        recipe=replace(s.recipe, loss="soft_ce"),
    )  # fmt: skip
    assert torch.allclose(taught.train(seed=1)(pictures), s.train(seed=1)(pictures), atol=1e-5)


def test_specs_of_mixing_travel_and_older_ones_are_read():
    given = spec(mix=CutMix(prob=0.25), augment=DSA())
    assert from_json(to_json(given)) == given
    older = {key: value for key, value in to_json(spec()).items() if key != "mix"}
    assert from_json(older) == spec()
    for changes, message in (
        ({"prob": 1.5}, r"prob of CutMix lies between 0 and 1, not at 1\.5"),
        ({"beta": 0.0}, r"beta of CutMix must be above 0, not 0\.0"),
    ):
        with pytest.raises(InputError, match=message):
            CutMix(**changes)


# ---- steps on rows that the caller chose


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": Adam(), "sharpness": GSAM(rho=0.1)},
        {"loss": "soft_ce"},
    ],
    ids=str,
)
def test_steps_are_those_of_an_epoch_of_fit(changes):
    net, (x, y) = tiny_net(nn.Dropout(0.3)), images()
    given = spec(segments=(Segment(epochs=1, lr_scale=0.5),), **changes)
    y = F.one_hot(y, K + 1).double() if given.loss == "soft_ce" else y
    wanted = fit(net, net.theta0, x, y, given, seed=4, key=("a",))
    batches = sampler(y, given)(keys.generator(4, "a", "epoch", 0))
    state = given.optimizer.init(net.theta0)
    net.eval()
    found, _ = take_steps(
        net, net.theta0, state, x, y, given, batches, step=0, seed=4, key=("a", "epoch", 0),
        lr_scale=0.5,
    )  # fmt: skip
    assert torch.equal(found, wanted)
    assert net.training


def test_steps_go_on_where_others_ended():
    net, (x, y) = tiny_net(), images()
    for optimizer in (SGD(momentum=0.9, weight_decay=5e-4), Adam()):
        given = spec(optimizer=optimizer)
        rows = torch.randperm(N, generator=rng()).split(5)
        before = net.theta0.clone()
        whole, state = take_steps(
            net, net.theta0, optimizer.init(net.theta0), x, y, given, rows,
            step=0, seed=0, key=("a",),
        )  # fmt: skip
        theta, parts = net.theta0, optimizer.init(net.theta0)
        for step, row in enumerate(rows):
            theta, parts = take_steps(
                net, theta, parts, x, y, given, [row], step=step, seed=0, key=("b", step)
            )
        assert torch.equal(theta, whole)
        assert all(torch.equal(a, b) for a, b in zip(state, parts, strict=True))
        assert torch.equal(net.theta0, before)
        same, kept = take_steps(net, theta, parts, x, y, given, [], step=9, seed=0, key=("c",))
        assert torch.equal(same, theta)
        assert kept is parts


def test_steps_follow_their_key_alone():
    net, (_, y) = tiny_net(nn.Dropout(0.3)), images()
    pixels = torch.randint(0, 256, (N, *SHAPE), generator=rng()).byte()
    given, rows = spec(augment=IDC(), mix=CutMix(prob=1)), torch.arange(N).split(8)

    def steps(key: str, seed: int = 0) -> Tensor:
        state = given.optimizer.init(net.theta0)
        return take_steps(
            net, net.theta0, state, pixels, y, given, rows, step=0, seed=seed, key=(key,),
            prepare=lambda raw: raw.double() / 255,
        )[0]  # fmt: skip

    before = torch.random.get_rng_state()
    first = steps("a")
    torch.rand(3)
    assert torch.equal(steps("a"), first)
    assert not torch.equal(steps("b"), first)
    assert not torch.equal(steps("a", seed=1), first)
    torch.random.set_rng_state(before)
    steps("a")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(predict(net, first, pixels.double()), net(net.theta0, pixels.double()))


def test_steps_refuse_what_does_not_fit():
    net, (x, y) = tiny_net(), images()
    state = spec().optimizer.init(net.theta0)
    for rows in (torch.arange(9), torch.arange(0)):
        with pytest.raises(InputError, match=rf"1 to 8 images \(batch\), not {len(rows)}"):
            take_steps(net, net.theta0, state, x, y, spec(), [rows], step=0, seed=0, key=())
    with pytest.raises(InputError, match="5 images and 22 targets"):
        take_steps(net, net.theta0, state, x[:5], y, spec(), [], step=0, seed=0, key=())
    norm = FlatNet(nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.BatchNorm1d(4)).double())
    state, one = spec().optimizer.init(norm.theta0), [torch.tensor([3])]
    with pytest.raises(InputError, match="A batch has one image, of which batch norm"):
        take_steps(norm, norm.theta0, state, x, y, spec(), one, step=0, seed=0, key=())
