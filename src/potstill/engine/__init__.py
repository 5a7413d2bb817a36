"""Engines that run lists of tasks: inline or in processes; processes that share outer steps."""

from potstill.engine.ranks import Ranks, joined, take_gpu
from potstill.engine.tasks import ENGINES, Tasks, run_tasks

__all__ = ["ENGINES", "Ranks", "Tasks", "joined", "run_tasks", "take_gpu"]
