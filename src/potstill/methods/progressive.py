"""PDD: distil stage after stage, each for networks that the stages before it have trained.

    for i = 1..P:
        S_i = base method on U_i = S_1 .. S_i, of which S_1 .. S_{i-1} are frozen;
              its networks begin at theta_{i-1}
        theta_i[k] = train(theta_{i-1}[k], U_i)      for every network k       (links)
    a network is trained on U_1, then on U_2, ... U_P                          (staged)

Source: Chen, Yang, Wang, Mirzasoleiman, Data Distillation Can Be Like Vodka: Distilling More Times
For Better Quality, ICLR 2024 (arXiv 2310.06982).

Differs: over methods that take fresh networks, some networks (`pool`) go from stage to stage, where
    the released code trains one anew on all earlier stages in every outer iteration; the step size
    of a finished stage is kept where that code, restarted, would take the first one; frozen images
    are outside the clip, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from potstill.artefact import DistilledSet
from potstill.core.errors import InputError
from potstill.core.ranges import at_least, one_of
from potstill.core.spec import canonical, record
from potstill.coresets import RealFilter
from potstill.engine import Tasks
from potstill.experts import After, Begin
from potstill.methods.api import (
    METHODS,
    Context,
    Cost,
    Done,
    Metrics,
    Phase,
    SynthBlock,
    name_of,
    within_base,
)
from potstill.methods.stage_checks import POOLS, check_filter, check_filtered, refuse_idle
from potstill.methods.stages import (
    Chains,
    at_stage,
    before,
    due,
    frozen,
    links_before,
    name,
    store_of,
    union_after,
)


@METHODS.add("progressive")
@record
@dataclass(frozen=True, kw_only=True)
class Progressive:
    """Distil in stages (progressive:idc for another base method; Chen et al., ICLR 2024)."""

    base: Any = field(default_factory=lambda: METHODS.get("mtt")())
    """The method that distils each stage; its iterations are those of one stage."""
    stages: int = 5
    """P: equal parts that the images of a class are made in."""
    pool: int = POOLS["full"]
    """Networks that go from stage to stage, where the base method has no experts or pool of its
    own."""
    union: Literal["dilute", "rebalance"] = "dilute"
    """Earlier images thin out the gradient of new ones: dilute (published), or rebalance, where a
    stage's step size grows with its number."""
    conditioning_epochs: int | None = None
    """Epochs of the union that networks are trained for between two stages; by default as many as
    the base method trains on a finished set."""
    stage_epochs: int | None = None
    """Epochs of each stage in training on the finished set; by default half of the base method's
    (published: 500 of 1,000)."""
    filter: RealFilter = RealFilter()
    """Which real images later stages see."""

    def __post_init__(self) -> None:
        at_least(1, self, "stages", "pool", "conditioning_epochs", "stage_epochs")
        one_of(("dilute", "rebalance"), self, "union")
        if not hasattr(self.base, "firsts"):
            known = [n for n in METHODS.names() if hasattr(METHODS.get(n), "firsts")]
            raise InputError(
                f"progressive is for methods whose networks can begin where others ended "
                f"({', '.join(known)}), not {name_of(self.base)}."
            )
        if getattr(self.base, "unlabelled", False):
            raise InputError(
                "progressive trains networks on classes between two stages; those of "
                f"{name_of(self.base)} without labels learn none."
            )
        if self.union == "rebalance" and not self.base.diluted:
            raise InputError(
                "union 'rebalance' says nothing to a method with Adam for its images: leave it out."
            )

    @property
    def iterations(self) -> int:
        """Return the outer steps of all stages."""
        return self.stages * self.base.iterations

    def check(self, ctx: Context) -> None:
        """Refuse an ipc that the stages do not divide, and what the base method refuses."""
        if ctx.ipc % self.stages:
            raise InputError(
                f"{ctx.ipc} images a class cannot be made in {self.stages} equal stages."
            )
        for stage in {1, self.stages}:
            self.base.check(self._sized(ctx, stage))
        check_filter(self, ctx)
        if not ctx.recorded:
            refuse_idle(self, ctx)

    def cost(self, ctx: Context) -> Cost:
        """Return the memory of the last stage, and the work and the disk of all."""
        sized = [self._sized(ctx, stage) for stage in range(1, self.stages + 1)]
        costs = [self.base.cost(at) for at in sized]
        unions = [self.base.training(at, self._between) for at in sized[:-1]]
        steps = sum(spec.steps(count) for spec, count in unions)
        networks, alone = len(self._firsts(ctx)), costs[0]
        note = (
            f"Between two of {self.stages} stages {networks} networks are trained on the images so "
            f"far, in {networks * steps:,} steps in all."
        )
        return replace(
            costs[-1],
            steps=self.iterations,
            window_images=sum(cost.window_images for cost in costs),
            window_steps=sum(cost.window_steps for cost in costs),
            task_images=alone.task_images,  # so that experts are computed as in runs of the base
            task_steps=alone.task_steps,
            disk_bytes=sum(cost.disk_bytes for cost in costs)
            + len(unions) * networks * ctx.net.numel * 4,
            notes=(*within_base(alone.notes), *((note,) if unions else ())),
        )

    def phases(self, ctx: Context, done: Done) -> Phase | None:
        """Distil a stage, train the networks on the union, filter the images; P times."""
        if "loop" in done:
            return None
        stage = due(done, self.stages)
        segments = self.base.training(self._sized(ctx, 1), self._between)[0].segments
        links = links_before(ctx, done, stage, self._firsts(ctx), segments)
        between = before(ctx, done, stage, links, self.filter, self.stages)
        if between is not None:
            return between
        at = self._at(ctx, done, stage, links)
        if at.data is not ctx.data:
            check_filtered(self, at, stage)
        experts = "experts" if stage == 1 else name("experts", stage)  # as in runs of the base
        phase = self.base.phases(at, {"experts": done[experts]} if experts in done else {})
        assert phase is not None
        if isinstance(phase, Tasks):
            label = phase.label if stage == 1 else f"{phase.label} of stage {stage}"
            return replace(phase, name=experts, label=label)
        opening = phase.opening
        if opening is not None:
            first = opening
            opening = lambda ctx, state: first(self._now(ctx), state)  # noqa: E731
        return replace(
            phase,
            opening=opening,
            first=(stage - 1) * self.base.iterations,
            stage=name("stage", stage) if stage < self.stages else "",
        )

    def init(self, ctx: Context) -> Any:
        """Return the base method's state for the stage that is due."""
        return self.base.init(self._now(ctx))

    def step(self, ctx: Context, state: Any, it: int) -> tuple[Any, Metrics]:
        """Take one outer step of the stage."""
        at = self._now(ctx)
        state, numbers = self.base.step(at, state, it)
        return state, {**numbers, "stage": len(at.synth)}

    def export(self, ctx: Context, state: Any) -> DistilledSet:
        """Return the union of all stages so far, each with its step size and its training."""
        at = self._now(ctx)
        s, stage = self.base.export(at, state), len(at.synth)
        epochs = self.stage_epochs or max(1, self.base.nominal // 2)
        train = self.base.training(at, epochs)[0].segments
        earlier = union_after(ctx.done, stage - 1).blocks if stage > 1 else ()
        new = replace(s.blocks[-1], name=name("stage", stage), lr=s.recipe.lr, train=train)
        origin = replace(s.origin, method=canonical(self))
        return replace(s, blocks=(*earlier, new), origin=origin)

    def scaled(self, scale: Literal["smoke", "cpu"]) -> Progressive:
        """Return the method with at most the counts of the scale; nothing else changes."""
        base = self.base.scaled(scale)

        def fewer(epochs: int | None) -> int | None:
            return None if epochs is None else min(epochs, base.nominal)

        return replace(
            self,
            base=base,
            pool=min(self.pool, POOLS[scale]),
            conditioning_epochs=fewer(self.conditioning_epochs),
            stage_epochs=fewer(self.stage_epochs),
            filter=self.filter.scaled(scale, self.stages),
        )

    @property
    def _between(self) -> int:
        """Return the epochs that networks are trained for between two stages."""
        return self.conditioning_epochs or self.base.nominal

    def _firsts(self, ctx: Context) -> Chains:
        """Return the networks that go from stage to stage: the base method's, or fresh ones."""
        fresh = (Begin(seed=ctx.seed, kind="fresh", index=k) for k in range(self.pool))
        return self.base.firsts(ctx) or tuple(fresh)

    def _now(self, ctx: Context) -> Context:
        """Return the context of the stage that is due in a loop."""
        return self._at(ctx, ctx.done, due(ctx.done, self.stages))

    def _at(self, ctx: Context, done: Done, stage: int, links: Chains = ()) -> Context:
        """Return the context of a stage: earlier blocks are frozen."""
        earlier = frozen(union_after(done, stage - 1)) if stage > 1 else ()
        return replace(at_stage(ctx, done, stage, links), synth=self._blocks(ctx, earlier))

    def _blocks(self, ctx: Context, earlier: Sequence[SynthBlock]) -> tuple[SynthBlock, ...]:
        """Return the frozen blocks and a new one."""
        scale = 1 + len(earlier) if self.union == "rebalance" else 1
        return (*earlier, SynthBlock(ipc=ctx.ipc // self.stages, lr_scale=scale))

    def _sized(self, ctx: Context, stage: int) -> Context:
        """Return a context with as many images as a stage's, for formulas."""
        ipc = ctx.ipc // self.stages
        shape = (ctx.data.n_classes * ipc, ctx.data.channels, *ctx.data.size)
        still = SynthBlock(ipc=ipc, lr_scale=0, images=torch.zeros(()).expand(shape))
        after = After(links=(), folders=(), store=store_of(ctx)) if stage > 1 else None
        return replace(ctx, synth=self._blocks(ctx, (still,) * (stage - 1)), after=after)
