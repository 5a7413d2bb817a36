"""Settings of RaT-BPTT that are wrong, or would have no effect: refused, never silently ignored."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from potstill.core.errors import InputError
from potstill.core.ranges import above_zero, at_least, one_of
from potstill.methods.outer import LABELS
from potstill.methods.start import INITS


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


def refuse_wrong(method: Any) -> None:
    """Refuse values that cannot be.

    Raises:
        InputError: naming the first one.
    """
    at_least(1, method, "iterations", "tasks", "evaluation_steps")
    above_zero(method, "lr_img", "lr_label")
    at_least(0, method, "lr_lr")
    one_of(LABELS, method, "labels")
    one_of(INITS, method, "image_init")
