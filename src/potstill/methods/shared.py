"""What outer steps share: leaves, their gradients and scale, the NaN guard, a check of rounding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from potstill.core.errors import InputError, WorkError
from potstill.core.ranges import one_of
from potstill.methods.api import Context

Outer = Literal["sgd", "rms"]
"""Steps of images along the gradient, or along the gradient over its root mean square."""
_PATIENCE = 20  # outer steps in a row that may fail before the run gives up


def leaves(tensors: Sequence[Tensor], scales: Sequence[float]) -> list[Tensor]:
    """Return the tensors of each block without their history; frozen ones (0) take no gradient."""
    return [x.detach().requires_grad_(s > 0) for x, s in zip(tensors, scales, strict=True)]


def gradients(
    value: Tensor, leaves: Sequence[Tensor], bar: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Return the gradient of value (or of <value, bar>) by each leaf; zero by frozen ones."""
    free = [each for each in leaves if each.requires_grad]
    options = {"allow_unused": True, "materialize_grads": True}
    found = iter(torch.autograd.grad(value, free, bar, **options))
    return tuple(next(found) if each.requires_grad else torch.zeros_like(each) for each in leaves)


def check_outer(method: Any) -> None:
    """Refuse steps of images (`outer`, lr_img) that cannot be meant.

    Raises:
        InputError: for an unknown kind, or a step size of gradients for steps of their own size.
    """
    one_of(get_args(Outer), method, "outer")
    if method.outer == "rms" and method.lr_img > 1:
        raise InputError(
            "With outer 'rms' lr_img is how far a step moves normalised pixels, at most 1, not "
            f"{method.lr_img:g}."
        )


def unit(gradient: Tensor) -> Tensor:
    """Return a gradient over its root mean square; one of zeros as it is."""
    size = gradient.square().mean().sqrt()
    return gradient / torch.where(size > 0, size, 1)


def failed_again(failed: int, it: int, *, advice: str) -> int:
    """Return the number of outer steps in a row that were not finite, after one more.

    Raises:
        WorkError: if they are 20; ends with the advice.
    """
    failed += 1
    if failed >= _PATIENCE:
        raise WorkError(f"{failed} outer steps in a row up to step {it} were not finite; {advice}.")
    return failed


def rounding(ctx: Context, images: Callable[[Context], Sequence[Tensor]]) -> str:
    """Return a line about how far the gradient by images is off in the window's precision.

    `images` computes it; plain steps before the window are alike.
    """
    window, found = ctx.plan.window, []
    for precision in ("float32", window.precision):
        compute = replace(window, precision=precision)
        plan = replace(ctx.plan, window=compute, prefix=ctx.plan.prefix or window.precision)
        found.append(torch.cat([x.flatten() for x in images(replace(ctx, plan=plan))]))
    cosine = float(torch.cosine_similarity(found[0], found[1], dim=0))
    return f"Differentiated steps in {window.precision}: cosine {cosine:.4f} to float32 at first."
