"""KRR-ST: distil for pre-training, by kernel ridge regression on features of a pool of networks.

Source: Lee et al., Self-Supervised Dataset Distillation for Transfer Learning, ICLR 2024 (arXiv
2310.06511). Symbols: f_T = frozen encoder, g = one of M networks, which has as many outputs as f_T
has features, phi = what its last layer is given, X_s = distilled images, Y_s = their targets.

    X_s = random real images, Y_s = f_T(X_s); each g learns them for U{1 .. T-1} steps, T = life
    every outer step, with X_r a real batch, augmented, and g drawn from the pool:
        F_s = [phi(X_s), 1], F_r = [phi(X_r), 1];  lambda = lam * trace(F_s F_s^T), held fixed
        L = mean over all entries of (F_r F_s^T (F_s F_s^T + lambda I)^-1 Y_s - f_T(X_r))^2
        X_s, Y_s <- Adam, its step size falling in a straight line to a thousandth
        g <- one step of SGD on MSE(g(X_s), Y_s); at age T it is made anew
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from potstill.artefact import DistilledSet
from potstill.augment import DSA, Policy
from potstill.core.errors import InputError
from potstill.core.keys import generator, integer
from potstill.core.ranges import above_zero, at_least, below_one, one_of
from potstill.core.spec import record
from potstill.functional import SGD
from potstill.functional.kernel_ridge import PoolAges, krr_loss
from potstill.methods.api import METHODS, Context, Cost, Done, Loop, Metrics, Phase
from potstill.methods.encoded import (
    balance_text,
    check_encoder_phase,
    chosen_rows,
    embedding_of,
    preparation,
    preparation_cost,
    pretraining,
    student_of,
)
from potstill.methods.export import distilled
from potstill.methods.krr_pool import ADAM, Pool, State, descended, embedded, on_device
from potstill.methods.krr_real import pictures, real_batch
from potstill.methods.shared import failed_again, leaves
from potstill.nets import kept_bytes
from potstill.teachers import EncoderPlan
from potstill.teachers.targets import Scale


@METHODS.add("krr-st")
@record
@dataclass(frozen=True, kw_only=True)
class KRRST:
    """Distil images for self-supervised pre-training (Lee et al., ICLR 2024).

    The first steps of a run's loop are those of the pool on the first images, member by member.
    """

    unlabelled: ClassVar[bool] = True
    iterations: int = 160_000
    """Outer steps."""
    batch_real: int = 1024
    """Real images of an outer step; all where there are fewer."""
    lr: float = 1e-4
    """First step size of images and targets."""
    lam: float = 1e-6
    """Weight of the ridge, as a part of the trace of the kernel matrix."""
    clip: float | None = None
    """Largest norm of the gradient by images and targets together; none: any."""
    models: int = 10
    """M: networks of the pool."""
    life: int = 1000
    """T: steps after which a network is made anew."""
    inner_lr: float = 0.1
    """Step size of the networks, and of pre-training on the set."""
    momentum: float = 0.9
    """Their momentum."""
    weight_decay: float = 1e-3
    """Their weight decay."""
    image_init: Literal["random", "random-balanced"] = "random"
    """First images: any training images, or as many of each class."""
    targets: Scale = "raw"
    """Features as the encoder gives them, or with mean 0 and standard deviation 1."""
    augment: Policy | None = DSA(strategy="crop_flip", mode="M")
    """Augmentation of real images, which encoder and network see alike; none: their targets are
    looked up."""
    legacy: bool = False
    """As the released code: a network's age is never set back, so that at last none is trained, and
    X_s begins as pixels in [0, 1]."""
    evaluation_epochs: int = 1000
    """Epochs of pre-training on the set."""
    teacher: EncoderPlan = EncoderPlan()
    """The encoder whose features are learned."""

    def __post_init__(self) -> None:
        at_least(1, self, "iterations", "batch_real", "models", "life", "evaluation_epochs")
        above_zero(self, "lr", "lam", "clip", "inner_lr")
        at_least(0, self, "weight_decay")
        below_one(self, "momentum")
        one_of(("random", "random-balanced"), self, "image_init")
        one_of(("raw", "standardised"), self, "targets")

    def check(self, ctx: Context) -> None:
        """Refuse encoders that cannot be had, networks without features, a single image."""
        net, shape = check_encoder_phase(self, ctx), (ctx.data.channels, *ctx.data.size)
        net.eval()
        net.features(net.theta0, torch.zeros(2, *shape))
        if self.augment is not None:
            self.augment.sample(1, shape, generator(0, "augment"))  # refuses what it cannot change
        if ctx.count < 2:
            raise InputError(f"krr-st distils 2 images or more, not {ctx.count}.")

    def cost(self, ctx: Context) -> Cost:
        """Return the work, and the bytes of encoder and targets; warn of too little memory."""
        net, n, steps = student_of(self.teacher, ctx), ctx.count, self._steps(ctx)
        cost = preparation_cost(self, ctx, steps=steps)
        kept = n * kept_bytes(net.load(net.theta0), ctx.data.channels, ctx.data.size)
        note = f"Note: {n} images at once keep about {kept / 2**20:.0f} MiB of memory."
        encoded = (self.augment is not None) * self.iterations * self.batch_real // 3
        return dataclasses.replace(
            cost,
            window_images=self.iterations * n,
            window_steps=self.iterations,
            compiles=False,
            task_images=cost.task_images + steps * n + encoded,
            task_steps=cost.task_steps + steps,
            notes=(note,) if kept > ctx.plan.memory else (),
        )

    def phases(self, ctx: Context, done: Done) -> Phase | None:
        """Make the encoder; encode all images, which probes of real ones need, too; distil."""
        if (phase := preparation(self, ctx, done)) is not None or "loop" in done:
            return phase
        return Loop(steps=self._steps(ctx), opening=self._opening)

    def init(self, ctx: Context) -> State:
        """Return random real images, their targets, and M new networks.

        Differs: images are normalised; those of the released code are not, see `legacy`.
        """
        rows, y = chosen_rows(self, ctx, self.image_init)
        x = pictures(ctx, rows).cpu()
        x = x if self.legacy else ctx.space.forward(x)
        pool = self._pool(ctx)
        return State(
            images=(x, y),
            moments=(ADAM.init(x), ADAM.init(y)),
            updates=0,
            members=tuple(pool.made(ctx, y.shape[1], m, "first") for m in range(self.models)),
            ages=(0,) * self.models,
            rows=rows,
            failed=0,
        )

    def step(self, ctx: Context, state: State, it: int) -> tuple[State, Metrics]:
        """Take one outer step, or, in the beginning, one step of a network on the first images.

        An outer step that is not finite leaves the images as they are and makes its network anew.

        Raises:
            InputError: if the kernel matrix is not positive definite, as `krr_loss`.
            WorkError: after 20 outer steps in a row that were not finite.
        """
        state = on_device(state, ctx.plan.window.device)
        pool, first, ages = self._pool(ctx), self._first_ages(ctx), state["ages"]
        turn = it - sum(first)
        if turn < 0:
            slot = next(m for m, age in enumerate(ages) if age < first[m])
            state, loss = pool.step(ctx, state, slot, it)
            return state, {"pool_loss": loss, "network": slot, "age": ages[slot]}
        slot = integer(ctx.seed, "network", turn) % self.models
        moved, loss = self._moved(ctx, state, slot, turn)
        if moved is None:
            advice = f"lower lr (now {self.lr:g}) or inner_lr (now {self.inner_lr:g})"
            failed = failed_again(state["failed"], it, advice=advice)
            return {**pool.anew(ctx, state, slot, it), "failed": failed}, {"undone": 1.0}
        state, learned = pool.step(ctx, moved, slot, it)
        return state, {"loss": loss, "pool_loss": learned, "network": slot, "age": ages[slot]}

    def export(self, ctx: Context, state: State) -> DistilledSet:
        """Return images and targets; networks are pre-trained on them as the pool's are."""
        images, targets = state["images"]
        found = embedding_of(ctx, targets, state["rows"], self.targets)
        recipe = pretraining(self.inner_lr, self.evaluation_epochs)  # batches of 256
        recipe = dataclasses.replace(recipe, optimizer=self._sgd)
        return distilled(ctx, self, images=images, targets=found, recipe=recipe)

    def scaled(self, scale: Literal["smoke", "cpu"]) -> KRRST:
        """Return the method with at most the counts of the scale; nothing else changes."""
        smoke = scale == "smoke"
        return dataclasses.replace(
            self,
            teacher=self.teacher.scaled(scale),
            iterations=min(self.iterations, 4 if smoke else 40),
            batch_real=min(self.batch_real, 20 if smoke else 256),
            models=min(self.models, 2 if smoke else 3),
            life=min(self.life, 3 if smoke else 20),
            evaluation_epochs=min(self.evaluation_epochs, 10 if smoke else 20),
        )

    def _moved(
        self, ctx: Context, state: State, slot: int, turn: int
    ) -> tuple[State | None, float]:
        """Return the state with images and targets after one step along dL, and L.

        None if one of them, or what the network says of them, is not finite.
        """
        net, member = student_of(self.teacher, ctx), state["members"][slot]
        real, wanted = real_batch(self, ctx, turn)
        x, y = leaves(state["images"], (1.0, 1.0))
        with torch.no_grad():
            f_r = embedded(ctx, net, member, real.to(x))
        f_s = embedded(ctx, net, member, x)
        if not bool((f_s.detach().sum() + f_r.sum()).isfinite()):
            return None, 0.0
        loss = krr_loss(f_s, y, f_r, wanted.to(y), self.lam)
        grads = torch.autograd.grad(loss, (x, y))
        rate = self.lr * (1 - 0.999 * turn / self.iterations)
        return descended(state, grads, rate, clip=self.clip), float(loss.detach())

    def _first_ages(self, ctx: Context) -> tuple[int, ...]:
        """Return for how many steps each network learns the first images."""
        return PoolAges.begun(self.models, seed=ctx.seed, life=self.life).ages

    def _steps(self, ctx: Context) -> int:
        return sum(self._first_ages(ctx)) + self.iterations

    def _opening(self, ctx: Context, state: State) -> str:
        return (
            f"First images ({self.image_init}): {balance_text(ctx, state['rows'])}. The first "
            f"{sum(self._first_ages(ctx))} steps are those of {self.models} networks on them."
        )

    def _pool(self, ctx: Context) -> Pool:
        net = student_of(self.teacher, ctx)
        return Pool(net=net, sgd=self._sgd, lr=self.inner_lr, life=self.life, legacy=self.legacy)

    @property
    def _sgd(self) -> SGD:
        return SGD(momentum=self.momentum, weight_decay=self.weight_decay)

    @property
    def asked(self) -> None:
        """Return no experts."""

    @property
    def by_loss(self) -> bool:
        """Return that images are not chosen by losses."""
        return False
