"""RaT-BPTT's published settings (arXiv 2311.07025), by the commands in its released README.

All: ConvNet of width 128, students by Adam .001, images and real ones mirrored or rotated, images
from noise of norm 1, gradients cut to twice their moving average. Published numbers are test
accuracies of the best outer step and mark on the test part, as others quote them; here the step is
chosen on the validation part.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

from potstill.augment import RAT
from potstill.methods.inner import Inner
from potstill.methods.ratbptt import RaTBPTT
from potstill.methods.real import RealImages
from potstill.methods.windows import Window
from potstill.nets import NetSpec, filled
from potstill.recipes.api import RECIPES, Published, Recipe
from potstill.run import Run

QUOTED = "RaT-BPTT, arXiv 2311.07025, as AT-BPTT quotes it"
RERUN = "AT-BPTT's rerun of RaT-BPTT"
RECALLED = "RaT-BPTT, arXiv 2311.07025, unverified"
STEPS = {"cifar10_ipc10": 18_250, "cifar100_ipc1": 52_000}
"""Outer steps behind the released sets; those of others are not known."""
ASSUMED = 20_000
"""Outer steps where they are not known."""


class _Row(NamedTuple):
    """M / T, real batch, where the window lies, step size of images and labels, outer steps between
    checks, classes and images a student step sees (None: all)."""

    data: str
    ipc: int
    labels: Literal["hard", "raw"]
    classes: int | None
    images: int | None
    batch: int
    m: int
    t: int
    place: Literal["random", "fixed"]
    lr: float
    check: int
    accuracy: float
    std: float
    source: str = QUOTED
    variant: str = ""


_COMMANDS = (
    _Row("cifar10", 10, "hard", None, 10, 5000, 60, 200, "random", 1e-3, 250, 69.4, 0.4),
    _Row("cifar100", 10, "raw", None, 1, 5000, 100, 300, "random", 1e-3, 250, 47.5, 0.2),
    _Row("cifar100", 1, "raw", None, 1, 5000, 90, 130, "fixed", 3e-4, 500, 35.3, 0.4),
    _Row("tiny", 10, "raw", 50, 1, 1000, 100, 300, "random", 3e-4, 1000, 24.4, 0.2),
    _Row("tiny", 10, "raw", 50, 1, 2000, 90, 270, "fixed", 3e-4, 500, 24.4, 0.2, QUOTED, "_fixed"),
    _Row("imagenet", 1, "raw", 50, 1, 1500, 80, 280, "fixed", 3e-4, 850, 10.8, 0.4, RECALLED),
)
_INFERRED = (
    _Row("cifar10", 1, "hard", None, 1, 5000, 60, 200, "random", 1e-3, 250, 53.2, 0.7),
    _Row("cifar10", 50, "hard", None, 10, 5000, 60, 200, "random", 1e-3, 250, 75.3, 0.3),
    _Row("cifar100", 50, "raw", None, 1, 5000, 100, 300, "random", 1e-3, 250, 50.6, 0.2),
    _Row("tiny", 1, "raw", 50, 1, 1000, 100, 300, "random", 3e-4, 1000, 20.1, 0.3),
    _Row("cub200", 1, "raw", None, 1, 3000, 60, 200, "random", 1e-3, 50, 13.8, 0.3, RECALLED),
    _Row("cub200", 10, "raw", None, 1, 3000, 60, 200, "random", 1e-3, 50, 17.7, 0.2, RECALLED),
    _Row("imagenet", 10, "raw", 50, 1, 1500, 80, 280, "fixed", 3e-4, 850, 13.0, 0.9, RERUN),
)


class _Data(NamedTuple):
    name: str
    side: int
    classes: int
    normaliser: str
    resized: bool


_DATA = {
    "cifar10": _Data("CIFAR-10", 32, 10, "zca-kip", False),
    "cifar100": _Data("CIFAR-100", 32, 100, "zca-kip", False),
    "tiny": _Data("Tiny-ImageNet", 64, 200, "zca-kip:full", False),
    "cub200": _Data("CUB-200-2011", 32, 200, "zca-kip", True),
    "imagenet": _Data("ImageNet-1K", 64, 1000, "tiny@mtt", True),  # ImageNet's statistics
}


def reference(
    window: Window, *, labels: Literal["hard", "raw"], lr: float, inner: Inner, real: RealImages
) -> RaTBPTT:
    """Return the method as the released code runs it.

    One augmentation for a whole batch, windows placed anew each epoch of real data, labels only
    kept at least 0, and inside the window Adam's eps as `higher` 0.2.1 places it.
    """
    return RaTBPTT(
        window=window,
        labels=labels,
        lr_img=lr,
        lr_label=lr,
        inner=dataclasses.replace(inner, window_eps="higher021"),
        real=real,
    )


def clean(method: RaTBPTT) -> RaTBPTT:
    """Return the method without the released code's accidents.

    Every image mirrored and rotated, labels on the simplex, one placement of Adam's eps, windows
    placed anew each outer step and not at the very start, where gradients are noise.
    """
    window, augment = method.window, RAT(mode="M")
    if window.place == "random":
        least = min(10, window.last)
        window = dataclasses.replace(window, redraw="step", least=least)
    return dataclasses.replace(
        method,
        window=window,
        labels="hard" if method.labels == "hard" else "simplex",
        inner=dataclasses.replace(method.inner, window_eps=None, augment=augment),
        real=dataclasses.replace(method.real, augment=augment),
    )


PRESETS: dict[str, Callable[[RaTBPTT], RaTBPTT]] = {"": lambda method: method, "_clean": clean}


def _recipe(row: _Row, name: str, preset: str) -> Recipe:
    data, steps = _DATA[row.data], STEPS.get(f"{row.data}_ipc{row.ipc}")
    departures = {
        "preset clean instead of reference": preset != "",
        f"{ASSUMED:,} outer steps, as the published number of them is not known": steps is None,
        "ZCA, though the published command does not switch it on": row.data == "tiny",
    }

    def make(source: str) -> Run:
        method = reference(
            Window(length=row.m, total=row.t, place=row.place),
            labels=row.labels,
            lr=row.lr,
            inner=Inner(classes=row.classes, images=row.images),
            real=RealImages(batch=row.batch),
        )
        return Run(
            method=PRESETS[preset](dataclasses.replace(method, iterations=steps or ASSUMED)),
            data=source,
            ipc=row.ipc,
            net=filled(NetSpec(name="convnet4" if data.side == 64 else "convnet3")),
            normaliser=data.normaliser,
            resize=data.side if data.resized else None,
            fit="squash" if data.resized else "crop",
            select_every=row.check,
            recipe=name,
        )

    return Recipe(
        make=make,
        data=data.name,
        shape=(3, data.side, data.side),
        classes=data.classes,
        published=Published(
            accuracy=row.accuracy,
            std=row.std,
            source=row.source,
            verified=row.source == QUOTED,
        ),
        differs=tuple(text for text, true in departures.items() if true),
        settings="published" if row in _COMMANDS else "inferred",
    )


def _register() -> None:
    for row in (*_COMMANDS, *_INFERRED):
        for preset in PRESETS:
            name = f"ratbptt_{row.data}_ipc{row.ipc}{row.variant}{preset}"
            RECIPES.add(name)(_recipe(row, name, preset))


_register()
