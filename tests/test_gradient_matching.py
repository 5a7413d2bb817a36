"""DC, DSA, DM and IDC: one matcher with switches."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from potstill.artefact import Identity, MultiFormation
from potstill.core.compute import Compute
from potstill.core.errors import InputError, WorkError
from potstill.core.keys import generator
from potstill.core.state import load_tree, save_tree
from potstill.data import measure_stats, open_data, space
from potstill.experts import NetworkPath, NetworkPool
from potstill.methods import (
    Context,
    Plan,
    SynthBlock,
    by_class,
    gradient_matching,
    method_of,
    moving,
)
from potstill.methods.by_class import distances, real_rows
from potstill.methods.condensation import SCHEDULE
from potstill.methods.match_settings import Match
from potstill.methods.moving import network_at
from potstill.methods.start import class_rows
from potstill.nets import NetSpec, flat

NET = NetSpec(name="convnet2", width=8)
PRESETS = ("dc", "dsa", "dm", "idc")
pytestmark = pytest.mark.usefixtures("alone")


def small(name, **changes):
    """Return a preset with small counts."""
    method = method_of(name)
    counts = {"networks": 2, "matches": min(method.matches, 3), "batch_real": 6}
    counts |= {"inner_epochs": min(method.inner_epochs, 2), "evaluation_epochs": 6}
    counts |= {"inner_batch": 8} if method.inner_epochs else {}
    counts |= {"settle": min(method.settle, 4)}
    if name == "idc":
        counts["path"] = NetworkPath(images=40, batch=16)
    return dataclasses.replace(method, **{**counts, **changes})


def context(method, *, ipc=2, synth=None, memory=2**32, net=NET, seed=0, limit=24):
    data = open_data("digits", limit=limit)
    one = Compute(threads=1)
    ctx = Context(
        data=data,
        space=measure_stats(data.train),
        net=flat(net, channels=1, size=data.size, classes=10, seed=0),
        net_spec=net,
        ipc=ipc,
        seed=seed,
        plan=Plan(strategy="graph", window=one, tasks=one, memory=memory),
        synth=synth or (SynthBlock(ipc=ipc),),
    )
    method.check(ctx)
    return dataclasses.replace(ctx, nets=method.phases(ctx, {"experts": ()}).nets)


def run(method, ctx, steps, state=None, start=0):
    state, losses = method.init(ctx) if state is None else state, []
    for it in range(start, start + steps):
        state, numbers = method.step(ctx, state, it)
        losses.append(numbers["loss"])
    return state, losses


def naive_distance(method, ctx, theta, images, it):
    """Return the summed distance by a loop over classes, ordinary modules, whole batches."""
    module, total = ctx.net.load(theta).train(), torch.zeros((), dtype=theta.dtype)
    for label, members in enumerate(class_rows(ctx.data)):
        chance = generator(ctx.seed, "match", it, label)
        rows = real_rows(members, method.batch_real, it, (ctx.seed, "real", label))
        real = ctx.space.forward(ctx.data.train.pixels[rows]).to(theta)
        own = images[label * ctx.ipc : (label + 1) * ctx.ipc]
        if method.factor > 1:
            half = own.shape[-1] // 2
            cells = [own[..., y : y + half, x : x + half] for y in (0, half) for x in (0, half)]
            size = own.shape[-2:]
            own = torch.cat([F.interpolate(c, size, mode="bilinear") for c in cells])
        if method.augment is not None:
            params = method.augment.sample(1, (1, *ctx.data.size), chance)
            real, own = method.augment.apply(real, params), method.augment.apply(own, params)
        means = []
        for x in (real, own):
            if method.match.of == "features":
                means.append([module.features(x).flatten(1).mean(0)])
                continue
            loss = F.cross_entropy(module(x), torch.full((len(x),), label))
            weights = list(module.parameters())
            grads = torch.autograd.grad(loss, weights, create_graph=True)
            least = {"conv": 3, "weights": 2}[method.match.layers]
            means.append([g for g in grads if g.dim() >= least])
        for real_mean, own_mean in zip(*means, strict=True):
            target = real_mean.detach()
            if method.match.distance == "mse":
                total = total + (own_mean - target).square().sum()
            else:
                a, b = own_mean.flatten(1), target.flatten(1)
                cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)
                total = total + (1 - cosine).sum()
    return total


@pytest.mark.parametrize("name", PRESETS)
def test_distances_equal_a_naive_loop(name):
    method = small(name)
    ctx = context(method)
    theta = ctx.nets.draw(0, 0).theta.double()
    images = method.init(ctx)["images"][0].double()
    found = distances(method, ctx, theta, [images], 5)
    leaf = images.clone().requires_grad_()
    loss = naive_distance(method, ctx, theta, leaf, 5)
    torch.testing.assert_close(found.loss * 10, loss.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        found.images[0], torch.autograd.grad(loss, leaf)[0], rtol=1e-7, atol=1e-12
    )


@pytest.mark.parametrize("name", PRESETS)
def test_parts_by_the_memory_budget_equal_the_whole(name):
    method = small(name)
    whole = context(method, ipc=3)
    little = dataclasses.replace(whole, plan=dataclasses.replace(whole.plan, memory=1))
    theta = whole.nets.draw(0, 0).theta.double()
    images = [method.init(whole)["images"][0].double()]
    a, b = (distances(method, ctx, theta, images, 0) for ctx in (whole, little))
    torch.testing.assert_close(a.images[0], b.images[0], rtol=1e-8, atol=1e-13)
    torch.testing.assert_close(a.loss, b.loss, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", PRESETS)
def test_resume_at_any_step_gives_the_same_bytes(name, tmp_path):
    method = small(name)
    ctx = context(method)
    wanted, losses = run(method, ctx, method.iterations)
    for stop in range(1, method.iterations):
        state, first = run(method, ctx, stop)
        save_tree(tmp_path / "state", state)
        state = load_tree(tmp_path / "state")
        state, rest = run(method, ctx, method.iterations - stop, state, stop)
        assert first + rest == losses
        assert torch.equal(state["images"][0], wanted["images"][0])


@pytest.mark.parametrize("name", PRESETS)
def test_the_loss_falls_on_digits(name):
    method = small(name, networks=1, matches=40, settle=0, batch_real=18)
    if method.inner_epochs == 0:  # the same network all along
        still = dataclasses.replace(method_of(name).path, images=0)
        method = dataclasses.replace(method, path=still, augment=None)
    else:
        method = dataclasses.replace(method, inner_lr=1e-6)
    if name == "idc":
        method = dataclasses.replace(method, lr_img=1.0)
    _, losses = run(method, context(method, ipc=2), 40)
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_networks_on_real_images_take_the_steps_of_the_path(monkeypatch):
    """One network: early epochs, then so many steps between two matchings; none after the last."""
    method = small("idc", networks=2, matches=3)
    method = dataclasses.replace(method, path=NetworkPath(images=40, batch=16, early=1))
    ctx, taken = context(method), []
    real = moving.Walker.onward.__globals__["take_steps"]

    def counted(net, theta, state, images, targets, spec, batches, **rest):
        taken.append([len(rows) for rows in batches])
        return real(net, theta, state, images, targets, spec, batches, **rest)

    monkeypatch.setitem(moving.Walker.onward.__globals__, "take_steps", counted)
    run(method, ctx, method.iterations)
    n = len(ctx.data.train)
    epoch = [16] * (n // 16) + ([n % 16] if n % 16 else [])
    assert [len(each) for each in taken] == [len(epoch), 3, 3] * 2
    assert taken[0] == epoch
    assert sum(map(len, taken)) == method.networks * method.path.steps(2, n)


def test_epochs_of_the_distilled_set_come_between_matchings_only(monkeypatch):
    method = small("dsa", networks=2, matches=3, inner_epochs=4)
    ctx, epochs = context(method), []
    real = moving.fit

    def counted(net, theta, images, targets, spec, **rest):
        epochs.append((spec.epochs, len(images)))
        return real(net, theta, images, targets, spec, **rest)

    monkeypatch.setattr(moving, "fit", counted)
    run(method, ctx, method.iterations)
    assert epochs == [(4, 20)] * 4


def test_a_pool_holds_what_live_networks_would_become(tmp_path):
    live = small("idc", networks=2, matches=3)
    kept = dataclasses.replace(live, pool=NetworkPool(size=2))
    ctx = context(live)
    tasks = kept.phases(ctx, {})
    folders = []
    for spec in tasks.specs:
        folder = tmp_path / str(spec.index)
        folder.mkdir()
        tasks.fn(spec, tasks.context, folder)
        folders.append(folder)
    pooled = dataclasses.replace(ctx, nets=kept.phases(ctx, {"experts": folders}).nets)
    thetas = {pooled.nets.draw(0, it).expert: [] for it in range(6)}
    for it in range(6):
        draw = pooled.nets.draw(0, it)
        assert draw.epoch == it % 3
        thetas[draw.expert].append(draw.theta)
    state = live.init(ctx)
    for it in range(6):
        state = network_at(live, ctx, state, it)
        assert torch.equal(state["theta"], thetas[it // 3][it % 3])
        state, _ = live.step(ctx, state, it)
    state, _ = run(kept, pooled, 6)
    assert state["theta"] is not None


def test_starts_are_networks_after_some_epochs(tmp_path):
    method = small(
        "idc", networks=4, matches=2, pool=NetworkPool(size=2, keeps="starts", first=1, count=2)
    )
    ctx = context(method)
    tasks, folders = method.phases(ctx, {}), []
    for spec in tasks.specs:
        assert spec.matches == 3
        assert spec.path.images == len(ctx.data.train)
        folder = tmp_path / str(spec.index)
        folder.mkdir()
        tasks.fn(spec, tasks.context, folder)
        folders.append(folder)
    loop = method.phases(ctx, {"experts": folders})
    draws = [loop.nets.draw(0, k) for k in range(40)]
    assert {(d.expert, d.epoch) for d in draws} == {(k, e) for k in (0, 1) for e in (1, 2)}
    state, _ = run(method, dataclasses.replace(ctx, nets=loop.nets), method.iterations)
    assert bool(state["images"][0].isfinite().all())


def test_frozen_blocks_stay_and_are_matched_with_the_others():
    method = small("idc")
    ctx = context(method)
    first = torch.randn(20, 1, 8, 8, generator=generator(1, "x"))
    blocks = (SynthBlock(ipc=2, lr_scale=0.0, images=first), SynthBlock(ipc=1))
    both = dataclasses.replace(ctx, synth=blocks)
    state, _ = run(method, both, method.iterations)
    assert torch.equal(state["images"][0], first)
    s = method.export(both, state)
    assert torch.equal(s.images[:20], first)
    assert [block.stop for block in s.blocks] == [20, 30]
    theta = ctx.nets.draw(0, 0).theta
    moving_images = state["images"][1]
    with_first = distances(method, both, theta, state["images"], 0)
    alone = distances(method, dataclasses.replace(ctx, synth=blocks[1:]), theta, [moving_images], 0)
    assert not with_first.images[0].any()
    assert with_first.images[1].any()
    assert not torch.equal(with_first.loss, alone.loss)


def test_first_images_are_mosaics_of_different_real_ones():
    method = small("idc")
    ctx = context(method, ipc=2)
    images = method.init(ctx)["images"][0]
    pictures = (ctx.space.inverse(images) * 255).round().to(torch.uint8)
    for label, members in enumerate(class_rows(ctx.data)):
        small_ones = F.interpolate(ctx.data.train.pixels[members], (4, 4), mode="nearest").flatten(
            1
        )
        own = pictures[2 * label : 2 * label + 2]
        cells = own.reshape(2, 1, 2, 4, 2, 4).permute(0, 2, 4, 1, 3, 5).reshape(8, -1)
        places = [int((small_ones == cell).all(1).nonzero()[0, 0]) for cell in cells]
        assert len(set(places)) == 8


def test_noise_of_raw_pixels_is_grey_and_clipped():
    method = small("idc", image_init="noise")
    ctx = context(method)
    pixels = ctx.space.inverse(method.init(ctx)["images"][0])
    assert float(pixels.min()) >= -1e-6
    assert float(pixels.max()) <= 1 + 1e-6
    assert abs(float(pixels.mean()) - 0.5) < 0.03


def test_raw_pixels_are_clipped_when_a_network_begins_and_in_the_set():
    method = small("idc", lr_img=1e4, networks=1)
    ctx = context(method)
    state, _ = run(method, ctx, 1)
    raw = ctx.space.inverse(state["images"][0])
    assert float(raw.max()) > 1.1
    inner = ctx.space.inverse(method.export(ctx, state).images)
    assert float(inner.max()) <= 1 + 1e-5
    assert float(inner.min()) >= -1e-5


def test_the_step_size_of_idc_follows_the_published_rule():
    method = method_of("idc")
    ctx = context(small("idc"))
    data = dataclasses.replace(ctx.data, train=ctx.data.train)
    for ipc, wanted in ((1, 5e-4), (10, 5e-3), (20, 1e-2), (50, 2.5e-2)):
        sized = dataclasses.replace(ctx, synth=(SynthBlock(ipc=ipc),), data=data)
        assert method.rate(sized) == pytest.approx(wanted * 64 / 1024)


def test_exports_carry_decoder_and_recipe():
    for name in PRESETS:
        method = small(name)
        ctx = context(method)
        s = method.export(ctx, method.init(ctx))
        assert len(s.decoded()[0]) == (80 if name == "idc" else 20)
        assert isinstance(s.decode, MultiFormation if name == "idc" else Identity)
        assert s.recipe.epochs == (6 if name == "idc" else 7)
        model = s.train(seed=0)
        assert model(ctx.data.test.pixels[:3]).shape == (3, 10)
    assert s.decode.pad == pytest.approx(((0.5 - ctx.space.mean[0]) / ctx.space.std[0],))


def test_batch_norms_keep_the_statistics_of_real_images_during_a_matching():
    method = small("dc", settle=4)
    net = NetSpec(name="convnet2", width=8, norm="batch")
    ctx = context(method, net=net)
    before = {k: v.clone() for k, v in ctx.net.statistics(ctx.net.theta0).items()}
    theta, seen = ctx.nets.draw(0, 0).theta, {}
    with ctx.net.keeping_statistics(), moving.settled(method, ctx, theta, 0):
        assert not ctx.net.training
        assert ctx.net.separable
        seen = {k: v.clone() for k, v in ctx.net.statistics(theta).items()}
    assert ctx.net.training
    after = ctx.net.statistics(theta)
    assert all(torch.equal(after[k], before[k]) for k in before)
    rows = torch.cat(
        [
            members[torch.randperm(len(members), generator=generator(0, "settle", 0, label))[:4]]
            for label, members in enumerate(class_rows(ctx.data))
        ]
    )
    first = next(k for k in seen if k.endswith("running_mean"))
    conv = ctx.net.load(theta).features[0]
    maps = conv(ctx.space.forward(ctx.data.train.pixels[rows]))
    torch.testing.assert_close(seen[first], maps.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    _, losses = run(method, ctx, 4)
    assert all(map(math.isfinite, losses))


def test_steps_that_are_not_finite_are_undone_and_counted():
    method = small("idc", lr_img=1e30)
    ctx = context(method)
    state = method.init(ctx)
    before = state["images"][0]
    spoilt = {**state, "velocity": (torch.full_like(before, float("nan")),)}
    after, numbers = method.step(ctx, spoilt, 1)
    assert numbers == {"undone": 1.0}
    assert torch.equal(after["images"][0], before)
    assert not after["velocity"][0].any()
    with pytest.raises(WorkError, match="20 outer steps in a row"):
        method.step(ctx, {**spoilt, "failed": 19}, 1)


def test_cost_counts_the_work():
    method = small("idc", networks=2, matches=3)
    ctx = context(method)
    cost = method.cost(ctx)
    n = len(ctx.data.train)
    assert cost.steps == 6
    assert cost.window_images == 6 * 80
    assert cost.task_images == 2 * method.path.steps(2, n) * 16 + 6 * 10 * 6
    pooled = dataclasses.replace(method, pool=NetworkPool(size=5)).cost(ctx)
    assert pooled.disk_bytes == 5 * 3 * ctx.net.numel * 4


def test_mosaics_of_small_classes_repeat_images_and_say_so():
    method = small("idc")
    ctx = context(method, ipc=9)
    (note,) = method.notes(ctx)
    assert note.startswith("Note: 36 real images make the first mosaics of a class")
    assert len(method.init(ctx)["images"][0]) == 90
    assert method.notes(context(method, ipc=2)) == ()


@pytest.mark.parametrize(("ipc", "said"), [(1, True), (10, False), (50, True), (7, False)])
def test_dc_names_the_published_schedule(ipc, said):
    method = method_of("dc")
    ctx = dataclasses.replace(context(small("dc")), synth=(SynthBlock(ipc=ipc),))
    assert bool(method.notes(ctx)) is said
    if said:
        matches, epochs = SCHEDULE[ipc]
        assert f"matches {matches} --method.inner-epochs {epochs}." in method.notes(ctx)[0]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"factor": 0}, "factor must be at least 1, not 0"),
        ({"factor": 1, "decoder": "bound"}, "need a factor of at least 2"),
        ({"lr_img": 0.0}, "lr_img must be above 0"),
        ({"turns": "both"}, "turns"),
        ({"inner_epochs": 3}, "not on both"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\)"),
    ],
)
def test_wrong_settings_are_refused(change, sentence):
    with pytest.raises(InputError, match=sentence):
        small("idc", **change)


def test_settings_that_do_not_fit_the_data_are_refused():
    with pytest.raises(InputError, match="fewer than batch_real, 64"):
        context(small("idc", batch_real=64))
    with pytest.raises(InputError, match="cannot be cut with the factor 7"):
        context(small("idc", factor=7))
    with pytest.raises(InputError, match="bound of 128"):
        context(small("idc", decoder="bound"), ipc=130, limit=None)
    with pytest.raises(InputError, match="no weights of the kind"):
        context(small("idc"), net=NetSpec(name="mlp"))
    with pytest.raises(InputError, match="Features are matched by mse"):
        Match(of="features", distance="cos")
    with pytest.raises(InputError, match=r"need a pool\.size"):
        NetworkPool(keeps="starts")
    with pytest.raises(InputError, match=r"for --pool\.keeps starts"):
        NetworkPool(size=1, first=2)


def test_only_matched_images_are_decoded(monkeypatch):
    """One class at a time; the whole set only for networks that train on it."""
    sizes, take = [], MultiFormation.take

    def watched(self, images, index):
        sizes.append(len(index))
        return take(self, images, index)

    monkeypatch.setattr(MultiFormation, "take", watched)
    method = small("idc", batch_syn=3)
    run(method, context(method), 2)
    assert sizes == [3] * 20


def test_training_images_are_moved_once(monkeypatch):
    moves, real = [], space.moved

    def watched(pixels, device):
        moves.append(device)
        return real(pixels, device)

    monkeypatch.setattr(space, "moved", watched)
    space.at_hand.cache_clear()
    method = small("idc")
    run(method, context(method), method.iterations)
    assert moves == ["cpu"]


def test_an_undone_step_keeps_the_clip_and_moves_the_network_on(monkeypatch):
    method = small("idc")
    ctx = context(method)
    state = method.init(ctx)
    wild = {**state, "images": (state["images"][0] * 1e3,)}
    broken = by_class.Found(torch.tensor(float("nan")), (torch.zeros_like(state["images"][0]),))
    good, _ = method.step(ctx, wild, 0)
    monkeypatch.setattr(gradient_matching, "distances", lambda *_: broken)
    after, numbers = method.step(ctx, wild, 0)
    assert numbers == {"undone": 1.0}
    assert float(ctx.space.inverse(after["images"][0]).max()) <= 1 + 1e-5
    assert torch.equal(after["theta"], good["theta"])


def test_the_width_alone_can_be_cut():
    method = small("idc", axes="width", factor=4)
    ctx = context(method, ipc=1)
    state, _ = run(method, ctx, 2)
    s = method.export(ctx, state)
    assert s.decode.axes == "width"
    assert s.decoded()[0].shape == (40, 1, 8, 8)


def test_decoders_of_several_factors_run():
    for decoder, count in (("multi", 10 * 5), ("bound", 10 * 4)):
        method = small("idc", decoder=decoder)
        ctx = context(method, ipc=1)
        state, _ = run(method, ctx, 2)
        assert len(method.export(ctx, state).decoded()[0]) == count


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("idc", {"inner_lr": 0.1}, "inner_lr .* see no distilled images"),
        ("dm", {"inner_batch": 8}, "inner_batch .* see no distilled images"),
        ("dc", {"settle": 32}, "settle .* without batch norm"),
        ("dm", {"path": NetworkPath(images=0, augment=None, cutmix=0.0, lr=0.5)}, r"path\.lr"),
    ],
)
def test_settings_of_no_effect_are_refused_in_new_runs(name, change, sentence):
    method = dataclasses.replace(small(name), **change)
    with pytest.raises(InputError, match=sentence):
        context(method)
    data = open_data("digits", limit=24)
    ctx = dataclasses.replace(context(small(name)), recorded=True, data=data)
    method.check(ctx)


def test_notes_of_presets_do_not_hide_one_another():
    method = small("dsa", factor=2)
    ctx = context(method, ipc=10)
    assert [note.split()[1] for note in method.notes(ctx)] == ["40", "published"]
