"""Settings of a record that must lie in a range: one sentence for each kind of range.

Fields that are None are not looked at; NaN lies in no range. Each function takes the record, the
names of its fields, and a `prefix` by which people know the record (`pool.`, `GSAM `).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from potstill.core.errors import InputError, unknown


def at_least(least: float, owner: object, *names: str, prefix: str = "") -> None:
    """Refuse fields below `least`, and infinite ones.

    Raises:
        InputError: naming the first one.
    """
    _check(lambda v: least <= v < math.inf, f"must be at least {least}", owner, names, prefix)


def above_zero(owner: object, *names: str, prefix: str = "") -> None:
    """Refuse fields that are not above 0, and infinite ones.

    Raises:
        InputError: naming the first one.
    """
    _check(lambda v: 0 < v < math.inf, "must be above 0", owner, names, prefix)


def a_part(owner: object, *names: str, prefix: str = "") -> None:
    """Refuse fields outside [0, 1].

    Raises:
        InputError: naming the first one.
    """
    _check(lambda v: 0 <= v <= 1, "must lie in [0, 1]", owner, names, prefix)


def below_one(owner: object, *names: str, prefix: str = "") -> None:
    """Refuse fields outside [0, 1), such as a momentum.

    Raises:
        InputError: naming the first one.
    """
    _check(lambda v: 0 <= v < 1, "must lie in [0, 1)", owner, names, prefix)


def one_of(allowed: Iterable[str], owner: object, name: str, *, prefix: str = "") -> None:
    """Refuse a field that is none of the words.

    Raises:
        InputError: naming the nearest word, or all.
    """
    if (value := getattr(owner, name)) not in (known := tuple(allowed)):
        raise unknown(f"{prefix}{name}", value, known)


def _check(
    fits: Callable[[float], bool], must: str, owner: object, names: Iterable[str], prefix: str
) -> None:
    for name in names:
        if (value := getattr(owner, name)) is not None and not fits(value):
            raise InputError(f"{prefix}{name} {must}, not {value}.")
