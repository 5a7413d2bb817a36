"""Results: rows of accuracies over networks, with spread and interval, as JSON lines."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a result: a training set, a network, and its test accuracies (fractions)."""

    name: str
    net: str
    """Name and width of the network."""
    regime: str
    """Labels: hard | soft | online | stored."""
    accuracies: tuple[float, ...]
    """Test accuracy of each network, after the last epoch or at the mark best on validation."""
    validation: float
    """Mean accuracy on the validation part; steps are chosen by it."""
    mean: float
    std: float | None
    """Standard deviation as the protocol counts it; None for one network."""
    ci95: float | None
    """Half-width of the 95 % interval of the mean (Student t, ddof 1); None for one network."""
    n: int
    lr: float
    protocol: str
    nbytes: dict[str, int]
    """Bytes of what was trained on: images, targets, normaliser; labels of views, or a teacher, if
    they were needed."""
    seconds: float
    """Wall seconds of training all n networks."""
    cpu_seconds: float
    peak_bytes: int
    """The most memory that a process held while it trained one of them."""
    note: str = ""
    compute: str = ""
    """How the networks were computed: device or threads, eager or compiled, precision."""
    marks: tuple[tuple[int, float, float], ...] = ()
    """Of a protocol with marks: epochs, mean validation and mean test accuracy at each."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What an evaluation found and what it cost."""

    rows: tuple[Row, ...]
    protocol: str
    data: str
    """Source of the real images, as the user wrote it."""
    identity: str
    """Identity hash of the real images."""
    nbytes: dict[str, int]
    """Bytes of the distilled set by part."""
    seconds: float
    """Wall seconds of all trainings behind the rows and the choice of steps."""
    cpu_seconds: float
    """CPU seconds of the same."""
    peak_bytes: int
    """The most memory that one process held."""
    prefix: int | None = None
    """The first so many blocks of the set were evaluated; None for all."""

    def row(self, name: str, net: str | None = None, regime: str | None = None) -> Row | None:
        """Return the first row of that name (and network, as `nets.describe` says it)."""
        found = (
            r
            for r in self.rows
            if r.name == name and net in (None, r.net) and regime in (None, r.regime)
        )
        return next(found, None)

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain JSON data."""
        return json.loads(json.dumps(asdict(self), allow_nan=False))

    def lines(self) -> list[str]:
        """Return one JSON text a row, each complete in itself (eval.jsonl)."""
        head = {"data": self.data, "identity": self.identity, "prefix": self.prefix}
        return [json.dumps({**asdict(row), **head}, allow_nan=False) for row in self.rows]


def spread(accuracies: Sequence[float], *, ddof: int) -> tuple[float, float | None, float | None]:
    """Return mean, std and the half-width of the 95 % Student t interval of the mean.

    The interval always rests on the sample variance (ddof 1); std and interval are None where
    they do not exist (one network).
    """
    from scipy.stats import t

    n, mean = len(accuracies), statistics.fmean(accuracies)
    if n < 2:
        return mean, None, None
    sample = statistics.stdev(accuracies)
    std = sample if ddof == 1 else statistics.pstdev(accuracies)
    return mean, std, float(t.ppf(0.975, n - 1)) * sample / n**0.5
