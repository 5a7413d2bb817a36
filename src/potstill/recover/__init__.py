"""Recovery: images from a teacher alone, unit by unit."""

from potstill.recover.loop import Recovered, recovered
from potstill.recover.settings import Recovery
from potstill.recover.unit import KIND, RecoverSpec, read_unit, recover_tasks, recover_unit
from potstill.recover.units import Unit, units_of

__all__ = [
    "KIND",
    "RecoverSpec",
    "Recovered",
    "Recovery",
    "Unit",
    "read_unit",
    "recover_tasks",
    "recover_unit",
    "recovered",
    "units_of",
]
