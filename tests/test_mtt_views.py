"""MTT on experts that learn from views: its step against plain autograd, its run, its set."""

import json
from dataclasses import replace

import pytest
import torch
from torch.func import functional_call

from mkdt_small import ready, walked
from potstill.artefact import Hard, load, set_digest
from potstill.augment import DSA, SSL
from potstill.core.errors import InputError
from potstill.core.keys import generator
from potstill.core.spec import from_json, to_json
from potstill.core.state import load_tree, save_tree
from potstill.core.store import Store
from potstill.data import from_arrays, open_data
from potstill.evaluation import evaluate, evaluate_pretraining
from potstill.evaluation.pretraining_specs import DistilledViews
from potstill.evaluation.pretraining_tasks import PRETRAINED, open_pretrained
from potstill.experts import Draw, ExpertPlan
from potstill.functional import SGD
from potstill.functional.selfsup import BarlowTwins, SimCLR
from potstill.methods.learning import Learning
from potstill.methods.mtt import MTT
from potstill.nets import HEADS, VIEWS_HEAD, NetSpec, projected
from potstill.run import Run, Where, distil, preflight

NET = NetSpec(name="convnet2", width=8)
METHOD = MTT(
    iterations=4,
    steps=3,
    expert_epochs=1,
    max_start_epoch=2,
    batch_syn=8,
    lr_img=10.0,
    lr_lr=1e-7,
    lr_init=0.002,
    evaluation_epochs=2,
    experts=ExpertPlan(count=2, epochs=2, lr=0.01, batch=64, objective="bt"),
)
RUN = Run(method=METHOD, data="digits", size="19", net=NET, limit=30, threads=1)


def learning(objective, **changes):
    experts = replace(METHOD.experts, objective=objective, **changes.pop("experts", {}))
    return replace(METHOD, experts=experts, **changes)


@pytest.fixture(autouse=True)
def _alone(alone):
    pass


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


class Near:
    """A source of one start and a target a short way off, in float64."""

    def __init__(self, net):
        self.theta = net.theta0.double()

    def draw(self, seed, it):
        chance = generator(seed, "near", it)
        move = 0.02 * torch.randn(len(self.theta), generator=chance, dtype=torch.float64)
        return Draw(theta=self.theta, target=self.theta + move, expert=0, epoch=0)


def barlow(z1, z2):
    """Barlow Twins, dimension by dimension."""
    s1, s2 = ((z - z.mean(0)) / z.std(0) for z in (z1, z2))
    c = s1.T @ s2 / len(s1)
    on = torch.eye(len(c), dtype=torch.bool)
    return ((c[on] - 1) ** 2).sum() + (c[~on] ** 2).sum() / 128


def simclr(z1, z2):
    """NT-Xent at temperature .5, view by view."""
    z = [z / z.norm() for z in (*z1, *z2)]
    n, loss = len(z1), 0
    for i in range(2 * n):
        others = torch.stack([z[i] @ z[j] / 0.5 for j in range(2 * n) if j != i])
        loss = loss - z[i] @ z[(i + n) % (2 * n)] / 0.5 + others.logsumexp(0)
    return loss / (2 * n)


def transcribed(method, ctx, state, policy, loss_of):
    """Return L and its gradients by X and beta by one autograd graph of views written out."""
    draw, x = ctx.nets.draw(ctx.seed, 0), state["images"][0].clone().requires_grad_()
    beta = state["beta"].clone().requires_grad_()
    shape = tuple(x.shape[1:])
    net = projected(NET, HEADS["toy"], channels=shape[0], size=shape[1:], seed=3)
    module = net.load(net.theta0.double()).train()
    names = [name for name, _ in module.named_parameters()]
    sizes = [part.shape for part in module.parameters()]

    def student(theta, images):
        parts = theta.split([size.numel() for size in sizes])
        given = {n: p.view(s) for n, p, s in zip(names, parts, sizes, strict=True)}
        return functional_call(module, given, (images,))

    theta, chance, queue = draw.theta.clone().requires_grad_(), generator(0, "student", 0), []
    for _ in range(method.steps):
        if not queue:
            queue = list(torch.randperm(len(x), generator=chance).split(method.batch_syn))
        rows = queue.pop()
        views = [policy.sample(len(rows), shape, chance) for _ in range(2)]
        z = [student(theta, policy.apply(x[rows], each)) for each in views]
        slope = torch.autograd.grad(loss_of(*z), theta, create_graph=True)[0]
        theta = theta - beta * slope
    far = (theta - draw.target).square().sum() / (draw.theta - draw.target).square().sum()
    return far.detach(), *torch.autograd.grad(far, (x, beta))


