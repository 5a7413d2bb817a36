"""Outer steps along meta-gradients: clipping, Adam, labels that stay valid, the NaN guard.

    s <- c s + (1 - c) |g|;  g is cut to the norm 2 s;  Adam without schedule or averaging

Source: Feng, Vedantam, Kempe, ICLR 2024 (arXiv 2311.07025), as its authors' code has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from potstill.core.errors import InputError
from potstill.core.ranges import above_zero
from potstill.core.spec import record
from potstill.functional import Adam
from potstill.methods.shared import failed_again
from potstill.methods.student import Found
from potstill.methods.windows import Turn, first_turn

_ADAM = Adam()


class State(TypedDict):
    """What is learned, and what outer steps carry over.

    images and learned labels (none if they are hard) of each block, and the student's step size;
    moments of Adam for each of these in this order, none for what stays fixed; updates: of Adam;
    norm: the moving average; missed: how many networks miss each real image [n].
    """

    images: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]
    lr: Tensor
    moments: tuple[tuple[Tensor, ...], ...]
    updates: int
    norm: float | None
    turn: Turn
    missed: Tensor | None
    skipped: int
    failed: int


@record
@dataclass(frozen=True, kw_only=True)
class Clip:
    """How the gradient is cut to a moving average of its norm."""

    weight: float | None = 0.9
    """Weight of the past in the average; none: no cut."""
    factor: float = 2.0
    """The norm is cut to this times the average, which has the present norm in it."""
    labels: bool = False
    """Norm and cut are of images and labels together, not of the images alone."""

    def __post_init__(self) -> None:
        if self.weight is not None and not 0 <= self.weight < 1:
            raise InputError(f"clip.weight must lie in [0, 1), or be none, not {self.weight}.")
        above_zero(self, "factor", prefix="clip.")

    def cut(self, mean: float | None, norm: float) -> tuple[float | None, float]:
        """Return the average with this norm in it, and the factor that cuts the gradient.

        The first norm begins the average.
        """
        if self.weight is None:
            return None, 1.0
        mean = norm if mean is None else self.weight * mean + (1 - self.weight) * norm
        return mean, self.factor * mean / norm if norm > self.factor * mean else 1.0


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Step sizes of an outer step; `scales` are the factors of the blocks, 0 for frozen ones."""

    images: float
    labels: float
    lr: float
    scales: Sequence[float]

    def of(self, labels: Sequence[Tensor]) -> tuple[float, ...]:
        """Return the step size of each tensor that is or could be learned."""
        scaled = [self.labels * scale for scale, _ in zip(self.scales, labels, strict=False)]
        return (*(self.images * scale for scale in self.scales), *scaled, self.lr)


def begun(
    images: tuple[Tensor, ...], labels: tuple[Tensor, ...], lr: Tensor, rates: Rates
) -> State:
    """Return the state before the first outer step."""
    values = (*images, *labels, lr)
    moments = (_ADAM.init(x) if r else () for x, r in zip(values, rates.of(labels), strict=True))
    return State(
        images=images,
        labels=labels,
        lr=lr,
        moments=tuple(moments),
        updates=0,
        norm=None,
        turn=first_turn(),
        missed=None,
        skipped=0,
        failed=0,
    )


def descend(
    state: State, found: Found, rates: Rates, clip: Clip, *, onto: Callable[[Tensor], Tensor]
) -> tuple[State | None, dict[str, float]]:
    """Return the state after Adam's step (None if loss or gradient is not finite), loss and norm.

    `onto` takes moved labels to the nearest valid ones.

    Differs: a step that is not finite is left out; it makes the original's average NaN for ever.
    The student's step size moves by its logarithm, so that it stays positive.
    """
    numbers = [found.loss, _norm(found.images), _norm(found.labels), found.lr]
    loss, of_images, of_labels, of_lr = torch.stack([x.to(found.loss) for x in numbers]).tolist()
    if not all(map(math.isfinite, (loss, of_images, of_labels, of_lr))):
        return None, {}
    norm = math.hypot(of_images, of_labels) if clip.labels else of_images
    mean, cut = clip.cut(state["norm"], norm)
    values = (*state["images"], *state["labels"], state["lr"].log())
    images = (g * cut for g in found.images)
    labels = (g * cut if clip.labels else g for g in found.labels)
    new, moments = [], []
    for value, grad, before, rate in zip(
        values,
        (*images, *labels, found.lr),
        state["moments"],
        rates.of(state["labels"]),
        strict=True,
    ):
        if rate:
            step = torch.tensor(rate, dtype=torch.float64)
            moved, before = _ADAM.update(value, grad, before, step, state["updates"])
            value = moved.to(value.dtype)  # a 0-dim one took the type of the step
        new.append(value)
        moments.append(before)
    n = len(found.images)
    moved = zip(new[n:-1], rates.scales, strict=False)
    after: State = {
        **state,
        "images": tuple(new[:n]),
        "labels": tuple(onto(y) if scale else y for y, scale in moved),
        "lr": new[-1].exp() if rates.lr else state["lr"],
        "moments": tuple(moments),
        "updates": state["updates"] + 1,
        "norm": mean,
        "failed": 0,
    }
    return after, {"loss": loss, "norm": norm}


def skipped(state: State, it: int, *, advice: str) -> State:
    """Return the state after a step that was left out.

    Raises:
        WorkError: after 20 such steps in a row; ends with the advice.
    """
    failed = failed_again(state["failed"], it, advice=advice)
    return {**state, "skipped": state["skipped"] + 1, "failed": failed}


def at_least_zero(rows: Tensor) -> Tensor:
    """Return rows with 0 for everything below it."""
    return rows.clamp(min=0)


def on_simplex(rows: Tensor) -> Tensor:
    """Return the points nearest to rows [N, K] whose numbers are at least 0 and sum to 1.

    Source: Duchi et al., Efficient Projections onto the l1-Ball, ICML 2008, algorithm 1.
    """
    ordered = rows.sort(dim=1, descending=True).values
    over = (ordered.cumsum(1) - 1) / torch.arange(1, rows.shape[1] + 1, device=rows.device)
    last = (ordered > over).sum(1, keepdim=True) - 1
    return (rows - over.gather(1, last)).clamp(min=0)


LABELS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "hard": lambda rows: rows,
    "raw": at_least_zero,
    "simplex": on_simplex,
}
"""From a kind of labels to what takes moved ones to the nearest valid ones."""


def on_device(state: State, device: str) -> State:
    """Return the state with its tensors on a device."""

    def moved(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(each.to(device) for each in tensors)

    return {
        **state,
        "images": moved(state["images"]),
        "labels": moved(state["labels"]),
        "lr": state["lr"].to(device),
        "moments": tuple(map(moved, state["moments"])),
    }


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    norms = [torch.linalg.vector_norm(each) for each in tensors]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())
