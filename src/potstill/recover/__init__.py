"""Recovery: images from a teacher alone, unit by unit."""

from potstill.recover.gather import gather, gathered
from potstill.recover.loop import Recovered, recovered
from potstill.recover.presets import (
    CDA_IN1K,
    CDA_IN21K,
    CDA_TINY,
    SRE2L_CIFAR100,
    SRE2L_IN1K,
    SRE2L_TINY,
)
from potstill.recover.relabel import RelabelSpec, kept_images, relabel_tasks
from potstill.recover.settings import Recovery
from potstill.recover.unit import KIND, RecoverSpec, read_unit, recover_tasks, recover_unit
from potstill.recover.units import Unit, side_by_side, units_of

__all__ = [
    "CDA_IN1K",
    "CDA_IN21K",
    "CDA_TINY",
    "KIND",
    "SRE2L_CIFAR100",
    "SRE2L_IN1K",
    "SRE2L_TINY",
    "RecoverSpec",
    "Recovered",
    "Recovery",
    "RelabelSpec",
    "Unit",
    "gather",
    "gathered",
    "kept_images",
    "read_unit",
    "recover_tasks",
    "recover_unit",
    "recovered",
    "relabel_tasks",
    "side_by_side",
    "units_of",
]
