"""What a run says: metrics.jsonl for machines, a progress line with ETA for people."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from potstill.core.files import write_text


class Metrics:
    """A JSONL file of one line an outer step, cut back to the checkpoint on resume."""

    def __init__(self, path: Path, *, keep_before: int) -> None:
        lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
        kept = [line for line in lines if _iteration(line) < keep_before]
        write_text(path, "".join(line + "\n" for line in kept))
        self._file = open(path, "a")  # noqa: SIM115 - closed by close()

    def write(self, it: int, numbers: dict[str, float]) -> None:
        """Append the numbers of outer step `it`."""
        self._file.write(json.dumps({"it": it, **numbers}) + "\n")

    def sync(self) -> None:
        """Bring what was written to the disk (before a checkpoint)."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _iteration(line: str) -> float:
    try:
        return json.loads(line)["it"]
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a half-written last line of a killed process


class Reporter(Protocol):
    """Where a run reports its progress."""

    def say(self, text: str) -> None:
        """Print one line."""
        ...

    def phase(self, label: str, total: int, done: int = 0) -> Any:
        """Return a context manager that yields `advance(done, note, total)`.

        `done` may have a part of something under way: 2.35.
        """
        ...


class Quiet:
    """A reporter that says nothing (Python use, tests)."""

    def say(self, text: str) -> None:
        """Print nothing."""

    @contextmanager
    def phase(self, label: str, total: int, done: int = 0) -> Iterator[Any]:
        """Yield a function that does nothing."""
        yield lambda done, note="", total=None: None


class Console:
    """A reporter for people: rich progress with ETA on stderr, plain lines where no terminal is."""

    def __init__(self) -> None:
        from rich.console import Console as RichConsole

        self._console = RichConsole(stderr=True, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """Print one line on stderr."""
        self._console.print(text, markup=False)

    @contextmanager
    def phase(self, label: str, total: int, done: int = 0) -> Iterator[Any]:
        """Show a bar (terminal) or a line every tenth of the phase (elsewhere)."""
        import time

        if not self._console.is_terminal:
            begin, first, shown = time.perf_counter(), done, -1

            def line(done: float, note: str = "", total: int = total) -> None:
                nonlocal shown
                tenth = int(10 * done / max(total, 1))
                if tenth > shown:
                    shown, eta = tenth, ""
                    if first < done < total:
                        left = (time.perf_counter() - begin) / (done - first) * (total - done)
                        eta = f", about {left:.0f} s left"
                    self.say(f"{label}: {int(done)}/{total}{eta}{'  ' + note if note else ''}")

            yield line
            return
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task(label, total=total, completed=done, note="")
            yield lambda done, note="", total=total: progress.update(
                task, completed=done, note=note, total=total
            )
