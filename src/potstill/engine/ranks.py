"""Processes that torchrun started and that share the tasks of every outer step.

Process r of R computes the tasks r, r + R, ...; their rows are gathered and every process takes the
same mean in the same order, so that R processes have the bytes of one. gloo carries what lies in
memory, nccl what lies on GPUs.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor

from potstill.core import torchrun
from potstill.core.errors import InputError, WorkError

T = TypeVar("T")
PATIENCE = timedelta(hours=6)
"""How long processes wait for the first one's experts and checks; one that ends is noticed."""


@dataclass(frozen=True)
class Ranks:
    """Which process this is, of how many that share a run; alone nothing is waited for."""

    rank: int = 0
    world: int = 1

    def mine(self, tasks: int) -> range:
        """Return the tasks of this process, of so many."""
        return range(self.rank, tasks, self.world)

    def part(self, rows: Tensor) -> Tensor:
        """Return this process's part of the rows of all; parts differ by one row at most."""
        return rows.tensor_split(self.world)[self.rank]

    def gathered(self, rows: Tensor) -> Tensor:
        """Return the rows [K, n] of all tasks in their order, from those of each process' tasks."""
        if self.world == 1:
            return rows
        from torch.distributed import all_gather

        parts = [torch.empty_like(rows) for _ in range(self.world)]
        with _together():
            all_gather(parts, rows)
        return torch.stack(parts, dim=1).flatten(0, 1)

    def total(self, number: float) -> float:
        """Return the sum of the processes' numbers."""
        if self.world == 1:
            return number
        from torch.distributed import all_reduce

        sum_ = torch.tensor(number, dtype=torch.float64)
        with _together():
            all_reduce(sum_)
        return float(sum_)

    def first(self, work: Callable[[], T]) -> T:
        """Let the first process alone do work and return in all what it made (tensors on CPU)."""
        if self.world == 1:
            return work()
        from torch.distributed import broadcast_object_list

        made: list[Any] = [None if self.rank else work()]
        with _together():
            broadcast_object_list(made)
        return made[0]

    def in_turn(self, work: Callable[[], T]) -> T:
        """Do work in every process, in the first before the others.

        Raises:
            InputError: or WorkError, in all processes, if one of them raised it.
        """
        if self.world == 1:
            return work()
        from torch.distributed import all_gather_object

        made: Any = None
        for first in (True, False):
            error: Exception | None = None
            if (self.rank == 0) is first:
                try:
                    made = work()
                except (InputError, WorkError) as found:
                    error = found
            errors: list[Any] = [None] * self.world
            with _together():
                all_gather_object(errors, error)
            for each in filter(None, errors):
                raise each
        return made


def joined() -> Ranks:
    """Meet the other processes that torchrun started; those of an earlier call are still there."""
    ranks = Ranks(torchrun.rank(), torchrun.world())
    if ranks.world > 1:
        import torch.distributed as dist

        if not dist.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, timeout=PATIENCE)
            atexit.register(_leave)
    return ranks


def take_gpu() -> None:
    """Let "cuda" mean a GPU that no other process of the run takes.

    Raises:
        InputError: if this machine has fewer GPUs than processes.
    """
    place, gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if place >= gpus:
        there = "only one" if gpus == 1 else f"only {gpus}"
        raise InputError(
            f"Each process needs a GPU of its own and there is {there}; start fewer, or choose "
            "--device cpu."
        )
    torch.cuda.set_device(place)


def _leave() -> None:
    from torch.distributed import destroy_process_group, is_initialized

    if is_initialized():
        destroy_process_group()


@contextmanager
def _together() -> Iterator[None]:
    """Say plainly that another process ended."""
    try:
        yield
    except RuntimeError as error:
        raise WorkError("Another process of the run ended; the run can be resumed.") from error
