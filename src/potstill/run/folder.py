"""The folder of a run: its configuration, its plan, and what is already there."""

from __future__ import annotations

import dataclasses
import os
import platform
import shlex
from pathlib import Path
from typing import Any

import torch

from potstill.artefact import DistilledSet, load
from potstill.core.errors import InputError
from potstill.core.files import read_json
from potstill.core.spec import differences, from_json, to_json
from potstill.core.version import __version__
from potstill.data import DataRef, DataSet, reopen
from potstill.methods.api import Context, Plan
from potstill.run.config import Run, open_run_data


def read_run(out: Path) -> Run:
    """Return the configuration of the run in a folder.

    Raises:
        InputError: if the folder is not a run.
    """
    run = from_json(read_config(out).get("run"))
    if not isinstance(run, Run):
        raise InputError(f"{out / 'config.json'} does not describe a run.")
    return run


def read_config(out: Path) -> dict[str, Any]:
    """Return config.json of the run in a folder.

    Raises:
        InputError: if the folder is not a run.
    """
    if not (out / "config.json").is_file():
        raise InputError(f"{out} is not a run: it has no config.json.")
    config = read_json(out / "config.json")
    if not isinstance(config, dict):
        raise InputError(f"{out / 'config.json'} does not describe a run.")
    return config


def recorded_data(out: Path) -> DataSet:
    """Return the images that the run in `out` began with: from the cache, else from the source.

    Raises:
        InputError: if neither has them.
    """
    run, identity = read_run(out), read_config(out)["identity"]
    ref = DataRef(identity=identity, validation=run.validation, limit=run.limit)
    try:
        return dataclasses.replace(reopen(ref), source=run.data)
    except InputError:
        data = open_run_data(run)
    if data.ref != ref:
        raise InputError(f"{run.data} does not hold the images that the run in {out} began with.")
    return data


def occupied(out: Path) -> bool:
    """Tell whether something other than a run (or a run that hardly began) is at `out`."""
    if not out.is_dir():
        return out.exists()
    names = [item.name for item in out.iterdir()]
    return "config.json" not in names and not all(name[0] == "." for name in names)


def made(out: Path) -> DistilledSet | None:
    """Return the set of a finished run."""
    folder = out / "distilled"
    if not folder.is_dir():
        return None
    try:
        return load(folder)
    except InputError as error:
        raise InputError(f"{error} Remove {folder} to have it made again.") from error


def config_of(run: Run, ctx: Context, data: DataSet) -> dict[str, Any]:
    """Return what config.json holds: the run, its resolved plan and its data."""
    return {
        "version": __version__,
        "run": to_json(run),
        "plan": to_json(ctx.plan),
        "identity": data.ref.identity,
    }


def plan_of(run: Run, out: Path, data: DataSet) -> Plan | None:
    """Return the plan of the run already in `out`; refuse another configuration or other data."""
    if not (out / "config.json").exists():
        return None
    old, plan = read_config(out), recorded_plan(out)
    changed = differences(old.get("run"), to_json(run))
    if old.get("identity") != data.ref.identity:
        changed.append(f"data: the images of {run.data} are not those that the run began with")
    if changed:
        raise InputError(
            f"{out} holds a run with another configuration ({'; '.join(changed)}); choose another "
            "folder."
        )
    return plan


def recorded_plan(out: Path) -> Plan:
    """Return the plan that was resolved when the run in `out` began.

    Raises:
        InputError: if there is none, or one of an earlier version.
    """
    config, file = read_config(out), out / "config.json"
    old = config.get("plan")
    if isinstance(old, dict) and "type" not in old:
        raise InputError(
            f"{file} is of an earlier version ({config.get('version')}), whose runs cannot be gone "
            "on with; choose another folder."
        )
    try:
        plan = from_json(old)
    except InputError:
        plan = None
    if not isinstance(plan, Plan):
        raise InputError(f"{file} does not describe the plan of a run.")
    return plan


def check_machine(plan: Plan, out: Path) -> None:
    """Refuse to go on with a run where the machine cannot compute as its plan says.

    Raises:
        InputError: naming what is missing.
    """
    for part in (plan.window, plan.tasks):
        if why := part.obstacle():
            raise InputError(
                f"The run in {out} began with {part.describe()}, which is not possible here: {why}."
            )


def environment() -> dict[str, Any]:
    """Return what env.json holds: versions and machine of the last session."""
    return {
        "potstill": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }


def resume_line(out: Path) -> str:
    """Return the command that goes on with a run."""
    return f"potstill resume {shlex.quote(str(out))}"
