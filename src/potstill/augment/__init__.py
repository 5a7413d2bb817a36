"""Augmentation policies and mixing: parameters drawn apart from applied."""

from dataclasses import fields

from potstill.augment.chain import Chain, ShufflePatches
from potstill.augment.crops import Crops
from potstill.augment.curriculum import Curriculum
from potstill.augment.dsa import DSA
from potstill.augment.idc import IDC
from potstill.augment.mix import CutMix, Mix, Mixing, MixUp
from potstill.augment.operations import Params
from potstill.augment.randaugment import RandAugment
from potstill.augment.rat import RAT
from potstill.augment.ssl import SSL
from potstill.augment.views import Views
from potstill.core.errors import InputError, unknown
from potstill.core.registry import Registry

Policy = DSA | RAT | IDC | Views | Crops | ShufflePatches | RandAugment | SSL | Chain
POLICIES: Registry[type[Policy]] = Registry("augmentation policy")
POLICIES.add("dsa")(DSA)
POLICIES.add("rat")(RAT)
POLICIES.add("idc")(IDC)
POLICIES.add("views")(Views)
POLICIES.add("crops")(Crops)
POLICIES.add("shuffle")(ShufflePatches)
POLICIES.add("randaugment")(RandAugment)
POLICIES.add("ssl")(SSL)
POLICIES.add("chain")(Chain)
_INTERNAL = ("views", "shuffle", "randaugment", "ssl", "chain")
"""Policies that need more than a text (the statistics of the images), or are no method's."""


def policy_of(text: str) -> Policy | None:
    """Return the policy that a text names: none, dsa, rat, idc, crops or operations of dsa.

    After a colon: of idc its operations; of crops settings, as in crops:scale=0.5-1,flip_prob=0;
    of others M to do all operations at a time, where one, drawn for the whole batch, is done
    otherwise.

    Raises:
        InputError: for an unknown name, mode, operation or setting, and for what is for protocols
            and recipes only.
    """
    if text == "none":
        return None
    name, colon, mode = text.partition(":")
    if name == "crops":
        return _crops(mode) if colon else Crops()
    if name == "idc":
        return IDC(strategy=mode) if colon else IDC()
    if mode not in ("", "S", "M"):
        raise unknown("mode of augmentation", mode, ("S", "M"))
    wanted = "M" if mode == "M" else "S"
    if name in _INTERNAL:
        raise InputError(f"The policy {name!r} is for protocols and recipes only.")
    if name == "dsa":
        return DSA(mode=wanted)
    return RAT(mode=wanted) if name == "rat" else DSA(strategy=name, mode=wanted)


def text_of(policy: Policy | None) -> str:
    """Return the text of a policy, as `policy_of` reads it where it may; of crops with settings."""
    if policy is None:
        return "none"
    if isinstance(policy, Chain):
        return "+".join(text_of(part) for part in policy.parts)  # pyrefly: ignore[bad-argument-type]
    if isinstance(policy, Views | ShufflePatches | RandAugment | SSL):
        return next(name for name in _INTERNAL if POLICIES.get(name) is type(policy))
    if isinstance(policy, Crops):
        own = ((f.name, getattr(policy, f.name)) for f in fields(Crops))
        said = [f"{name}={_number(value)}" for name, value in own if value != getattr(Crops, name)]
        return f"crops:{','.join(said)}" if said else "crops"
    if isinstance(policy, IDC):
        return "idc" if policy.strategy == IDC.strategy else f"idc:{policy.strategy}"
    name = "rat" if isinstance(policy, RAT) else policy.strategy
    return name if policy.mode == "S" else f"{name}:{policy.mode}"


def _number(value: object) -> str:
    return "-".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _crops(text: str) -> Crops:
    """Return crops of settings such as scale=0.5-1,flip_prob=0."""
    own, found = {f.name: getattr(Crops, f.name) for f in fields(Crops)}, {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name not in own:
            raise unknown("setting of the policy crops", name, own)
        try:
            if isinstance(own[name], bool):
                found[name] = {"True": True, "False": False}[value]
            else:
                numbers = tuple(map(float, value.split("-")))
                found[name] = numbers if isinstance(own[name], tuple) else float(value)
        except (KeyError, ValueError):
            example = f"{name}={_number(own[name])}"
            raise InputError(f"A setting of crops is written as {example}, not {part}.") from None
        if isinstance(own[name], tuple) and len(found[name]) != 2:
            raise InputError(f"{name} of crops is two numbers such as 0.08-1, not {value}.")
    return Crops(**found)


__all__ = [
    "DSA",
    "IDC",
    "POLICIES",
    "RAT",
    "SSL",
    "Chain",
    "Crops",
    "Curriculum",
    "CutMix",
    "Mix",
    "MixUp",
    "Mixing",
    "Params",
    "Policy",
    "RandAugment",
    "ShufflePatches",
    "Views",
    "policy_of",
    "text_of",
]
