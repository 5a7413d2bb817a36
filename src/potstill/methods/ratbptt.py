"""RaT-BPTT: distil by meta-gradients through a random truncated window of a student's training.

Source: Feng, Vedantam, Kempe, Embarrassingly Simple Dataset Distillation, ICLR 2024
(arXiv 2311.07025), algorithm 1. Symbols: M = window.length, T = window.total, K = tasks,
U = distilled images, theta = weights of the student, A = augmentation.

    N ~ U{M..T};  d = real images;  theta = fresh network                    (K times)
    N - M plain steps on minibatches of A(U), then M differentiated ones
    L = cross-entropy(A(d); theta);  U follows dL/dU, clipped, by Adam
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.artefact import DistilledSet
from potstill.core.errors import InputError
from potstill.core.keys import generator, integer
from potstill.core.spec import record
from potstill.engine import Ranks
from potstill.experts import Begin
from potstill.functional import TrainSpec, graph_bytes
from potstill.methods.api import METHODS, Context, Cost, Done, Loop, Metrics, Phase
from potstill.methods.export import distilled
from potstill.methods.idle import refuse_idle, refuse_wrong
from potstill.methods.inner import Inner
from potstill.methods.outer import LABELS, Clip, Rates, State, begun, descend, on_device, skipped
from potstill.methods.real import RealImages, missed
from potstill.methods.shared import rounding
from potstill.methods.start import beginnings, first_images, labels_of
from potstill.methods.student import Found, averaged, gradient_norms, meta_gradient
from potstill.methods.windows import Window, turned, witnessed
from potstill.nets import hindrance, kept_bytes


@METHODS.add("ratbptt")
@record
@dataclass(frozen=True, kw_only=True)
class RaTBPTT:
    """Follow meta-gradients through a random truncated window (Feng et al., ICLR 2024).

    Without settings: the published command for CIFAR-10, 10 images a class, but no whitening (see
    --normaliser) and torch's eps of Adam inside the window, too (see inner.window_eps).
    """

    diluted: ClassVar[bool] = False

    iterations: int = 20_000
    """Outer steps."""
    window: Window = Window()
    """M, T, and where the differentiated steps lie."""
    tasks: int = 1
    """K: students, each with its own real images, whose gradients an outer step averages."""
    inner: Inner = Inner()
    """How students train on the distilled images."""
    real: RealImages = RealImages()
    """The real images of the outer loss."""
    labels: Literal["hard", "raw", "simplex"] = "hard"
    """Labels: fixed classes, or learned: raw (at least 0), simplex (they also sum to 1)."""
    image_init: Literal["unit-noise", "cluster", "real", "noise"] = "unit-noise"
    """First images: noise of norm 1, the same around class means, real images, standard noise."""
    lr_img: float = 1e-3
    """Step size of the images (Adam)."""
    lr_label: float = 1e-3
    """Step size of learned labels (Adam)."""
    lr_lr: float = 0.0
    """Step size of the logarithm of the student's step size (Adam); 0 keeps it as it is."""
    clip: Clip = Clip()
    """How the gradient is cut."""
    evaluation_steps: int = 1000
    """Steps of training on the set."""

    def __post_init__(self) -> None:
        refuse_wrong(self)

    def check(self, ctx: Context) -> None:
        """Refuse dropout, subsets larger than the set, only frozen blocks, idle settings."""
        module = ctx.net.load(ctx.net.theta0)
        if problem := hindrance(module, ctx.data.channels, ctx.data.size):
            raise InputError(f"ratbptt cannot distil with {ctx.net_spec.name}: {problem}.")
        self.inner.check(ctx)
        if not ctx.recorded:
            refuse_idle(self)
        if not any(block.lr_scale for block in ctx.synth):
            raise InputError("At least one block must have an lr_scale above 0.")

    def cost(self, ctx: Context) -> Cost:
        """Return predicted graph bytes of both strategies, and the differentiated work."""
        module, batch = ctx.net.load(ctx.net.theta0), math.prod(self.inner.per_step(ctx))
        predicted = partial(
            graph_bytes,
            batch=batch,
            kept=kept_bytes(module, ctx.data.channels, ctx.data.size),
            parameters=ctx.net.numel,
            steps=self.window.longest,
            moments=len(self.inner.optimizer.init(ctx.net.theta0)),
        )
        steps = self.iterations * self.tasks * self.window.longest
        idle = self.window.place == "zero" and self.window.total != Window().total
        return Cost(
            graph_bytes=predicted(strategy="graph"),
            adjoint_bytes=predicted(strategy="adjoint"),
            disk_bytes=0,
            steps=self.iterations,
            shares=self.tasks,
            window_images=steps * batch,
            window_steps=steps,
            prefix=True,
            notes=("Note: window.total says nothing to windows at the beginning (zero).",) * idle,
        )

    def phases(self, ctx: Context, done: Done) -> Phase | None:
        """Only distil: every student starts from a fresh network."""
        if "loop" in done:
            return None
        low = ctx.plan.window.precision == "bfloat16"
        opening = self._rounding if low else None
        return Loop(steps=self.iterations, nets=beginnings(ctx), opening=opening)

    def init(self, ctx: Context) -> State:
        """Return the first images, one-hot labels if they are learned, no moments."""
        images, labels = first_images(ctx, self.image_init), ()
        if self._soft:
            parts = labels_of(ctx).split([len(x) for x in images])
            labels = tuple(
                F.one_hot(part, ctx.data.n_classes).float()
                if block.labels is None
                else block.labels
                for part, block in zip(parts, ctx.synth, strict=True)
            )
        return begun(images, labels, torch.tensor(self.inner.lr), self._rates(ctx))

    def step(self, ctx: Context, state: State, it: int) -> tuple[State, Metrics]:
        """Take one outer step; one that is not finite is left out (see `descend`)."""
        with ctx.net.keeping_statistics():
            state = self._made_ready(ctx, on_device(state, ctx.plan.window.device), it)
            mine = ctx.ranks.mine(self.tasks)
            found = averaged([self.task(ctx, state, it, k) for k in mine], ctx.ranks)
        new, numbers = descend(state, found, self._rates(ctx), self.clip, onto=LABELS[self.labels])
        if new is None:
            advice = f"lower inner.lr (now {self.inner.lr:g}) or lr_img (now {self.lr_img:g})"
            new, numbers = skipped(state, it, advice=advice), {"undone": 1.0}
        else:
            new["turn"] = witnessed(new["turn"], numbers["loss"])
        lr = {"lr": float(new["lr"])} if self.lr_lr else {}
        where = {name: float(new["turn"][name]) for name in ("start", "length")}
        return new, {**numbers, **lr, **where, "skipped": float(new["skipped"])}

    def task(self, ctx: Context, state: State, it: int, k: int) -> Found:
        """Return loss and gradient of student k of outer step `it`: a pure function of these."""
        assert ctx.nets is not None
        theta = ctx.nets.draw(ctx.seed, it * self.tasks + k).theta.to(state["lr"].device)
        steps = state["turn"]["start"] + state["turn"]["length"]
        return meta_gradient(
            self.inner.student(ctx, soft=self._soft, part=self.real.part(ctx)),
            theta,
            state["images"],
            self._targets(ctx, state),
            state["lr"],
            self.inner.batches(ctx, steps, generator(ctx.seed, "student", it, k)),
            self.real.drawn(ctx, state["missed"], it, k, like=theta),
            start=state["turn"]["start"],
            scales=[block.lr_scale for block in ctx.synth],
        )

    def _rounding(self, ctx: Context, state: State) -> str:
        """Return how near to float32 the first student's gradient is in the window's precision."""
        alone = replace(ctx, ranks=Ranks())
        with ctx.net.keeping_statistics():
            ready = self._made_ready(alone, on_device(state, ctx.plan.window.device), 0)
            return rounding(alone, lambda ctx: self.task(ctx, ready, 0, 0).images)

    def _made_ready(self, ctx: Context, state: State, it: int) -> State:
        """Count which real images are missed and place the window, where it is time to."""
        images, targets = torch.cat(state["images"]), torch.cat(self._targets(ctx, state))
        if self.real.counts_at(it):
            recipe, nets = self._recipe(ctx, state), self.real.rescore_nets
            counted = partial(missed, ctx, images, targets, recipe, nets=nets, it=it)
            state = {**state, "missed": ctx.ranks.first(counted)}
        epoch = it // -(-len(ctx.data.train) // self.real.size(ctx))
        number = it if self.window.redraw == "step" else epoch
        if number == state["turn"]["number"]:
            return state

        def norms(steps: int) -> Tensor:
            assert ctx.nets is not None
            theta = ctx.nets.draw(integer(ctx.seed, "norms"), number).theta.to(images)
            batches = self.inner.batches(ctx, steps, generator(ctx.seed, "norms", number))
            return gradient_norms(
                self.inner.student(ctx, soft=self._soft, part=self.real.part(ctx)),
                theta,
                (images, targets),
                state["lr"],
                batches,
            )

        turn = partial(turned, self.window, state["turn"], number, seed=ctx.seed, norms=norms)
        return {**state, "turn": ctx.ranks.first(turn)}

    def _targets(self, ctx: Context, state: State) -> tuple[Tensor, ...]:
        """Return the targets of each block: class numbers, or learned weights."""
        hard = labels_of(ctx).to(state["lr"].device).split([len(x) for x in state["images"]])
        return state["labels"] or hard

    def _rates(self, ctx: Context) -> Rates:
        scales = [block.lr_scale for block in ctx.synth]
        return Rates(images=self.lr_img, labels=self.lr_label, lr=self.lr_lr, scales=scales)

    @property
    def _soft(self) -> bool:
        return self.labels != "hard"

    def _recipe(self, ctx: Context, state: State) -> TrainSpec:
        lr, steps = float(state["lr"]), self.evaluation_steps
        return self.inner.recipe(ctx, lr, steps=steps, soft=self._soft)

    def export(self, ctx: Context, state: State) -> DistilledSet:
        """Return the union of all blocks, their labels, and the recipe of the student."""
        images, targets = torch.cat(state["images"]), torch.cat(self._targets(ctx, state))
        recipe = self._recipe(ctx, state)
        return distilled(ctx, self, images=images, targets=targets, recipe=recipe)

    def firsts(self, ctx: Context) -> tuple[Begin, ...]:
        """Return no networks of its own."""
        return ()

    def training(self, ctx: Context, epochs: int) -> tuple[TrainSpec, int]:
        """Return how a network is trained on the set for so many steps, and its images."""
        spec = self.inner.recipe(ctx, self.inner.lr, steps=epochs, soft=self._soft)
        return spec, len(labels_of(ctx))

    @property
    def nominal(self) -> int:
        """Return the steps of training on the set."""
        return self.evaluation_steps

    def scaled(self, scale: Literal["smoke", "cpu"]) -> RaTBPTT:
        """Return the method with at most the counts of the scale; nothing else changes."""
        smoke = scale == "smoke"
        iterations, classes = min(self.iterations, 4 if smoke else 200), self.inner.classes
        return replace(
            self,
            iterations=iterations,
            window=self.window.within(2, 4) if smoke else self.window.within(6, 20),
            tasks=min(self.tasks, 2),
            inner=replace(self.inner, classes=min(classes, 10) if smoke and classes else classes),
            real=self.real.scaled(smoke=smoke, iterations=iterations),
            evaluation_steps=min(self.evaluation_steps, 10 if smoke else 300),
        )