def colours():
    pixels = torch.randint(0, 256, (48, 3, 8, 8), generator=generator(0, "test")).byte()
    return from_arrays(pixels, torch.arange(48) % 3, validation=0.25)


@pytest.mark.parametrize(("objective", "plain"), [("bt", barlow), ("simclr", simclr)])
@pytest.mark.parametrize("policy", ["dsa", "ssl"])
def test_both_strategies_are_plain_autograd_in_float64(objective, plain, policy):
    data = colours() if policy == "ssl" else open_data("digits", limit=30)
    method = learning(objective, augment=SSL() if policy == "ssl" else DSA())
    ctx, _ = preflight(replace(RUN, method=method), data)
    own = SSL(mean=ctx.space.mean, std=ctx.space.std)  # colours of these images
    policy = own if policy == "ssl" else method.augment
    ctx = replace(ctx, nets=Near(Learning(method, ctx).net))
    state = method.init(ctx)
    cast = {name: state[name].double() for name in ("beta", "beta_velocity")}
    cast |= {name: (state[name][0].double(),) for name in ("images", "velocity")}
    state = {**state, **cast}
    loss, x_bar, beta_bar = transcribed(method, ctx, state, policy, plain)
    assert len(state["images"][0]) == 19  # minibatches of 3, 8 and 8 images
    for strategy in ("graph", "adjoint"):
        at = replace(ctx, plan=replace(ctx.plan, strategy=strategy))
        new, numbers = method.step(at, state, 0)
        assert numbers["loss"] == pytest.approx(float(loss), rel=1e-12)
        assert x_bar.abs().max() > 0
        assert (new["velocity"][0] - x_bar).norm() < 1e-10 * x_bar.norm()
        torch.testing.assert_close(new["beta_velocity"], beta_bar, rtol=1e-10, atol=0)


@pytest.mark.slow
def test_compiled_steps_are_the_eager_ones(store):
    run = replace(RUN, size="16", net=NetSpec(name="convnet1", width=4))  # batches of one shape
    ctx, found = ready(store, METHOD, run), []
    for compiled in (False, True):
        window = replace(ctx.plan.window, compiled=compiled)
        plan = replace(ctx.plan, strategy="adjoint", window=window)
        found.append(walked(METHOD, replace(ctx, plan=plan), 1)[0]["velocity"][0])
    assert (found[0] - found[1]).norm() < 1e-4 * found[0].norm()


def test_a_run_goes_on_from_any_state_and_its_set_is_for_views(store, tmp_path):
    distil(RUN, tmp_path / "run", where=Where(store=store.root))
    ctx = ready(store, METHOD, RUN)
    state, _ = walked(METHOD, ctx, 2)
    save_tree(tmp_path / "tree", state)
    state, _ = walked(METHOD, ctx, 2, load_tree(tmp_path / "tree"), first=2)
    s = load(tmp_path / "run")
    assert torch.equal(s.images, state["images"][0])
    first = ctx.space.forward(ctx.data.train.pixels)
    began = [
        int((first == x).flatten(1).all(1).nonzero()[0]) for x in METHOD.init(ctx)["images"][0]
    ]
    assert len(set(began)) == len(s) == 19
    assert isinstance(s.targets, Hard)
    assert torch.equal(s.targets.labels, ctx.data.train.labels[began])
    assert s.recipe.lr == float(state["beta"])
    assert (s.recipe.pairs, s.recipe.augment) == (BarlowTwins(lam=1 / 128), DSA())
    assert (s.recipe.batch, s.recipe.epochs) == (256, 3)
    assert '.pretrain("convnet2")' in (tmp_path / "run/distilled/README.md").read_text()
    facts = [json.loads((f / "expert.json").read_text()) for f in ctx.done["experts"]]
    assert all(fact["validation_accuracy"] is None for fact in facts)
    with pytest.raises(InputError, match=r"learn views of its images.*pretrain\(net\) returns"):
        s.train()
    with pytest.raises(InputError, match="potstill probe"):
        evaluate(s, data=ctx.data, store=store)
    plain = s.hardened()
    assert plain.recipe.pairs is None
    assert plain.train()(ctx.data.test.pixels[:3]).shape == (3, 10)
    assert not plain.pretrains


