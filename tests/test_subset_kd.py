"""Subset + KD: which images, with what targets, from which experts; what is refused."""

from dataclasses import replace

import pytest
import torch

from mkdt_small import METHOD, RUN, SELF, ready, walked
from potstill.artefact import load
from potstill.core.errors import InputError
from potstill.core.store import Store
from potstill.coresets import expert_losses, high_loss_order, histogram, proxies, sas_subset
from potstill.data import open_data
from potstill.experts import read_targets
from potstill.experts import train as training
from potstill.methods import encoded
from potstill.methods.mkdt import EXPERTS, MKDT
from potstill.methods.subset_kd import SubsetKD
from potstill.run import Where, distil, preflight
from potstill.teachers import EncoderPlan


@pytest.fixture(autouse=True)
def _alone(alone):
    pass


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


LOSS = SubsetKD(teacher=METHOD.teacher, experts=METHOD.asked)
PLAIN = SubsetKD(teacher=EncoderPlan(training=SELF), choice="random")


def chosen(store, method, ctx=None):
    """Return the set of a method, its context and the targets of all images."""
    ctx = ready(store, method) if ctx is None else ctx
    state, seen = walked(method, ctx, 10)
    targets = read_targets(ctx.done["targets"][0], data=ctx.data.ref)
    made = method.export(ctx, state)
    assert tuple(row["images"] for row in seen) == made.ipc
    return made, ctx, targets


def test_real_images_have_their_own_targets_class_by_class(store):
    made, ctx, targets = chosen(store, LOSS)
    rows, train = torch.tensor(made.origin.rows), ctx.data.train
    losses = expert_losses(tuple(ctx.done["losses"]))
    wanted = high_loss_order(losses)[: ctx.count]
    assert ctx.count == len(rows) > 10
    assert rows.sort().values.tolist() == wanted.sort().values.tolist()
    assert torch.equal(made.images, ctx.space.forward(train.pixels[rows]))
    assert torch.equal(made.targets.values, targets[rows].half().float())
    assert torch.equal(made.targets.classes, train.labels[rows])
    assert bool((made.targets.classes.diff() >= 0).all())
    assert (made.recipe.lr, made.recipe.epochs, made.recipe.loss) == (0.1, 20, "mse")
    opening = LOSS.phases(ctx, ctx.done).opening(ctx, LOSS.init(ctx))
    assert histogram(train.labels, wanted, 10).text() in opening
    half, _ = walked(LOSS, ctx, 5)
    with pytest.raises(InputError, match="whole after its last class"):
        LOSS.export(ctx, half)


def test_the_experts_are_those_of_mkdt(store, tmp_path, monkeypatch):
    for scale in ("full", "cpu", "smoke"):
        mkdt, own = (m if scale == "full" else m.scaled(scale) for m in (MKDT(), SubsetKD()))
        assert mkdt.asked == own.asked
        assert mkdt.teacher == own.teacher
    ready(store)
    trained = []
    for name in ("train_expert", "train_from"):
        monkeypatch.setattr(training, name, lambda *a: trained.append(a))
    assert ready(store, LOSS).done["experts"] == ready(store).done["experts"]
    assert not trained


def test_random_and_sas_train_no_experts(store):
    for choice in ("random", "random-balanced", "sas"):
        ctx = ready(store, method := replace(PLAIN, choice=choice))
        assert set(ctx.done) == {"encoders", "targets"}
        assert method.cost(ctx).disk_bytes < LOSS.cost(ctx).disk_bytes


@pytest.mark.parametrize("choice", ["sas", "random-balanced", "high-loss-balanced"])
def test_clusters_take_the_place_of_classes(store, choice):
    method = replace(LOSS if "loss" in choice else PLAIN, choice=choice)
    made, *_ = chosen(store, method)
    assert max(made.ipc) - min(made.ipc) <= 1
    free = replace(method, groups="clusters", clusters=4)
    blind, ctx, targets = chosen(store, free)
    groups = proxies(targets, 4, seed=0)
    counts = histogram(groups, blind.origin.rows, 4).counts
    assert sum(counts) == ctx.count
    if choice == "sas":
        wanted = torch.cat(sas_subset(targets, groups, ctx.count))
        assert sorted(blind.origin.rows) == wanted.sort().values.tolist()
    else:
        assert max(counts) - min(counts) <= 1
    other = replace(ctx.data.train, labels=ctx.data.train.labels.flip(0))
    again, *_ = chosen(store, free, replace(ctx, data=replace(ctx.data, train=other)))
    assert sorted(again.origin.rows) == sorted(blind.origin.rows)  # whatever the labels are


def test_losses_free_of_the_norm_and_the_released_sas(store):
    made, ctx, targets = chosen(store, replace(LOSS, normalise=True))
    losses = expert_losses(tuple(ctx.done["losses"]))
    wanted = high_loss_order(losses, targets=targets)[: ctx.count]
    assert sorted(made.origin.rows) == wanted.sort().values.tolist()
    assert sorted(made.origin.rows) != sorted(high_loss_order(losses)[: ctx.count].tolist())
    labels, sas = ctx.data.train.labels, replace(PLAIN, choice="sas")
    for method, objective in ((sas, "graph_cut"), (replace(sas, legacy=True), "released")):
        wanted = torch.cat(sas_subset(targets, labels, ctx.count, objective=objective))
        made, *_ = chosen(store, method)
        assert sorted(made.origin.rows) == wanted.sort().values.tolist()
    assert method.legacy


def test_a_run_writes_a_set_whose_card_has_the_histogram(store, tmp_path):
    distil(replace(RUN, method=PLAIN), tmp_path / "run", where=Where(store=store.root))
    made = load(tmp_path / "run")
    assert made.origin.rows
    assert len(set(made.ipc)) > 1
    card = (tmp_path / "run" / "distilled" / "README.md").read_text()
    assert f"| images of each | {', '.join(map(str, made.ipc))} |" in card
    assert f"| classes without an image | {made.ipc.count(0)} |" in card
    assert "real training images, chosen and not changed" in card


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"groups": "clusters"}, "groups 'clusters' are for .* not for choice 'random'"),
        ({"choice": "sas", "clusters": 5}, "5 clusters are for groups 'clusters'"),
        ({"choice": "sas", "normalise": True}, "normalise is for high-loss, not for .* 'sas'"),
        ({"legacy": True}, "legacy is for sas, not for choice 'random'"),
        ({"experts": replace(EXPERTS, count=7)}, "settings of experts are for high-loss, not"),
        ({"choice": "high-loss", "experts": replace(EXPERTS, objective="ce")}, "'kd_mse', not"),
    ],
    ids=str,
)
def test_settings_that_say_nothing_are_refused(changes, match):
    with pytest.raises(InputError, match=match):
        replace(PLAIN, **changes)


def test_targets_that_a_set_cannot_keep_are_refused_before_the_loop(store, monkeypatch):
    ctx = ready(store, PLAIN)
    real = encoded.read_targets
    monkeypatch.setattr(encoded, "read_targets", lambda *a, **k: 1e6 * real(*a, **k))
    with pytest.raises(InputError, match="must be finite and below 65,504"):
        PLAIN.init(ctx)


def test_too_many_clusters_are_refused_before_anything_starts():
    method = replace(PLAIN, choice="sas", groups="clusters", clusters=301)
    with pytest.raises(InputError, match="300 training images make at most 300 clusters"):
        preflight(replace(RUN, method=method), open_data("digits", limit=30))
