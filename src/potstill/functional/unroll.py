"""Unrolled training: theta after some optimizer steps, as a differentiable function of its inputs.

Two exact strategies. `graph` keeps the autograd graph of all steps. `adjoint` keeps theta and the
optimizer state of each step and, going backward, rebuilds the graph of one step at a time and
applies

    g_bar, theta_bar, state_bar, lr_bar  <-  optimizer.pullback(...)
    (h, x_bar, y_bar) = grad_{theta, x, y} <grad_theta loss(theta_t; x, y), g_bar>
    theta_bar         <- theta_bar + h

so that its graph memory does not grow with the number of steps, for 4/3 of the work.

Source: reverse-mode differentiation through optimization, Maclaurin et al., arXiv:1502.03492.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

from potstill.core.errors import InputError, unknown
from potstill.functional.optim import Bars, Optimizer, State

Loss = Callable[[Tensor, tuple[Tensor, ...], Any], Tensor]
Strategy = Literal["graph", "adjoint"]


@dataclass(frozen=True)
class Batch:
    """One inner step: the rows of the data it uses and what its loss needs beside them."""

    index: Tensor  # int64 [b]; rows may repeat
    extra: Any = None  # e.g. augmentation parameters; used again as they are by the adjoint


@dataclass(frozen=True)
class _Plan:
    loss: Loss
    batches: tuple[Batch, ...]
    optimizer: Optimizer
    state: State
    first_step: int

    def gradient(self, k: int, theta: Tensor, rows: tuple[Tensor, ...], *, graph: bool) -> Tensor:
        # torch's fused attention has no second derivative
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            value = self.loss(theta, rows, self.batches[k].extra)
            return torch.autograd.grad(value, theta, create_graph=graph)[0]

    def rows(self, k: int, data: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(d.index_select(0, self.batches[k].index) for d in data)

    def run(
        self, theta: Tensor, lr: Tensor, data: Sequence[Tensor], *, graph: bool = False
    ) -> tuple[Tensor, State, list[tuple[Tensor, State]]]:
        """Return theta and state at the end, and those before each step if there is no graph."""
        state, tape = self.state, []
        for k in range(len(self.batches)):
            if not graph:
                tape.append((theta, state))
            if not (graph and theta.requires_grad):
                theta = theta.detach().requires_grad_()
            grad = self.gradient(k, theta, self.rows(k, data), graph=graph)
            theta, state = self.optimizer.update(theta, grad, state, lr, self.first_step + k)
        return theta, state, tape


class _Adjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: _Plan, theta: Tensor, lr: Tensor, *data: Tensor) -> Tensor:
        last, _, tape = plan.run(theta, lr, data)
        kept = [tensor for before, state in tape for tensor in (before, *state)]
        ctx.plan, ctx.n_data = plan, len(data)
        ctx.save_for_backward(lr, *data, *kept)
        return last

    @staticmethod
    @once_differentiable
    def backward(  # pyrefly: ignore[bad-override]
        ctx: Any, theta_bar: Tensor
    ) -> tuple[Tensor | None, ...]:
        plan: _Plan = ctx.plan
        _, needs_theta, needs_lr, *needs_data = ctx.needs_input_grad
        lr, *saved = ctx.saved_tensors
        data, kept = saved[: ctx.n_data], saved[ctx.n_data :]
        data_bars = {i: torch.zeros_like(d) for i, d in enumerate(data) if needs_data[i]}
        state_bar = tuple(torch.zeros_like(tensor) for tensor in plan.state)
        bars = Bars(theta_bar, theta_bar, state_bar, torch.zeros_like(lr))
        stride = 1 + len(plan.state)
        for k in reversed(range(len(plan.batches))):
            theta, *state = kept[k * stride : (k + 1) * stride]
            rows = plan.rows(k, data)
            sources = [rows[i].requires_grad_() for i in data_bars]
            bars, row_bars = _reverse_step(plan, k, theta, tuple(state), lr, rows, sources, bars)
            for bar, row_bar in zip(data_bars.values(), row_bars, strict=True):
                bar.index_add_(0, plan.batches[k].index, row_bar)
        first = (bars.theta if needs_theta else None, bars.lr if needs_lr else None)
        return None, *first, *(data_bars.get(i) for i in range(len(data)))


def _reverse_step(
    plan: _Plan,
    k: int,
    theta: Tensor,
    state: State,
    lr: Tensor,
    rows: tuple[Tensor, ...],
    sources: list[Tensor],
    after: Bars,
) -> tuple[Bars, Sequence[Tensor]]:
    """Return the adjoints before step k, and those of the rows in sources."""
    leaf = theta.detach().requires_grad_()
    grad = plan.gradient(k, leaf, rows, graph=True)
    step = plan.first_step + k
    bars = plan.optimizer.pullback(theta, grad.detach(), state, lr, step, after)
    if not grad.requires_grad:  # the loss is linear in theta and blind to the rows
        return bars, [torch.zeros_like(row) for row in sources]
    h, *row_bars = torch.autograd.grad(
        grad, [leaf, *sources], bars.grad, allow_unused=True, materialize_grads=True
    )
    return bars._replace(theta=bars.theta + h), row_bars


def unroll(
    loss: Loss,
    theta: Tensor,
    data: tuple[Tensor, ...],
    lr: Tensor,
    batches: Sequence[Batch],
    *,
    optimizer: Optimizer,
    state: State | None = None,
    first_step: int = 0,
    strategy: Strategy,
) -> Tensor:
    """Return theta after one optimizer step per batch, differentiable by ordinary autograd.

    Args:
        loss: `loss(theta, rows, extra)` -> 0-dim; rows = every tensor of data at the batch's index.
            It must give the same value when called again (the adjoint calls it twice).
        theta: starting weights, flat.
        data: tensors with equal first dimension (images, labels); gradients flow to theta, to lr
            and to every tensor of data that requires them.
        lr: 0-dim step size.
        batches: one per step.
        optimizer: SGD or Adam (`potstill.functional.optim`).
        state: optimizer state before the first step, a constant; default `optimizer.init(theta)`.
        first_step: number of steps done before (a prefix), for the optimizer.
        strategy: "graph" or "adjoint"; equal but for rounding. The adjoint's result can be
            differentiated once: autograd raises RuntimeError for more.

    Raises:
        InputError: for an unknown strategy, no batch or an empty one, an lr that is not 0-dim,
            a first step above 0 without a state.
    """
    if strategy not in ("graph", "adjoint"):
        raise unknown("strategy", strategy, ("graph", "adjoint"))
    plan = _plan(loss, theta, lr, batches, optimizer, state, first_step)
    if strategy == "adjoint":
        return _Adjoint.apply(plan, theta, lr, *data)
    graph = torch.is_grad_enabled() and any(t.requires_grad for t in (theta, lr, *data))
    with torch.set_grad_enabled(graph):
        return plan.run(theta, lr, data, graph=graph)[0]


def run_prefix(
    loss: Loss,
    theta: Tensor,
    data: tuple[Tensor, ...],
    lr: Tensor,
    batches: Sequence[Batch],
    *,
    optimizer: Optimizer,
    state: State | None = None,
    first_step: int = 0,
) -> tuple[Tensor, State]:
    """Return theta and optimizer state after one step per batch, without any graph.

    Arguments and errors as in `unroll`; no batch at all is allowed and changes nothing.
    """
    if not batches:
        return theta.detach(), optimizer.init(theta.detach()) if state is None else state
    plan = _plan(loss, theta, lr, batches, optimizer, state, first_step)
    with torch.no_grad():
        theta, state, _ = plan.run(theta, lr, data)
    return theta, state


def _plan(
    loss: Loss,
    theta: Tensor,
    lr: Tensor,
    batches: Sequence[Batch],
    optimizer: Optimizer,
    state: State | None,
    first_step: int,
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
    state = optimizer.init(theta) if state is None else state
    return _Plan(loss, tuple(batches), optimizer, tuple(t.detach() for t in state), first_step)


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
    4 parameters (1 + moments) per step for theta_t and the tensors of the optimizer state
    (moments: SGD with momentum 1, Adam 2).
    """
    if strategy not in ("graph", "adjoint"):
        raise unknown("strategy", strategy, ("graph", "adjoint"))
    images = 2 * kept * batch
    if strategy == "graph":
        return round(steps * (images + 2.5 * 4 * parameters))
    return round(images + steps * 4 * parameters * (1 + moments))


def choose_strategy(
    wanted: Literal["graph", "adjoint", "auto"], *, predicted: int, budget: int
) -> Strategy:
    """Return the strategy wanted; for "auto", `graph` if its predicted bytes fit the budget."""
    if wanted == "auto":
        return "graph" if predicted <= budget else "adjoint"
    if wanted not in ("graph", "adjoint"):
        raise unknown("strategy", wanted, ("graph", "adjoint", "auto"))
    return wanted
