"""Gradient matching: distil images whose gradients, or features, are those of real images.

    for each network theta, while it moves on:                        (matches times)
        for each class c:
            R = real images of c;  S = decoded distilled images of c;  one augmentation A for both
            L_c = d(m(theta; A(S)), m(theta; A(R)))     m: gradient of the mean loss, or features
        images follow dL_c/dS by SGD with momentum
        theta moves on: on real images (IDC), on the distilled set (DC, DSA), or not at all (DM)

Sources: DC (Zhao, Mopuri, Bilen, ICLR 2021, arXiv 2006.05929), DSA (Zhao, Bilen, ICML 2021, arXiv
2102.08259), DM (Zhao, Bilen, WACV 2023, arXiv 2110.04181), IDC (Kim et al., ICML 2022, arXiv
2205.14959). The presets are in `condensation`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from potstill.artefact import DistilledSet
from potstill.core.errors import InputError
from potstill.core.spec import record
from potstill.data import MeanStd
from potstill.experts import Begin, Paths, Starts, pool_tasks
from potstill.functional import TrainSpec
from potstill.functional.matched import chosen
from potstill.methods.api import Context, Cost, Done, Loop, Metrics, Phase, name_of
from potstill.methods.by_class import distances
from potstill.methods.class_steps import Steps, clipped, pixel_scale
from potstill.methods.export import distilled
from potstill.methods.match_settings import Settings
from potstill.methods.moving import (
    State,
    at_rest,
    moved_on,
    network_at,
    on_device,
    settled,
    undone,
)
from potstill.methods.start import beginnings, class_rows, first_images, labels_of, scarce
from potstill.nets import hindrance


@record
@dataclass(frozen=True, kw_only=True)
class GradientMatching(Settings, ABC):
    """Match the gradients of real images; the presets dc, dsa, dm and idc are of this kind."""

    diluted: ClassVar[bool] = True

    def check(self, ctx: Context) -> None:
        """Refuse networks, factors and batches that do not fit the data."""
        name, module = name_of(self), ctx.net.load(ctx.net.theta0)
        if self.match.of == "features":
            ctx.net.features(ctx.net.theta0, torch.zeros(2, ctx.data.channels, *ctx.data.size))
        elif problem := hindrance(module, ctx.data.channels, ctx.data.size):
            raise InputError(f"{name} cannot distil with {ctx.net_spec.name}: {problem}.")
        elif not chosen(ctx.net, self.match.layers):
            raise InputError(
                f"{ctx.net_spec.name} has no weights of the kind match.layers "
                f"{self.match.layers!r}; try weights."
            )
        if not any(block.lr_scale for block in ctx.synth):
            raise InputError("At least one block must have an lr_scale above 0.")
        if self.pixels == "raw" and not isinstance(ctx.space, MeanStd):
            raise InputError(
                f"{name} moves raw pixels, which {ctx.space.describe()} mixes; take mean and std "
                "(--normaliser measured) or --method.pixels model."
            )
        if not ctx.recorded:
            ctx.net.train()
            self.refuse_idle(statistics=not ctx.net.separable)
        decoder = self.cut(ctx.space)
        decoder.check((ctx.data.channels, *ctx.data.size))
        decoder.index(labels_of(ctx))  # refuses more images than its bound
        for name, members in zip(ctx.data.classes, class_rows(ctx.data), strict=True):
            if len(members) < self.batch_real:
                raise InputError(
                    f"Class {name!r} has {len(members)} training images (a part is kept for "
                    f"validation), fewer than batch_real, {self.batch_real}."
                )

    def cost(self, ctx: Context) -> Cost:
        """Return the work: images that are differentiated twice, and those that are not.

        With a pool, that of its networks alone, so that runs of any length compute them alike.
        """
        count, classes = len(ctx.data.train), ctx.data.n_classes
        decoded = len(self.cut(ctx.space).index(labels_of(ctx)))
        matched_at_once = min(decoded, classes * (self.batch_syn or decoded))
        path, places = self.pool.kept(self.path, self.matches, count)
        steps = path.steps(places - 1, count) * (self.pool.size or self.networks)
        inner = self.networks * (self.matches - 1) * self.inner_epochs
        batches = inner * -(-decoded // self.inner_batch) + self.iterations * classes
        real = self.iterations * classes * self.batch_real
        return Cost(
            graph_bytes=0,
            adjoint_bytes=0,
            disk_bytes=self.pool.size * places * ctx.net.numel * 4,
            steps=self.iterations,
            window_images=self.iterations * matched_at_once,
            window_steps=self.iterations * classes,
            compiles=self.match.of == "gradients",
            task_images=steps * self.path.batch + (0 if self.pool.size else inner * decoded + real),
            task_steps=steps + (0 if self.pool.size else batches),
            notes=self.notes(ctx),
        )

    def notes(self, ctx: Context) -> tuple[str, ...]:
        """Return advice about settings and data."""
        return scarce(ctx, self.image_init, self.cut(ctx.space))

    def phases(self, ctx: Context, done: Done) -> Phase | None:
        """Walk the pool's networks, if there are any; then match."""
        if self.pool.size and "experts" not in done:
            tasks = pool_tasks(
                self.pool,
                self.path,
                self.matches,
                ctx.data,
                ctx.space,
                ctx.net_spec,
                compute=ctx.plan.tasks,
            )
            return tasks if ctx.after is None else ctx.after.continued(tasks)
        if "loop" in done:
            return None
        nets = beginnings(ctx)
        if self.pool.size:
            folders = done["experts"]
            whole = self.pool.keeps == "paths"
            nets = Paths.open(folders) if whole else Starts.open(folders, self.pool.first)
        return Loop(steps=self.iterations, nets=nets)

    def init(self, ctx: Context) -> State:
        """Return the first images, at rest; no network yet."""
        images = first_images(ctx, self.image_init, self.cut(ctx.space))
        if self.pixels == "raw" and self.image_init == "noise":  # pixels around grey
            images = tuple(
                x if block.images is not None else ctx.space.forward((x / 4 + 0.5).clamp(0, 1))
                for x, block in zip(images, ctx.synth, strict=True)
            )
        return at_rest(images)

    def step(self, ctx: Context, state: State, it: int) -> tuple[State, Metrics]:
        """Take one image step with the network of matching `it`, then move that network on."""
        state = on_device(state, ctx.plan.window.device)
        steps, place = self._steps(ctx), it % self.matches
        images = state["images"] if place else self._clipped(ctx, state["images"])
        turns = [own.before(*xv) for own, *xv in zip(steps, images, state["velocity"], strict=True)]
        with ctx.net.keeping_statistics():
            state = network_at(self, ctx, state, it)
            theta = state["theta"]
            assert theta is not None
            with settled(self, ctx, theta, it):
                found = distances(self, ctx, theta, [x for x, _ in turns], it)
            moved = [
                own.after(*xv, grad)
                for own, xv, grad in zip(steps, turns, found.images, strict=True)
            ]
            sums = torch.stack([found.loss, *(x.sum() for x, _ in moved)])
            sound = bool(torch.isfinite(sums).all())
            if sound:
                images, velocity = zip(*moved, strict=True)
                state = {**state, "images": images, "velocity": velocity, "failed": 0}
            else:
                advice = f"lower lr_img (now {self.lr_img:g}) or path.lr (now {self.path.lr:g})"
                state = undone({**state, "images": images}, it, advice=advice)
            state = moved_on(self, ctx, state, it, partial(self._decoded, ctx, images))
        return state, {"loss": float(found.loss)} if sound else {"undone": 1.0}

    def _decoded(self, ctx: Context, images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the decoded images of all blocks and their labels."""
        labels, decoder = labels_of(ctx), self.cut(ctx.space)
        index, stored = decoder.index(labels), torch.cat(list(images))
        return decoder.take(stored, index), labels[index[:, 0]].to(stored.device)

    def _steps(self, ctx: Context) -> list[Steps]:
        """Return how the images of each block move."""
        device = ctx.plan.window.device
        raw = self.pixels == "raw"
        scale = pixel_scale(ctx.space) if raw else torch.ones(ctx.data.channels, 1, 1)
        return [
            Steps(
                classes=ctx.data.n_classes,
                lr=self.rate(ctx) * block.lr_scale,
                momentum=self.momentum,
                in_turn=self.turns == "sequential",
                scale=scale.to(device),
            )
            for block in ctx.synth
        ]

    def rate(self, ctx: Context) -> float:
        """Return the step size of the images."""
        return self.lr_img

    def _clipped(self, ctx: Context, images: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return images whose raw pixels lie in [0, 1], if these are what moves."""
        if self.pixels == "model":
            return images
        return tuple(
            clipped(x, ctx.space) if block.lr_scale else x
            for x, block in zip(images, ctx.synth, strict=True)
        )

    def export(self, ctx: Context, state: State) -> DistilledSet:
        """Return the union of all blocks, their decoder, and the recipe of the preset.

        Differs: raw pixels are cut to [0, 1] here too; the published ones are saved uncut.
        """
        images = torch.cat(self._clipped(ctx, state["images"]))
        return distilled(
            ctx,
            self,
            images=images,
            targets=labels_of(ctx),
            recipe=self.recipe(),
            decode=self.cut(ctx.space),
        )

    def firsts(self, ctx: Context) -> tuple[Begin, ...]:
        """Return the networks that go from stage to stage: those of the pool, if there is one."""
        places = range(self.pool.size)
        return tuple(Begin(seed=self.pool.seed, kind="fresh", index=k) for k in places)

    def training(self, ctx: Context, epochs: int) -> tuple[TrainSpec, int]:
        """Return how networks are trained on the set, and its decoded images."""
        count = len(self.cut(ctx.space).index(labels_of(ctx)))
        return replace(self, evaluation_epochs=epochs).recipe(), count

    @property
    def nominal(self) -> int:
        """Return the nominal epochs of training on the set."""
        return self.evaluation_epochs

    @abstractmethod
    def recipe(self) -> TrainSpec:
        """Return how networks are trained on the set."""
