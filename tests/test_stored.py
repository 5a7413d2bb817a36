"""Sets with stored labels of views: replayed, saved, cut short."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from labels import whole_logits
from potstill.artefact import (
    Block,
    DistilledSet,
    Hard,
    LabelPlan,
    Provenance,
    label_store,
    load,
    remember,
    set_digest,
    write_labels,
)
from potstill.artefact.labels import epoch_of, views
from potstill.augment import DSA, Crops
from potstill.core.compute import Compute
from potstill.core.errors import InputError
from potstill.core.state import load_tree
from potstill.data import MeanStd
from potstill.data.types import DataRef
from potstill.functional import SGD, Segment, Softened, TrainSpec, fit
from potstill.functional.advance import Replayed
from potstill.nets import FlatNet, NetSpec, build, flat
from potstill.recover.relabel import asking
from potstill.teachers import keep_teacher, open_teacher

SPACE = MeanStd(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))
PLAN = LabelPlan(epochs=3, batch=7, seed=4, codes="float16")
SHAPE, CPU = (3, 10, 12), Compute(threads=1)
RECIPE = TrainSpec(
    lr=0.05,
    segments=(Segment(epochs=4),),  # one more than there are labels
    batch=7,
    optimizer=SGD(momentum=0.9),
    augment=PLAN.crops,
    mix=PLAN.mix,
    lesson=Softened(temperature=2),
)
pytestmark = pytest.mark.usefixtures("alone")


def pictures(n=20):
    chance = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, *SHAPE), generator=chance, dtype=torch.uint8)


def said(plan, epoch, n=20):
    chance = torch.Generator().manual_seed(epoch)
    return 5 * torch.randn(n, 5, generator=chance)


def stored(folder, plan=PLAN, n=20):
    files = [folder / f"{e}.safetensors" for e in range(plan.epochs)]
    for e, file in enumerate(files):
        write_labels(file, said(plan, e, n), plan)
    return label_store(torch.arange(n) % 5, plan, files, classes=5, teachers=("ab" * 32,))


def a_set(targets, images=None, recipe=RECIPE, **changes):
    s = DistilledSet(
        images=pictures() if images is None else images,
        targets=targets,
        space=SPACE,
        recipe=recipe,
        net=NetSpec(name="convnet1", width=4),
        classes=tuple("abcde"),
        ref=DataRef(identity="ab" * 32, validation=0.1),
        origin=Provenance(method="{}", data="x", identity="ab" * 32, seed=0, version="0"),
    )
    return replace(s, **changes)


def linear():
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(360, 5)).double()
    return FlatNet(module)


@pytest.mark.parametrize("scope", ["batch", "image"])
@pytest.mark.parametrize("batch", [7, 5])
def test_training_on_stored_labels_is_a_plain_loop(tmp_path, scope, batch):
    plan = replace(PLAN, mix_scope=scope, codes="uint8")
    store, net, images = stored(tmp_path, plan), linear(), pictures()
    spec = replace(RECIPE, batch=batch, optimizer=SGD())
    chance = torch.Generator().manual_seed(0)
    theta = theta0 = 0.1 * torch.randn(net.numel, generator=chance, dtype=torch.float64)
    found = fit(
        net,
        theta0,
        images,
        store.labels,
        spec,
        seed=0,
        prepare=SPACE.forward,
        replay=store.replay(SHAPE),
    )
    for e in range(4):
        epoch = epoch_of(plan, e, 20, SHAPE)
        x = views(plan, epoch, torch.arange(20), lambda rows: SPACE.forward(images[rows]).double())
        y = load_tree(store.files[e % 3])
        y = y["low"][:, None].float() + y["step"][:, None].float() * y["codes"].float()
        assert (y - said(plan, e % 3)).abs().max() < 0.1
        assert torch.equal(store.logits(e), y)
        for rows in epoch.order.split(batch):
            leaf = theta.clone().requires_grad_()
            q, p = F.log_softmax(net(leaf, x[rows]) / 2, 1), F.softmax(y[rows].double() / 2, 1)
            loss = 4 * F.kl_div(q, p, reduction="batchmean")
            theta = (theta - 0.05 * torch.autograd.grad(loss, leaf)[0]).detach()
    assert torch.allclose(found, theta, rtol=0, atol=1e-12)
    assert not torch.allclose(found, theta0, rtol=0, atol=1e-3)


def test_stored_labels_are_those_online_of_the_same_views(tmp_path):
    net, other = NetSpec(name="resnet10-bn", width=4), MeanStd(mean=(0.5,) * 3, std=(0.25,) * 3)
    module = build(net, channels=3, size=SHAPE[1:], classes=5, seed=0)
    with torch.no_grad():
        module.train()(torch.randn(16, *SHAPE, generator=torch.Generator().manual_seed(0)))
    teacher = keep_teacher(module, tmp_path, net=net, space=other, shape=SHAPE, classes=5)
    frozen, images = open_teacher(teacher, tmp_path), pictures()
    ask = asking(frozen, other, SPACE, CPU, batch=7)
    exact = [whole_logits([ask], SPACE, images, PLAN, e, compute=CPU) for e in range(3)]
    for e, logits in enumerate(exact):
        write_labels(tmp_path / f"{e}.safetensors", logits, PLAN)
    files = [tmp_path / f"{e}.safetensors" for e in range(3)]
    store = label_store(torch.arange(20) % 5, PLAN, files, classes=5)

    def replayed(label):
        def of(e):
            epoch = epoch_of(PLAN, e, 20, SHAPE)

            def batch(rows, inputs):
                x = views(PLAN, epoch, rows, inputs)
                return x, label(e % 3, rows, x)

            return Replayed(order=epoch.order, batch=batch)

        return of

    def online(e, rows, x):
        with torch.no_grad():
            return ask(x)

    def trained(replay):
        student = flat(
            NetSpec(name="convnet1", width=4), channels=3, size=SHAPE[1:], classes=5, seed=0
        )
        spec, x = replace(RECIPE, batch=PLAN.batch), SPACE.forward(images)
        return fit(student, student.theta0, x, store.labels, spec, seed=0, replay=replay)

    live = trained(replayed(online))
    assert torch.equal(live, trained(replayed(lambda e, rows, x: exact[e][rows])))
    far = (live - trained(store.replay(SHAPE))).abs().max()
    assert 0 < far < 1e-3  # of float16


def test_a_set_with_stored_labels_trains_on_them(tmp_path):
    s = a_set(stored(tmp_path))
    model = s.train(seed=3)
    net = flat(s.net, channels=3, size=SHAPE[1:], classes=5, seed=3, key=("train",))
    theta = fit(
        net,
        net.theta0,
        SPACE.forward(s.images),
        s.targets.labels,
        s.recipe,
        seed=3,
        key=("train",),
        replay=s.targets.replay(SHAPE),
    )
    with torch.no_grad():
        assert torch.equal(model(pictures(4)), net.load(theta).eval()(SPACE.forward(pictures(4))))
    hard = s.hardened()
    assert isinstance(hard.targets, Hard)
    assert hard.recipe.lesson is None
    hard.train()


def test_views_of_other_programs_come_with_their_labels(tmp_path):
    other = replace(PLAN, seed=9)
    files = [tmp_path / f"{e}.safetensors" for e in range(3)]
    for e, file in enumerate(files):
        write_labels(file, said(PLAN, e), PLAN, epoch_of(other, e, 20, SHAPE))
    told = label_store(torch.arange(20) % 5, PLAN, files, classes=5)
    (tmp_path / "own").mkdir()
    own, x = stored(tmp_path / "own", other), SPACE.forward(pictures())
    for e in range(4):
        one, two = told.replay(SHAPE)(e), own.replay(SHAPE)(e)
        assert torch.equal(one.order, two.order)
        rows = one.order[3:9]
        pairs = zip(one.batch(rows, x.__getitem__), two.batch(rows, x.__getitem__), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert told.nbytes > own.nbytes


def test_a_round_trip_through_a_folder(tmp_path):
    (tmp_path / "made").mkdir()
    s = a_set(stored(tmp_path / "made"), blocks=(Block(name="b", start=0, stop=20),))
    s.save(tmp_path / "set")
    again = load(tmp_path / "set")
    assert again.targets.plan == PLAN
    assert again.targets.teachers == s.targets.teachers
    assert again.targets.digests == s.targets.digests
    assert set_digest(again) == set_digest(s)
    assert set_digest(again) != set_digest(s.hardened())
    assert again.nbytes() == s.nbytes()
    total = sum(file.stat().st_size for file in s.targets.files)
    assert again.nbytes()["labels"] == total > PLAN.nbytes(20, 5)
    for e, file in enumerate(again.targets.files):
        assert file == (tmp_path / "set" / "labels" / f"epoch-00{e}.safetensors").absolute()
        assert os.path.samefile(file, s.targets.files[e])
        assert torch.equal(again.targets.logits(e), s.targets.logits(e))
    remember(tmp_path / "set", {"mean": 0.5})
    after = load(tmp_path / "set")
    assert after.origin.measured == {"mean": 0.5}
    assert torch.equal(after.targets.logits(2), s.targets.logits(2))
    after.save(tmp_path / "set")  # over itself
    assert torch.equal(load(tmp_path / "set").targets.logits(2), s.targets.logits(2))
    card = (tmp_path / "set" / "README.md").read_text()
    assert "| targets | labels of views |" in card
    assert f"| bytes.labels | {total} |" in card
    assert "| labels of views.codes | float16 |" in card


def test_parts_of_a_set_have_classes_for_labels(tmp_path):
    s = a_set(stored(tmp_path), blocks=(Block(name="b", start=0, stop=20),))
    for part in (s.cut(2), s.taken(torch.arange(20)), s.prefix(1)):
        assert isinstance(part.targets, Hard)
        assert part.recipe.lesson is None
        assert "labels" not in part.nbytes()
    assert s.cut(2).targets.labels.tolist() == [0, 1, 2, 3, 4] * 2


def test_a_store_cut_short_is_told_and_the_set_can_still_be_used(tmp_path):
    (tmp_path / "made").mkdir()
    a_set(stored(tmp_path / "made")).save(tmp_path / "set")
    shard = tmp_path / "set" / "labels" / "epoch-001.safetensors"
    data = shard.read_bytes()
    shard.unlink()
    s = load(tmp_path / "set")
    with pytest.raises(InputError, match=r"epoch 1 of 3 \(0 to 2\) are missing.*classes.*online"):
        s.train()
    with pytest.raises(InputError, match="epoch 1 of 3"):
        s.save(tmp_path / "other")
    assert not (tmp_path / "other").exists()
    s.hardened().train()
    for wrong in (data[:-9], data[:-1] + bytes([data[-1] ^ 1])):
        shard.write_bytes(wrong)
        with pytest.raises(InputError, match=r"epoch 1 of 3.*truncated or altered"):
            s.train()
    write_labels(shard, said(PLAN, 1, 19), PLAN)  # sound, but of other images
    with pytest.raises(InputError, match="truncated or altered"):
        s.targets.logits(1)
    shard.write_bytes(data)
    s.train()


def test_what_does_not_fit_is_refused(tmp_path):
    store = stored(tmp_path)
    with pytest.raises(InputError, match="as many files, not 2"):
        label_store(store.labels, PLAN, store.files[:2], classes=5)
    with pytest.raises(InputError, match="no file"):
        label_store(store.labels, PLAN, [*store.files[:2], tmp_path / "x"], classes=5)
    few = label_store(store.labels[:19], PLAN, store.files, classes=5)
    with pytest.raises(InputError, match="are of 20 images"):
        few.logits(0)
    for changes, words in (
        ({"recipe": replace(RECIPE, lesson=None)}, "with a lesson"),
        ({"recipe": replace(RECIPE, balanced=1)}, "epochs of all images"),
        ({"recipe": replace(RECIPE, augment=DSA())}, "augments and mixes as they do"),
        ({"recipe": replace(RECIPE, mix=None)}, "augments and mixes as they do"),
        ({"recipe": replace(RECIPE, augment=Crops(roll=0.5))}, "augments and mixes"),
        ({"classes": tuple("abcdef")}, "of 5 classes, not 6"),
        ({"targets": replace(store, labels=store.labels[:19])}, "20 images but 19 targets"),
    ):
        with pytest.raises(InputError, match=words):
            replace(a_set(store), **changes)
    net, x = linear(), pictures()
    options = {"seed": 0, "prepare": SPACE.forward, "replay": store.replay(SHAPE)}
    for spec, words in (
        (replace(RECIPE, lesson=None), "has no lesson for its teacher"),
        (replace(RECIPE, balanced=1), "not for stages or class-balanced"),
    ):
        with pytest.raises(InputError, match=words):
            fit(net, net.theta0, x, store.labels, spec, **options)
    with pytest.raises(InputError, match="has two teachers"):
        fit(net, net.theta0, x, store.labels, RECIPE, teach=lambda x: x, **options)
