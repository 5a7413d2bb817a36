"""The distilled set: images, targets and the recipe to train on them."""

from potstill.artefact.files import load, remember, save
from potstill.artefact.targets import Hard, Soft, Targets
from potstill.artefact.types import Block, Decoder, DistilledSet, Identity, Provenance
from potstill.artefact.use import Deployed, Loader

__all__ = [
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
    "load",
    "remember",
    "save",
]
