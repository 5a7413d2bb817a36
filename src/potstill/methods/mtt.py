"""MTT: distil by matching training trajectories.

Source: Cazenavette, Wang, Torralba, Efros, Zhu, Dataset Distillation by Matching Training
Trajectories, CVPR 2022 (arXiv 2203.11932), algorithm 1. Symbols: N = steps, M = expert_epochs,
T = max_start_epoch, X = distilled images, beta = student step size, A = augmentation.

    theta_0 = expert at epoch s, s ~ U{0..T-1};  target = the same expert at epoch s + M
    theta_{t+1} = theta_t - beta * grad loss(theta_t; A(X_I), y_I)          t = 0 .. N-1
    L = |theta_N - target|^2 / |theta_0 - target|^2
    X and beta follow the gradient of L through all N steps by SGD with momentum
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor

import potstill
from potstill.artefact import Block, DistilledSet, Hard, Identity, Provenance
from potstill.augment import DSA
from potstill.core.errors import InputError, WorkError
from potstill.core.keys import generator
from potstill.core.spec import canonical, record
from potstill.experts import ExpertPlan, Trajectories, check_window, expert_tasks
from potstill.functional import SGD, Batch, TrainSpec, ce, graph_bytes, mtt_segments, unroll
from potstill.methods.api import METHODS, Context, Cost, Done, Loop, Metrics, Phase
from potstill.methods.start import first_images, labels_of

_PATIENCE = 20  # failed outer steps in a row before the run gives up
_SAFE_EVERY = 50  # outer steps between copies that the NaN guard can go back to


class State(TypedDict):
    """Images, step size and their velocities; `safe` is what the NaN guard goes back to."""

    images: tuple[Tensor, ...]
    velocity: tuple[Tensor, ...]
    beta: Tensor
    beta_velocity: Tensor
    safe: tuple[tuple[Tensor, ...], Tensor]
    failed: int
    rolled_back: int


@METHODS.add("mtt")
@record
@dataclass(frozen=True, kw_only=True)
class MTT:
    """Match the training trajectories of experts (Cazenavette et al., CVPR 2022)."""

    iterations: int = 5000
    """Outer steps."""
    steps: int = 50
    """N: student steps on distilled images in one outer step."""
    expert_epochs: int = 2
    """M: epochs of real data that the student has to cover."""
    max_start_epoch: int = 2
    """T: expert epochs at which a student may start are 0 .. T-1."""
    batch_syn: int | None = None
    """Distilled images a student step; all of them by default."""
    lr_img: float = 100.0
    """Step size of the images."""
    lr_lr: float = 1e-7
    """Step size of the student's step size beta."""
    lr_init: float = 0.01
    """beta before the first outer step."""
    momentum: float = 0.5
    """Momentum of images and beta."""
    image_init: Literal["real", "noise"] = "real"
    """First images: `real` (random real images of the class) or `noise`."""
    augment: DSA | None = DSA()
    """Augmentation of the distilled images."""
    evaluation_epochs: int = 1000
    """Nominal epochs of training on the set (the published loop makes one more)."""
    experts: ExpertPlan = ExpertPlan()
    """The experts."""

    def __post_init__(self) -> None:
        whole = {
            "iterations": self.iterations,
            "steps": self.steps,
            "expert_epochs": self.expert_epochs,
            "max_start_epoch": self.max_start_epoch,
            "batch_syn": self.batch_syn or 1,
            "evaluation_epochs": self.evaluation_epochs,
        }
        for name, value in whole.items():
            if value < 1:
                raise InputError(f"{name} must be at least 1, not {value}.")
        for name in ("lr_img", "lr_init"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be above 0, not {getattr(self, name)}.")
        if self.lr_lr < 0 or not 0 <= self.momentum < 1:
            raise InputError(
                f"lr_lr must be at least 0 and momentum in [0, 1), not {self.lr_lr} and "
                f"{self.momentum}."
            )
        if self.image_init not in ("real", "noise"):
            raise InputError(f"image_init must be 'real' or 'noise', not {self.image_init!r}.")

    def check(self, ctx: Context) -> None:
        """Refuse a start window that the experts do not reach."""
        check_window(
            start_epochs=self.max_start_epoch,
            span=self.expert_epochs,
            epochs=self.experts.epochs,
        )

    def cost(self, ctx: Context) -> Cost:
        """Return predicted graph bytes of both strategies and the bytes of the experts."""
        batch = min(self.batch_syn or math.inf, _count(ctx))
        height, width = ctx.data.size
        bytes_of = {
            strategy: graph_bytes(
                strategy=strategy,
                batch=int(batch),
                height=height,
                width=width,
                net_width=ctx.net_spec.width,
                parameters=ctx.net.numel,
                steps=self.steps,
            )
            for strategy in ("graph", "adjoint")
        }
        return Cost(
            graph_bytes=bytes_of["graph"],
            adjoint_bytes=bytes_of["adjoint"],
            disk_bytes=self.experts.count * (self.experts.epochs + 1) * ctx.net.numel * 4,
            steps=self.iterations,
        )

    def phases(self, ctx: Context, done: Done) -> Phase | None:
        """Train the experts, then match them."""
        if "experts" not in done:
            return expert_tasks(
                self.experts,
                ctx.data,
                ctx.space,
                ctx.net_spec,
                seed=ctx.seed,
                threads=ctx.plan.threads,
            )
        if "loop" not in done:
            source = Trajectories.open(
                done["experts"], start_epochs=self.max_start_epoch, span=self.expert_epochs
            )
            return Loop(steps=self.iterations, nets=source)
        return None

    def init(self, ctx: Context) -> State:
        """Return real (or noise) images, beta = lr_init, no velocity."""
        images = first_images(ctx, self.image_init)
        beta = torch.tensor(self.lr_init)
        return State(
            images=images,
            velocity=tuple(torch.zeros_like(x) for x in images),
            beta=beta,
            beta_velocity=torch.zeros(()),
            safe=(images, beta),
            failed=0,
            rolled_back=0,
        )

    def step(self, ctx: Context, state: State, it: int) -> tuple[State, Metrics]:
        """Take one outer step; a step that is not finite is undone (see `_roll_back`).

        Differs: beta moves by a factor exp(-lr_lr * velocity / beta), equal to the published
        step to first order and always positive; the published beta can become negative.
        """
        loss, grads, beta_grad, draw = self._match(ctx, state, it)
        velocity = tuple(
            self.momentum * v + g for v, g in zip(state["velocity"], grads, strict=True)
        )
        beta_velocity = self.momentum * state["beta_velocity"] + beta_grad
        images = tuple(
            x - self.lr_img * block.lr_scale * v if block.lr_scale else x
            for block, x, v in zip(ctx.synth, state["images"], velocity, strict=True)
        )
        beta = state["beta"] * torch.exp(-self.lr_lr * beta_velocity / state["beta"])
        sound = torch.stack([loss, beta, *(x.sum() for x in images)])
        if not bool(torch.isfinite(sound).all()) or float(beta) <= 0:
            return self._roll_back(state, it)
        new = State(
            images=images,
            velocity=velocity,
            beta=beta,
            beta_velocity=beta_velocity,
            safe=(images, beta) if it % _SAFE_EVERY == 0 else state["safe"],
            failed=0,
            rolled_back=state["rolled_back"],
        )
        metrics = {"loss": float(loss), "beta": float(beta), **draw}
        return new, metrics

    def _match(
        self, ctx: Context, state: State, it: int
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor, dict[str, float]]:
        """Return L, dL/dX per block, dL/dbeta and what was drawn."""
        assert ctx.nets is not None
        draw = ctx.nets.draw(ctx.seed, it)
        assert draw.target is not None
        theta0, target = draw.theta, draw.target
        blocks = tuple(
            x.detach().requires_grad_(block.lr_scale > 0)
            for block, x in zip(ctx.synth, state["images"], strict=True)
        )
        beta = state["beta"].detach().requires_grad_()
        union, labels = torch.cat(blocks), labels_of(ctx)

        def loss(theta: Tensor, rows: tuple[Tensor, ...], params: Any) -> Tensor:
            x, y = rows
            if self.augment is not None:
                x = self.augment.apply(x, params)
            return ce(ctx.net(theta, x), y)

        ctx.net.train()
        theta_n = unroll(
            loss,
            theta0,
            (union, labels),
            beta,
            self._batches(ctx, union, it),
            optimizer=SGD(),
            strategy=ctx.plan.strategy,
        )
        distance = (theta_n - target).square().sum() / (theta0 - target).square().sum()
        free = tuple(x for x in blocks if x.requires_grad)
        *found, beta_grad = torch.autograd.grad(distance, (*free, beta))
        rest = iter(found)
        grads = tuple(next(rest) if x.requires_grad else torch.zeros_like(x) for x in blocks)
        return distance.detach(), grads, beta_grad, {"expert": draw.expert, "epoch": draw.epoch}

    def _batches(self, ctx: Context, union: Tensor, it: int) -> list[Batch]:
        """Draw the N minibatches: a permutation in chunks, taken from its end, then a new one.

        So the smaller remainder comes first; nothing carries over to the next outer step.
        """
        chance = generator(ctx.seed, "student", it)
        count, size = len(union), min(self.batch_syn or len(union), len(union))
        shape = (union.shape[1], union.shape[2], union.shape[3])
        queue: list[Tensor] = []
        batches = []
        for _ in range(self.steps):
            if not queue:
                queue = list(torch.randperm(count, generator=chance).split(size))
            index = queue.pop()
            extra = None if self.augment is None else self.augment.sample(len(index), shape, chance)
            batches.append(Batch(index=index, extra=extra))
        return batches

    def _roll_back(self, state: State, it: int) -> tuple[State, Metrics]:
        """Go back to the last safe images and beta and forget the velocities."""
        if state["failed"] + 1 >= _PATIENCE:
            raise WorkError(
                f"{_PATIENCE} outer steps in a row up to step {it} were not finite; lower lr_img "
                f"(now {self.lr_img:g}) or lr_init (now {self.lr_init:g})."
            )
        images, beta = state["safe"]
        back = State(
            images=images,
            velocity=tuple(torch.zeros_like(x) for x in images),
            beta=beta,
            beta_velocity=torch.zeros(()),
            safe=state["safe"],
            failed=state["failed"] + 1,
            rolled_back=state["rolled_back"] + 1,
        )
        return back, {"rolled_back": float(back["rolled_back"]), "beta": float(beta)}

    def export(self, ctx: Context, state: State) -> DistilledSet:
        """Return the union of all blocks with the published recipe and the learned beta."""
        starts = [0]
        for x in state["images"]:
            starts.append(starts[-1] + len(x))
        recipe = TrainSpec(
            lr=float(state["beta"]),
            segments=mtt_segments(self.evaluation_epochs),
            batch=256,
            optimizer=SGD(momentum=0.9, weight_decay=5e-4),
            augment=self.augment,
        )
        return DistilledSet(
            images=torch.cat(state["images"]).clone(),
            targets=Hard(labels_of(ctx)),
            space=ctx.space,
            recipe=recipe,
            net=ctx.net_spec,
            classes=ctx.data.classes,
            blocks=tuple(
                Block(name=f"block{k}", start=a, stop=b)
                for k, (a, b) in enumerate(zip(starts, starts[1:], strict=False))
            ),
            decode=Identity(),
            ref=ctx.data.ref,
            origin=Provenance(
                method=canonical(self),
                data=ctx.data.source,
                identity=ctx.data.ref.identity,
                seed=ctx.seed,
                version=potstill.__version__,
                iteration=0,
            ),
        )

    def scaled(self, scale: str) -> MTT:
        """Return the method with the counts of `smoke` or `cpu`; nothing else changes."""
        if scale == "smoke":
            experts = dataclasses.replace(self.experts, count=2, epochs=2)
            return dataclasses.replace(
                self,
                experts=experts,
                iterations=4,
                steps=3,
                expert_epochs=1,
                max_start_epoch=2,
                batch_syn=None if self.batch_syn is None else min(self.batch_syn, 5),
                evaluation_epochs=10,
            )
        epochs = 8
        start = min(self.max_start_epoch, epochs - self.expert_epochs + 1)
        return dataclasses.replace(
            self,
            experts=dataclasses.replace(self.experts, count=3, epochs=epochs),
            iterations=300,
            steps=min(self.steps, 15),
            max_start_epoch=start,
            evaluation_epochs=300,
        )


def _count(ctx: Context) -> int:
    return ctx.data.n_classes * sum(block.ipc for block in ctx.synth)
