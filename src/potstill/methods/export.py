"""What every method notes in the distilled set that it hands over."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

from potstill.artefact import Block, Provenance
from potstill.core.spec import canonical
from potstill.core.version import __version__
from potstill.methods.api import Context


def blocks_of(ctx: Context) -> tuple[Block, ...]:
    """Return where each block of distilled images begins and ends."""
    stops = list(accumulate(ctx.data.n_classes * block.ipc for block in ctx.synth))
    return tuple(
        Block(name=f"block{k}", start=start, stop=stop)
        for k, (start, stop) in enumerate(zip([0, *stops[:-1]], stops, strict=True))
    )


def origin_of(ctx: Context, method: Any) -> Provenance:
    """Return where a set comes from; the runner adds what the method does not know."""
    return Provenance(
        method=canonical(method),
        data=ctx.data.source,
        identity=ctx.data.ref.identity,
        seed=ctx.seed,
        version=__version__,
    )
