"""The distilled set: images, targets and the recipe to train on them."""

from potstill.artefact import hdf5 as _hdf5  # noqa: F401 - registers its format
from potstill.artefact.files import load, remember, save
from potstill.artefact.imports import FORMATS, import_set
from potstill.artefact.targets import Hard, Soft, Targets
from potstill.artefact.types import Block, Decoder, DistilledSet, Identity, Provenance
from potstill.artefact.use import Deployed, Loader

__all__ = [
    "FORMATS",
    "Block",
    "Decoder",
    "Deployed",
    "DistilledSet",
    "Hard",
    "Identity",
    "Loader",
    "Provenance",
    "Soft",
    "Targets",
    "import_set",
    "load",
    "remember",
    "save",
]
