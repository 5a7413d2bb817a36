"""Tasks on a Ray cluster: one that is started here and ended after, or one that is there."""

from __future__ import annotations

import logging
import os
import pickle
import platform
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from potstill.core.errors import InputError, WorkError
from potstill.core.store import default_cache

RETRIES = 3
"""How often a task is begun anew whose worker died."""
_PATIENCE = 5.0
"""Seconds that interrupted tasks have to remove what they began, and a cluster to answer."""
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_SCHEDULER_EVENTS": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # what Ray prints of dead workers, which come out as failures
}
"""What ray reads as it is imported and started: it says nothing, here or to its makers."""


@dataclass(frozen=True)
class Job:
    """A task to be done, and what it needs of a machine."""

    work: Callable[[], None]
    cpus: int
    gpus: int


def in_ray(jobs: Sequence[Job], workers: int, tick: Callable[[], None], *, address: str) -> None:
    """Do jobs, at most `workers` at a time; `tick` is called after each that succeeded.

    Without an address a Ray is started on this machine and ended after. The working folder and the
    store must lie at the same place on every machine of the cluster.

    Raises:
        InputError: for an address without a cluster, a job that no machine of it can take, or as a
            job raised it.
        WorkError: as a job raised it, or if its workers died again and again.
    """
    environment = {k: v for k, v in os.environ.items() if k.startswith("POTSTILL_")}
    environment["POTSTILL_CACHE"] = str(default_cache().absolute())
    with _cluster(jobs, workers, address) as ray:
        do = ray.remote(max_retries=RETRIES, max_calls=0)(_do_there)
        waiting, failure = list(reversed(jobs)), None
        running: list[Any] = []
        try:
            while running or (waiting and failure is None):
                while waiting and failure is None and len(running) < workers:
                    job = waiting.pop()
                    sized = do.options(num_cpus=job.cpus, num_gpus=job.gpus)
                    work = ray.cloudpickle.dumps(job.work)
                    running.append(sized.remote(work, os.getcwd(), sys.path, environment))
                (ready,), running = ray.wait(running)
                if (error := _outcome(ray, ready)) is None:
                    tick()
                failure = failure or error
        except BaseException:
            _give_up(ray, running)
            raise
    if failure is not None:
        raise failure


def _do_there(
    work: bytes, here: str, modules: list[str], environment: dict[str, str]
) -> Exception | None:
    """Do a job in the folder and environment of whoever wants it; return what it raised."""
    os.environ.update(environment)
    sys.path += [folder for folder in modules if folder not in sys.path]
    if not Path(here).is_dir():
        return WorkError(
            f"The folder {here} is not on {platform.node()}: start the run in a folder, with a "
            "store and a cache, that all machines of the Ray cluster share."
        )
    try:
        with chdir(here):
            pickle.loads(work)()
    except (InputError, WorkError) as error:
        return type(error)(str(error))
    return None


def _outcome(ray: Any, done: Any) -> Exception | None:
    """Return what went wrong with a job, if anything did."""
    try:
        return ray.get(done)
    except ray.exceptions.RayError as error:
        why = " ".join(str(error).split())
        return WorkError(f"A Ray worker died {RETRIES + 1} times, or could not begin ({why}).")


def _give_up(ray: Any, running: list[Any]) -> None:
    """Interrupt what is under way, gently at first."""
    for each in running:
        ray.cancel(each)
    if running:
        _, running = ray.wait(running, num_returns=len(running), timeout=_PATIENCE)
    for each in running:
        ray.cancel(each, force=True)


@contextmanager
def _cluster(jobs: Sequence[Job], workers: int, address: str) -> Iterator[Any]:
    """Yield the module ray, connected; a cluster that the caller had joined is left as it is."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    with _own_signals():
        import ray

        joined = ray.is_initialized()
        if not joined:
            here = {
                "num_cpus": workers * max(job.cpus for job in jobs),
                "num_gpus": torch.cuda.device_count(),
                "include_dashboard": False,
                "object_store_memory": 100 * 2**20,
            }
            _connect(ray, address or "local", {} if address else here)
    try:
        _check_room(ray, jobs)
        yield ray
    finally:
        if not joined:
            ray.shutdown()


def _connect(ray: Any, address: str, options: dict[str, Any]) -> None:
    host, _, port = address.rpartition("/")[2].rpartition(":")
    try:
        if port.isdecimal():  # ray itself would try for minutes, and aloud
            socket.create_connection((host, int(port)), timeout=_PATIENCE).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (OSError, ValueError, RuntimeError) as error:
        why = " ".join(str(error).split())
        if address == "local":
            raise WorkError(f"Ray does not start here: {why}") from error
        raise InputError(f"There is no Ray cluster to join at {address!r}: {why}") from error


def _check_room(ray: Any, jobs: Sequence[Job]) -> None:
    """Refuse jobs that no machine of the cluster could ever take."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for cpus, gpus in {(job.cpus, job.gpus) for job in jobs}:
        if not any(m.get("CPU", 0) >= cpus and m.get("GPU", 0) >= gpus for m in machines):
            need = f"{cpus} CPUs and a GPU" if gpus else f"{cpus} CPUs"
            raise InputError(
                f"No machine of the Ray cluster has {need}; choose fewer --threads, or another "
                "--device."
            )


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep this program's way with signals, which ray changes as it is imported and started."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)
