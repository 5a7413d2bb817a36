"""What this process has used."""

from __future__ import annotations

import sys


def peak_memory() -> int:
    """Return the most bytes of memory that this process has held at once so far."""
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
