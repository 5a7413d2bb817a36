"""What a run is, and where it is carried out."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from potstill.core.compute import Wish, default_memory
from potstill.core.errors import InputError
from potstill.core.spec import later, record
from potstill.core.store import Store, default_cache
from potstill.core.usage import bytes_in
from potstill.coresets import check_size
from potstill.data import DataSet, Reading, open_data
from potstill.engine import check_engine
from potstill.nets import NetSpec, fitting


@record
@dataclass(frozen=True, kw_only=True)
class Run:
    """A distillation: the method, the images, and how the result is chosen."""

    method: Any
    """The method with its settings."""
    data: str
    """Where the images come from: digits, folder:DIR, parquet:DIR (see `potstill datasets`)."""
    ipc: int | None = None
    """Distilled images per class."""
    net: NetSpec = NetSpec(name="auto")
    """The network that the set is distilled with; auto = a ConvNet that ends at about 4x4."""
    normaliser: str = "measured"
    """`measured` (mean and std of the training part), named statistics such as cifar10@mtt, or
    whitening: zca-mtt, zca-kip (zca-mtt:800 keeps rank 800, zca-mtt:full allows large images)."""
    resize: int | None = None
    """Resize the images to this many pixels a side (see --fit)."""
    fit: Literal["crop", "squash"] = "crop"
    """With --resize: crop the centre to a square, or squash the whole image into it."""
    classes: str | None = None
    """Only these classes, in this order: names with commas, or a list such as imagenette@mtt."""
    replacement: bool = False
    """Let classes with fewer images than ipc give images twice (each once before any twice)."""
    limit: int | None = None
    """Use at most this many training images a class."""
    validation: float = 0.1
    """Part of the training images kept for validation."""
    seed: int = 0
    """Seed of everything random."""
    select_every: int = 0
    """Check the set on validation images every so many outer steps, keep the best; 0 = last."""
    select_nets: int = 2
    """Networks trained for one such check."""
    strategy: Literal["graph", "adjoint", "auto"] = "auto"
    """Gradient through the student steps: graph | adjoint | auto (by the memory budget)."""
    memory: float | str | None = None
    """Memory budget of that gradient: 8GiB, 512MiB, or a number of GiB; by default 4GiB, or half
    of the GPU's memory."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks are computed; auto = a GPU if there is one."""
    threads: int | None = None
    """Threads of torch on a CPU; by default those that torch finds, shared by the workers."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto = bfloat16 (autocast) for experts, checks and scoring where the machine is fast at it;
    student steps that are differentiated are in float32 unless bfloat16 is asked for."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile training steps; auto = where the work is long enough to pay for it."""
    recipe: str | None = None
    """The recipe that this run follows, if any."""
    scale: str = "full"
    """full, or the smaller counts of `cpu` or `smoke`."""
    size: str | None = later(None)
    """In place of ipc, for methods without classes (mkdt, krr-st, subset-kd, mtt on views):
    images in all, as a part of the training images, 2%, or their number, 500."""

    def __post_init__(self) -> None:
        if (self.ipc is None) == (self.size is None):
            raise InputError(
                "Say how many images are wanted: ipc (a class), or size (in all, such as 2% or "
                "500), and not both."
            )
        if self.size is not None:
            check_size(self.size)
        elif self.ipc is not None and self.ipc < 1:
            raise InputError(f"ipc (images per class) must be at least 1, not {self.ipc}.")
        if self.select_every < 0 or self.select_nets < 1:
            raise InputError("select_every must be at least 0 and select_nets at least 1.")
        if self.memory is not None:
            object.__setattr__(self, "memory", _gib(self.memory))
        _ = self.wish  # refuses wrong values
        if self.strategy == "graph" and self.compile == "on":
            raise InputError(
                "compile 'on' does not go with the strategy 'graph': compiled student steps need "
                "'adjoint' (or 'auto')."
            )

    @property
    def wish(self) -> Wish:
        """Return what is asked of the machine."""
        return Wish(
            device=self.device,
            threads=self.threads,
            precision=self.precision,
            compile=self.compile,
        )

    @property
    def budget(self) -> int:
        """Return the memory budget in bytes."""
        if self.memory is None:
            return default_memory(self.wish.resolved_device)
        return int(float(self.memory) * 2**30)

    @property
    def amount(self) -> str:
        """Return how many images are wanted, in words: "ipc 10", "size 2%"."""
        return f"ipc {self.ipc}" if self.size is None else f"size {self.size}"

    @property
    def reading(self) -> Reading:
        """Return how images are read from the source."""
        return Reading(resize=self.resize, fit=self.fit, classes=self.classes)


@dataclass(frozen=True, kw_only=True)
class Where:
    """Where and by whom the work is done.

    It changes nothing in the result, but that workers share the threads where none are asked for.
    """

    engine: str = "inline"
    """inline; processes or ray for several tasks side by side; ray@ADDRESS joins a cluster."""
    workers: int = 1
    """Tasks side by side, at most."""
    store: Path | None = None
    """Folder of experts and evaluations; in the user's cache by default."""
    units: tuple[int, int] | None = None
    """Recover only units a to b - 1 of (a, b), then raise `PartDone`; None: all."""
    checkpoint_seconds: float = 30.0
    """Seconds of outer steps between two checkpoints; what a killed run loses at most."""

    def __post_init__(self) -> None:
        check_engine(self.engine, self.workers)
        if self.store is not None and self.store.exists() and not self.store.is_dir():
            raise InputError(f"The store {self.store} is a file; name a folder.")

    def open_store(self) -> Store:
        """Return the store."""
        return Store(self.store if self.store is not None else default_cache())


def _gib(memory: float | str) -> float:
    """Return a budget of memory in GiB."""
    size = memory
    if isinstance(size, str):
        size = (bytes_in(size, unit=2**30) or 0) / 2**30
    if not 0 < size < math.inf:
        raise InputError(
            f"memory must be a size above 0 such as 8GiB, 512MiB or 2.5 (GiB), not {memory!r}."
        )
    return float(size)


def open_run_data(run: Run) -> DataSet:
    """Open the images of a run."""
    return open_data(
        run.data,
        resize=run.resize,
        fit=run.fit,
        classes=run.classes,
        validation=run.validation,
        limit=run.limit,
    )


def resolved(run: Run, data: DataSet) -> Run:
    """Return the run with all settings of its network; `auto` is a ConvNet that ends at ~4x4."""
    return dataclasses.replace(run, net=fitting(run.net, data.size))
