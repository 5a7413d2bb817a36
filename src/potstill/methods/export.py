"""The distilled set that a method hands over."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

from torch import Tensor

from potstill.artefact import (
    Block,
    Decoder,
    DistilledSet,
    Embedding,
    Hard,
    Identity,
    LabelStore,
    Provenance,
    Soft,
    Targets,
)
from potstill.core.spec import canonical
from potstill.core.version import __version__
from potstill.functional import TrainSpec
from potstill.methods.api import Context
from potstill.methods.start import labels_of


def distilled(
    ctx: Context,
    method: Any,
    *,
    images: Tensor,
    targets: Tensor | LabelStore | Embedding,
    recipe: TrainSpec,
    rows: tuple[int, ...] = (),
    decode: Decoder | None = None,
) -> DistilledSet:
    """Return a set of these images of all blocks, floating or pixels; floats are soft labels.

    Images with soft labels keep the class of their place. The tensors are copied to the CPU.
    `rows` are those of real images in the training part.
    """
    return DistilledSet(
        images=images.cpu().clone(),
        targets=_targets(ctx, targets),
        space=ctx.space,
        recipe=recipe,
        net=ctx.net_spec,
        classes=ctx.data.classes,
        decode=decode or Identity(),
        blocks=blocks_of(ctx),
        ref=ctx.data.ref,
        origin=origin_of(ctx, method, rows),
    )


def _targets(ctx: Context, targets: Tensor | LabelStore | Embedding) -> Targets:
    if not isinstance(targets, Tensor):
        return targets
    targets = targets.cpu().clone()
    return Soft(targets, labels_of(ctx)) if targets.is_floating_point() else Hard(targets)


def blocks_of(ctx: Context) -> tuple[Block, ...]:
    """Return where each block of distilled images begins and ends."""
    stops = list(accumulate(ctx.data.n_classes * block.ipc for block in ctx.synth)) or [ctx.count]
    return tuple(
        Block(name=f"block{k}", start=start, stop=stop)
        for k, (start, stop) in enumerate(zip([0, *stops[:-1]], stops, strict=True))
    )


def origin_of(ctx: Context, method: Any, rows: tuple[int, ...] = ()) -> Provenance:
    """Return where a set comes from; the runner adds what the method does not know."""
    return Provenance(
        method=canonical(method),
        data=ctx.data.source,
        identity=ctx.data.ref.identity,
        seed=ctx.seed,
        version=__version__,
        rows=rows,
    )
