"""PDD's recipes: every constant against the published tables, and the marks of its numbers."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from potstill.augment import DSA
from potstill.coresets import RealFilter
from potstill.data import named_stats
from potstill.experts import ExpertPlan, NetworkPath, NetworkPool
from potstill.functional import TrainSpec, idc_segments, mtt_segments
from potstill.methods import SynthBlock
from potstill.methods.condensation import IDCMethod
from potstill.methods.mtt import MTT
from potstill.methods.progressive import Progressive
from potstill.nets import NetSpec, filled
from potstill.recipes import RECIPES, from_recipe

# Section 11.2 of the reference on trajectory matching: final IPC, IPC a stage, N, M, T, ZCA,
# lr_img, lr_lr, batch_syn, epochs of experts; then from section 12: test accuracy (unverified)
OVER_MTT = {
    "cifar10": ("10 2 50 2 5 Y 1e3 1e-7 - 50 66.9", "50 10 30 2 15 Y 1e3 1e-5 - 50 74.2"),
    "cifar100": ("10 2 20 3 20 Y 1e3 1e-5 - 50 43.1", "50 10 20 2 20 Y 1e3 1e-5 512 50 52.0"),
    "tiny": ("10 2 20 2 20 N 1e4 1e-4 64 24 27.3",),
}
# Sections 4.1 and 8.2 of that on gradient matching: final IPC, IPC a stage, niter of a stage, step
# size of the images; test accuracy, std; V = confirmed in the public review, ? = unverified
OVER_IDC = {
    "cifar10": ("10 2 2000 1e-3 67.9 - V", "50 10 2000 5e-3 76.5 .4 ?"),
    "cifar100": ("10 2 2000 1e-3 45.8 - V", "50 10 1000 5e-3 53.1 .4 ?"),
}
SHAPES = {"cifar10": (3, 32, 32, 10), "cifar100": (3, 32, 32, 100), "tiny": (3, 64, 64, 200)}
MTT_ROWS = [(data, row) for data, rows in OVER_MTT.items() for row in rows]
IDC_ROWS = [(data, row) for data, rows in OVER_IDC.items() for row in rows]


def test_the_tables_are_complete():
    names = {f"pdd-mtt_{data}_ipc{row.split()[0]}" for data, row in MTT_ROWS}
    names |= {f"pdd-idc_{data}_ipc{row.split()[0]}" for data, row in IDC_ROWS}
    assert {name for name in RECIPES.names() if name.startswith("pdd")} == names


def progressive(data, ipc, each, kind):
    """The recipe and the run, after what all of PDD's have in common."""
    recipe = RECIPES.get(f"pdd-{kind}_{data}_ipc{ipc}")
    run = recipe.make("parquet:somewhere")
    method = run.method
    assert (run.ipc, run.ipc // method.stages) == (int(ipc), int(each))
    assert (run.data, run.recipe) == ("parquet:somewhere", f"pdd-{kind}_{data}_ipc{ipc}")
    assert run.net == filled(NetSpec(name="convnet4" if data == "tiny" else "convnet3"))
    assert (run.resize, run.fit, run.classes, run.limit) == (None, "crop", None, None)
    assert (*recipe.shape, recipe.classes) == SHAPES[data]
    assert recipe.settings == "published"
    assert (method.stages, method.union, method.filter) == (5, "dilute", RealFilter())
    assert "2310.06982" in recipe.published.source
    assert ("unverified" in recipe.published.source) is not recipe.published.verified
    return recipe, run, method


@pytest.mark.parametrize(("data", "row"), MTT_ROWS)
def test_pdd_over_mtt_is_as_published(data, row):
    ipc, each, n, m, t, zca, lr_img, lr_lr, batch, epochs, accuracy = row.split()
    recipe, run, method = progressive(data, ipc, each, "mtt")
    assert method == Progressive(
        base=MTT(
            iterations=5000,
            steps=int(n),
            expert_epochs=int(m),
            max_start_epoch=int(t),
            batch_syn=None if batch == "-" else int(batch),
            lr_img=float(lr_img),
            lr_lr=float(lr_lr),
            lr_init=0.01,
            momentum=0.5,
            image_init="real",
            augment=DSA(),
            evaluation_epochs=1000,
            experts=ExpertPlan(count=100, epochs=int(epochs), lr=0.01, batch=256, augment=DSA()),
        ),
        stages=5,
    )
    if zca == "Y":
        assert run.normaliser == "zca-mtt"
    else:
        assert named_stats(run.normaliser) == named_stats("tiny@mtt")
    assert run.select_every == 500
    published = recipe.published
    assert (published.accuracy, published.std) == (float(accuracy), None)
    assert published.verified is False
    assert recipe.differs == ()
    assert len(recipe.notes) == 2


@pytest.mark.parametrize(("data", "row"), IDC_ROWS)
def test_pdd_over_idc_is_as_published(data, row):
    ipc, each, networks, lr, accuracy, std, mark = row.split()
    recipe, run, method = progressive(data, ipc, each, "idc")
    assert method == Progressive(
        base=IDCMethod(
            networks=int(networks),
            matches=100,
            factor=2,
            batch_real=64,
            batch_syn=128,
            momentum=0.5,
            path=NetworkPath(images=2000, lr=0.01, momentum=0.9, weight_decay=5e-4, cutmix=0.5),
            pool=NetworkPool(),
            evaluation_epochs=1000,
        ),
        stages=5,
        conditioning_epochs=200,
    )
    assert method.base.lr_img * int(each) / 10 == pytest.approx(float(lr))
    assert (method.base.match.layers, method.base.match.distance) == ("conv", "mse")
    assert run.normaliser == f"{data}@idc"
    assert run.select_every == int(networks) * 100 // 2
    published = recipe.published
    assert (published.accuracy, published.std) == (
        float(accuracy),
        None if std == "-" else float(std),
    )
    assert published.verified is (mark == "V")
    assert ["in each outer step" in text for text in recipe.differs] == [True]


def test_epochs_between_and_of_stages():
    for name, links in (
        ("pdd-mtt_cifar10_ipc10", mtt_segments(1000)),
        ("pdd-idc_cifar10_ipc10", idc_segments(200)),
    ):
        method = RECIPES.get(name).make("d").method
        ctx = SimpleNamespace(
            synth=(SynthBlock(ipc=2),),
            data=SimpleNamespace(n_classes=10, channels=3, size=(32, 32)),
            space=named_stats("cifar10@idc"),
        )
        assert method.base.training(ctx, method._between)[0].segments == links
        assert (method.stage_epochs, method.base.nominal) == (None, 1000)  # so 500 a stage


def test_scales_look_at_the_method_below():
    for name, every in (("pdd-mtt_cifar10_ipc10", 100), ("pdd-idc_cifar10_ipc50", 133)):
        run = from_recipe(name, data="d", scale="cpu")
        assert run.select_every == every == run.method.base.iterations // 3
    assert (
        from_recipe("pdd-idc_cifar10_ipc50", data="d", scale="smoke").limit == 10 * 4
    )  # at most 10 images a class


@pytest.mark.parametrize(
    ("data", "ipc", "steps", "flat"),
    [
        ("cifar10", 10, 2505, 1001),
        ("cifar10", 50, 4008, 2002),
        ("cifar100", 10, 7014, 4004),
        ("cifar100", 50, 30_060, 20_020),
    ],
)
def test_what_staged_training_costs(data, ipc, steps, flat):
    """Section 4.5: 2.5, 2.0, 1.75, 1.5 times the steps of MTT and 1.5 times its images."""
    recipe = RECIPES.get(f"pdd-mtt_{data}_ipc{ipc}")
    base, stages = recipe.make("d").method.base, range(1, 6)
    count = recipe.classes * ipc
    ends = [count * k // 5 for k in stages]
    parts = [replace(part, blocks=k) for k in stages for part in mtt_segments(base.nominal // 2)]
    whole = TrainSpec(lr=0.01, segments=mtt_segments(base.nominal), batch=256)
    staged = replace(whole, segments=tuple(parts))
    assert (staged.steps(count, ends), whole.steps(count)) == (steps, flat)
    assert staged.seen(count, ends) / whole.seen(count) == pytest.approx(1.5, abs=0.002)