def test_noise_has_a_class_in_turn_and_images_are_all_of_them(store):
    noise = learning("simclr", image_init="noise", batch_syn=None)
    ctx, _ = preflight(replace(RUN, method=noise, size=None, ipc=2), open_data("digits", limit=30))
    own = Learning(noise, ctx)
    assert own.labels.tolist() == [*range(10), *range(10)]
    assert (own.batch, own.count, own.passes) == (20, 20, 2)
    assert own.images[0].shape == (20, 1, 8, 8)
    assert own.pairs == SimCLR(temperature=0.5)
    cost, classes = noise.cost(ctx), replace(noise, experts=ExpertPlan(count=2, epochs=2, batch=64))
    assert cost.window_images == 2 * classes.cost(ctx).window_images
    assert cost.task_images == 2 * classes.cost(ctx).task_images


def test_a_set_is_probed_by_its_own_recipe(store, tmp_path):
    data = open_data("digits", limit=30)
    s = METHOD.export(ctx := ready(store, METHOD, RUN), METHOD.init(ctx))
    given = {"data": data, "store": store, "labels": ["20%"], "seeds": 1}
    found = evaluate_pretraining(s, **given)
    names = ["distilled", "random, views", "balanced random, views", "no pre-training"]
    assert [row.name for row in found.rows] == names
    assert [row.lr for row in found.rows[:3]] == [s.recipe.lr] * 3
    assert found.rows[0].note == found.rows[1].note == "trained on views; 3 steps"
    assert not found.notes
    made = [from_json(entry.spec) for entry in store.entries(PRETRAINED)]
    (spec,) = (each for each in made if isinstance(each.what, DistilledViews))
    assert spec.what == DistilledViews(digest=set_digest(s), head=VIEWS_HEAD)
    assert (spec.train, spec.outputs) == (s.recipe, 128)
    net, encoder = open_pretrained(spec, store.verify(PRETRAINED, spec)), s.pretrain(seed=0)
    x = data.test.pixels[:5]
    assert torch.equal(net(net.theta0, s.space.forward(x)), encoder(x))
    other = replace(s, recipe=replace(s.recipe, optimizer=SGD(), pairs=SimCLR()))
    assert not torch.equal(other.pretrain(seed=0)(x), encoder(x))
    with pytest.raises(InputError, match=r"'mkdt-parity' trains on images that are not augmented"):
        evaluate_pretraining(s, protocol="mkdt-parity", **given)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: learning("kd_mse"), r"not 'kd_mse' \(see mkdt\)"),
        (lambda: learning("bt", augment=None), "from views need an augmentation"),
        (lambda: learning("bt", experts={"augment": None}), "need an augmentation"),
        (lambda: learning("bt", batch_syn=1), "19 images in batches of 1 leave a batch of one"),
        (lambda: learning("bt", batch_syn=9), "19 images in batches of 9 leave a batch of one"),
        (lambda: learning("bt", batch_syn=20), "batch_syn must be at most the 19 images"),
        (lambda: learning("bt", augment=SSL()), "Images with 1 channel have no colours"),
    ],
    ids=("kd_mse", "plain", "plain experts", "one", "one left", "too many", "grey"),
)
def test_what_cannot_work_is_refused_before_anything_starts(make, match):
    with pytest.raises(InputError, match=match):
        preflight(replace(RUN, method=make()), open_data("digits", limit=30))
    for changes, said in (
        ({"select_every": 1}, "those of mtt have no labels"),
        ({"replacement": True}, "replacement says nothing"),
        (
            {"size": "257", "method": learning("bt", batch_syn=255)},
            "257 images in batches of 256",
        ),
    ):
        with pytest.raises(InputError, match=said):
            preflight(replace(RUN, **changes), open_data("digits", limit=30))


def test_plain_mtt_keeps_its_name():
    assert not {"outer"} & to_json(MTT()).keys()
    assert "objective" not in to_json(MTT())["experts"]
    assert not MTT().unlabelled
