"""Augmentation policies and mixing: parameters drawn apart from applied."""

from potstill.augment.crops import Crops
from potstill.augment.curriculum import Curriculum
from potstill.augment.dsa import DSA
from potstill.augment.idc import IDC
from potstill.augment.mix import CutMix, Mixing
from potstill.augment.operations import Params
from potstill.augment.rat import RAT
from potstill.augment.views import Views
from potstill.core.errors import InputError, unknown
from potstill.core.registry import Registry

Policy = DSA | RAT | IDC | Views | Crops
POLICIES: Registry[type[Policy]] = Registry("augmentation policy")
POLICIES.add("dsa")(DSA)
POLICIES.add("rat")(RAT)
POLICIES.add("idc")(IDC)
POLICIES.add("views")(Views)
POLICIES.add("crops")(Crops)


def policy_of(text: str) -> Policy | None:
    """Return the policy that a text names: none, dsa, rat, idc, crops or operations of dsa.

    After a colon: of idc its operations; of others M to do all operations at a time, where one,
    drawn for the whole batch, is done otherwise.

    Raises:
        InputError: for an unknown name, mode or operation, and for views, which need more than a
            text (the statistics of the images).
    """
    if text == "none":
        return None
    if text == "crops":
        return Crops()
    name, colon, mode = text.partition(":")
    if name == "idc":
        return IDC(strategy=mode) if colon else IDC()
    if mode not in ("", "S", "M"):
        raise unknown("mode of augmentation", mode, ("S", "M"))
    wanted = "M" if mode == "M" else "S"
    if name == "views":
        raise InputError("The policy 'views' is for protocols and recipes only.")
    if name == "dsa":
        return DSA(mode=wanted)
    return RAT(mode=wanted) if name == "rat" else DSA(strategy=name, mode=wanted)


def text_of(policy: Policy | None) -> str:
    """Return the text of a policy with published constants, as `policy_of` reads it."""
    if policy is None:
        return "none"
    if isinstance(policy, Views):
        return "views"
    if isinstance(policy, Crops):
        return "crops"
    if isinstance(policy, IDC):
        return "idc" if policy.strategy == IDC.strategy else f"idc:{policy.strategy}"
    name = "rat" if isinstance(policy, RAT) else policy.strategy
    return name if policy.mode == "S" else f"{name}:{policy.mode}"


__all__ = [
    "DSA",
    "IDC",
    "POLICIES",
    "RAT",
    "Crops",
    "Curriculum",
    "CutMix",
    "Mixing",
    "Params",
    "Policy",
    "Views",
    "policy_of",
    "text_of",
]
