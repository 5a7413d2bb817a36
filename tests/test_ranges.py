"""Settings that must lie in a range."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from potstill.core.errors import InputError
from potstill.core.ranges import a_part, above_zero, at_least, below_one, one_of


def a_record(value):
    return SimpleNamespace(value=value, other=1)


CASES = [
    (lambda r: at_least(1, r, "other", "value"), [1, 2.5, None], [0, -1, math.inf, math.nan]),
    (lambda r: above_zero(r, "value"), [1e-9, 3, None], [0, -1.0, math.inf, math.nan]),
    (lambda r: a_part(r, "value"), [0, 0.5, 1, None], [-0.1, 1.1, math.nan]),
    (lambda r: below_one(r, "value"), [0, 0.99, None], [1, -0.1, math.nan]),
    (lambda r: one_of(("mean", "sum"), r, "value"), ["sum"], ["some", ""]),
]


@pytest.mark.parametrize(("check", "fine", "wrong"), CASES)
def test_a_value_outside_is_refused_by_its_name(check, fine, wrong):
    for value in fine:
        check(a_record(value))
    for value in wrong:
        with pytest.raises(InputError, match="value"):
            check(a_record(value))


def test_the_sentence_names_record_range_and_value():
    with pytest.raises(InputError, match=r"^pool\.value must be at least 2, not 1\.$"):
        at_least(2, a_record(1), "value", prefix="pool.")
    with pytest.raises(InputError, match=r"^GSAM value must lie in \[0, 1\), not 1\.$"):
        below_one(a_record(1), "value", prefix="GSAM ")
    with pytest.raises(InputError, match=r"Unknown pool\.value 'some': did you mean 'sum'"):
        one_of(("mean", "sum"), a_record("some"), "value", prefix="pool.")
