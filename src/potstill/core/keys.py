"""Keyed randomness: every random number follows from a seed and the name of its use.

Nothing in potstill reads or moves the caller's global generator. A key is a seed and any number
of strings and integers; equal keys give equal numbers on every machine and in every order of use.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

Part = int | str


def integer(seed: int, *key: Part) -> int:
    """Return the 63-bit integer that belongs to (seed, *key)."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in (int(seed), *key))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, *key: Part) -> torch.Generator:
    """Return a fresh CPU generator for (seed, *key).

    torch's CPU generator reads 32 bits of its seed, so two of n keys meet with chance n^2 / 2^33.
    """
    return torch.Generator().manual_seed(integer(seed, *key))


@contextmanager
def forked(seed: int, *key: Part, device: torch.device | None = None) -> Iterator[None]:
    """Seed torch's global CPU generator by the key inside the block and put it back after.

    That of a CUDA `device` too. For code that can only use the global generator: constructors of
    networks, dropout.
    """
    used = [torch.random.default_generator]
    if device is not None and device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        used.append(torch.cuda.default_generators[index])
    states = [each.get_state() for each in used]
    try:
        for each in used:
            each.manual_seed(integer(seed, *key))
        yield
    finally:
        for each, state in zip(used, states, strict=True):
            each.set_state(state)
