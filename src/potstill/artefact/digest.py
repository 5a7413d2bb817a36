"""What a distilled set is known by: the hash of what is trained on."""

from __future__ import annotations

from potstill.artefact.decode import Identity
from potstill.artefact.stored import LabelStore
from potstill.artefact.targets import Embedding, Soft
from potstill.artefact.types import DistilledSet
from potstill.core.spec import canonical
from potstill.core.state import tensor_digest


def set_digest(s: DistilledSet) -> str:
    """Return the SHA-256 of what a set trains on: images, targets, decoder, where blocks end.

    Labels of views count by the hashes of their files.
    """
    texts = () if s.decode == Identity() else (canonical(s.decode),)
    if len(s.blocks) > 1:
        texts += (canonical([block.stop for block in s.blocks]),)
    if isinstance(s.targets, LabelStore):
        texts += (canonical([s.targets.plan, s.targets.digests]),)
    tensors = {"images": s.images, "targets": s.targets.values}
    if isinstance(s.targets, Soft | Embedding) and s.targets.own is not None:
        tensors["classes"] = s.targets.own
    return tensor_digest(tensors, *texts)
