"""How the gradient through unrolled steps is computed, and the memory that it takes."""

from __future__ import annotations

from typing import Literal

from potstill.core.errors import unknown

Strategy = Literal["graph", "adjoint"]


def graph_bytes(
    *,
    strategy: Strategy,
    batch: int,
    kept: int,
    parameters: int,
    steps: int,
    moments: int = 0,
) -> int:
    """Return about how many bytes an unroll of a network keeps, in float32.

    `kept` are the bytes that one forward pass keeps of an image (`nets.kept_bytes`). `graph`:
    steps (2 kept batch + 2.5 * 4 parameters), measured on plain SGD with saved-tensor hooks (1.95
    to 1.99 for ConvNets with instance norm, 2.03 for ResNets, 1.7 to 1.9 with other norms, and 3.1
    for swish, which torch takes apart); `adjoint`: the images' part of one step, and
    4 parameters (2 + moments) per step for theta_t, g_t and the tensors of the optimizer state
    (moments: SGD with momentum 1, Adam 2).
    """
    if strategy not in ("graph", "adjoint"):
        raise unknown("strategy", strategy, ("graph", "adjoint"))
    images = 2 * kept * batch
    if strategy == "graph":
        return round(steps * (images + 2.5 * 4 * parameters))
    return round(images + steps * 4 * parameters * (2 + moments))


def choose_strategy(
    wanted: Literal["graph", "adjoint", "auto"], *, predicted: int, budget: int
) -> Strategy:
    """Return the strategy wanted; for "auto", `graph` if its predicted bytes fit the budget."""
    if wanted == "auto":
        return "graph" if predicted <= budget else "adjoint"
    if wanted not in ("graph", "adjoint"):
        raise unknown("strategy", wanted, ("graph", "adjoint", "auto"))
    return wanted
