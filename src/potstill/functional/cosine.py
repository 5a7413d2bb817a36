"""Step sizes that change every epoch, as segments of one epoch each."""

from __future__ import annotations

import math
from dataclasses import replace

from potstill.core.errors import InputError
from potstill.functional.schedule import Segment


def cosine_segments(
    epochs: int, *, warmup: int = 0, start: float = 0.01, zeta: float = 1.0
) -> tuple[Segment, ...]:
    """Return segments whose step size follows a cosine epoch by epoch; the optimizer is carried on.

    Epoch e < warmup: start + (1 - start) e / warmup; then, with e' = e - warmup of
    E' = epochs - warmup: (1 + cos(pi e' / (zeta E'))) / 2. All are times the step size of the
    training.

    Args:
        epochs: in all.
        warmup: of them, epochs of linear warm-up.
        start: factor of the first epoch of the warm-up.
        zeta: 1 ends near 0, 2 near half of the step size.

    Raises:
        InputError: for a number out of its range.

    Sources: torchvision's references (warm-up); SRe2L, arXiv 2306.13092 (zeta 1); RDED,
    arXiv 2312.03526, and EDC, arXiv 2404.13733 (zeta 2).
    """
    if not 0 <= warmup < epochs:
        raise InputError(f"A cosine of {epochs} epochs needs fewer of warm-up, not {warmup}.")
    if not (0 < start <= 1 and 1 <= zeta < math.inf):
        raise InputError(
            f"A cosine needs a start in (0, 1] and a zeta from 1, not {start}, {zeta}."
        )
    rising = [start + (1 - start) * e / warmup for e in range(warmup)]
    part = math.pi / (zeta * (epochs - warmup))
    falling = [(1 + math.cos(part * e)) / 2 for e in range(epochs - warmup)]
    one = Segment(epochs=1, optimizer="carried")
    return tuple(replace(one, lr_scale=scale) for scale in (*rising, *falling))
