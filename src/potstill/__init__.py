"""potstill: distil an image data set into a few images that train a network almost as well.

import potstill
s = potstill.load("runs/x")           # a distilled set, with its recipe
model = s.train("convnet3")           # a network trained on it; takes uint8 or [0, 1] images
encoder = s.pretrain("resnet18")      # of a set whose targets are features: gives features
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from potstill.core.version import __version__

if TYPE_CHECKING:
    from potstill.artefact import DistilledSet, load
    from potstill.data import from_arrays, open_data
    from potstill.evaluation import evaluate, evaluate_pretraining
    from potstill.job import distill

__all__ = [
    "DistilledSet",
    "__version__",
    "distill",
    "evaluate",
    "evaluate_pretraining",
    "from_arrays",
    "load",
    "open_data",
]

_HOMES = {
    "DistilledSet": "potstill.artefact",
    "load": "potstill.artefact",
    "from_arrays": "potstill.data",
    "open_data": "potstill.data",
    "evaluate": "potstill.evaluation",
    "evaluate_pretraining": "potstill.evaluation",
    "distill": "potstill.job",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module 'potstill' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
