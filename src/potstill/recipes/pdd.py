"""PDD's published settings (arXiv 2310.06982) over MTT and IDC, each with five stages.

What is not named here is as in the recipes of the method below. Most published numbers are not
verified; two are from the paper's public review.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from potstill.methods.progressive import Progressive
from potstill.recipes.api import RECIPES, Published, Recipe
from potstill.run import Run

PAPER = "PDD, arXiv 2310.06982"
REVIEW = f"{PAPER}, its public review"
RECALLED = f"{PAPER}, unverified"
STAGES = 5
FRESH = "a stage's set is chosen with fresh networks, not with those that earlier stages trained"
OWN = "networks that are scored have initial weights of their own, not those of one expert"
POOLED = (
    "networks that go from stage to stage are a pool, not one trained anew on all earlier stages "
    "in each outer step"
)


class _OverMTT(NamedTuple):
    """Final images a class, N, M, T, ZCA, lr_img, lr_lr, batch, epochs of experts; accuracy."""

    data: str
    ipc: int
    n: int
    m: int
    t: int
    zca: bool
    lr_img: float
    lr_lr: float
    batch: int | None
    epochs: int
    accuracy: float


class _OverIDC(NamedTuple):
    """Final images a class, networks of a stage, accuracy, its std, and where they are from."""

    data: str
    ipc: int
    networks: int
    accuracy: float
    std: float | None
    source: str


_OVER_MTT = (
    _OverMTT("cifar10", 10, 50, 2, 5, True, 1e3, 1e-7, None, 50, 66.9),
    _OverMTT("cifar10", 50, 30, 2, 15, True, 1e3, 1e-5, None, 50, 74.2),
    _OverMTT("cifar100", 10, 20, 3, 20, True, 1e3, 1e-5, None, 50, 43.1),
    _OverMTT("cifar100", 50, 20, 2, 20, True, 1e3, 1e-5, 512, 50, 52.0),
    _OverMTT("tiny", 10, 20, 2, 20, False, 1e4, 1e-4, 64, 24, 27.3),
)
_OVER_IDC = (
    _OverIDC("cifar10", 10, 2000, 67.9, None, REVIEW),
    _OverIDC("cifar10", 50, 2000, 76.5, 0.4, RECALLED),
    _OverIDC("cifar100", 10, 2000, 45.8, None, REVIEW),
    _OverIDC("cifar100", 50, 1000, 53.1, 0.4, RECALLED),
)


def _over_mtt(row: _OverMTT) -> Recipe:
    def change(run: Run) -> Run:
        base = dataclasses.replace(
            run.method,
            steps=row.n,
            expert_epochs=row.m,
            max_start_epoch=row.t,
            batch_syn=row.batch,
            lr_img=row.lr_img,
            lr_lr=row.lr_lr,
            lr_init=0.01,
            experts=dataclasses.replace(run.method.experts, epochs=row.epochs),
        )
        method = Progressive(base=base, stages=STAGES)
        return dataclasses.replace(
            run, method=method, normaliser="zca-mtt" if row.zca else run.normaliser
        )

    published = Published(accuracy=row.accuracy, std=None, source=RECALLED, verified=False)
    return _over("mtt", row, change, published, notes=(FRESH, OWN))


def _over_idc(row: _OverIDC) -> Recipe:
    def change(run: Run) -> Run:
        base = dataclasses.replace(run.method, networks=row.networks)
        method = Progressive(base=base, stages=STAGES, conditioning_epochs=200)
        return dataclasses.replace(run, method=method, select_every=base.iterations // 2)

    published = Published(
        accuracy=row.accuracy, std=row.std, source=row.source, verified=row.source == REVIEW
    )
    return _over("idc", row, change, published, differs=(POOLED,))


def _over(
    kind: str,
    row: _OverMTT | _OverIDC,
    change: Callable[[Run], Run],
    published: Published,
    differs: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
) -> Recipe:
    """Return the base method's recipe for the data, changed, with so many images a class."""
    below = RECIPES.get(f"{kind}_{row.data}_ipc10")

    def make(source: str) -> Run:
        run = change(below.make(source))
        return dataclasses.replace(run, ipc=row.ipc, recipe=_name(kind, row))

    return dataclasses.replace(below, make=make, published=published, differs=differs, notes=notes)


def _name(kind: str, row: _OverMTT | _OverIDC) -> str:
    return f"pdd-{kind}_{row.data}_ipc{row.ipc}"


def _register() -> None:
    for over_mtt in _OVER_MTT:
        RECIPES.add(_name("mtt", over_mtt))(_over_mtt(over_mtt))
    for over_idc in _OVER_IDC:
        RECIPES.add(_name("idc", over_idc))(_over_idc(over_idc))


_register()
