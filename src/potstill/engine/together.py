"""Tasks that the processes of torchrun do together, one after another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from potstill.core.store import Store
from potstill.core.threads import using_threads
from potstill.engine.ranks import Ranks, joined
from potstill.engine.tasks import Tasks, run_tasks, threads_of

_TOGETHER = "together"


def run_together(
    tasks: Tasks,
    store: Store,
    ranks: Ranks,
    *,
    on_done: Callable[[int, int], None] | None = None,
    on_part: Callable[[float, str], None] | None = None,
) -> None:
    """Run what is not finished yet in all processes at once; the first one files the results.

    The function of the tasks asks `sharing` who it is among them; what others than the first write
    into their folders is thrown away.

    Raises:
        InputError: or WorkError, as `run_tasks`; others if the first process ended.
    """
    if ranks.rank:
        while (place := ranks.first(int)) >= 0:
            with TemporaryDirectory() as scratch, using_threads(threads_of(tasks.specs[place])):
                tasks.fn(tasks.specs[place], {**tasks.context, _TOGETHER: "1"}, Path(scratch))
        return

    def announced(spec: Any, context: dict[str, str], folder: Path) -> None:
        ranks.first(lambda: tasks.specs.index(spec))
        tasks.fn(spec, {**context, _TOGETHER: "1"}, folder)

    run_tasks(replace(tasks, fn=announced), store, on_done=on_done, on_part=on_part)
    ranks.first(lambda: -1)


def sharing(context: dict[str, str]) -> Ranks:
    """Return which process this is, of those that do the task with this context together."""
    return joined() if _TOGETHER in context else Ranks()
