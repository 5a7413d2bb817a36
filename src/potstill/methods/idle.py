"""Settings of RaT-BPTT that would have no effect beside others: refused, never silently ignored."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from potstill.core.errors import InputError


def refuse_idle(method: Any) -> None:
    """Refuse settings that others make meaningless, unless they are at their defaults.

    Raises:
        InputError: naming the first one, and what it says nothing to.
    """
    real, window, default = method.real, method.window, type(method)()
    uniform = "real.sampling 'uniform'" if real.sampling == "uniform" else ""
    hard = "hard labels" if method.labels == "hard" else ""
    uncut = "gradients that are not cut" if method.clip.weight is None else ""
    for name, deaf in {
        "real.rescore_every": uniform,
        "real.rescore_nets": uniform,
        "lr_label": hard,
        "clip.labels": hard,
        "clip.factor": uncut,
        "window.redraw": f"window.place {window.place!r}" if window.constant else "",
    }.items():
        value, usual = attrgetter(name)(method), attrgetter(name)(default)
        if deaf and value != usual:
            raise InputError(f"{name} ({value}) says nothing to {deaf}: leave it at {usual}.")
    if not uniform and real.rescore_every >= method.iterations:
        raise InputError(
            f"real.sampling {real.sampling!r} begins at outer step {real.rescore_every} "
            f"(real.rescore_every), which {method.iterations} iterations do not reach."
        )
