"""How far a task is that takes long, told to whoever shows the progress of all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Listener = Callable[[int, int, str], None]
_LISTENER: ContextVar[Listener | None] = ContextVar("listener", default=None)


def progress(done: int, of: int, what: str) -> None:
    """Say that the task under way has done so many of its epochs or steps (`what` is one of them).

    Only the engine inline listens: in workers, and outside a task, nothing happens.
    """
    listener = _LISTENER.get()
    if listener is not None:
        listener(done, of, what)


@contextmanager
def heard_by(listener: Listener | None) -> Iterator[None]:
    """Let a listener, or nobody, hear the `progress` of the task in this block."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)
