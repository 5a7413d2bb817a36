"""Logits of a teacher in few bytes: float16, or one scale a row and 8 or 4 bits a class.

A soft label at a high temperature is nearly uniform, and what it says is spread over all logits: 8
bits lose about 1e-4 of it and 4 bits 2 %, where the 64 highest of 1,000 logits lose two thirds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

import torch
from torch import Tensor

from potstill.core.errors import InputError, unknown

Codes = Literal["float16", "uint8", "uint4"]
_UP = 1 + 2.0**-10  # makes the nearest float16 one that is no smaller
_LEVELS = {"uint8": 255, "uint4": 15}
_ROWS = 1024  # labels that are packed at a time


def row_bytes(codes: Codes, classes: int) -> int:
    """Return the bytes of one label.

    Raises:
        InputError: for unknown codes.
    """
    _check(codes)
    return {"float16": 2 * classes, "uint8": classes + 4, "uint4": -(-classes // 2) + 4}[codes]


def packed(logits: Tensor, codes: Codes) -> dict[str, Tensor]:
    """Return floating logits [N, K] in that form.

    float16: `codes` float16 [N, K]. uint8, uint4: `codes` uint8 [N, K] or [N, (K + 1) // 2] (the
    first class in the low half of the first byte), `low` and `step` float16 [N]: a logit is about
    low + step code, no further off than half a step.

    Raises:
        InputError: for unknown codes, logits that are not finite or larger than float16 can hold.
    """
    _check(codes)
    if len(logits) > _ROWS:  # of many classes, whose whole epoch is never in memory twice
        rows = torch.arange(len(logits)).split(_ROWS)
        pairs = zip(rows, logits.split(_ROWS), strict=True)
        return packed_rows(pairs, len(logits), codes)
    values = logits.float()
    if not bool((values.abs() < 65000).all()):
        raise InputError("Labels must be finite logits below 65,000 in size.")
    if codes == "float16":
        return {"codes": values.half()}
    levels, least = _LEVELS[codes], values.amin(1)
    low = (least - least.abs() * (_UP - 1)).half()
    step = ((values.amax(1) - low.float()) / levels * _UP).half()
    step = step.clamp(min=torch.finfo(torch.float16).tiny)
    found = ((values - low.float()[:, None]) / step.float()[:, None]).round()
    found = found.clamp(0, levels).to(torch.uint8)
    if codes == "uint4":
        if found.shape[1] % 2:
            found = torch.nn.functional.pad(found, (0, 1))
        found = found[:, ::2] | (found[:, 1::2] << 4)
    return {"codes": found.contiguous(), "low": low, "step": step}


def packed_rows(
    pairs: Iterable[tuple[Tensor, Tensor]], count: int, codes: Codes
) -> dict[str, Tensor]:
    """Return what `packed` does of logits that come in parts, of which one is in memory at a time.

    `pairs` are rows, int64 [n], and their logits [n, K]; together they are rows 0 to `count` - 1.

    Raises:
        InputError: as `packed`.
    """
    found: dict[str, Tensor] = {}
    for rows, logits in pairs:
        for name, part in packed(logits, codes).items():
            if name not in found:
                found[name] = part.new_empty(count, *part.shape[1:])
            found[name][rows] = part
    return found


def unpacked(parts: dict[str, Tensor], codes: Codes, classes: int) -> Tensor:
    """Return the logits [N, K] in float32 of what `packed` returned, or of some rows of it.

    Raises:
        InputError: for unknown codes, or parts of another number of classes.
    """
    _check(codes)
    found = parts["codes"]
    if codes == "uint4":
        found = torch.stack([found & 15, found >> 4], dim=2).flatten(1)[:, :classes]
    if found.shape[1] != classes:
        raise InputError(f"The labels are of {found.shape[1]} classes, not {classes}.")
    if codes == "float16":
        return found.float()
    return parts["low"].float()[:, None] + parts["step"].float()[:, None] * found.float()


def _check(codes: str) -> None:
    if codes not in get_args(Codes):
        raise unknown("form of labels", codes, get_args(Codes))
