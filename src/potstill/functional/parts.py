"""Optimizer steps of first-order training on long vectors of weights."""

from __future__ import annotations

import torch
from torch import Tensor

from potstill.functional.optim import Optimizer, State

PART = 1 << 16
"""Numbers that a step moves at a time."""


@torch.no_grad()
def updated(
    optimizer: Optimizer, theta: Tensor, grad: Tensor, state: State, lr: Tensor, step: int
) -> tuple[Tensor, State]:
    """Return what `optimizer.update` does, bit for bit, for vectors [P] on a CPU part by part.

    That is 3 to 5 times as fast for millions of weights, since what a part needs stays in caches.
    The optimizer moves every number by itself; nothing is differentiated through.
    """
    if theta.device.type != "cpu" or theta.numel() <= PART:
        return optimizer.update(theta, grad, state, lr, step)
    old, new = (theta, *state), list[Tensor]()
    for at in range(0, theta.numel(), PART):
        part = slice(at, at + PART)
        before = [tensor[part] for tensor in old]
        now, rest = optimizer.update(before[0], grad[part], tuple(before[1:]), lr, step)
        after = (now, *rest)
        if not new:  # what no step changes is not copied
            pairs = zip(old, before, after, strict=True)
            new = [whole if a is b else torch.empty_like(whole) for whole, b, a in pairs]
        for whole, b, a in zip(new, before, after, strict=True):
            if a is not b:
                whole[part] = a
    return new[0], tuple(new[1:])
