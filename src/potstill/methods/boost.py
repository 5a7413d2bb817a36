"""Boost-DD: distil block after block, so that the first blocks are a good smaller set themselves.

    for j = 1..J:  U_j = [B_1 .. B_{j-1} as they are, B_j new];  the base method distils U_j, with
                   the step size beta * lr for B_1 .. B_{j-1} and lr for B_j

beta = 0 freezes earlier blocks ("strongly boosted"); a small beta > 0 boosts weakly.

Source: Feng, Vedantam, Kempe, ICLR 2024 (arXiv 2311.07025), section on boosting.

Differs: there is no released code of it; optimizer and student step size begin anew in each block,
    blocks have step sizes of their own rather than updates that are shrunk afterwards, and
    gradients are cut by the norm of all blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor

from potstill.artefact import DistilledSet
from potstill.core.errors import InputError
from potstill.core.ranges import a_part, at_least
from potstill.core.spec import canonical, record
from potstill.methods.api import (
    METHODS,
    Context,
    Cost,
    Done,
    Loop,
    Metrics,
    Phase,
    SynthBlock,
    name_of,
    within_base,
)


@METHODS.add("boost")
@record
@dataclass(frozen=True, kw_only=True)
class Boost:
    """Distil nested sets block by block (boost:mtt for another base method; Feng et al., 2024)."""

    base: Any = field(default_factory=lambda: METHODS.get("ratbptt")())
    """The method that distils each block; its iterations are those of one block."""
    blocks: int = 2
    """J: equal blocks that the images of a class are made in."""
    beta: float = 0.1
    """Step size of earlier blocks, as a part of the new block's; 0 freezes them."""

    def __post_init__(self) -> None:
        at_least(1, self, "blocks")
        a_part(self, "beta")
        blind = getattr(self.base, "unlabelled", False)
        if hasattr(self.base, "base") or blind or not hasattr(self.base, "iterations"):
            name = name_of(self.base)
            raise InputError(
                "boost is for methods that move images of classes step by step, not "
                f"{name}{' without labels' if blind else ''}."
            )

    def check(self, ctx: Context) -> None:
        """Refuse an ipc that the blocks do not divide, and what the base method refuses."""
        if ctx.ipc % self.blocks:
            raise InputError(
                f"{ctx.ipc} images a class cannot be made in {self.blocks} equal blocks."
            )
        for stage in {0, self.blocks - 1}:
            self.base.check(self._sized(ctx, stage))

    def cost(self, ctx: Context) -> Cost:
        """Return the memory of the last block and the work of all."""
        costs = [self.base.cost(self._sized(ctx, stage)) for stage in range(self.blocks)]
        return replace(
            costs[-1],
            steps=sum(cost.steps for cost in costs),
            window_images=sum(cost.window_images for cost in costs),
            window_steps=sum(cost.window_steps for cost in costs),
            notes=within_base(costs[-1].notes),
        )

    def phases(self, ctx: Context, done: Done) -> Phase | None:
        """Do the base method's tasks, then one loop over all blocks."""
        phase = self.base.phases(self._sized(ctx, 0), done)
        if not isinstance(phase, Loop):
            return phase
        opening = phase.opening
        if opening is not None:
            first = opening
            opening = lambda ctx, state: first(self._at(ctx, 0, (), ()), state)  # noqa: E731
        return replace(phase, steps=phase.steps * self.blocks, opening=opening)

    def init(self, ctx: Context) -> Any:
        """Return the base method's state for the first block."""
        return {**self.base.init(self._at(ctx, 0, (), ())), "lrs": ()}

    def step(self, ctx: Context, state: Any, it: int) -> tuple[Any, Metrics]:
        """Take one outer step of the block that is due; a new block begins with a new state.

        `lrs` in the state are the step sizes of the recipe at the end of finished blocks.
        """
        stage, place = divmod(it, self.base.iterations)
        lrs = _lrs(state)
        if stage and not place:
            lrs = (*lrs, self.base.export(self._of(ctx, stage - 1, state), state).recipe.lr)
            state = self.base.init(self._of(ctx, stage, state))
        state, numbers = self.base.step(self._of(ctx, stage, state), state, it)
        return {**state, "lrs": lrs}, {**numbers, "block": stage + 1}

    def export(self, ctx: Context, state: Any) -> DistilledSet:
        """Return the union of the blocks made so far; the set knows where each ends, and its lr."""
        stage = len(state["images"]) - 1
        s = self.base.export(self._of(ctx, stage, state), state)
        ends = zip(s.blocks, (*_lrs(state), None), strict=True)
        blocks = tuple(replace(block, lr=lr) for block, lr in ends)
        return replace(s, blocks=blocks, origin=replace(s.origin, method=canonical(self)))

    def scaled(self, scale: Literal["smoke", "cpu"]) -> Boost:
        """Return the method with the base method at the scale."""
        return replace(self, base=self.base.scaled(scale))

    def _of(self, ctx: Context, stage: int, state: Any) -> Context:
        return self._at(ctx, stage, state["images"], state.get("labels", ()))

    def _at(
        self, ctx: Context, stage: int, images: Sequence[Tensor], labels: Sequence[Tensor]
    ) -> Context:
        """Return the context of a block: those before it bring images and learned labels."""
        ipc = ctx.ipc // self.blocks
        earlier = tuple(
            SynthBlock(
                ipc=ipc,
                lr_scale=self.beta,
                images=images[k],
                labels=labels[k] if labels else None,
            )
            for k in range(stage)
        )
        return replace(ctx, synth=(*earlier, SynthBlock(ipc=ipc)))

    def _sized(self, ctx: Context, stage: int) -> Context:
        """Return a context with as many images as a block's, for formulas."""
        ipc = ctx.ipc // self.blocks
        return replace(ctx, synth=(SynthBlock(ipc=ipc),) * (stage + 1))


def _lrs(state: Any) -> tuple[float | None, ...]:
    """Return the step sizes of finished blocks; unknown (None) in states of earlier versions."""
    return tuple(state.get("lrs", (None,) * (len(state["images"]) - 1)))
