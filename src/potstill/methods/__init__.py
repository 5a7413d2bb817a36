"""Distillation methods, one file each."""

from potstill.methods import mtt as _mtt  # noqa: F401 - registers its method
from potstill.methods.api import METHODS, Context, Loop, Method, Plan, SynthBlock

__all__ = ["METHODS", "Context", "Loop", "Method", "Plan", "SynthBlock"]
