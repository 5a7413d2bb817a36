"""Augmentation policies: parameters drawn apart from applied."""

from potstill.augment.dsa import DSA, DSAParams
from potstill.core.registry import Registry

POLICIES: Registry[type[DSA]] = Registry("augmentation policy")
POLICIES.add("dsa")(DSA)

__all__ = ["DSA", "POLICIES", "DSAParams"]
