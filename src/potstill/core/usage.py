"""Bytes: what this process has used, and how people write them."""

from __future__ import annotations

import math
import re
import sys

_UNITS = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def peak_memory() -> int:
    """Return the most bytes of memory that this process has held at once so far."""
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def bytes_in(text: str, *, unit: int = 1) -> int | None:
    """Return the bytes that a text such as 4GiB or 500MB says, None if it says none.

    A bare number counts `unit` bytes; a number beyond all computing says none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)\s*(?:([kmgt]i?)b?|(b?))", text.strip().lower())
    if match is None:
        return None
    size = float(match[1]) * (_UNITS[match[2]] if match[2] else 1 if match[3] else unit)
    return int(size) if math.isfinite(size) else None
