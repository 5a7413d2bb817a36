"""Engines that run lists of tasks: inline, in processes, on Ray; processes that share steps."""

from potstill.engine.progress import progress
from potstill.engine.ranks import Ranks, joined, take_gpu
from potstill.engine.tasks import ENGINES, Tasks, check_engine, run_tasks
from potstill.engine.together import run_together, sharing
from potstill.engine.watch import Watch

__all__ = [
    "ENGINES",
    "Ranks",
    "Tasks",
    "Watch",
    "check_engine",
    "joined",
    "progress",
    "run_tasks",
    "run_together",
    "sharing",
    "take_gpu",
]
