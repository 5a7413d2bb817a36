"""Unrolled training: theta after some optimizer steps, as a differentiable function of its inputs.

Two exact strategies. `graph` keeps the autograd graph of all steps. `adjoint` keeps theta, its
gradient g and the optimizer state of each step and, going backward, applies

    g_bar, theta_bar, state_bar, lr_bar  <-  optimizer.pullback(theta_t, g_t, ...)
    (h, r_bar) = grad_{theta, r} <grad_theta loss(theta_t; r), g_bar>
    theta_bar  <- theta_bar + h

for the rows r of data of a step: graph memory that does not grow with the steps, for 4/3 of the
work. No graph crosses a step, so both derivatives can be compiled.

Source: reverse-mode differentiation through optimization, Maclaurin et al., arXiv:1502.03492.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from potstill.core.errors import InputError, unknown
from potstill.functional import steps
from potstill.functional.optim import Bars, Optimizer, State
from potstill.functional.steps import Derivatives, Loss, Prepare, Rows, gradient
from potstill.functional.strategy import Strategy


@dataclass(frozen=True)
class Batch:
    """One inner step: the rows of the data it uses and what prepares them."""

    index: Tensor  # int64 [b]; rows may repeat
    extra: Any = None  # e.g. augmentation parameters; used again as they are by the adjoint


@dataclass(frozen=True)
class _Plan:
    loss: Loss
    derivatives: Derivatives
    prepare: Prepare | None
    batches: tuple[Batch, ...]
    optimizer: Optimizer
    state: State
    first_step: int

    def select(self, k: int, data: Sequence[Tensor]) -> Rows:
        return tuple(d.index_select(0, self.batches[k].index) for d in data)

    def prepared(self, k: int, rows: Rows) -> Rows:
        return rows if self.prepare is None else tuple(self.prepare(rows, self.batches[k].extra))

    def graph(self, theta: Tensor, lr: Tensor, data: Sequence[Tensor]) -> Tensor:
        """Return theta at the end, with its graph."""
        state = self.state
        for k in range(len(self.batches)):
            rows = self.prepared(k, self.select(k, data))
            if not theta.requires_grad:
                theta = theta.detach().requires_grad_()
            grad = gradient(self.loss, theta, rows, graph=True)
            theta, state = self.optimizer.update(theta, grad, state, lr, self.first_step + k)
        return theta

    @torch.no_grad()
    def run(
        self, theta: Tensor, lr: Tensor, data: Sequence[Tensor], *, keep: bool = False
    ) -> tuple[Tensor, State, list[Tensor]]:
        """Return theta and state at the end and, if kept, each step's (theta, gradient, *state)."""
        theta, state, tape = theta.detach(), self.state, []
        for k in range(len(self.batches)):
            grad = self.derivatives.gradient(theta, self.prepared(k, self.select(k, data)))
            if keep:
                tape += (theta, grad, *state)
            theta, state = self.optimizer.update(theta, grad, state, lr, self.first_step + k)
        return theta, state, tape


