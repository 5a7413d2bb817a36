"""Augmentation of colours for images that are normalised."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from potstill.augment import SSL, Chain, Policy
from potstill.core.errors import InputError
from potstill.core.keys import generator
from potstill.data import MeanStd, SpaceSpec

P = TypeVar("P", bound=Policy | None)


def restoring(policy: P, space: SpaceSpec, shape: tuple[int, int, int]) -> P:
    """Return the policy for images (C, H, W) of a normaliser, whose pixels `SSL` then restores.

    Policies other than `SSL` are returned as they are.

    Raises:
        InputError: if such images have no such colours, or the policy restores those of another
            normaliser.
    """
    if isinstance(policy, Chain):
        return replace(policy, parts=tuple(restoring(part, space, shape) for part in policy.parts))  # pyrefly: ignore
    if not isinstance(policy, SSL):
        return policy
    if not isinstance(space, MeanStd):
        raise InputError(
            "Views of self-supervised training are of images normalised by mean and std, not "
            f"whitened ({space.kind})."
        )
    told = MeanStd(mean=policy.mean, std=policy.std)
    if told not in (MeanStd(mean=SSL.mean, std=SSL.std), space):
        raise InputError(
            f"The views restore images of {told.describe()}; those at hand have {space.describe()}."
        )
    policy = replace(policy, mean=space.mean, std=space.std)
    policy.sample(1, shape, generator(0, "colours"))  # refuses what it cannot change
    return policy
