"""Augmentation policies: parameters drawn apart from applied."""

from potstill.augment.dsa import DSA, Params
from potstill.augment.rat import RAT
from potstill.core.errors import unknown
from potstill.core.registry import Registry

Policy = DSA | RAT
POLICIES: Registry[type[Policy]] = Registry("augmentation policy")
POLICIES.add("dsa")(DSA)
POLICIES.add("rat")(RAT)


def policy_of(text: str) -> Policy | None:
    """Return the policy that a text names: none, dsa, rat or operations of dsa; ":M" does all.

    Without ":M" one operation, drawn for the whole batch, is done at a time.

    Raises:
        InputError: for an unknown name or mode.
    """
    if text == "none":
        return None
    name, _, mode = text.partition(":")
    if mode not in ("", "S", "M"):
        raise unknown("mode of augmentation", mode, ("S", "M"))
    wanted = "M" if mode == "M" else "S"
    if name in POLICIES.names():
        return POLICIES.get(name)(mode=wanted)
    return DSA(strategy=name, mode=wanted)


def text_of(policy: Policy | None) -> str:
    """Return the text of a policy with published constants, as `policy_of` reads it."""
    if policy is None:
        return "none"
    name = "rat" if isinstance(policy, RAT) else policy.strategy
    return name if policy.mode == "S" else f"{name}:{policy.mode}"


__all__ = ["DSA", "POLICIES", "RAT", "Params", "Policy", "policy_of", "text_of"]
