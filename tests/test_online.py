"""Labels that a teacher gives online: the lesson, the regime and its protocols."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from potstill.artefact import DistilledSet, Hard, Provenance, Soft
from potstill.augment import Crops, CutMix
from potstill.core.compute import Compute
from potstill.core.errors import InputError
from potstill.core.keys import forked
from potstill.core.spec import canonical
from potstill.core.store import Store
from potstill.coresets.patch_tasks import read_patches
from potstill.data import MeanStd, from_arrays, measure_stats
from potstill.engine import run_tasks
from potstill.evaluation import PROTOCOLS, EvalSpec, evaluate
from potstill.evaluation.lessons import lesson_of
from potstill.evaluation.online import own_teachers
from potstill.evaluation.specs import Online, Real, Taught
from potstill.functional import SGD, Adam, Segment, Softened, TrainSpec, accuracy, fit, predict
from potstill.functional.losses import each
from potstill.functional.optim import Bars
from potstill.nets import FlatNet, NetSpec, build, flat
from potstill.teachers import open_teacher, read_teacher, teacher_tasks
from recorder import Recorder

NET = NetSpec(name="resnet10-bn", width=4)
CONV = NetSpec(name="convnet1", width=4)
CPU = Compute(threads=1)
SHORT = (Segment(epochs=2),)
pytestmark = pytest.mark.usefixtures("alone")


def linear(k: int = 3) -> FlatNet:
    return FlatNet(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, k)).double())


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("squared", [False, True])
def test_the_loss_is_torchs_divergence(squared):
    s, t = normal(6, 5), 3 * normal(6, 5, seed=1)
    p, q = F.log_softmax(t / 4, 1), F.log_softmax(s / 4, 1)
    wanted = F.kl_div(q, p, reduction="batchmean", log_target=True) * (16 if squared else 1)
    loss = Softened(temperature=4, squared=squared)
    assert torch.allclose(loss(s, t), wanted, rtol=1e-14)
    assert torch.allclose(each(loss, s, t).mean(), wanted, rtol=1e-14)
    assert float(loss(s, s)) == 0


def test_training_by_a_teacher_is_a_plain_loop():
    net, teacher = linear(), linear()
    theta0, x, seen = normal(net.numel), normal(10, 1, 2, 2, seed=1), []

    def teach(batch):
        assert not torch.is_grad_enabled()
        seen.append(batch)
        return predict(teacher, 9 * theta0.flip(0), batch)

    spec = TrainSpec(
        lr=0.3,
        segments=(Segment(epochs=3),),
        batch=10,
        optimizer=SGD(),
        augment=Crops(),
        mix=CutMix(prob=1.0),
        lesson=Softened(temperature=4),
    )
    found = fit(net, theta0, x, torch.arange(10) % 3, spec, seed=0, teach=teach)
    assert len(seen) == 3
    assert not torch.equal(seen[0].sort(0).values, x.sort(0).values)  # it saw augmented images
    theta = theta0
    for batch in seen:
        leaf = theta.clone().requires_grad_()
        q = F.log_softmax(net(leaf, batch) / 4, 1)
        p = F.softmax(teacher(9 * theta0.flip(0), batch) / 4, 1)
        loss = 16 * F.kl_div(q, p, reduction="batchmean")
        theta = (theta - 0.3 * torch.autograd.grad(loss, leaf)[0]).detach()
    assert torch.allclose(found, theta, rtol=0, atol=1e-13)
    soft = torch.eye(3, dtype=torch.float64)[torch.arange(10) % 3]
    told = replace(spec, loss="soft_ce")  # targets are not learned
    assert torch.equal(fit(net, theta0, x, soft, told, seed=0, teach=teach), found)


def test_a_lesson_and_a_teacher_belong_together():
    net, x, y = linear(), normal(4, 1, 2, 2), torch.arange(4) % 3
    spec = TrainSpec(lr=0.1, segments=SHORT, augment=None)
    with pytest.raises(InputError, match="has no lesson for its teacher"):
        fit(net, net.theta0, x, y, spec, seed=0, teach=lambda x: x)
    with pytest.raises(InputError, match="needs a teacher"):
        fit(net, net.theta0, x, y, replace(spec, lesson=Softened()), seed=0)
    with pytest.raises(InputError, match="temperature must be above 0"):
        Softened(temperature=0)
    for old in (spec, Adam(weight_decay=0.1)):  # stored work keeps its names
        assert not {"lesson", "decays"} & set(canonical(old).replace('"', " ").split())


@pytest.mark.slow
def test_compiled_equals_eager():
    net = flat(CONV, channels=3, size=(10, 10), classes=4, seed=0)
    x = normal(10, 3, 10, 10).float()
    taught = normal(10, 4).float() * 5

    def run(compute):
        spec = TrainSpec(
            lr=0.5, segments=SHORT, batch=8, augment=None, lesson=Softened(temperature=4)
        )
        where = {tuple(row.flatten()[:3].tolist()): t for row, t in zip(x, taught, strict=True)}
        return fit(
            net,
            net.theta0,
            x,
            torch.arange(10) % 4,
            spec,
            seed=0,
            teach=lambda b: torch.stack([where[tuple(r.flatten()[:3].tolist())] for r in b]),
            compute=compute,
        )

    assert torch.allclose(run(CPU), run(replace(CPU, compiled=True)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("decoupled", [False, True])
def test_adam_decays_weights_only(decoupled):
    with forked(0, "net"):
        module = torch.nn.Sequential(
            torch.nn.Conv2d(1, 2, 1, bias=False),
            torch.nn.BatchNorm2d(2),
            torch.nn.Flatten(),
            torch.nn.Linear(8, 3),
        ).double()
    net, x, y = FlatNet(module), normal(12, 1, 2, 2), torch.arange(12) % 3
    adam = Adam(weight_decay=0.1, decoupled=decoupled, decays="weights")
    spec = TrainSpec(lr=0.01, segments=(Segment(epochs=9),), optimizer=adam, augment=None)
    found = fit(net, net.theta0, x, y, spec, seed=0)
    kinds = [[p for p in module.parameters() if (p.dim() > 1) == many] for many in (True, False)]
    groups = [{"params": p, "weight_decay": d} for p, d in zip(kinds, (0.1, 0.0), strict=True)]
    plain = (torch.optim.AdamW if decoupled else torch.optim.Adam)(groups, lr=0.01)
    for _ in range(9):
        plain.zero_grad()
        F.cross_entropy(module(x), y).backward()
        plain.step()
    wanted = torch.cat([p.detach().flatten() for p in module.parameters()])
    assert torch.allclose(found, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("decoupled", [False, True])
def test_the_pullback_of_a_step_that_decays_weights_only(decoupled):
    adam = Adam(weight_decay=0.3, decoupled=decoupled, decays="weights")
    theta, grad, m, v = (normal(5, seed=k) for k in range(4))
    mask, lr = torch.tensor([1.0, 0, 1, 0, 0]).double(), torch.tensor(0.1).double()
    inputs = [part.requires_grad_() for part in (theta, grad, m, v.square().detach(), lr)]
    bars = [normal(5, seed=k) for k in (5, 6, 7)]
    after, state = adam.update(theta, grad, (m, inputs[3], mask), lr, 2)
    total = sum((out * bar).sum() for out, bar in zip((after, *state[:2]), bars, strict=True))
    wanted = torch.autograd.grad(total, inputs)
    last = Bars(bars[0], grad, (*bars[1:], torch.zeros(5).double()), torch.zeros(()).double())
    with torch.no_grad():
        got = adam.pullback(theta, grad, (m, inputs[3], mask), lr, 2, last)
    for mine, other in zip((got.theta, got.grad, *got.state[:2], got.lr), wanted, strict=True):
        assert torch.allclose(mine, other, rtol=0, atol=1e-12)
    with pytest.raises(InputError, match="only for plain trainings"):
        adam.init(theta)
    with pytest.raises(InputError, match="no effect without weight_decay"):
        Adam(decays="weights")


def a_set(data, *, ipc: int = 2, parents: tuple[str, ...] = ()) -> DistilledSet:
    space, count = measure_stats(data.train), data.n_classes
    rows = [torch.nonzero(data.train.labels == c)[:ipc, 0] for c in range(count)]
    return DistilledSet(
        images=space.forward(data.train.pixels[torch.cat(rows)]),
        targets=Hard(torch.arange(count).repeat_interleave(ipc)),
        space=space,
        recipe=TrainSpec(lr=0.02, segments=SHORT, batch=4, augment=None),
        net=CONV,
        classes=data.classes,
        ref=data.ref,
        origin=Provenance(
            method="{}",
            data="x",
            identity="x",
            seed=0,
            version="0",
            iteration=0,
            parents=parents,
        ),
    )


def of_size(ipc: int, classes: int) -> DistilledSet:
    """Return a set of noise."""
    names, labels = [str(c) for c in range(classes)], torch.arange(classes).repeat_interleave(ipc)
    x = normal(len(labels), 3, 8, 8).float()
    return replace(a_set(colours()), images=x, targets=Hard(labels), classes=tuple(names))


def falling(e: int, epochs: int, zeta: float = 1.0) -> float:
    return 0.5 * (1 + math.cos(math.pi * e / (zeta * epochs)))


ADAMW = Adam(betas=(0.9, 0.999), weight_decay=0.01, decoupled=True, decays="weights")
# As published: batch of 10 images of 5 classes, optimizer, T, x T^2, CutMix, smallest crop, steps
PUBLISHED = {
    "tiny-kd": (
        *(256, SGD(momentum=0.9, weight_decay=1e-4), True, None, 0.08),
        [0.2 * (0.01 + 0.99 * e / 5) for e in range(5)] + [0.2 * falling(e, 95) for e in range(95)],
    ),
    "sre2l-fkd": (1024, ADAMW, False, 1.0, 0.08, [1e-3 * falling(e, 300) for e in range(300)]),
    "cda-in1k": (128, ADAMW, False, 1.0, 0.08, [1e-3 * falling(e, 300) for e in range(300)]),
    "rded": (10, ADAMW, False, 1.0, 1.0, [1e-3 * falling(e, 300, 2) for e in range(300)]),
}


@pytest.mark.parametrize(("name", "row"), PUBLISHED.items())
def test_golden_trace_on_10_images(name, row):
    batch, optimizer, squared, cutmix, least, steps = row
    s, rules = of_size(2, 5), PROTOCOLS.get(name)
    spec = rules.suited(s).train_spec(s.recipe)
    assert (spec.batch, spec.optimizer) == (batch, optimizer)
    assert rules.lesson == Softened(temperature=20, squared=squared)
    assert spec.augment == Crops(scale=(least, 1.0))
    assert spec.mix == (None if cutmix is None else CutMix(prob=cutmix, beta=1.0))
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5)).double()
    recorder, net = Recorder(".6g"), FlatNet(module)
    traced = replace(spec, optimizer=recorder, augment=None, mix=None)
    fit(net, net.theta0, s.images, s.targets.labels, traced, seed=0)
    expected = [f"{lr:.6g} step {k}" for k, lr in enumerate(steps)]
    assert recorder.calls == ["reset", *expected]


def test_batches_of_rded():
    rules = PROTOCOLS.get("rded")

    def batch(ipc: int, classes: int) -> int | None:
        return rules.suited(of_size(ipc, classes)).batch

    assert [batch(ipc, 10) for ipc in (1, 5, 10, 50)] == [10, 50, 50, 100]
    assert [batch(ipc, 100) for ipc in (1, 10, 50)] == [20, 100, 200]
    assert batch(1, 200) == 100  # Tiny-ImageNet


def colours(count=120, classes=4, size=10):
    """Return data whose classes are colours in noise."""
    chance = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % classes
    means = torch.tensor([[200.0, 60, 60], [60, 200, 60], [60, 60, 200], [180, 180, 60]])
    x = means[labels][:, :, None, None]
    x = x + 40 * torch.randn(count, 3, size, size, generator=chance)
    half = {"test_images": x[:40].byte(), "test_labels": labels[:40]}
    return from_arrays(x.clamp(0, 255).byte(), labels, validation=0.2, **half)


SQUEEZED = TrainSpec(
    lr=0.1, segments=(Segment(epochs=4),), batch=20, optimizer=SGD(momentum=0.9), augment=None
)
SPACE = MeanStd(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.2))  # another than the set's


@pytest.fixture
def squeezed(tmp_path):
    """Return data, store, and a finished teacher with its folder."""
    data, store = colours(), Store(tmp_path / "store")
    (folder,) = run_tasks(teacher_tasks(data, SPACE, NET, SQUEEZED, seed=0, compute=CPU), store)
    return data, store, read_teacher(folder), folder


def test_the_sets_own_teacher_labels_all_rows(squeezed, monkeypatch):
    data, store, teacher, folder = squeezed
    s = a_set(data, parents=(f"teacher {teacher.digest}",))
    rules = replace(PROTOCOLS.get("tiny-kd"), segments=SHORT, seeds=1)
    monkeypatch.setitem(PROTOCOLS._things, "tiny-kd", rules)
    result = evaluate(s, data=data, protocol="tiny-kd", store=store)
    assert {row.regime for row in result.rows} == {"online"}  # the protocol's own
    names = [f"{name}, own step" for name in ("random real", "k-means medoid", "RDED")]
    assert [row.name for row in result.rows] == ["distilled", *names]
    assert all("teacher of the set, a resnet10-bn" in row.note for row in result.rows)
    module = build(NET, channels=3, size=(10, 10), classes=4, seed=0)
    nbytes = sum(part.nbytes for part in module.state_dict().values())
    assert {row.nbytes["teacher"] for row in result.rows} == {nbytes}
    assert {row.nbytes["targets"] for row in result.rows} == {8 * len(s)}
    assert not (store.root / "experts").exists()  # no other teacher was trained
    hard = evaluate(s, data=data, seeds=1, store=store).rows  # RDED's images have classes, too
    assert {row.regime for row in hard} == {"hard"}
    assert "RDED, own step" in [row.name for row in hard]

    # what a network learned is what a plain training by that teacher makes of it
    taught, forward = open_teacher(teacher, folder), s.space.forward
    patches = [read_patches(each.folder)["images"] for each in store.entries("patches")]
    easy = [each.flatten(0, 1) for each in patches]
    order = sorted(range(4), key=lambda k: store.entries("patches")[k].spec["classes"])
    for row, x in ((0, s.images), (3, forward(torch.cat([easy[k] for k in order])))):
        net = flat(CONV, channels=3, size=(10, 10), classes=4, seed=0, key=("evaluate",))
        theta = fit(
            net,
            net.theta0,
            x,
            s.targets.labels,
            replace(rules.train_spec(s.recipe), lesson=rules.lesson),
            seed=0,
            key=("evaluate",),
            teach=lambda x: taught(SPACE.forward(s.space.inverse(x))),
            compute=CPU,
        )
        got = accuracy(net, theta, data.test.pixels, data.test.labels, prepare=forward, compute=CPU)
        assert got == result.rows[row].accuracies[0]


def test_a_committee_says_the_mean_of_its_logits(squeezed):
    data, store, one, first = squeezed
    (second,) = run_tasks(teacher_tasks(data, SPACE, NET, SQUEEZED, seed=1, compute=CPU), store)
    two = read_teacher(second)
    s = a_set(data, parents=(f"teacher {one.digest}", "other", f"teacher {two.digest}"))
    spec = EvalSpec(
        what=Real(indices=(0, 1, 2, 3)),
        labels=Online(teachers=(one, two)),
        net=CONV,
        train=replace(s.recipe, lesson=Softened()),
        seed=0,
        data=data.ref,
        space=s.space,
        compute=CPU,
    )
    lesson = lesson_of(spec, {one.digest: str(first), two.digest: str(second)})
    x = SPACE.forward(s.space.inverse(s.images))
    wanted = (open_teacher(one, first)(x) + open_teacher(two, second)(x)) / 2
    assert lesson.teach is not None
    assert torch.allclose(lesson.teach(s.images), wanted, rtol=0, atol=1e-5)
    assert set(own_teachers(s, data, store)) == {one, two}
    soft = replace(spec, labels=Taught(teachers=(one, two)), train=s.recipe)
    told = lesson_of(soft, {one.digest: str(first), two.digest: str(second)}).targets
    x = SPACE.forward(data.train.pixels[[0, 1, 2, 3]])
    wanted = ((open_teacher(one, first)(x) + open_teacher(two, second)(x)) / 2).softmax(1)
    assert torch.allclose(told, wanted, rtol=0, atol=1e-5)
    rows = evaluate(s, data=data, regimes="soft", seeds=1, baselines=False, store=store).rows
    assert {row.note[:35] for row in rows} == {"soft labels by the teacher of the s"}
    assert not (store.root / "experts").exists()
    with pytest.raises(InputError, match="holds another teacher"):
        lesson_of(spec, {one.digest: str(second), two.digest: str(second)})


def test_regimes_side_by_side_and_a_teacher_that_is_trained(squeezed):
    data, store, *_ = squeezed
    hard = a_set(data, parents=("teacher 0123",))  # which the store has not
    options = {"data": data, "seeds": 1, "baselines": False, "store": store}
    found = evaluate(hard, regimes=("hard", "soft", "online"), **options)
    assert [row.regime for row in found.rows] == ["hard", "soft", "online"]
    assert found.rows[0] == evaluate(hard, **options).rows[0]
    assert found.rows[2].note == "labels online by a convnet1 width 4"
    assert "teacher" not in found.rows[1].nbytes
    chances = 0.4 * F.one_hot(hard.targets.labels, 4).float() + 0.15
    soft = replace(hard, targets=Soft(chances), recipe=replace(hard.recipe, loss="soft_ce"))
    again = evaluate(soft, regimes="online", **options)
    assert again.rows[0].accuracies == found.rows[2].accuracies  # its own labels are not read
    with pytest.raises(InputError, match="hard labels only"):
        evaluate(hard, regimes="online", protocol="mtt", **options)


def test_a_teacher_of_other_data_is_refused(squeezed):
    _, store, teacher, _ = squeezed
    data = colours(size=12)
    s = a_set(data, parents=(f"teacher {teacher.digest}",))
    with pytest.raises(InputError, match="The teacher is for 4 classes of images"):
        evaluate(s, data=data, regimes="online", seeds=1, store=store)
