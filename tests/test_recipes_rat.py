"""RaT-BPTT's recipes: every constant against the published tables, presets, marks."""

from __future__ import annotations

import pytest

from potstill import cli
from potstill.augment import RAT
from potstill.data import named_stats
from potstill.functional import Adam
from potstill.methods.inner import Inner
from potstill.methods.outer import Clip
from potstill.methods.ratbptt import RaTBPTT
from potstill.methods.real import RealImages
from potstill.methods.windows import Window
from potstill.nets import NetSpec
from potstill.recipes import RECIPES

# Sections 13 and 14 of the reference: network, ZCA, labels, classes x images of a student step,
# real batch, M/T, start, outer lr, test every (epochs); then test accuracy and std. Those without a
# public command follow a star.
TABLE = {
    "cifar10_ipc10": "convnet3 Y hard 10x10 5000 60/200 random 1e-3 25 69.4 .4",
    "cifar100_ipc10": "convnet3 Y soft 100x1 5000 100/300 random 1e-3 25 47.5 .2",
    "cifar100_ipc1": "convnet3 Y soft 100x1 5000 90/130 fixed 3e-4 50 35.3 .4",
    "tiny_ipc10": "convnet4 Y soft 50x1 1000 100/300 random 3e-4 10 24.4 .2",
    "tiny_ipc10_fixed": "convnet4 Y soft 50x1 2000 90/270 fixed 3e-4 10 24.4 .2",
    "imagenet_ipc1": "convnet4 N soft 50x1 1500 80/280 fixed 3e-4 1 10.8 .4",
    "cifar10_ipc1": "* convnet3 Y hard 10x1 5000 60/200 random 1e-3 25 53.2 .7",
    "cifar10_ipc50": "* convnet3 Y hard 10x10 5000 60/200 random 1e-3 25 75.3 .3",
    "cifar100_ipc50": "* convnet3 Y soft 100x1 5000 100/300 random 1e-3 25 50.6 .2",
    "tiny_ipc1": "* convnet4 Y soft 50x1 1000 100/300 random 3e-4 10 20.1 .3",
    "cub200_ipc1": "* convnet3 Y soft 200x1 3000 60/200 random 1e-3 25 13.8 .3",
    "cub200_ipc10": "* convnet3 Y soft 200x1 3000 60/200 random 1e-3 25 17.7 .2",
    "imagenet_ipc10": "* convnet4 N soft 50x1 1500 80/280 fixed 3e-4 1 13.0 .9",
}
CLASSES = {"cifar10": 10, "cifar100": 100, "tiny": 200, "cub200": 200, "imagenet": 1000}
TRAINING = {
    "cifar10": 50_000, "cifar100": 50_000, "tiny": 100_000, "cub200": 5994, "imagenet": 1_281_167,
}  # fmt: skip
STARTS = {"cifar100_ipc1": 40, "tiny_ipc10_fixed": 180, "imagenet_ipc1": 200}
RELEASED = {"cifar10_ipc10": 1825 * 10, "cifar100_ipc1": 5200 * 10}  # epochs x outer steps in each
CLEAN = {f"{key}_clean" for key in TABLE}


def test_the_table_is_complete():
    names = {n for n in RECIPES.names() if n.startswith("ratbptt_")}
    assert names == {f"ratbptt_{key}" for key in (*TABLE, *CLEAN)}


