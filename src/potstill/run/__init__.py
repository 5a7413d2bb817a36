"""Runs: one configuration, one folder, phases in order, resumable at any moment."""

from potstill.run.config import Run, Where, open_run_data, resolved
from potstill.run.folder import read_run, recorded_data, recorded_plan, resume_line
from potstill.run.opened import Opened, opened
from potstill.run.parts import units_from
from potstill.run.plan import plan_line, plan_lines, preflight
from potstill.run.runner import distil, resume
from potstill.run.stop import Interrupted, stoppable

__all__ = [
    "Interrupted",
    "Opened",
    "Run",
    "Where",
    "distil",
    "open_run_data",
    "opened",
    "plan_line",
    "plan_lines",
    "preflight",
    "read_run",
    "recorded_data",
    "recorded_plan",
    "resolved",
    "resume",
    "resume_line",
    "stoppable",
    "units_from",
]
