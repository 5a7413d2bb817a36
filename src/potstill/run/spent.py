"""What a run has cost so far, over all its sessions."""

from __future__ import annotations

import resource
import time
from pathlib import Path

from potstill.core.errors import InputError
from potstill.core.files import read_json, write_json
from potstill.core.usage import peak_memory


class Spent:
    """Wall and CPU seconds (worker processes included) and peak memory of a run's sessions.

    A killed session counts up to its last `save`; work that the store already had costs nothing.
    Processes that share outer steps add their seconds when these end.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            self._before: dict[str, float] = read_json(file) if file.is_file() else {}
        except InputError:
            self._before = {}
        self._began = self._now()

    @staticmethod
    def _now() -> tuple[float, float]:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.perf_counter(), time.process_time() + children.ru_utime + children.ru_stime

    def add(self, cpu_seconds: float) -> None:
        """Count what processes that shared the outer steps spent."""
        self._before["cpu_seconds"] = self._before.get("cpu_seconds", 0.0) + cpu_seconds

    def total(self) -> dict[str, float]:
        """Return seconds, cpu_seconds and peak_bytes."""
        seconds, cpu = (a - b for a, b in zip(self._now(), self._began, strict=True))
        return {
            "seconds": round(self._before.get("seconds", 0.0) + seconds, 3),
            "cpu_seconds": round(self._before.get("cpu_seconds", 0.0) + cpu, 3),
            "peak_bytes": max(int(self._before.get("peak_bytes", 0)), peak_memory()),
        }

    def save(self) -> None:
        """Write the totals, so that the next session goes on from them."""
        write_json(self._file, self.total())
