"""MKDT: distil for pre-training, by matching experts that learn an encoder's features.

Source: Joshi, Ni, Mirzasoleiman, Dataset Distillation via Knowledge Distillation: Towards Efficient
Self-Supervised Pre-Training of Deep Networks, ICLR 2025 (arXiv 2410.02116). Symbols: f = frozen
encoder, g = student with as many outputs as f has features, N = steps, M = expert_epochs,
T = max_start_epoch, X = distilled images, Y = their targets, eta = student step size.

    experts: theta*_k after k epochs of MSE(g(x_i), f(x_i)) over all training images
    X, Y = the images that experts fit worst after an epoch, and f of them;  eta = lr_init
    theta_0 = theta*_s,  s ~ U{0..T-1};  target = theta*_{s+M} of the same expert
    theta_{t+1} = theta_t - eta * grad MSE(g(theta_t; X_I), Y_I)            t = 0 .. N-1
    L = |theta_N - target|^2 / |theta_0 - target|^2
    X, Y and eta follow the gradient of L through all N steps by SGD with momentum
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from potstill.artefact import DistilledSet
from potstill.core.errors import InputError
from potstill.core.keys import generator
from potstill.core.ranges import above_zero, at_least, below_one, one_of
from potstill.core.spec import later, record
from potstill.coresets import Subset
from potstill.experts import ExpertPlan, Trajectories, check_window
from potstill.functional import mse, training_loss
from potstill.methods.api import METHODS, Context, Cost, Done, Loop, Metrics, Phase
from potstill.methods.encoded import (
    EXPERTS,
    balance_text,
    check_encoder_phase,
    chosen_rows,
    embedding_of,
    preparation,
    preparation_cost,
    pretraining,
    student_of,
    weights_of,
)
from potstill.methods.export import distilled
from potstill.methods.matching import State, advanced, at_rest, follow, minibatches
from potstill.methods.shared import Outer, check_outer, leaves
from potstill.methods.work import window_bytes
from potstill.nets import hindrance
from potstill.teachers import EncoderPlan


class Learned(State):
    """Blocks X and Y, eta (`beta`), and the rows of the training part that X began as."""

    rows: Tensor


@METHODS.add("mkdt")
@record
@dataclass(frozen=True, kw_only=True)
class MKDT:
    """Distil images for self-supervised pre-training (Joshi, Ni, Mirzasoleiman, ICLR 2025)."""

    unlabelled: ClassVar[bool] = True
    iterations: int = 5000
    """Outer steps."""
    steps: int = 40
    """N: student steps on distilled images in one outer step."""
    expert_epochs: int = 2
    """M: epochs of real data that the student has to cover."""
    max_start_epoch: int = 2
    """T: expert epochs at which a student may start are 0 .. T-1."""
    batch_syn: int = 256
    """Distilled images a student step; all where the set has fewer."""
    lr_img: float = 1e3
    """Step size of the images."""
    lr_target: float = 1.0
    """Step size of their targets; 0 leaves these as they are."""
    lr_lr: float = 1e-4
    """Step size of the student's step size eta."""
    lr_init: float = 0.1
    """eta before the first outer step."""
    momentum: float = 0.5
    """Momentum of images, targets and eta."""
    image_init: Subset = "high-loss"
    """First images: high-loss (those that experts fit worst after an epoch, which leaves classes
    out), random, sas (the most typical of each class in the encoder's features); high-loss-balanced
    and random-balanced take as many of each class."""
    targets: Literal["raw", "standardised"] = "raw"
    """Features as the encoder gives them, or with mean 0 and standard deviation 1."""
    head_weight: float = 1.0
    """Weight of the student's last layer, which pre-training throws away, in L; 0 leaves it out."""
    legacy: bool = False
    """Match one expert only, as the released code does."""
    evaluation_epochs: int = 20
    """Epochs of pre-training on the set."""
    teacher: EncoderPlan = EncoderPlan()
    """The encoder whose features are learned."""
    experts: ExpertPlan = EXPERTS
    """The experts; of their epochs only those that are read are trained."""
    outer: Outer = later("sgd")
    """Steps of images and targets: sgd, along the gradient, as published; rms, along the gradient
    over its root mean square, so that lr_img says how far a pixel moves, lr_target a target."""

    def __post_init__(self) -> None:
        at_least(1, self, "iterations", "steps", "batch_syn", "expert_epochs", "max_start_epoch")
        at_least(1, self, "evaluation_epochs")
        at_least(0, self, "lr_lr", "lr_target", "head_weight")
        above_zero(self, "lr_img", "lr_init")
        below_one(self, "momentum")
        check_outer(self)
        one_of(get_args(Subset), self, "image_init")
        one_of(("raw", "standardised"), self, "targets")
        if self.experts.objective != "kd_mse":
            raise InputError(
                f"mkdt's experts learn features, objective 'kd_mse', not "
                f"{self.experts.objective!r}."
            )

    def check(self, ctx: Context) -> None:
        """Refuse encoders that cannot be had, dropout, windows that experts do not reach."""
        student = check_encoder_phase(self, ctx)
        module = student.load(student.theta0)
        if problem := hindrance(module, ctx.data.channels, ctx.data.size):
            raise InputError(f"mkdt cannot distil with {ctx.net_spec.name}: {problem}.")
        check_window(
            start_epochs=self.max_start_epoch,
            span=self.expert_epochs,
            epochs=self.experts.epochs,
        )

    def cost(self, ctx: Context) -> Cost:
        """Return predicted graph bytes, the bytes of encoder, targets and experts, the work."""
        student = student_of(self.teacher, ctx)
        cost = preparation_cost(self, ctx, steps=self.iterations)
        batch, steps = min(self.batch_syn, ctx.count), self.iterations * self.steps
        graph, adjoint = window_bytes(ctx, student, batch=batch, steps=self.steps)
        read = f"of the experts' {self.experts.epochs} epochs {self.asked.epochs} are read"
        return dataclasses.replace(
            cost,
            graph_bytes=graph,
            adjoint_bytes=adjoint,
            window_images=steps * batch,
            window_steps=steps,
            notes=(f"Note: {read}; no more are trained.", *cost.notes),
        )

    def phases(self, ctx: Context, done: Done) -> Phase | None:
        """Make the encoder, encode all images, train the experts, see what they fit; match them."""
        if (phase := preparation(self, ctx, done)) is not None or "loop" in done:
            return phase
        used = done["experts"][:1] if self.legacy else done["experts"]
        window = {"start_epochs": self.max_start_epoch, "span": self.expert_epochs}
        source = Trajectories.open(used, **window)
        return Loop(steps=self.iterations, nets=source, opening=self._opening)

    def init(self, ctx: Context) -> Learned:
        """Return real images, their targets, eta = lr_init, no velocity."""
        rows, targets = chosen_rows(self, ctx, self.image_init)
        images = ctx.space.forward(ctx.data.train.pixels[rows])
        state = at_rest((images, targets), torch.tensor(self.lr_init))
        return Learned(**state, rows=rows)

    def step(self, ctx: Context, state: Learned, it: int) -> tuple[Learned, Metrics]:
        """Take one outer step; a step that is not finite is undone (see `roll_back`)."""
        assert ctx.nets is not None
        draw, student = ctx.nets.draw(ctx.seed, it), student_of(self.teacher, ctx)
        chance = generator(ctx.seed, "student", it)
        scales = (1.0, self.lr_target / self.lr_img)
        images, targets = leaves(state["images"], scales)
        found = follow(
            training_loss(student, mse, precision=ctx.plan.window.precision),
            draw,
            (images, targets),
            (images, targets),
            state["beta"],
            minibatches(images.shape, self.batch_syn, self.steps, None, chance),
            prepare=None,
            strategy=ctx.plan.strategy,
            compute=ctx.plan.window,
            weights=weights_of(student, self.head_weight),
        )
        new, numbers = advanced(self, state, found, draw, it, scales=scales)
        return Learned(**new, rows=state["rows"]), numbers

    def export(self, ctx: Context, state: Learned) -> DistilledSet:
        """Return images and targets, with the published pre-training at the learned step size."""
        images, targets = state["images"]
        found = embedding_of(ctx, targets, state["rows"], self.targets)
        recipe = pretraining(float(state["beta"]), self.evaluation_epochs)
        return distilled(ctx, self, images=images, targets=found, recipe=recipe)

    def scaled(self, scale: Literal["smoke", "cpu"]) -> MKDT:
        """Return the method with at most the counts of the scale; nothing else changes."""
        smoke = scale == "smoke"
        epochs = min(self.experts.epochs, 2 if smoke else 8)
        span = min(self.expert_epochs, 1 if smoke else epochs)
        count = min(self.experts.count, 2 if smoke else 3)
        return dataclasses.replace(
            self,
            teacher=self.teacher.scaled(scale),
            experts=dataclasses.replace(self.experts, count=count, epochs=epochs),
            iterations=min(self.iterations, 4 if smoke else 300),
            steps=min(self.steps, 3 if smoke else 10),
            expert_epochs=span,
            max_start_epoch=min(self.max_start_epoch, epochs - span + 1),
            batch_syn=min(self.batch_syn, 5 if smoke else 64),
            evaluation_epochs=min(self.evaluation_epochs, 10 if smoke else 20),
        )

    @property
    def by_loss(self) -> bool:
        """Return whether the first images are chosen by the experts."""
        return self.image_init.startswith("high-loss")

    @property
    def asked(self) -> ExpertPlan:
        """Return the experts that are ever asked, trained as far as they are read."""
        epochs = self.max_start_epoch - 1 + self.expert_epochs
        count = 1 if self.legacy and not self.by_loss else self.experts.count
        return dataclasses.replace(self.experts, epochs=epochs, count=count)

    def _opening(self, ctx: Context, state: Learned) -> str:
        return f"First images ({self.image_init}): {balance_text(ctx, state['rows'])}."
