"""First-order training: against torch.optim loops, schedules, keys, refusals."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from potstill.augment.dsa import DSA
from potstill.core import keys
from potstill.core.errors import InputError
from potstill.core.spec import from_json, to_json
from potstill.functional import losses
from potstill.functional.losses import ce, soft_ce
from potstill.functional.optim import SGD, Adam
from potstill.functional.schedule import Segment, TrainSpec, mtt_segments
from potstill.functional.train import accuracy, fit, predict
from potstill.nets import NetSpec, build
from potstill.nets.flat import FlatNet

N, K = 22, 3


def tiny_net(*extra: nn.Module) -> FlatNet:
    with keys.forked(0, "net"):
        layers = (nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), *extra, nn.LazyLinear(K))
        module = nn.Sequential(*layers)
        module(torch.zeros(2, 1, 6, 6))
    return FlatNet(module)


def images(dtype=torch.float32):
    labels = torch.arange(N) % K
    noise = torch.randn(N, 1, 6, 6, generator=keys.generator(0, "x"))
    return (noise + labels.view(N, 1, 1, 1)).to(dtype), labels


def spec(**changes):
    base = {"lr": 0.05, "segments": (Segment(epochs=2),), "batch": 8, "augment": None}
    return TrainSpec(**(base | changes))


def record(net, theta, *args, **options):
    """Return the end of `fit` and [(epoch, theta, loss)] of `on_epoch`."""
    seen = []
    end = fit(net, theta, *args, on_epoch=lambda *epoch: seen.append(epoch), **options)
    return end, seen


@pytest.mark.parametrize(
    ("optimizer", "theirs", "options"),
    [
        (SGD(momentum=0.9, weight_decay=5e-4), torch.optim.SGD, {"momentum": 0.9}),
        (Adam(weight_decay=5e-4, decoupled=True), torch.optim.AdamW, {}),
    ],
    ids=str,
)
@pytest.mark.parametrize("second", ["new", "carried"])
@pytest.mark.parametrize("augment", [None, DSA()])
def test_fit_equals_a_torch_loop(optimizer, theirs, options, second, augment):
    net, (x, y) = tiny_net(), images(torch.float64)
    theta0 = net.theta0.double()
    segments = (Segment(epochs=2), Segment(epochs=2, lr_scale=0.1, optimizer=second))
    given = spec(segments=segments, optimizer=optimizer, augment=augment)
    end, seen = record(net, theta0, x, y, given, seed=3, key=("expert", 1))

    module = net.load(theta0)
    groups = {"lr": 0.05, "weight_decay": 5e-4, **options}
    reference = theirs(module.parameters(), **groups)
    for epoch in range(4):
        if epoch == 2 and second == "new":
            reference = theirs(module.parameters(), **groups)
        for group in reference.param_groups:
            group["lr"] = 0.05 if epoch < 2 else 0.005
        generator = keys.generator(3, "expert", 1, "epoch", epoch)
        losses = []
        for index in torch.randperm(N, generator=generator).split(8):
            batch = x[index]
            if augment is not None:
                drawn = augment.sample(len(index), (1, 6, 6), generator)
                batch = augment.apply(batch, drawn)
            reference.zero_grad()
            loss = F.cross_entropy(module(batch), y[index])
            loss.backward()
            reference.step()
            losses += [loss.item()] * len(index)
        theta = torch.cat([p.detach().flatten() for p in module.parameters()])
        assert seen[epoch][0] == epoch
        torch.testing.assert_close(seen[epoch][1], theta, rtol=1e-10, atol=1e-12)
        assert seen[epoch][2] == pytest.approx(sum(losses) / N, rel=1e-10)
    assert torch.equal(end, seen[-1][1])


def test_snapshots_are_distinct_and_kept():
    net, (x, y) = tiny_net(), images()
    before = net.theta0.clone()
    copies = []
    kept = []

    def on_epoch(epoch, theta, loss):
        kept.append(theta)
        copies.append(theta.clone())

    fit(net, net.theta0, x, y, spec(segments=(Segment(epochs=4),)), seed=0, on_epoch=on_epoch)
    assert torch.equal(net.theta0, before)
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))
    assert len({theta.data_ptr() for theta in kept}) == 4
    assert len({tuple(theta.tolist()) for theta in kept}) == 4


def test_mtt_schedule_for_1000_epochs():
    # (epochs, lr scale) of the published evaluation: 1001 in all, the change after index 501
    assert mtt_segments() == (
        Segment(epochs=502, lr_scale=1.0),
        Segment(epochs=499, lr_scale=0.1, optimizer="new"),
    )
    for epochs in (0, 1, 2, 3, 8, 9):
        assert spec(segments=mtt_segments(epochs)).epochs == epochs + 1
    assert [s.epochs for s in mtt_segments(8)] == [6, 3]


def test_golden_trace_of_steps_lr_and_resets(monkeypatch):
    trace = []
    update = SGD.update

    def spy(self, theta, grad, state, lr, step):
        trace.append((round(float(lr), 6), step, bool(state[0].any())))
        return update(self, theta, grad, state, lr, step)

    monkeypatch.setattr(SGD, "update", spy)
    net, (x, y) = tiny_net(), images()
    carried = Segment(epochs=1, lr_scale=2.0, optimizer="carried")
    given = spec(segments=(*mtt_segments(2), *mtt_segments(4)[1:], carried), batch=16)
    fit(net, net.theta0, x, y, given, seed=0)
    first = [(0.05, step, step > 0) for step in range(6)]  # 3 epochs of 2 batches: 16 and 6
    second = [(0.005, 0, False), (0.005, 1, True)]  # a new optimizer
    third = [(0.1, 2, True), (0.1, 3, True)]  # the same one
    assert trace == first + second + third


def test_fit_is_reproducible_keyed_and_leaves_the_global_generator_alone():
    net, (x, y) = tiny_net(nn.Dropout(0.5)), images()
    given = spec(augment=DSA(mode="M"))
    state = torch.random.get_rng_state()
    first = fit(net, net.theta0, x, y, given, seed=1, key=("a",))
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(fit(net, net.theta0, x, y, given, seed=1, key=("a",)), first)
    assert not torch.equal(fit(net, net.theta0, x, y, given, seed=1, key=("b",)), first)
    assert not torch.equal(fit(net, net.theta0, x, y, given, seed=2, key=("a",)), first)


def test_one_hot_targets_equal_labels_and_prepare_is_applied_in_both_ways():
    net, (_, y) = tiny_net(), images()
    pixels = torch.randint(0, 256, (N, 1, 6, 6), generator=keys.generator(0)).byte()

    def prepare(raw):
        return (raw.float() / 255 - 0.5) / 0.25

    hard = fit(net, net.theta0, pixels, y, spec(), seed=0, prepare=prepare)
    one_hot = F.one_hot(y, K).float()
    soft = fit(net, net.theta0, prepare(pixels), one_hot, spec(loss="soft_ce"), seed=0)
    torch.testing.assert_close(hard, soft, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        predict(net, hard, pixels, prepare=prepare), predict(net, hard, prepare(pixels))
    )


def test_predict_and_accuracy_use_evaluation_mode_and_do_not_disturb_fit():
    net, (x, y) = tiny_net(nn.Dropout(0.5)), images()
    given = spec(segments=(Segment(epochs=30),))
    plain = fit(net, net.theta0, x, y, given, seed=0)
    scores = []
    watched = fit(
        net,
        net.theta0,
        x,
        y,
        given,
        seed=0,
        on_epoch=lambda e, theta, loss: scores.append(accuracy(net, theta, x, y, batch=5)),
    )
    assert torch.equal(plain, watched)
    logits = net.load(plain).eval()(x).detach()
    torch.testing.assert_close(predict(net, plain, x, batch=5), logits)
    assert not predict(net, plain, x).requires_grad
    assert scores[-1] == pytest.approx(float((logits.argmax(1) == y).float().mean()))
    assert scores[-1] > scores[0]


def test_losses():
    generator = keys.generator(0, "loss")
    logits = torch.randn(5, K, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 2, 1, 1, 0])
    by_hand = -sum(float(logits[i].softmax(0)[c].log()) for i, c in enumerate(labels)) / 5
    assert float(ce(logits, labels)) == pytest.approx(by_hand, rel=1e-12)
    assert float(soft_ce(logits, F.one_hot(labels, K).double())) == pytest.approx(by_hand)
    mixed = torch.rand(5, K, generator=generator, dtype=torch.float64)
    assert float(soft_ce(logits, mixed)) == pytest.approx(float(F.cross_entropy(logits, mixed)))


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: spec(lr=0.0), "lr"),
        (lambda: spec(lr=float("nan")), "lr"),
        (lambda: spec(batch=0), "batch"),
        (lambda: spec(segments=()), "segment"),
        (lambda: spec(loss="mae"), "mae"),
        (lambda: Segment(epochs=0), "epoch"),
        (lambda: Segment(epochs=1, lr_scale=0.0), "lr_scale"),
        (lambda: Segment(epochs=1, optimizer="old"), "old"),
    ],
)
def test_wrong_specs_are_refused(make, word):
    with pytest.raises(InputError, match=word):
        make()


def test_wrong_data_is_refused():
    net, (x, y) = tiny_net(), images()
    for xs, ys, given, word in (
        (x[:5], y, spec(), "5 images and 22 targets"),
        (x[:0], y[:0], spec(), "0 images"),
        (x.byte(), y, spec(), "uint8"),
        (x, y.float(), spec(), "class numbers"),
        (x, y, spec(loss="soft_ce"), "probabilities"),
    ):
        with pytest.raises(InputError, match=word):
            fit(net, net.theta0, xs, ys, given, seed=0)
    with pytest.raises(InputError, match="no image"):
        predict(net, net.theta0, x[:0])


def test_specs_travel_as_json():
    for augment in (None, DSA(mode="M")):
        given = spec(segments=mtt_segments(), augment=augment, optimizer=Adam())
        assert from_json(to_json(given)) == given


def test_a_batch_in_parts_gives_the_gradient_of_the_whole(monkeypatch):
    chance = torch.Generator().manual_seed(0)
    x = torch.randn(11, 1, 8, 8, dtype=torch.float64, generator=chance)
    y = torch.arange(11) % 3
    for norm, parts in (("instance", 3), ("batch", 1)):
        spec = NetSpec(name="convnet1", width=4, norm=norm)
        module = build(spec, channels=1, size=(8, 8), classes=3, seed=0).double()
        net, calls, called = FlatNet(module), [], FlatNet.__call__

        def spy(self, theta, part, calls=calls, called=called):
            calls.append(len(part))
            return called(self, theta, part)

        with monkeypatch.context() as patch:
            patch.setattr(losses, "PART", 5 * 64)
            patch.setattr(FlatNet, "__call__", spy)
            loss, grad = losses.gradient(net, net.theta0, x, y, losses.ce)
        assert calls == ([5, 5, 1] if parts == 3 else [11])
        leaf = net.theta0.clone().requires_grad_()
        whole = losses.ce(net(leaf, x), y)
        assert torch.allclose(loss, whole, rtol=1e-13, atol=0)
        (wanted,) = torch.autograd.grad(whole, leaf)
        assert torch.allclose(grad, wanted, rtol=0, atol=1e-14)


def test_only_known_parts_are_separable():
    class Odd(torch.nn.Module):
        def forward(self, x):
            return x - x.mean(0)

    linear = torch.nn.Linear(4, 2)
    flat = torch.nn.Flatten()
    assert FlatNet(torch.nn.Sequential(flat, linear)).separable
    assert not FlatNet(torch.nn.Sequential(flat, Odd(), linear)).separable
    assert not FlatNet(torch.nn.Sequential(flat, linear, torch.nn.BatchNorm1d(2))).separable
    for keeps in (False, True):  # running statistics, which parts filled up would change
        norm = torch.nn.InstanceNorm2d(3, track_running_stats=keeps)
        net = FlatNet(torch.nn.Sequential(norm, flat, linear))
        assert net.separable != keeps
        net.eval()
        assert net.separable


def test_a_last_batch_of_one_image_is_refused_where_batch_norm_cannot_take_it():
    def net(*layers: nn.Module) -> FlatNet:
        return FlatNet(nn.Sequential(nn.Flatten(), nn.Linear(36, 4), *layers, nn.Linear(4, K)))

    x, y = images()
    batch_norm = net(nn.BatchNorm1d(4))
    with pytest.raises(InputError, match="22 images in batches of 7 leave a batch of one"):
        fit(batch_norm, batch_norm.theta0, x, y, spec(batch=7), seed=0)
    assert fit(batch_norm, batch_norm.theta0, x, y, spec(batch=8), seed=0).isfinite().all()
    plain = net()
    assert fit(plain, plain.theta0, x, y, spec(batch=7), seed=0).isfinite().all()