class _Adjoint(torch.autograd.Function):
    """theta at the end."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, theta: Tensor, lr: Tensor, *data: Tensor) -> Tensor:
        last, _, tape = plan.run(theta, lr, data, keep=True)
        ctx.plan, ctx.n_data = plan, len(data)
        ctx.save_for_backward(theta, lr, *data, *tape)
        return last

    @staticmethod
    def backward(ctx: Any, theta_bar: Tensor) -> tuple[Any, ...]:  # pyrefly: ignore[bad-override]
        theta, lr, *saved = ctx.saved_tensors
        data, kept = saved[: ctx.n_data], saved[ctx.n_data :]
        bars = _Reverse.apply(ctx.plan, ctx.needs_input_grad[3:], kept, theta_bar, theta, lr, *data)
        return None, *bars


class _Reverse(torch.autograd.Function):
    """The adjoints of (theta, lr, *data); not differentiable.

    A function of all that it depends on, so that autograd comes here and refuses; what
    `once_differentiable` makes is passed over by `torch.autograd.grad`, without a word.
    """

    @staticmethod
    def forward(
        ctx: Any,
        plan: _Plan,
        needs_data: tuple[bool, ...],
        kept: list[Tensor],
        theta_bar: Tensor,
        _: Tensor,
        lr: Tensor,
        *data: Tensor,
    ) -> tuple[Tensor | None, ...]:
        data_bars = {i: torch.zeros_like(d) for i, d in enumerate(data) if needs_data[i]}
        state_bar = tuple(torch.zeros_like(tensor) for tensor in plan.state)
        bars = Bars(theta_bar, theta_bar, state_bar, torch.zeros_like(lr))
        stride = 2 + len(plan.state)
        for k in reversed(range(len(plan.batches))):
            theta, g, *state = kept[k * stride : (k + 1) * stride]
            bars = plan.optimizer.pullback(theta, g, tuple(state), lr, plan.first_step + k, bars)
            h, row_bars = _reverse_step(plan, k, theta, bars.grad, data, list(data_bars))
            bars = bars._replace(theta=bars.theta + h)
            for bar, row_bar in zip(data_bars.values(), row_bars, strict=True):
                bar.index_add_(0, plan.batches[k].index, row_bar)
        return bars.theta, bars.lr, *(data_bars.get(i) for i in range(len(data)))

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[None, ...]:
        raise RuntimeError(
            "A gradient by the strategy adjoint cannot be differentiated again; use graph."
        )


def _reverse_step(
    plan: _Plan, k: int, theta: Tensor, v: Tensor, data: Sequence[Tensor], wanted: list[int]
) -> tuple[Tensor, Sequence[Tensor]]:
    """Return h and the adjoints of the rows of the data wanted, before `prepare`."""
    raw = plan.select(k, [d.detach() for d in data])
    sources = [raw[i].requires_grad_() for i in wanted]
    with torch.enable_grad():
        rows = plan.prepared(k, raw)
    moving = tuple(i for i, row in enumerate(rows) if row.requires_grad)
    h, *bars = plan.derivatives.product(theta, tuple(row.detach() for row in rows), v, moving)
    if not moving:
        return h, [torch.zeros_like(source) for source in sources]
    moved = [rows[i] for i in moving]
    options = {"allow_unused": True, "materialize_grads": True}
    return h, torch.autograd.grad(moved, sources, bars, **options)


def unroll(
    loss: Loss,
    theta: Tensor,
    data: tuple[Tensor, ...],
    lr: Tensor,
    batches: Sequence[Batch],
    *,
    optimizer: Optimizer,
    prepare: Prepare | None = None,
    state: State | None = None,
    first_step: int = 0,
    strategy: Strategy,
    compiled: bool = False,
) -> Tensor:
    """Return theta after one optimizer step per batch, differentiable by ordinary autograd.

    Args:
        loss: `loss(theta, rows)` -> 0-dim, a pure function of tensors; rows = every tensor of data
            at the batch's index, prepared.
        theta: starting weights, flat.
        data: tensors with equal first dimension (images, labels); gradients flow to theta, to lr
            and to every tensor of data that requires them.
        lr: 0-dim step size.
        batches: one per step.
        optimizer: SGD or Adam (`potstill.functional.optim`).
        prepare: `prepare(rows, extra)` -> rows, e.g. augmentation; by default the rows as they are.
            Differentiated once; gives the same when called again (the adjoint calls it twice).
        state: optimizer state before the first step, a constant; default `optimizer.init(theta)`.
        first_step: number of steps done before (a prefix), for the optimizer.
        strategy: "graph" or "adjoint"; equal but for rounding. The adjoint's result can be
            differentiated once: autograd raises RuntimeError for more.
        compiled: compile the adjoint's steps, once a loss object (`training_loss`) and rows' shape.

    Raises:
        InputError: for an unknown strategy, a compiled graph, no batch or an empty one, an lr that
            is not 0-dim, a first step above 0 without a state.
        WorkError: if torch cannot compile the loss.
    """
    if strategy not in ("graph", "adjoint"):
        raise unknown("strategy", strategy, ("graph", "adjoint"))
    if compiled and strategy != "adjoint":
        raise InputError(f"Compiled steps need the strategy 'adjoint', not {strategy!r}.")
    plan = _plan(loss, theta, lr, batches, optimizer, prepare, state, first_step, compiled)
    if strategy == "adjoint":
        return _Adjoint.apply(plan, theta, lr, *data)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (theta, lr, *data)):
        return plan.graph(theta, lr, data)
    return plan.run(theta, lr, data)[0]


def run_prefix(
    loss: Loss,
    theta: Tensor,
    data: tuple[Tensor, ...],
    lr: Tensor,
    batches: Sequence[Batch],
    *,
    optimizer: Optimizer,
    prepare: Prepare | None = None,
    state: State | None = None,
    first_step: int = 0,
    compiled: bool = False,
) -> tuple[Tensor, State]:
    """Return theta and optimizer state after one step per batch, without any graph.

    Arguments and errors as in `unroll`; no batch at all is allowed and changes nothing.
    """
    if not batches:
        return theta.detach(), optimizer.init(theta.detach()) if state is None else state
    plan = _plan(loss, theta, lr, batches, optimizer, prepare, state, first_step, compiled)
    theta, state, _ = plan.run(theta, lr, data)
    return theta, state


def _plan(
    loss: Loss,
    theta: Tensor,
    lr: Tensor,
    batches: Sequence[Batch],
    optimizer: Optimizer,
    prepare: Prepare | None,
    state: State | None,
    first_step: int,
    compiled: bool,
) -> _Plan:
    if not isinstance(lr, Tensor) or lr.dim() != 0:
        raise InputError(f"The step size of an unroll must be a 0-dim tensor, not {lr!r}.")
    if not batches:
        raise InputError("An unroll needs at least one batch.")
    for k, batch in enumerate(batches):
        if batch.index.dim() != 1 or not len(batch.index):
            raise InputError(f"Batch {k} must hold a list of rows, not {list(batch.index.shape)}.")
    if state is None and first_step != 0:
        raise InputError(f"An unroll from step {first_step} needs the optimizer state there.")
    state = tuple(t.detach() for t in (optimizer.init(theta) if state is None else state))
    derivatives = (steps.compiled if compiled else steps.eager)(loss)
    return _Plan(loss, derivatives, prepare, tuple(batches), optimizer, state, first_step)
