"""Ctrl-C and SIGTERM: at once in tasks, after the step in the loop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from potstill.engine import Ranks


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM asked the work to stop; what is finished is saved."""


class Stop:
    """Whether someone asked the work to stop; at once in tasks, after the step in the loop."""

    def __init__(self, again: str) -> None:
        self.asked = False
        self._gentle = False
        self._again = again

    def __call__(self, *_: Any) -> None:
        """Take note of a signal."""
        again, self.asked = self.asked, True
        if again or not self._gentle:
            self.check()

    def check(self) -> None:
        """Raise Interrupted, which says how to go on, if the work was asked to stop."""
        if self.asked:
            raise Interrupted(f"to go on: {self._again}")

    def anywhere(self, ranks: Ranks) -> bool:
        """Return whether any process was asked to stop; then all were."""
        if not ranks.total(self.asked):
            return False
        self.asked = True
        return True

    @contextmanager
    def gently(self) -> Iterator[None]:
        """Within the block the first request only sets `asked`."""
        self._gentle = True
        try:
            yield
        finally:
            self._gentle = False


@contextmanager
def stoppable(again: str) -> Iterator[Stop]:
    """Let Ctrl-C and SIGTERM stop the work in good order; `again` says how to go on.

    Outside the main thread, where Python cannot take signals, nothing changes.
    """
    stop = Stop(again)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
