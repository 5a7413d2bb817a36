"""The two kinds of failure that potstill tells apart (exit codes 2 and 1)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """The user's input is wrong; the message is one plain sentence (exit code 2)."""


class WorkError(RuntimeError):
    """The work failed although the input was right; the message is one plain sentence (exit 1)."""


class PartDone(Exception):
    """The part of a run that was asked for is finished, the run is not (exit code 0)."""


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """Return the error for an unknown name, with the nearest known name or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names) or 'none'}."
    return InputError(f"Unknown {kind} {name!r}: {hint}")
