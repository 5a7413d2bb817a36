"""Published settings of SRe2L (arXiv 2306.13092), CDA (2311.18838) and RDED (2312.03526).

Numbers are of networks that learn a teacher's labels of augmented images (`Published.protocol`);
SRe2L's and CDA's are those of CDA's project, unless a source says otherwise. What is not named here
is as in the presets of `potstill.recover` and `potstill.teachers`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from potstill.augment import Curriculum
from potstill.methods.rded import RDED
from potstill.methods.recovering import CDA, SRe2L
from potstill.methods.tutors import Patches
from potstill.nets import NetSpec, filled
from potstill.recipes.api import RECIPES, Published, Recipe
from potstill.recipes.squeeze_numbers import COSTS, RECOVERED, TILED
from potstill.recover import (
    CDA_IN1K,
    CDA_IN21K,
    CDA_TINY,
    SRE2L_CIFAR100,
    SRE2L_IN1K,
    SRE2L_TINY,
    Recovery,
)
from potstill.run import Run
from potstill.teachers import CIFAR100, IN21K, TINY, Squeeze, TeacherPlan

PROJECT = "CDA, arXiv 2311.18838, its project's table"
LATER = "CDA, arXiv 2311.18838, as later papers quote it"
PAPER = "SRe2L, arXiv 2306.13092"
RDED_PAPER = "RDED, arXiv 2312.03526"
LOSSLESS = "images are rounded and lossless, not JPEG of quality 75"
ONLINE = "the teacher labels images when they are trained on, not before"
OWN_TEACHER = (
    "the teacher is trained as SRe2L's is, since RDED's training is not known; its accuracy decides"
)
OTHERS = ("ResNet-50", "ResNet-101")


@dataclass(frozen=True, kw_only=True)
class _Data:
    """Images, the network, its statistics, its training, and by what protocols sets are scored."""

    title: str
    side: int
    classes: int
    net: str
    statistics: str
    training: Squeeze = TINY
    weights: str = ""
    """Published weights of the teacher, if there are any."""
    protocols: dict[str, str]
    resize: Literal["crop", "squash"] | None = None


_DATA = {
    "cifar10": _Data(
        title="CIFAR-10", side=32, classes=10, net="resnet18-tiny", statistics="imagenet@dc",
        training=CIFAR100, protocols={"rded": "rded"},
    ),
    "cifar100": _Data(
        title="CIFAR-100", side=32, classes=100, net="resnet18-tiny", statistics="cifar100@dc",
        training=CIFAR100,
        protocols={"sre2l": "cifar100-kd", "cda": "cifar100-kd", "rded": "rded"},
    ),
    "tiny": _Data(
        title="Tiny-ImageNet", side=64, classes=200, net="resnet18-tiny", statistics="tiny@sre2l",
        protocols={"sre2l": "tiny-kd", "cda": "tiny-kd-64", "rded": "rded"},
    ),
    "imagenet": _Data(
        title="ImageNet-1K", side=224, classes=1000, net="torchvision:resnet18",
        statistics="imagenet@dc", weights="@IMAGENET1K_V1", resize="crop",
        protocols={"sre2l": "sre2l-fkd", "cda": "cda-in1k", "rded": "rded-imagenet"},
    ),
    "imagenet21k": _Data(
        title="ImageNet-21K-P (winter 2021)", side=224, classes=10_450, net="timm:resnet18",
        statistics="imagenet21k@cda", training=IN21K, resize="squash",
        protocols={"sre2l": "in21k", "cda": "in21k"},
    ),
}  # fmt: skip

_SRE2L_IN21K = replace(CDA_IN21K, curriculum=SRE2L_IN1K.curriculum)
_CDA_CIFAR100 = replace(SRE2L_CIFAR100, curriculum=Curriculum())
_RECOVERY: dict[tuple[str, str], Recovery] = {
    ("sre2l", "tiny"): SRE2L_TINY,
    ("sre2l", "imagenet"): SRE2L_IN1K,
    ("sre2l", "cifar100"): SRE2L_CIFAR100,
    ("sre2l", "imagenet21k"): _SRE2L_IN21K,
    ("cda", "tiny"): CDA_TINY,
    ("cda", "imagenet"): CDA_IN1K,
    ("cda", "imagenet21k"): CDA_IN21K,
    ("cda", "cifar100"): _CDA_CIFAR100,
}
_INFERRED = (("sre2l", "imagenet21k"), ("cda", "cifar100"))

_ABLATION = {
    "constant": Curriculum(kind="constant"),
    "step": Curriculum(kind="step", milestone=0.5),
    "linear": Curriculum(kind="linear"),
    "reverse": Curriculum(kind="reverse"),
}
"""Beside CDA's cosine; constant is SRe2L's crops with the other constants of CDA."""


def _source(family: str, data: str, ipc: int) -> str:
    """Return where a number of SRe2L or CDA is from."""
    if family == "cda":
        return LATER if (data, ipc) == ("imagenet", 10) or data == "cifar100" else PROJECT
    if data == "cifar100":
        return f"{PAPER}; users get 47.57 with its scripts, the authors later 51.35"
    return PAPER if (data, ipc) == ("imagenet", 10) else PROJECT


def _published(family: str, data: str, ipc: int, numbers: Iterable[float]) -> Published:
    first, *others = numbers
    rded = family == "rded"
    last = "the last fifth" if rded else "all"
    return Published(
        accuracy=first,
        std=None,
        source=RDED_PAPER if rded else _source(family, data, ipc),
        verified=(family, data) != ("cda", "cifar100"),
        kind="the test accuracy of the last epoch, or hardly better"
        if data == "tiny" and not rded
        else f"the best test accuracy over every tenth epoch of {last}",
        nets=tuple(zip(OTHERS, others, strict=False)),
        protocol=_DATA[data].protocols[family],
        regime="online",
    )


def _run(data: str, method: Any, ipc: int, name: str) -> Callable[[str], Run]:
    known = _DATA[data]

    def make(source: str) -> Run:
        return Run(
            method=method,
            data=source,
            ipc=ipc,
            net=filled(NetSpec(name=known.net)),
            normaliser="imagenet@dc" if isinstance(method, RDED) else known.statistics,
            resize=known.side if known.resize else None,
            fit=known.resize or "crop",
            recipe=name,
        )

    return make


def _teacher(known: _Data) -> TeacherPlan:
    nets = (f"{known.net}{known.weights}",) if known.weights else ("own",)
    return TeacherPlan(nets=nets, training=known.training)


def _recovered(family: str, data: str, ipc: int, numbers: tuple[float, ...]) -> Recipe:
    known, name = _DATA[data], f"{family}_{data}_ipc{ipc}"
    of = SRe2L if family == "sre2l" else CDA
    method = of(teacher=_teacher(known), recovery=_RECOVERY[family, data])
    differs, notes = (), (LOSSLESS,)
    if data == "imagenet21k":
        differs = (
            "the teacher's training is not known for certain; its published weights are taken with "
            "--method.teacher.nets timm:resnet18@FILE",
        )
    if data == "cifar100":
        notes = (*notes, "mean and std of the images are not stated")
    if known.side == 224:
        notes = (*notes, ONLINE)
    if known.resize == "crop":
        notes = (*notes, "all images are 224 pixels of the centre")
    return Recipe(
        make=_run(data, method, ipc, name),
        data=known.title,
        shape=(3, known.side, known.side),
        classes=known.classes,
        published=_published(family, data, ipc, numbers),
        differs=differs,
        notes=notes,
        settings="inferred" if (family, data) in _INFERRED else "published",
        cost=COSTS.get(name, ""),
    )


def _tiled(data: str, ipc: int, numbers: tuple[float, ...]) -> Recipe:
    known, name = _DATA[data], f"rded_{data}_ipc{ipc}"
    factor = 2 if known.side == 224 else 1
    few = ipc * factor**2 <= 300
    method = RDED(
        teacher=_teacher(known),
        patches=Patches(factor=factor, images=300 if few else 600, crops=5),
    )
    large = "crops are cut from images of 224 pixels, not from whole ones"
    return Recipe(
        make=_run(data, method, ipc, name),
        data=known.title,
        shape=(3, known.side, known.side),
        classes=known.classes,
        published=_published("rded", data, ipc, numbers),
        differs=(large,) if factor > 1 else (OWN_TEACHER,),
        notes=(LOSSLESS,),
        settings="published" if few else "inferred",
        cost=COSTS.get(name, ""),
    )


def _ablated(kind: str, curriculum: Curriculum) -> Recipe:
    """Return CDA's recipe for Tiny-ImageNet with another curriculum; no number is known."""
    below, name = RECIPES.get("cda_tiny_ipc50"), f"cda-{kind}_tiny_ipc50"
    recovery = replace(CDA_TINY, curriculum=curriculum)
    method = CDA(teacher=_teacher(_DATA["tiny"]), recovery=recovery)
    make = _run("tiny", method, 50, name)
    return replace(below, make=make, published=None, settings="inferred", cost="")


def _register() -> None:
    for (family, data), rows in RECOVERED.items():
        for ipc, numbers in rows.items():
            RECIPES.add(f"{family}_{data}_ipc{ipc}")(_recovered(family, data, ipc, numbers))
    for data, rows in TILED.items():
        for ipc, numbers in rows.items():
            RECIPES.add(f"rded_{data}_ipc{ipc}")(_tiled(data, ipc, numbers))
    for kind, curriculum in _ABLATION.items():
        RECIPES.add(f"cda-{kind}_tiny_ipc50")(_ablated(kind, curriculum))


_register()
