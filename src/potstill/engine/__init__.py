"""Engines that run lists of tasks: inline or in processes."""

from potstill.engine.tasks import ENGINES, Tasks, run_tasks

__all__ = ["ENGINES", "Tasks", "run_tasks"]
