"""Recipes: every constant against the published tables, and what the scales may change."""

from dataclasses import fields, is_dataclass, replace
from functools import lru_cache

import pytest
import torch

from potstill.augment import DSA
from potstill.core.errors import InputError
from potstill.coresets import size_of
from potstill.data import named_stats, open_data
from potstill.experts import ExpertPlan
from potstill.methods.mtt import MTT
from potstill.nets import NetSpec
from potstill.recipes import RECIPES, from_recipe, scaled
from potstill.run import Run, preflight

# Table 11.1 of the reference: N, M, T, batch_syn, ZCA, lr_img, lr_lr, initial beta; then network,
# and from section 12: test accuracy, its std
TABLE = {
    "cifar10 1 convnet3": "50 2 2 - Y 1e2 1e-7 .01 46.2 .8",
    "cifar10 10 convnet3": "30 2 20 - Y 1e2 1e-5 .001 65.4 .7",
    "cifar10 50 convnet3": "30 2 40 - N 1e3 1e-5 .001 71.6 .2",
    "cifar100 1 convnet3": "20 3 20 - Y 1e3 1e-5 .01 24.3 .3",
    "cifar100 10 convnet3": "20 2 20 - N 1e3 1e-5 .01 39.7 .4",
    "cifar100 50 convnet3": "80 2 40 125 Y 1e3 1e-5 .01 47.7 .2",
    "tiny 1 convnet4": "10 2 10 - N 1e4 1e-4 .01 8.8 .3",
    "tiny 10 convnet4": "20 2 40 200 N 1e4 1e-4 .01 23.2 .2",
    "tiny 50 convnet4": "20 2 40 300 N 1e4 1e-4 .01 28.0 .3",
    "imagenette 1 convnet5": "20 2 10 - N 1e5 1e-6 .01 47.7 .9",
    "imagenette 10 convnet5": "20 2 10 20 N 1e5 1e-6 .01 63.0 1.3",
    "imagewoof 1 convnet5": "20 2 10 - N 1e5 1e-6 .01 28.6 .8",
    "imagewoof 10 convnet5": "20 2 10 20 N 1e5 1e-6 .01 35.8 1.8",
    "imagefruit 1 convnet5": "20 2 10 - N 1e5 1e-6 .01 26.6 .8",
    "imagefruit 10 convnet5": "20 2 10 20 N 1e5 1e-6 .01 40.3 1.3",
    "imagemeow 1 convnet5": "20 2 10 - N 1e5 1e-6 .01 30.7 1.6",
    "imagemeow 10 convnet5": "20 2 10 20 N 1e5 1e-6 .01 40.4 2.2",
}
SHAPES = {"cifar10": (3, 32, 32, 10), "cifar100": (3, 32, 32, 100), "tiny": (3, 64, 64, 200)}
CIFAR = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # for CIFAR-100 as well
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MTT_NAMES = ["mtt_{}_ipc{}".format(*key.split()) for key in TABLE]

# What a scale may change: counts of experts, epochs, iterations, images, width, networks.
COUNTS = {
    "method.iterations",
    "method.models",
    "method.life",
    "method.steps",
    "method.expert_epochs",
    "method.max_start_epoch",
    "method.batch_syn",
    "method.evaluation_epochs",
    "method.window.length",
    "method.window.total",
    "method.window.least",
    "method.tasks",
    "method.inner.classes",
    "method.real.batch",
    "method.real.rescore_nets",
    "method.evaluation_steps",
    "method.experts.count",
    "method.experts.epochs",
    "method.networks",
    "method.matches",
    "method.batch_real",
    "method.path.images",
    "method.path.early",
    "method.pool.size",
    "method.pool.first",
    "method.inner_epochs",
    "method.settle",
    "method.pool",
    "method.conditioning_epochs",
    "method.stage_epochs",
    "method.filter.interval",
    "method.filter.training.count",
    "method.filter.training.epochs",
    "method.teacher.training.epochs",
    "method.teacher.training.warmup",
    "method.teacher.training.batch",
    "method.recovery.iterations",
    "method.patches.images",
    "method.use.epochs",
    "net.width",
    "ipc",
    "size",
    "limit",
    "select_every",
}


@pytest.fixture(autouse=True)
def _alone(tmp_path_factory, monkeypatch):
    """All tests share a cache: stand-ins and their whitening, which takes long, are the same."""
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path_factory.getbasetemp() / "recipes"))
    torch.set_num_threads(1)


def test_the_table_is_complete():
    assert sorted(n for n in RECIPES.names() if n.startswith("mtt_")) == sorted(MTT_NAMES)


