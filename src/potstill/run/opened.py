"""A set, with all that is known of the run that made it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from potstill.artefact import DistilledSet, load
from potstill.core.compute import Wish
from potstill.core.errors import InputError
from potstill.data import DataSet, open_data
from potstill.methods.api import Plan
from potstill.run.config import Run
from potstill.run.folder import read_run, recorded_data, recorded_plan


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A set and, where it is a run's, the run and its plan."""

    path: Path
    s: DistilledSet
    run: Run | None
    plan: Plan | None
    """None for a run of an earlier version, too."""
    data: DataSet | None
    """The real images, if they are known from the run or were named."""
    wish: Wish
    """How to compute: what was asked for, else as the run."""


def opened(path: str | Path, data: str | None = None, wish: Wish | None = None) -> Opened:
    """Open the folder of a set or run.

    Raises:
        InputError: for a folder that is neither, or images that are not there.
    """
    path, wish, plan = Path(path).expanduser(), wish or Wish(), None
    if path.name == "distilled" and (path.parent / "config.json").is_file():
        path = path.parent
    s = load(path)
    run = read_run(path) if (path / "config.json").is_file() else None
    real = _real(s, run, path, data)
    if run is not None and real is not None:
        wish = wish.filled(run.wish)
        if (plan := _plan(path)) is not None:
            wish = wish.filled(Wish(threads=plan.tasks.threads))
    return Opened(path=path, s=s, run=run, plan=plan, data=real, wish=wish)


def _plan(path: Path) -> Plan | None:
    """Return the plan of a run; None for one of an earlier version."""
    try:
        return recorded_plan(path)
    except InputError:
        return None


def _real(s: DistilledSet, run: Run | None, path: Path, data: str | None) -> DataSet | None:
    if data is None:
        return None if run is None else recorded_data(path)
    read = s.origin.reading
    return open_data(
        data,
        resize=read.resize,
        fit=read.fit,
        classes=read.classes,
        validation=s.ref.validation,
        limit=s.ref.limit,
    )
