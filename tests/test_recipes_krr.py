"""KRR-ST's recipes: every constant beside its table, and what is said of those that are guesses."""

import pytest

from potstill.augment import DSA
from potstill.data import named_stats
from potstill.methods.krr_st import KRRST
from potstill.nets import NetSpec, filled
from potstill.recipes import RECIPES
from potstill.teachers import SOLOLEARN_CIFAR, EncoderPlan

TABLE = {  # n, network, its widths, outer step size, side, padding as a part of it
    "cifar10": (1000, "convnet3-krrst", 128, 1e-4, 32, 0.125),
    "cifar100": (1000, "convnet3-krrst", 128, 1e-4, 32, 0.125),
    "tiny": (2000, "convnet4-krrst", 64, 1e-5, 64, 0.0625),
    "imagenet64": (1000, "convnet4-krrst", 64, 1e-5, 64, 0.0625),
    "imagenette224": (10, "convnet5-krrst", 32, 1e-5, 224, 4 / 224),
}


def test_there_are_no_others():
    names = [name for name in RECIPES.names() if name.startswith("krr-st")]
    assert sorted(names) == sorted(f"krr-st_{data}" for data in TABLE)


@pytest.mark.parametrize(("data", "row"), TABLE.items())
def test_every_constant_is_the_published_one(data, row):
    count, net, width, lr, side, pad = row
    recipe = RECIPES.get(f"krr-st_{data}")
    made = recipe.make("parquet:somewhere")
    taught = made.method.teacher
    assert made.method == KRRST(
        iterations=160_000,
        batch_real=1024,
        lr=lr,
        lam=1e-6,
        clip=None,
        models=10,
        life=1000,
        inner_lr=0.1,
        momentum=0.9,
        weight_decay=1e-3,
        image_init="random",
        targets="raw",
        augment=DSA(strategy="crop_flip", mode="M", crop_pad=pad),
        legacy=False,
        evaluation_epochs=1000,
        teacher=taught,
    )
    assert (made.size, made.ipc, made.recipe) == (str(count), None, f"krr-st_{data}")
    assert made.net == filled(NetSpec(name=net))
    assert (made.net.width, made.net.norm) == (width, "batch")
    assert made.resize == (side if data.startswith("imagenet") else None)
    assert recipe.shape == (3, side, side)
    assert named_stats(made.normaliser) == named_stats(taught.space)
    if data == "imagenette224":
        net = "torchvision:resnet50@resnet50.pth"
        assert taught == EncoderPlan(net=net, space="imagenet@dc")
    else:
        wanted = ("resnet18-sololearn", SOLOLEARN_CIFAR)
        assert (taught.net, taught.training) == wanted
    guessed = data in ("cifar10", "imagenette224")
    assert recipe.settings == ("inferred" if guessed else "published")
    assert recipe.published is None
    assert recipe.differs