@pytest.mark.parametrize(("key", "row"), TABLE.items())
def test_every_constant_is_the_published_one(key, row):
    data, ipc, net = key.split()
    n, m, t, batch, zca, lr_img, lr_lr, beta, mean, std = row.split()
    recipe = RECIPES.get(f"mtt_{data}_ipc{ipc}")
    run = recipe.make("parquet:somewhere")
    assert run.method == MTT(
        iterations=5000,
        steps=int(n),
        expert_epochs=int(m),
        max_start_epoch=int(t),
        batch_syn=None if batch == "-" else int(batch),
        lr_img=float(lr_img),
        lr_lr=float(lr_lr),
        lr_init=float(beta),
        momentum=0.5,
        image_init="real",
        augment=DSA(strategy="color_crop_cutout_flip_scale_rotate", mode="S"),
        evaluation_epochs=1000,
        experts=ExpertPlan(
            count=100, epochs=50, lr=0.01, momentum=0.0, weight_decay=0.0, batch=256, augment=DSA()
        ),
    )
    assert (run.data, run.ipc, run.recipe) == (
        "parquet:somewhere",
        int(ipc),
        f"mtt_{data}_ipc{ipc}",
    )
    assert run.net == NetSpec(name=net, width=128, norm="instance", act="relu", pool="avg")
    assert run.resize == (128 if data.startswith("image") else None)
    assert run.limit is None
    if zca == "Y":
        assert run.normaliser == "zca-mtt"
    else:
        space = named_stats(run.normaliser)
        assert (space.mean, space.std) == (CIFAR if data.startswith("cifar") else IMAGENET)
    subset = data.startswith("image")
    assert (run.fit, run.classes) == (("squash", f"{data}@mtt") if subset else ("crop", None))
    assert (*recipe.shape, recipe.classes) == SHAPES.get(data, (3, 128, 128, 10))
    assert (recipe.published.accuracy, recipe.published.std) == (float(mean), float(std))
    assert "2203.11932" in recipe.published.source
    assert recipe.differs == ()


def leaves(value, path=""):
    if is_dataclass(value):
        return {
            k: v
            for f in fields(value)
            for k, v in leaves(getattr(value, f.name), f"{path}.{f.name}".lstrip(".")).items()
        }
    return {path: value}


@pytest.mark.parametrize("scale", ["smoke", "cpu"])
@pytest.mark.parametrize("name", RECIPES.names())
def test_scales_change_counts_only(name, scale):
    full = from_recipe(name, data="parquet:d")
    small = from_recipe(name, data="parquet:d", scale=scale)
    before, after = leaves(full), leaves(small)
    assert before.keys() == after.keys()
    changed = {k for k in before if before[k] != after[k]}
    assert {path.replace("method.base.", "method.") for path in changed - {"scale"}} <= COUNTS
    assert (small.scale, full.scale) == (scale, "full")
    for path in changed - {"scale", "limit"}:
        assert after[path] < before[path], path
    factors = ("method.factor", "method.base.factor", "method.patches.factor")
    cells = next((before[path] for path in factors if path in before), 1) ** 2
    ipc = None if full.ipc is None else min(full.ipc, 10)
    number = full.size is not None and full.size.isdecimal()
    size = str(min(int(full.size), 100)) if number else full.size
    wanted = (ipc, size) if scale == "smoke" else (full.ipc, full.size)
    assert (small.ipc, small.size) == wanted
    most = int(size) if number else (ipc or 0) * cells
    assert after["limit"] == (max(most, 20) if scale == "smoke" else 1000)
    if before["net.width"] is not None:  # networks from outside have none
        assert after["net.width"] * 128 == before["net.width"] * (8 if scale == "smoke" else 32)
    assert scaled(small, scale) == small


@lru_cache
def standin(source, limit):
    return open_data(source, limit=limit)


@pytest.mark.parametrize("name", RECIPES.names())
def test_smoke_needs_no_data(name):
    run = from_recipe(name, data=None, scale="smoke")
    recipe = RECIPES.get(name)
    side, classes = min(recipe.shape[1], 32), min(recipe.classes, 10)
    assert run.data == f"standin:{recipe.shape[0]}x{side}x{classes}"
    assert run.resize is None
    ctx, cost = preflight(run, standin(run.data, run.limit))
    if run.size is not None:
        assert ctx.count == size_of(run.size, len(ctx.data.train))
        assert run.method.iterations == 4 <= cost.steps <= 8
        assert run.method.teacher.of(ctx.net_spec).width <= 4
        return
    if hasattr(run.method, "teacher"):  # images come after the teacher, see `test_recipes_squeeze`
        assert cost.steps == classes
        assert (run.method.teacher.nets, ctx.net_spec.width) == (("own",), 4)
        return
    stages = getattr(run.method, "stages", 1)
    assert cost.steps == run.method.iterations <= 10 * stages
    state = run.method.init(ctx)
    assert [len(x) for x in state["images"]] == [classes * run.ipc // stages]


@pytest.mark.parametrize("name", RECIPES.names())
@pytest.mark.parametrize("scale", ["cpu", "full"])
def test_other_scales_ask_for_the_data(name, scale):
    with pytest.raises(InputError, match=f"The recipe {name} needs .*--data"):
        from_recipe(name, data=None, scale=scale)


def test_unknown_recipes_and_scales():
    with pytest.raises(InputError, match="did you mean 'mtt_cifar10_ipc1'"):
        from_recipe("mtt_cifar10_ip1", data="digits")
    with pytest.raises(InputError, match="scale must be one of smoke, cpu, full, not 'big'"):
        from_recipe("mtt_cifar10_ipc1", data="digits", scale="big")


def test_a_scale_keeps_what_is_smaller_already():
    run = Run(method=MTT(iterations=2), data="digits", ipc=1, limit=5, select_every=0)
    for scale in ("smoke", "cpu"):
        small = scaled(run, scale)
        assert (small.limit, small.method.iterations, small.select_every) == (5, 2, 0)
    assert scaled(replace(run, select_every=1), "cpu").select_every == 1
    assert scaled(run, "full") is run