@pytest.mark.parametrize(("key", "row"), TABLE.items())
def test_every_constant_is_the_published_one(key, row):
    inferred = row.startswith("*")
    net, zca, labels, subset, batch, window, place, lr, every, mean, std = row.strip("* ").split()
    data, ipc = key.split("_")[0], int(key.split("_")[1].removeprefix("ipc"))
    (m, t), (classes, images) = map(int, window.split("/")), map(int, subset.split("x"))
    recipe = RECIPES.get(f"ratbptt_{key}")
    run = recipe.make("parquet:somewhere")
    assert run.method == RaTBPTT(
        iterations=RELEASED.get(key, 20_000),
        window=Window(length=m, total=t, place=place, redraw="epoch", least=0),
        tasks=1,
        inner=Inner(
            optimizer=Adam(betas=(0.9, 0.999), eps=1e-8, eps_mode="torch"),
            window_eps="higher021",
            lr=1e-3,
            classes=None if classes == CLASSES[data] else classes,
            images=images,
            augment=RAT(mode="S", flip_prob=0.5, rotate=15.0),
        ),
        real=RealImages(batch=int(batch), sampling="uniform", augment=RAT()),
        labels="hard" if labels == "hard" else "raw",
        image_init="unit-noise",
        lr_img=float(lr),
        lr_label=float(lr),
        lr_lr=0.0,
        clip=Clip(weight=0.9, factor=2.0, labels=False),
    )
    assert STARTS.get(key, t - m) == t - m
    assert (run.ipc, run.recipe, run.data) == (ipc, f"ratbptt_{key}", "parquet:somewhere")
    assert run.net == NetSpec(name=net, width=128, norm="instance", act="relu", pool="avg")
    if zca == "Y":
        assert run.normaliser == ("zca-kip:full" if data == "tiny" else "zca-kip")
    else:
        space = named_stats(run.normaliser)
        assert (space.mean, space.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    side = 64 if net == "convnet4" else 32
    resized = data in ("cub200", "imagenet")
    assert (run.resize, run.fit) == ((side, "squash") if resized else (None, "crop"))
    steps = int(every) * TRAINING[data] / int(batch)
    assert run.select_every == pytest.approx(steps, rel=0.01)
    assert (*recipe.shape, recipe.classes) == (3, side, side, CLASSES[data])
    assert (recipe.published.accuracy, recipe.published.std) == (float(mean), float(std))
    assert recipe.settings == ("inferred" if inferred else "published")
    assert any("20,000 outer steps" in text for text in recipe.differs) == (key not in RELEASED)
    assert any("ZCA" in text for text in recipe.differs) == (data == "tiny")
    assert len(recipe.differs) == (key not in RELEASED) + (data == "tiny")


def test_sources_carry_their_marks(capsys):
    for key in TABLE:
        source = RECIPES.get(f"ratbptt_{key}").published.source
        rerun, recalled = key == "imagenet_ipc10", key == "imagenet_ipc1" or "cub200" in key
        assert ("rerun" in source, "unverified" in source) == (rerun, recalled)
        assert RECIPES.get(f"ratbptt_{key}").published.verified == (not rerun and not recalled)
    assert cli.run(["recipes"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    for key, row in TABLE.items():
        line = lines[f"ratbptt_{key}"]
        assert ("settings inferred" in line) == row.startswith("*")
        assert ("20,000 outer steps" in line) == (key not in RELEASED)


@pytest.mark.parametrize("key", sorted(CLEAN))
def test_clean_changes_what_it_names_only(key):
    recipe = RECIPES.get(f"ratbptt_{key}")
    own = recipe.make("digits").method
    method = RECIPES.get(f"ratbptt_{key.removesuffix('_clean')}").make("digits").method
    each, fixed = RAT(mode="M"), method.window.place == "fixed"
    assert (own.window.redraw, own.window.least) == (("epoch", 0) if fixed else ("step", 10))
    assert own.inner.window_eps is None
    assert (own.inner.augment, own.real.augment) == (each, each)
    assert own.labels == {"hard": "hard", "raw": "simplex"}[method.labels]
    assert (own.inner.optimizer, own.iterations, own.real.batch, own.clip) == (
        method.inner.optimizer,
        method.iterations,
        method.real.batch,
        method.clip,
    )
    reference = RECIPES.get(f"ratbptt_{key.removesuffix('_clean')}")
    assert recipe.differs == ("preset clean instead of reference", *reference.differs)
