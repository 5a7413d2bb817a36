"""Distillation methods, one file each."""

from potstill.methods import boost as _boost  # noqa: F401 - registers its method
from potstill.methods import condensation as _condensation  # noqa: F401
from potstill.methods import coreset as _coreset  # noqa: F401
from potstill.methods import krr_st as _krr_st  # noqa: F401
from potstill.methods import mkdt as _mkdt  # noqa: F401
from potstill.methods import mtt as _mtt  # noqa: F401
from potstill.methods import progressive as _progressive  # noqa: F401
from potstill.methods import ratbptt as _ratbptt  # noqa: F401
from potstill.methods import rded as _rded  # noqa: F401
from potstill.methods import recovering as _recovering  # noqa: F401
from potstill.methods import scored as _scored  # noqa: F401
from potstill.methods import subset_kd as _subset_kd  # noqa: F401
from potstill.methods.api import (
    METHODS,
    Context,
    Loop,
    Method,
    Plan,
    SynthBlock,
    method_of,
    name_of,
)

__all__ = ["METHODS", "Context", "Loop", "Method", "Plan", "SynthBlock", "method_of", "name_of"]
