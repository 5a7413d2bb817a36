"""What torchrun says in the environment of the processes that it starts."""

from __future__ import annotations

import os


def rank() -> int:
    """Return which process this is, from 0; 0 without torchrun."""
    return int(os.environ.get("RANK", 0)) if world() > 1 else 0


def world() -> int:
    """Return how many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1
