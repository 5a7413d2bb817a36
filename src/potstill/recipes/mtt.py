"""MTT's published settings (arXiv 2203.11932, as DC-BENCH re-lists the table) and its numbers.

Experts: 100 x 50 epochs, step size .01, batch 256. Published numbers are the best test accuracy
over checkpoints of the original, on ConvNet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from potstill.experts import ExpertPlan
from potstill.methods.mtt import MTT
from potstill.nets import NetSpec, filled
from potstill.recipes.api import RECIPES, Published, Recipe
from potstill.run import Run

LISTED = "MTT, arXiv 2203.11932, as PAD re-lists it"
SUBSETS = "MTT, arXiv 2203.11932, as FTD re-lists it"


class _Row(NamedTuple):
    data: str
    ipc: int
    net: str
    n: int
    m: int
    t: int
    batch: int | None
    zca: bool
    lr_img: float
    lr_lr: float
    beta: float
    accuracy: float
    std: float | None


_TABLE = (
    _Row("cifar10", 1, "convnet3", 50, 2, 2, None, True, 1e2, 1e-7, 0.01, 46.2, 0.8),
    _Row("cifar10", 10, "convnet3", 30, 2, 20, None, True, 1e2, 1e-5, 0.001, 65.4, 0.7),
    _Row("cifar10", 50, "convnet3", 30, 2, 40, None, False, 1e3, 1e-5, 0.001, 71.6, 0.2),
    _Row("cifar100", 1, "convnet3", 20, 3, 20, None, True, 1e3, 1e-5, 0.01, 24.3, 0.3),
    _Row("cifar100", 10, "convnet3", 20, 2, 20, None, False, 1e3, 1e-5, 0.01, 39.7, 0.4),
    _Row("cifar100", 50, "convnet3", 80, 2, 40, 125, True, 1e3, 1e-5, 0.01, 47.7, 0.2),
    _Row("tiny", 1, "convnet4", 10, 2, 10, None, False, 1e4, 1e-4, 0.01, 8.8, 0.3),
    _Row("tiny", 10, "convnet4", 20, 2, 40, 200, False, 1e4, 1e-4, 0.01, 23.2, 0.2),
    _Row("tiny", 50, "convnet4", 20, 2, 40, 300, False, 1e4, 1e-4, 0.01, 28.0, 0.3),
)
_SUBSETS = {
    "nette": ((47.7, 0.9), (63.0, 1.3)),
    "woof": ((28.6, 0.8), (35.8, 1.8)),
    "fruit": ((26.6, 0.8), (40.3, 1.3)),
    "meow": ((30.7, 1.6), (40.4, 2.2)),
}
_SHAPES = {"cifar10": (3, 32, 10), "cifar100": (3, 32, 100), "tiny": (3, 64, 200)}
_STATISTICS = {name: f"{name}@mtt" for name in _SHAPES}  # others: ImageNet's, as for Tiny
_NAMES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "tiny": "Tiny-ImageNet"}


def _rows() -> list[_Row]:
    rows = list(_TABLE)
    for subset, numbers in _SUBSETS.items():
        for (ipc, batch), (mean, std) in zip(((1, None), (10, 20)), numbers, strict=True):
            data = f"image{subset}"
            row = _Row(data, ipc, "convnet5", 20, 2, 10, batch, False, 1e5, 1e-6, 0.01, mean, std)
            rows.append(row)
    return rows


def _recipe(row: _Row) -> Recipe:
    channels, size, classes = _SHAPES.get(row.data, (3, 128, 10))
    name = _NAMES.get(row.data, f"{row.data.capitalize()} (ImageNet-1K subset)")

    def make(data: str) -> Run:
        method = MTT(
            iterations=5000,
            steps=row.n,
            expert_epochs=row.m,
            max_start_epoch=row.t,
            batch_syn=row.batch,
            lr_img=row.lr_img,
            lr_lr=row.lr_lr,
            lr_init=row.beta,
            experts=ExpertPlan(count=100, epochs=50, lr=0.01, batch=256),
        )
        return Run(
            method=method,
            data=data,
            ipc=row.ipc,
            net=filled(NetSpec(name=row.net)),
            normaliser="zca-mtt" if row.zca else _STATISTICS.get(row.data, "tiny@mtt"),
            resize=None if row.data in _SHAPES else size,
            fit="crop" if row.data in _SHAPES else "squash",
            classes=None if row.data in _SHAPES else f"{row.data}@mtt",
            select_every=500,
            recipe=f"mtt_{row.data}_ipc{row.ipc}",
        )

    return Recipe(
        make=make,
        data=name,
        shape=(channels, size, size),
        classes=classes,
        published=Published(
            accuracy=row.accuracy, std=row.std, source=LISTED if row.data in _SHAPES else SUBSETS
        ),
    )


def _register(add: Callable[[str], Callable[[Recipe], Recipe]]) -> None:
    for row in _rows():
        add(f"mtt_{row.data}_ipc{row.ipc}")(_recipe(row))


_register(RECIPES.add)
