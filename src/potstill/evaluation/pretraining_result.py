"""What an evaluation by probes found: rows of accuracies over networks, as JSON lines."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ProbeRow:
    """One line: what networks were pre-trained on, and probes of them on one data set."""

    name: str
    net: str
    """Name and width of the network."""
    target: str
    """The data set that is probed on."""
    labels: str
    """How many labels probes were given: "1%", "10 shots"."""
    count: int
    """The same as a number."""
    accuracies: tuple[float, ...]
    """Test accuracy (fraction) of the linear probe of each network after its last epoch."""
    mean: float
    std: float | None
    """Standard deviation as the protocol counts it; None for one network."""
    ci95: float | None
    """Half-width of the 95 % interval of the mean (Student t, ddof 1); None for one network."""
    n: int
    knn: float | None
    """Mean test accuracy of the nearest neighbours among the images with labels; None for networks
    that were fine-tuned."""
    validation: float | None
    """Mean accuracy on the validation part, by which steps are chosen; of the set's own data only,
    and None where that part gives labels too."""
    lr: float | None
    """Step size of the pre-training; None without one."""
    protocol: str
    nbytes: dict[str, int]
    """Bytes of what was pre-trained on: images, targets, normaliser."""
    seconds: float
    """Wall seconds of pre-training all n networks, for all data sets and labels together."""
    cpu_seconds: float
    note: str = ""
    compute: str = ""
    """How the networks were computed: device or threads, eager or compiled, precision."""


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """What an evaluation by probes found and what it cost."""

    rows: tuple[ProbeRow, ...]
    protocol: str
    data: str
    """Source of the real images that the set stands for, as the user wrote it."""
    identity: str
    nbytes: dict[str, int]
    """Bytes of the distilled set by part."""
    pretrainings: int
    """Networks that were pre-trained; each serves all its probes."""
    probes: int
    """Linear probes."""
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    """The most memory that one process held."""
    notes: tuple[str, ...] = ()
    """What is not in the table, and why."""

    def row(
        self,
        name: str,
        target: str | None = None,
        labels: str | None = None,
        net: str | None = None,
    ) -> ProbeRow | None:
        """Return the first row of that name (data set, labels, network)."""
        found = (
            row
            for row in self.rows
            if row.name == name
            and target in (None, row.target)
            and labels in (None, row.labels)
            and net in (None, row.net)
        )
        return next(found, None)

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain JSON data."""
        return json.loads(json.dumps(asdict(self), allow_nan=False))

    def lines(self) -> list[str]:
        """Return one JSON text a row, each complete in itself (eval.jsonl)."""
        head = {"data": self.data, "identity": self.identity, "prefix": None}
        return [json.dumps({**asdict(row), **head}, allow_nan=False) for row in self.rows]
