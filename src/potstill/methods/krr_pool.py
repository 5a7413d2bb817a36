"""State of KRR-ST, and its pool: networks that learn the distilled set between outer steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor

from potstill.core import keys
from potstill.functional import SGD, Adam, mse
from potstill.functional.kernel_ridge import PoolAges
from potstill.functional.kernels import gradient
from potstill.functional.losses import PART, casting
from potstill.functional.parts import updated
from potstill.methods.api import Context
from potstill.methods.moving import first_order
from potstill.nets import FlatNet, flat

ADAM = Adam()
"""Moves X_s and Y_s: AdamW without decay."""


class Member(TypedDict):
    """A network of the pool: weights, state of its optimizer, running statistics by name."""

    theta: Tensor
    velocity: tuple[Tensor, ...]
    statistics: dict[str, Tensor]


class State(TypedDict):
    """What is learned, and the pool.

    images: X_s [n, C, H, W] and Y_s [n, D]; moments: of Adam, for both; updates: its steps;
    ages: steps of each member; rows: of the training part, as which X_s began.
    """

    images: tuple[Tensor, Tensor]
    moments: tuple[tuple[Tensor, ...], ...]
    updates: int
    members: tuple[Member, ...]
    ages: tuple[int, ...]
    rows: Tensor
    failed: int


def on_device(tree: Any, device: str) -> Any:
    """Return a state, or a part of one, with its tensors on a device."""
    if isinstance(tree, Tensor):
        return tree.to(device)
    if isinstance(tree, dict):
        return {name: on_device(part, device) for name, part in tree.items()}
    return tuple(on_device(part, device) for part in tree) if isinstance(tree, tuple) else tree


def descended(
    state: State, grads: Sequence[Tensor], lr: float, *, clip: float | None
) -> State | None:
    """Return the state after Adam's step along the gradients by X_s and Y_s; None if not finite.

    `clip`: the largest norm of both gradients together.
    """
    if clip is not None:
        norm = torch.linalg.vector_norm(torch.stack([grad.norm() for grad in grads]))
        grads = [grad * (clip / (norm + 1e-6)).clamp(max=1) for grad in grads]
    rate = grads[0].new_tensor(lr)
    given = zip(state["images"], grads, state["moments"], strict=True)
    (x, of_x), (y, of_y) = (ADAM.update(*each, rate, state["updates"]) for each in given)
    if not bool((x.sum() + y.sum()).isfinite()):
        return None
    updates = state["updates"] + 1
    return {**state, "images": (x, y), "moments": (of_x, of_y), "updates": updates, "failed": 0}


@dataclass(frozen=True, kw_only=True)
class Pool:
    """How the networks of the pool learn the set, and when they are made anew."""

    net: FlatNet
    sgd: SGD
    lr: float
    life: int
    legacy: bool

    def made(self, ctx: Context, outputs: int, slot: int, key: str | int) -> Member:
        """Return the network of a slot that begins at `key`: new weights, no statistics yet."""
        given = {"channels": ctx.data.channels, "size": ctx.data.size, "classes": outputs}
        net = flat(ctx.net_spec, **given, seed=ctx.seed, key=("pool", slot, key))
        theta = net.theta0.to(ctx.plan.window.device)
        statistics = {name: each.clone() for name, each in net.statistics(theta).items()}
        return Member(theta=theta, velocity=self.sgd.init(theta), statistics=statistics)

    def step(self, ctx: Context, state: State, slot: int, it: int) -> tuple[State, float]:
        """Return the state after a network's step of MSE(g(X_s), Y_s) on the whole set; that loss.

        In training mode, so that its running statistics move, too.

        Differs: a network that is made anew has age 0; in the released code it keeps its age and
        so is made anew at every later visit (`legacy`).
        """
        member, (x, y), net = state["members"][slot], state["images"], self.net
        theta, held = member["theta"], {k: v.clone() for k, v in member["statistics"].items()}
        net.train()
        with net.using(held), keys.forked(ctx.seed, "pool step", it, device=theta.device):
            compute = first_order(ctx)
            loss, grad = gradient(net, theta, x, y, mse, compute=compute, batch=len(x))
            held = dict(net.statistics(theta))
        rate = torch.tensor(self.lr, dtype=theta.dtype, device=theta.device)
        theta, velocity = updated(self.sgd, theta, grad, member["velocity"], rate, 1)
        ages = PoolAges(ages=state["ages"], life=self.life, legacy=self.legacy)
        ages, old = ages.stepped(slot)
        if old:
            member = self.made(ctx, y.shape[1], slot, it)
        else:
            member = Member(theta=theta, velocity=velocity, statistics=held)
        return replaced({**state, "ages": ages.ages}, slot, member), float(loss)

    def anew(self, ctx: Context, state: State, slot: int, it: int) -> State:
        """Return the state with a new network, of age 0, in a slot."""
        ages = tuple(age * (m != slot) for m, age in enumerate(state["ages"]))
        made = self.made(ctx, state["images"][1].shape[1], slot, it)
        return replaced({**state, "ages": ages}, slot, made)


def replaced(state: State, slot: int, member: Member) -> State:
    """Return the state with another network in a slot."""
    members = (*state["members"][:slot], member, *state["members"][slot + 1 :])
    return {**state, "members": members}


def embedded(ctx: Context, net: FlatNet, member: Member, x: Tensor) -> Tensor:
    """Return phi(x) [B, D]: what a member's last layer is given, in evaluation mode.

    On a CPU images go through in parts that stay in its caches, each for itself.
    """
    net.eval()
    small = x.device.type == "cpu" and net.separable
    size = max(1, PART // x[0, 0].numel()) if small else len(x)
    with net.using(member["statistics"]), casting(x.device, ctx.plan.window.precision):
        parts = [net.features(member["theta"], part) for part in x.split(size)]
    return torch.cat(parts).to(x.dtype)
