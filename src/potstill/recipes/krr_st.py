"""KRR-ST's settings (Lee et al., ICLR 2024, arXiv 2310.06511, by its documented commands).

Its results are of transfer by fine-tuning, in tables that are not on record here; so no recipe has
a number. Those of KRR-ST in MKDT's log are of sets of unknown settings under another protocol.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from potstill.augment import DSA
from potstill.methods.krr_st import KRRST
from potstill.nets import NetSpec, filled
from potstill.recipes.api import RECIPES, Recipe
from potstill.recipes.mkdt import OWN_ENCODER
from potstill.run import Run
from potstill.teachers import SOLOLEARN_CIFAR, EncoderPlan

SOUND = (
    "networks of the pool that are made anew have age 0, and first images are normalised; neither "
    "is so in the released code (--method.legacy)"
)
PUBLIC = (
    "the encoder is the public Barlow Twins ResNet-50: put its weights beside the run as "
    "resnet50.pth, or name them (--method.teacher.net torchvision:resnet50@FILE)"
)
RATE = "the outer step size is not known; it is that of Tiny-ImageNet and ImageNet"
OTHER = "the original has no settings for CIFAR-10; these are those of CIFAR-100"


class _Data(NamedTuple):
    title: str
    side: int
    classes: int
    size: int
    net: str
    lr: float
    space: str
    settings: Literal["published", "inferred"] = "published"
    differs: tuple[str, ...] = (OWN_ENCODER,)


_DATA = {
    "cifar10": _Data(
        *("CIFAR-10", 32, 10, 1000, "convnet3-krrst", 1e-4, "cifar10@sololearn"),
        settings="inferred",
        differs=(OTHER, OWN_ENCODER),
    ),
    "cifar100": _Data("CIFAR-100", 32, 100, 1000, "convnet3-krrst", 1e-4, "cifar100@sololearn"),
    "tiny": _Data("Tiny-ImageNet", 64, 200, 2000, "convnet4-krrst", 1e-5, "tiny@sololearn"),
    "imagenet64": _Data("ImageNet", 64, 1000, 1000, "convnet4-krrst", 1e-5, "imagenet@dc"),
    "imagenette224": _Data(
        *("Imagenette", 224, 10, 10, "convnet5-krrst", 1e-5, "imagenet@dc"),
        settings="inferred",
        differs=(RATE, PUBLIC),
    ),
}


def _recipe(data: str) -> tuple[str, Recipe]:
    known, name, large = _DATA[data], f"krr-st_{data}", data.startswith("imagenet")
    encoder = EncoderPlan(net="resnet18-sololearn", training=SOLOLEARN_CIFAR, space=known.space)
    if known.side == 224:
        encoder = EncoderPlan(net="torchvision:resnet50@resnet50.pth", space=known.space)
    method = KRRST(
        lr=known.lr,
        augment=DSA(strategy="crop_flip", mode="M", crop_pad=4 / known.side),
        teacher=encoder,
    )

    def make(source: str) -> Run:
        return Run(
            method=method,
            data=source,
            size=str(known.size),
            net=filled(NetSpec(name=known.net)),
            normaliser=known.space,
            resize=known.side if large else None,
            classes="imagenette@mtt" if known.side == 224 else None,
            recipe=name,
        )

    return name, Recipe(
        make=make,
        data=known.title,
        shape=(3, known.side, known.side),
        classes=known.classes,
        published=None,
        differs=(*known.differs, SOUND),
        settings=known.settings,
    )


def _register() -> None:
    for data in _DATA:
        name, recipe = _recipe(data)
        RECIPES.add(name)(recipe)


_register()
