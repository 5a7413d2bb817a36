"""MTT: distil by matching training trajectories.

Source: Cazenavette, Wang, Torralba, Efros, Zhu, Dataset Distillation by Matching Training
Trajectories, CVPR 2022 (arXiv 2203.11932), algorithm 1. Symbols: N = steps, M = expert_epochs,
T = max_start_epoch, X = distilled images, beta = student step size, A = augmentation.

    theta_0 = expert at epoch s, s ~ U{0..T-1};  target = the same expert at epoch s + M
    theta_{t+1} = theta_t - beta * grad loss(theta_t; A(X_I), y_I)          t = 0 .. N-1
    L = |theta_N - target|^2 / |theta_0 - target|^2
    X and beta follow the gradient of L through all N steps by SGD with momentum

With experts of objective bt or simclr the same on views, without labels (see `methods.learning`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from potstill.artefact import DistilledSet
from potstill.augment import DSA, Policy
from potstill.core.errors import InputError
from potstill.core.keys import generator
from potstill.core.ranges import above_zero, at_least, below_one
from potstill.core.spec import later, record
from potstill.experts import (
    PAIRS,
    Begin,
    ExpertPlan,
    ExpertSpec,
    ImportedExpert,
    Trajectories,
    check_window,
    epochs_of,
)
from potstill.functional import SGD, TrainSpec, mtt_segments
from potstill.methods.api import METHODS, Context, Cost, Done, Loop, Metrics, Phase
from potstill.methods.export import distilled
from potstill.methods.learning import Learning
from potstill.methods.matching import State, advanced, at_rest, match, minibatches
from potstill.methods.shared import Outer, check_outer
from potstill.methods.work import expert_advice, expert_phase, expert_work, window_bytes
from potstill.nets import hindrance

_BATCH = 256
"""Images a step in training on the set."""


@METHODS.add("mtt")
@record
@dataclass(frozen=True, kw_only=True)
class MTT:
    """Match the training trajectories of experts (Cazenavette et al., CVPR 2022)."""

    diluted: ClassVar[bool] = True
    iterations: int = 5000
    """Outer steps."""
    steps: int = 50
    """N: student steps on distilled images in one outer step."""
    expert_epochs: int = 2
    """M: epochs of real data that the student has to cover."""
    max_start_epoch: int = 2
    """T: expert epochs at which a student may start are 0 .. T-1."""
    batch_syn: int | None = None
    """Distilled images a student step; by default as many as there are that move (all of them, or
    those of a stage)."""
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
    augment: Policy | None = DSA()
    """Augmentation of the distilled images, of each of two views where experts learn from views."""
    evaluation_epochs: int = 1000
    """Nominal epochs of training on the set (the published loop makes one more)."""
    experts: ExpertPlan = ExpertPlan()
    """The experts."""
    outer: Outer = later("sgd")
    """Steps of images: sgd, along the gradient, as published; rms, along the gradient over its root
    mean square, so that lr_img says how far a pixel moves."""

    def __post_init__(self) -> None:
        at_least(1, self, "iterations", "steps", "batch_syn", "expert_epochs", "max_start_epoch")
        at_least(1, self, "evaluation_epochs")
        at_least(0, self, "lr_lr")
        above_zero(self, "lr_img", "lr_init")
        below_one(self, "momentum")
        check_outer(self)
        if self.experts.objective == "kd_mse":
            told = "objective 'bt', 'simclr' or 'ce', not 'kd_mse' (see mkdt)"
            raise InputError(f"mtt's experts learn no features: {told}.")
        if self.unlabelled and self.augment is None:
            raise InputError("Students that learn from views need an augmentation (augment).")
        if self.image_init not in ("real", "noise"):
            raise InputError(f"image_init must be 'real' or 'noise', not {self.image_init!r}.")

    def check(self, ctx: Context) -> None:
        """Refuse dropout, minibatches that do not fit, windows that experts do not reach."""
        own = Learning(self, ctx)
        module = own.net.load(own.net.theta0)
        if problem := hindrance(module, ctx.data.channels, ctx.data.size):
            raise InputError(f"mtt cannot distil with {ctx.net_spec.name}: {problem}.")
        own.check(_BATCH)
        check_window(
            start_epochs=self.max_start_epoch,
            span=self.expert_epochs,
            epochs=epochs_of(self.experts, ctx.store),
        )

    def cost(self, ctx: Context) -> Cost:
        """Return predicted graph bytes of both strategies, the bytes of the experts, the work."""
        own, steps = Learning(self, ctx), self.iterations * self.steps
        net, batch = own.net, own.passes * own.batch
        plan, count = self._experts(ctx), len(ctx.data.train)
        task_images, task_steps = expert_work(plan, count)
        graph, adjoint = window_bytes(ctx, net, batch=batch, steps=self.steps)
        return Cost(
            graph_bytes=graph,
            adjoint_bytes=adjoint,
            disk_bytes=plan.count * (epochs_of(plan, ctx.store) + 1) * net.numel * 4,
            steps=self.iterations,
            window_images=steps * batch,
            window_steps=steps,
            task_images=task_images,
            task_steps=task_steps,
            notes=expert_advice(plan, count),
        )

    def phases(self, ctx: Context, done: Done) -> Phase | None:
        """Train the experts, then match them."""
        if "experts" not in done:
            return expert_phase(self._experts(ctx), ctx)
        if "loop" not in done:
            source = Trajectories.open(
                done["experts"], start_epochs=self.max_start_epoch, span=self.expert_epochs
            )
            return Loop(steps=self.iterations, nets=source)
        return None

    def init(self, ctx: Context) -> State:
        """Return real (or noise) images, beta = lr_init, no velocity."""
        return at_rest(Learning(self, ctx).images, torch.tensor(self.lr_init))

    def step(self, ctx: Context, state: State, it: int) -> tuple[State, Metrics]:
        """Take one outer step; a step that is not finite is undone (see `roll_back`)."""
        assert ctx.nets is not None
        draw = ctx.nets.draw(ctx.seed, it)
        chance = generator(ctx.seed, "student", it)
        own = Learning(self, ctx)
        labels, scales, (loss, policy, prepare) = own.labels, own.scales, own.lesson()
        shape = (len(labels), *state["images"][0].shape[1:])
        found = match(
            loss,
            draw,
            state["images"],
            labels,
            state["beta"],
            minibatches(shape, own.batch, self.steps, policy, chance),
            prepare=prepare,
            scales=scales,
            strategy=ctx.plan.strategy,
            compute=ctx.plan.window,
        )
        return advanced(self, state, found, draw, it, scales=scales)

    def export(self, ctx: Context, state: State) -> DistilledSet:
        """Return the union of all blocks with the published recipe and the learned beta.

        Where views are learned the recipe is for these, and labels tell what images began as.
        """
        recipe, _ = self.training(ctx, self.evaluation_epochs)
        recipe = dataclasses.replace(recipe, lr=float(state["beta"]))
        images, labels = torch.cat(state["images"]), Learning(self, ctx).labels
        return distilled(ctx, self, images=images, targets=labels, recipe=recipe)

    def firsts(self, ctx: Context) -> tuple[Begin | ImportedExpert, ...]:
        """Return the networks that go from stage to stage: the experts."""
        return tuple(
            Begin(seed=spec.seed, kind="expert", index=spec.index)
            if isinstance(spec, ExpertSpec)
            else spec
            for spec in expert_phase(self.experts, ctx).specs
        )

    def training(self, ctx: Context, epochs: int) -> tuple[TrainSpec, int]:
        """Return how a network is trained on the set, and its images."""
        own = Learning(self, ctx)
        spec = TrainSpec(
            lr=self.lr_init,
            segments=mtt_segments(epochs),
            batch=_BATCH,
            optimizer=SGD(momentum=0.9, weight_decay=5e-4),
            augment=own.policy,
            pairs=own.pairs,
        )
        return spec, own.count

    @property
    def nominal(self) -> int:
        """Return the nominal epochs of training on the set."""
        return self.evaluation_epochs

    def _experts(self, ctx: Context) -> ExpertPlan:
        """Return the experts of a stage: after the first, only the epochs that are ever read."""
        if ctx.after is None:
            return self.experts
        epochs = self.max_start_epoch - 1 + self.expert_epochs
        return dataclasses.replace(self.experts, epochs=epochs, imported=None)

    @property
    def unlabelled(self) -> bool:
        """Return whether labels play no part: experts and students learn from views."""
        return self.experts.objective in PAIRS

    def scaled(self, scale: Literal["smoke", "cpu"]) -> MTT:
        """Return the method with at most the counts of the scale; nothing else changes."""
        smoke = scale == "smoke"
        epochs = min(self.experts.epochs, 2 if smoke else 8)
        span = min(self.expert_epochs, 1 if smoke else epochs)
        count = min(self.experts.count, 2 if smoke else 3)
        return dataclasses.replace(
            self,
            experts=dataclasses.replace(self.experts, count=count, epochs=epochs),
            iterations=min(self.iterations, 4 if smoke else 300),
            steps=min(self.steps, 3 if smoke else 15),
            expert_epochs=span,
            max_start_epoch=min(self.max_start_epoch, epochs - span + 1),
            batch_syn=min(self.batch_syn, 5) if smoke and self.batch_syn else self.batch_syn,
            evaluation_epochs=min(self.evaluation_epochs, 10 if smoke else 300),
        )
