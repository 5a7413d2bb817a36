"""Optimizers as records of pure functions: `init`, `update`, and the adjoint `pullback` of a step.

An optimizer step maps (theta, grad, state, lr) to (theta', state'). `update` computes it out of
place and is differentiable to any order; `pullback` carries adjoints (bars) from the outputs back
to the inputs, so that unrolled training can be differentiated step by step without a graph.
`step` counts from 0 over the whole training, a prefix included: it decides the bias correction of
Adam and the first momentum buffer of SGD.

Sources: SGD with momentum as in torch.optim (buffer = gradient at the very first step); Adam,
Kingma and Ba, arXiv:1412.6980; AdamW, Loshchilov and Hutter, arXiv:1711.05101; eps_root, optax.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from potstill.core.errors import InputError
from potstill.core.ranges import at_least, below_one
from potstill.core.spec import later, record

State = tuple[Tensor, ...]


class Bars(NamedTuple):
    """Adjoints of the inputs of one optimizer step."""

    theta: Tensor  # without the part that flows through the gradient (the Hessian product)
    grad: Tensor
    state: State
    lr: Tensor  # 0-dim


class Optimizer(Protocol):
    """What unrolled and plain training need of an optimizer."""

    def init(self, theta: Tensor) -> State:
        """Return the state before step 0."""
        ...

    def update(
        self, theta: Tensor, grad: Tensor, state: State, lr: Tensor, step: int
    ) -> tuple[Tensor, State]:
        """Return theta and state after one step."""
        ...

    def pullback(
        self, theta: Tensor, grad: Tensor, state: State, lr: Tensor, step: int, after: Bars
    ) -> Bars:
        """Return the adjoints before the step from those after it."""
        ...


@record
@dataclass(frozen=True, kw_only=True)
class SGD:
    """Stochastic gradient descent in the convention of torch.optim.SGD.

    g = grad + weight_decay theta; b' = momentum b + (1 - dampening) g, but b' = g at step 0;
    theta' = theta - lr b', with Nesterov theta - lr (g + momentum b'). The state is (b,), and ()
    without momentum.

    Raises:
        InputError: for a momentum outside [0, 1), a negative weight decay, dampening without
            momentum, Nesterov without momentum or with dampening.
    """

    momentum: float = 0.0
    nesterov: bool = False
    dampening: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        below_one(self, "momentum", prefix="SGD ")
        at_least(0, self, "weight_decay", prefix="SGD ")
        if self.dampening and not self.momentum:
            raise InputError(f"SGD dampening {self.dampening} has no effect without momentum.")
        if self.nesterov and (not self.momentum or self.dampening):
            raise InputError("SGD nesterov needs a momentum above 0 and a dampening of 0.")

    def init(self, theta: Tensor) -> State:
        """Return the state before step 0."""
        return (torch.zeros_like(theta),) if self.momentum else ()

    def update(
        self, theta: Tensor, grad: Tensor, state: State, lr: Tensor, step: int
    ) -> tuple[Tensor, State]:
        """Return theta and state after one step; lr is 0-dim."""
        direction, state = self._direction(theta, grad, state, step)
        return theta - lr * direction, state

    def pullback(
        self, theta: Tensor, grad: Tensor, state: State, lr: Tensor, step: int, after: Bars
    ) -> Bars:
        """Return the adjoints before the step; `after.grad` is not read, `after.lr` is added to."""
        direction, _ = self._direction(theta, grad, state, step)
        lr_bar = after.lr - torch.sum(after.theta * direction)
        g_bar = -lr * after.theta
        state_bar: State = ()
        if self.momentum:
            b_bar = after.state[0] + (self.momentum * g_bar if self.nesterov else g_bar)
            fresh = b_bar if step == 0 else (1 - self.dampening) * b_bar
            g_bar = g_bar + fresh if self.nesterov else fresh
            state_bar = (torch.zeros_like(b_bar) if step == 0 else self.momentum * b_bar,)
        decay = self.weight_decay
        theta_bar = after.theta + decay * g_bar if decay else after.theta
        return Bars(theta_bar, g_bar, state_bar, lr_bar)

    def _direction(
        self, theta: Tensor, grad: Tensor, state: State, step: int
    ) -> tuple[Tensor, State]:
        g = grad + self.weight_decay * theta if self.weight_decay else grad
        if not self.momentum:
            return g, ()
        b = g if step == 0 else self.momentum * state[0] + (1 - self.dampening) * g
        return (g + self.momentum * b if self.nesterov else b), (b,)


@record
@dataclass(frozen=True, kw_only=True)
class Adam:
    """Adam, and AdamW with `decoupled=True`, differentiable where gradients vanish.

    s = step + 1; m' = b1 m + (1 - b1) g; v' = b2 v + (1 - b2) g^2; q = sqrt(v' + eps_root);
    theta' = theta - a m' / (c q + eps). eps_mode "torch": a = lr / (1 - b1^s) and
    c = 1 / sqrt(1 - b2^s); "higher021" (`higher` 0.2.1): a = lr sqrt(1 - b2^s) / (1 - b1^s) and
    c = 1. weight_decay times theta is added to g, or if decoupled times lr subtracted.
    The state is (m, v). With decays "weights" only tensors of two or more dimensions decay, no
    biases and no scales of norms; `init` is then told which, and keeps it in the state.

    Differs: eps_root is added to the raw v, not to the bias-corrected one (optax); all derivatives
    of q are 0 where v' + eps_root = 0, so that dead units give no NaN (torch.optim gives NaN).

    Raises:
        InputError: for betas outside [0, 1), a negative eps, eps_root or weight decay, eps and
            eps_root both 0, an unknown eps_mode or decays, decoupled or decays without weight
            decay.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    eps_root: float = 0.0
    eps_mode: Literal["torch", "higher021"] = "torch"
    weight_decay: float = 0.0
    decoupled: bool = False
    decays: Literal["all", "weights"] = later("all")

    def __post_init__(self) -> None:
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"Adam betas must be two numbers in [0, 1), not {self.betas}.")
        at_least(0, self, "eps", "eps_root", "weight_decay", prefix="Adam ")
        if self.eps == self.eps_root == 0:
            raise InputError("Adam needs an eps or an eps_root above 0.")
        if self.eps_mode not in ("torch", "higher021"):
            raise InputError(f"Adam eps_mode must be torch or higher021, not {self.eps_mode!r}.")
        if self.decoupled and not self.weight_decay:
            raise InputError("Adam decoupled has no effect without weight_decay.")
        if self.decays not in ("all", "weights"):
            raise InputError(f"Adam decays must be all or weights, not {self.decays!r}.")
        if self.decays == "weights" and not self.weight_decay:
            raise InputError("Adam decays 'weights' has no effect without weight_decay.")

    def init(self, theta: Tensor, *, decayed: Tensor | None = None) -> State:
        """Return the state before step 0; `decayed` [P] is 1 where theta decays and 0 elsewhere.

        Raises:
            InputError: with decays "weights", if nobody tells which.
        """
        moments = torch.zeros_like(theta), torch.zeros_like(theta)
        if self.decays == "all":
            return moments
        if decayed is None:
            raise InputError("Adam decays 'weights' is only for plain trainings on a set.")
        return *moments, decayed

    def update(
        self, theta: Tensor, grad: Tensor, state: State, lr: Tensor, step: int
    ) -> tuple[Tensor, State]:
        """Return theta and state after one step; lr is 0-dim."""
        _, m, v = self._moments(theta, grad, state)
        scale, c = self._correction(step)
        kept = theta * (1 - lr * self._decay(state)) if self.decoupled else theta
        return kept - lr * scale * m / (c * self._root(v) + self.eps), (m, v, *state[2:])

    def pullback(
        self, theta: Tensor, grad: Tensor, state: State, lr: Tensor, step: int, after: Bars
    ) -> Bars:
        """Return the adjoints before the step; `after.grad` is not read, `after.lr` is added to."""
        (b1, b2), decay = self.betas, self._decay(state)
        g, m, v = self._moments(theta, grad, state)
        scale, c = self._correction(step)
        q = self._root(v)
        d = c * q + self.eps
        direction = scale * m / d
        lr_bar = after.lr - torch.sum(after.theta * direction)
        d_bar = lr * after.theta * direction / d
        m_bar = after.state[0] - lr * scale * after.theta / d
        v_bar = after.state[1] + torch.where(q > 0, d_bar * c / (2 * q), 0)
        g_bar = (1 - b1) * m_bar + 2 * (1 - b2) * g * v_bar
        theta_bar = after.theta
        if self.decoupled:
            shrunk = theta if self.decays == "all" else theta * state[2]
            lr_bar = lr_bar - self.weight_decay * torch.sum(after.theta * shrunk)
            theta_bar = (1 - lr * decay) * theta_bar
        elif self.weight_decay:
            theta_bar = theta_bar + decay * g_bar
        rest = tuple(torch.zeros_like(part) for part in state[2:])
        return Bars(theta_bar, g_bar, (b1 * m_bar, b2 * v_bar, *rest), lr_bar)

    def _decay(self, state: State) -> float | Tensor:
        return self.weight_decay if self.decays == "all" else self.weight_decay * state[2]

    def _moments(self, theta: Tensor, grad: Tensor, state: State) -> tuple[Tensor, Tensor, Tensor]:
        (b1, b2), decayed = self.betas, self.weight_decay and not self.decoupled
        g = grad + self._decay(state) * theta if decayed else grad
        return g, b1 * state[0] + (1 - b1) * g, b2 * state[1] + (1 - b2) * g * g

    def _correction(self, step: int) -> tuple[float, float]:
        bc1, bc2 = (1 - beta ** (step + 1) for beta in self.betas)
        return (1 / bc1, bc2**-0.5) if self.eps_mode == "torch" else (bc2**0.5 / bc1, 1.0)

    def _root(self, v: Tensor) -> Tensor:
        raw = v + self.eps_root if self.eps_root else v
        positive = raw > 0
        return torch.where(positive, torch.where(positive, raw, 1).sqrt(), 0)
