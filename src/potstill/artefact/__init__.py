"""The distilled set: images, targets and the recipe to train on them."""

from potstill.artefact import dc as _dc  # noqa: F401 - these register their formats
from potstill.artefact import folders as _folders  # noqa: F401
from potstill.artefact import hdf5 as _hdf5  # noqa: F401
from potstill.artefact import idc as _idc  # noqa: F401
from potstill.artefact import pdd as _pdd  # noqa: F401
from potstill.artefact.decode import Decoder, Identity, MultiFormation
from potstill.artefact.digest import set_digest
from potstill.artefact.files import load, remember, save
from potstill.artefact.imports import FORMATS, Told, import_set
from potstill.artefact.labels import LabelPlan
from potstill.artefact.stored import LabelStore, label_store, write_labels
from potstill.artefact.targets import Embedding, Encoded, Hard, Soft, Targets
from potstill.artefact.types import Block, DistilledSet, Provenance
from potstill.artefact.use import Deployed, Loader

__all__ = [
    "FORMATS",
    "Block",
    "Decoder",
    "Deployed",
    "DistilledSet",
    "Embedding",
    "Encoded",
    "Hard",
    "Identity",
    "LabelPlan",
    "LabelStore",
    "Loader",
    "MultiFormation",
    "Provenance",
    "Soft",
    "Targets",
    "Told",
    "import_set",
    "label_store",
    "load",
    "remember",
    "save",
    "set_digest",
    "write_labels",
]
