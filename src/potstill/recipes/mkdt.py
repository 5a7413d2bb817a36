"""MKDT's settings (arXiv 2410.02116, by its released configurations) and its numbers on record.

Experts: 100 of 20 epochs, step size .1, momentum .9, decay 1e-4, batch 256. The numbers are those
of the authors' log of October 2024 (2 %, Barlow Twins, ConvNet, the step size learned), which
differs from the paper's tables.
"""

from __future__ import annotations

from typing import NamedTuple

from potstill.methods.mkdt import MKDT
from potstill.nets import NetSpec, filled
from potstill.recipes.api import RECIPES, Published, Recipe
from potstill.run import Run
from potstill.teachers import SAS_CIFAR, SAS_TINY, SOLOLEARN_CIFAR, EncoderPlan

LOG = "MKDT, arXiv 2410.02116, a released log of its authors, 3 networks, std of the population"
OWN_ENCODER = (
    "the released encoder's training is not published; one is trained here by a guess at it "
    "(released weights: --method.teacher.net resnet18-sololearn@FILE)"
)
OWN_SPACE = "targets are of images normalised as the encoder's own; the released code's are not"
SHARE = "the size is a part of the training images without the validation part"
UPDATED = "the set is that after the last step; the released one lacks the last update"


class _Data(NamedTuple):
    title: str
    side: int
    classes: int
    net: str
    iterations: int
    steps: int
    lr_img: tuple[float, float]
    """Of 2 % and 5 %."""
    start: tuple[int, int]
    """max_start_epoch of both."""
    probes: tuple[float, float, float, float]
    """Test accuracy, in %, of a probe with 1 % of the labels, its std, both with 5 %: of 2 %."""


_CIFAR = ("convnet3", 5000, 40, (1e3, 1e4), (2, 5))
_TINY = ("convnet4", 10000, 10, (1e5, 1e5), (2, 2))
_DATA = {
    "cifar10": _Data("CIFAR-10", 32, 10, *_CIFAR, (41.42, 0.42, 53.89, 1.20)),
    "cifar100": _Data("CIFAR-100", 32, 100, *_CIFAR, (12.71, 0.44, 24.13, 0.38)),
    "tiny": _Data("Tiny-ImageNet", 64, 200, *_TINY, (5.42, 0.12, 13.47, 0.35)),
}
_SIZES = ("2%", "5%")


def _encoder(data: str, kind: str) -> EncoderPlan:
    """Return the encoder: `bt`, that of KRR-ST, or `simclr`, that of SAS."""
    if kind == "bt":
        return EncoderPlan(
            net="resnet18-sololearn", training=SOLOLEARN_CIFAR, space=f"{data}@sololearn"
        )
    return EncoderPlan(net="resnet18-bn", training=SAS_TINY if data == "tiny" else SAS_CIFAR)


def _published(known: _Data) -> Published:
    one, one_std, five, five_std = known.probes
    return Published(
        accuracy=five,
        std=five_std,
        source=LOG,
        kind=f"of a linear probe with 5 % of the labels; {one} ± {one_std} % with 1 %",
        verified=False,
        protocol="mkdt-parity",
        labels="5%",
    )


def _recipe(data: str, kind: str, place: int) -> tuple[str, Recipe]:
    known, size = _DATA[data], _SIZES[place]
    name = f"mkdt{'' if kind == 'bt' else '-' + kind}_{data}_{size.replace('%', 'pc')}"
    method = MKDT(
        iterations=known.iterations,
        steps=known.steps,
        max_start_epoch=known.start[place],
        lr_img=known.lr_img[place],
        teacher=_encoder(data, kind),
    )

    def make(source: str) -> Run:
        return Run(
            method=method,
            data=source,
            size=size,
            net=filled(NetSpec(name=known.net)),
            normaliser=f"{data}@mtt",
            recipe=name,
        )

    half = ("the log is of the set after 5000 of 10000 steps",) if data == "tiny" else ()
    numbers = kind == "bt" and size == "2%"
    return name, Recipe(
        make=make,
        data=known.title,
        shape=(3, known.side, known.side),
        classes=known.classes,
        published=_published(known) if numbers else None,
        differs=(OWN_ENCODER, OWN_SPACE, *half) if kind == "bt" else (),
        notes=(SHARE, UPDATED),
        settings="published" if kind == "bt" else "inferred",
    )


def _register() -> None:
    for data in _DATA:
        for kind in ("bt", "simclr"):
            for place in range(len(_SIZES)):
                name, recipe = _recipe(data, kind, place)
                RECIPES.add(name)(recipe)


_register()
