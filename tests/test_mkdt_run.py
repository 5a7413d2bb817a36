"""MKDT's first images, its run from start to end, and what it refuses."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from mkdt_small import METHOD, NET, RUN, ready, walked
from potstill.artefact import Embedding, load
from potstill.core.errors import InputError
from potstill.core.state import load_tree, save_tree
from potstill.core.store import Store
from potstill.coresets import expert_losses, histogram, subset_rows
from potstill.data import open_data
from potstill.experts import ExpertPlan, Trajectory, read_targets
from potstill.methods import method_of
from potstill.methods.encoded import student_of
from potstill.methods.mkdt import EXPERTS, MKDT
from potstill.methods.mtt import MTT
from potstill.nets import build
from potstill.run import Where, distil, preflight
from potstill.teachers import EncoderPlan, read_encoder


@pytest.fixture(autouse=True)
def _alone(alone):
    pass


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


ONE = replace(METHOD.experts, count=1)


def test_the_first_images_are_those_that_experts_fit_worst(store):
    ctx = ready(store)
    train, losses = ctx.data.train, 0
    targets = read_targets(ctx.done["targets"][0], data=ctx.data.ref)
    module = build(NET, channels=1, size=(8, 8), classes=targets.shape[1], seed=0)
    for folder in ctx.done["experts"]:
        torch.nn.utils.vector_to_parameters(Trajectory(folder).row(1), module.parameters())
        with torch.no_grad():
            out = module.eval()(ctx.space.forward(train.pixels))
        losses += F.mse_loss(out, targets, reduction="none").mean(1) / 3
    state = METHOD.init(ctx)
    rows = losses.argsort(descending=True)[: len(state["rows"])]
    assert ctx.count == len(rows) == int(0.05 * len(train)) > 10
    assert state["rows"].sort().values.tolist() == rows.sort().values.tolist()
    assert torch.equal(state["images"][1], targets[state["rows"]])
    assert torch.equal(state["images"][0], ctx.space.forward(train.pixels[state["rows"]]))
    text = METHOD.phases(ctx, ctx.done).opening(ctx, state)
    assert histogram(train.labels, rows, 10).text() in text


def test_subsets(store):
    ctx = ready(store)
    targets = read_targets(ctx.done["targets"][0], data=ctx.data.ref)
    losses, labels = expert_losses(tuple(ctx.done["losses"])), ctx.data.train.labels
    given = {"groups": labels, "targets": targets, "losses": losses, "seed": 0}
    for name in ("high-loss", "high-loss-balanced", "random", "random-balanced"):
        large, small = (subset_rows(name, n, **given) for n in (60, 20))
        assert torch.equal(large[:20], small)
        counts = histogram(labels, small, 10).counts
        assert (set(counts) == {2}) == name.endswith("balanced")
        assert len(set(large.tolist())) == 60
    assert set(histogram(labels, subset_rows("sas", 20, **given), 10).counts) == {2}
    others = {**given, "seed": 1}
    assert not torch.equal(subset_rows("random", 20, **given), subset_rows("random", 20, **others))
    with pytest.raises(InputError, match=r"subset.*fancy"):
        subset_rows("fancy", 20, **given)
    with pytest.raises(InputError, match="'high-loss' needs the losses of experts"):
        subset_rows("high-loss", 20, **{**given, "losses": None})


def test_a_run_saves_its_last_state_and_goes_on_from_any(store, tmp_path, capsys):
    where = Where(store=store.root)
    made = distil(RUN, tmp_path / "run", where=where)
    ctx = ready(store)
    state, _ = walked(METHOD, ctx, 2)
    save_tree(tmp_path / "tree", state)
    state, _ = walked(METHOD, ctx, 2, load_tree(tmp_path / "tree"), first=2)
    back = load(tmp_path / "run")
    assert torch.equal(back.images, state["images"][0])
    assert torch.equal(made.images, back.images)
    assert isinstance(back.targets, Embedding)
    assert torch.equal(back.targets.values, state["images"][1].half().float())
    assert torch.equal(back.targets.own, ctx.data.train.labels[state["rows"]])
    encoder = read_encoder(ctx.done["encoders"][0])
    assert (back.targets.by.digest, back.targets.by.scale) == (encoder.digest, "raw")
    assert back.recipe.lr == float(state["beta"])
    assert (back.recipe.loss, back.recipe.epochs) == ("mse", 20)
    assert back.origin.iteration == 4
    rows = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    features = back.pretrain(seed=0)(ctx.data.test.pixels)
    assert features.shape == (len(ctx.data.test), 32)


def test_standardised_targets_have_mean_0_and_std_1(store):
    method = replace(METHOD, targets="standardised", image_init="random", experts=ONE)
    ctx = ready(store, method)
    targets = read_targets(ctx.done["targets"][0], data=ctx.data.ref)
    assert float(targets.mean(0).abs().max()) < 1e-5
    assert method.export(ctx, method.init(ctx)).targets.by.scale == "standardised"


def test_targets_of_other_data_or_another_width_are_refused(store):
    ctx = ready(store)
    other = open_data("digits", limit=29)
    with pytest.raises(InputError, match="belong to another part of the data"):
        METHOD.init(replace(ctx, data=other))
    narrow = replace(METHOD, teacher=replace(METHOD.teacher, net="convnet1"))
    with pytest.raises(InputError, match="have 32 dimensions, not"):
        narrow.init(ctx)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"method": METHOD, "size": "2 percent"}, "size is a percentage such as 2%"),
        ({"method": METHOD, "size": "0%"}, "size must be 1 to all of the"),
        ({"method": METHOD, "size": "9999"}, "size must be 1 to all of the 300 images.*'9999'"),
        ({"method": METHOD, "size": None}, "ipc.*or size"),
        ({"method": METHOD, "ipc": 3}, "not both"),
        ({"method": METHOD, "ipc": 31, "size": None}, "ipc 31 of 10 classes makes 310 images"),
        ({"method": METHOD, "replacement": True}, "replacement says nothing"),
        ({"method": METHOD, "select_every": 1}, "no labels"),
        ({"method": method_of("mtt")}, "size '5%' is for methods without classes.*mtt"),
        ({"method": method_of("boost:mtt")}, "size '5%'.*boost:mtt"),
        ({"method": replace(METHOD, max_start_epoch=6)}, "need experts of 6 epochs"),
        ({"method": replace(METHOD, teacher=EncoderPlan(net="resnet18@none.pt"))}, "none.pt"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused_before_anything_starts(changes, match):
    with pytest.raises(InputError, match=match):
        preflight(replace(RUN, **changes), open_data("digits", limit=30))


@pytest.mark.parametrize("wrapper", ["boost", "progressive"])
def test_schedules_over_classes_do_not_take_it(wrapper):
    with pytest.raises(InputError, match="not mkdt"):
        method_of(f"{wrapper}:mkdt")


def test_experts_of_the_other_kind_are_refused():
    with pytest.raises(InputError, match="'kd_mse', not 'ce'"):
        MKDT(experts=ExpertPlan())
    with pytest.raises(InputError, match="'ce', not 'kd_mse'"):
        MTT(experts=EXPERTS)


def test_a_set_by_ipc_has_as_many_images():
    run = replace(RUN, ipc=3, size=None)
    assert preflight(run, open_data("digits", limit=30))[0].count == 30


def test_losses_of_a_network_with_batch_norm_use_its_own_statistics(store):
    net = replace(NET, norm="batch")
    ctx = ready(store, run=replace(RUN, net=net))
    found = expert_losses(tuple(ctx.done["losses"]))[0]
    targets = read_targets(ctx.done["targets"][0], data=ctx.data.ref)
    module = student_of(METHOD.teacher, ctx).load(Trajectory(ctx.done["experts"][0]).row(1))
    images = ctx.space.forward(ctx.data.train.pixels)
    with torch.no_grad():
        blind, own = (F.mse_loss(module.train(mode)(images), targets) for mode in (False, True))
    assert float(found.mean()) == pytest.approx(float(own), rel=0.02)
    assert abs(blind - own) > 0.1 * own
