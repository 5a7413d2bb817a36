"""How a training is computed: device, threads, precision, compilation. All of it decides rounding.

A `Wish` is what the user asks for; `choose` makes a `Compute` of it, from formulas and what the
machine can do, never from the clock, so that one machine always chooses alike. A `Compute` is part
of a task's spec and of a run's plan.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from potstill.core.errors import InputError, unknown
from potstill.core.spec import record

FIRST_ORDER_FLOPS = 3 * 10**12
"""Forward and backward work from which on compiling pays on a CPU: about a minute of a core, which
compiled code halves, for some 20 seconds of the compiler (5 with the work in its cache)."""
SECOND_ORDER_FLOPS = 2 * 10**13
"""The same for differentiated steps, which take about a minute to compile and gain less."""
CUDA_STEPS = 20_000
"""Steps from which on compiling pays on a GPU, where small batches wait for launches."""
MOST_THREADS = 1024
"""More are taken for a mistake: torch starts them all."""
NO_GPU = "there is no GPU that torch can use"


@record
@dataclass(frozen=True, kw_only=True)
class Compute:
    """One resolved way to compute.

    device: "cpu" or "cuda"; threads: of torch, on a CPU; precision: "float32", or "bfloat16" for
    autocast (weights, gradients and sums stay float32); compiled: by torch.compile.
    """

    threads: int
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Literal["float32", "bfloat16"] = "float32"
    compiled: bool = False

    def describe(self) -> str:
        """Return it in a few words for people."""
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        where = threads if self.device == "cpu" else self.device
        return f"{where}, {'compiled' if self.compiled else 'eager'} {self.precision}"

    def obstacle(self) -> str:
        """Return why this machine cannot compute so; empty if it can."""
        if self.device == "cuda" and not torch.cuda.is_available():
            return NO_GPU
        return no_compiler(self.device) if self.compiled else ""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a user asks for; "auto" and None leave the choice to `choose`."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"

    def __post_init__(self) -> None:
        for name, allowed in (
            ("device", ("auto", "cpu", "cuda")),
            ("precision", ("auto", "float32", "bfloat16")),
            ("compile", ("auto", "on", "off")),
        ):
            if getattr(self, name) not in allowed:
                raise unknown(name, str(getattr(self, name)), allowed)
        if self.threads is not None and not 1 <= self.threads <= MOST_THREADS:
            raise InputError(
                f"threads must be at least 1 and at most {MOST_THREADS}, not {self.threads}."
            )

    @property
    def resolved_device(self) -> Literal["cpu", "cuda"]:
        """Return the device; "auto" is a GPU where there is one."""
        if self.device != "auto":
            return self.device
        return "cuda" if torch.cuda.is_available() else "cpu"

    def among(self, workers: int) -> Wish:
        """Return the wish of one of several workers: threads not asked for are torch's, shared."""
        return replace(self, threads=self.threads or max(1, torch.get_num_threads() // workers))

    def filled(self, other: Wish) -> Wish:
        """Return this wish, with the other's wherever this one leaves the choice."""
        return Wish(
            device=other.device if self.device == "auto" else self.device,
            threads=self.threads or other.threads,
            precision=other.precision if self.precision == "auto" else self.precision,
            compile=other.compile if self.compile == "auto" else self.compile,
        )


def choose(
    wish: Wish, *, order: Literal[1, 2], flops: int, images: int, steps: int, compiles: bool = True
) -> Compute:
    """Return how to compute some trainings of one network.

    Args:
        wish: what the user asked for; it wins wherever it is not "auto".
        order: 1 for plain training and prediction, 2 for steps that are differentiated.
        flops: floating-point operations of one image's forward pass.
        images: images (with repetition) that go forward and backward in all trainings together.
        steps: optimizer steps of all trainings together.
        compiles: whether this network can be compiled at all.

    Compiling pays where the work is long against the compiler's; bfloat16 pays where the machine
    has it in hardware and, on a CPU, the step is compiled. Differentiated steps stay in float32
    unless asked otherwise: from fresh weights bfloat16 gradients of theirs can be 60 % off.

    Raises:
        InputError: if this machine, or this network, cannot do what was asked for.
    """
    device = wish.resolved_device
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device 'cuda' is not possible here: {NO_GPU}.")
    why = no_compiler(device) if compiles else "this network cannot be compiled"
    if wish.compile == "on" and why:
        raise InputError(f"compile 'on' is not possible here: {why}.")
    if device == "cuda":
        long = steps >= CUDA_STEPS
    else:
        least = FIRST_ORDER_FLOPS if order == 1 else SECOND_ORDER_FLOPS
        long = (3 if order == 1 else 12) * flops * images >= least
    compiled = not why and (wish.compile == "on" or (wish.compile == "auto" and long))
    precision = wish.precision
    if precision == "auto":
        fast = order == 1 and fast_bfloat16(device) and (compiled or device == "cuda")
        precision = "bfloat16" if fast else "float32"
    threads = wish.threads or torch.get_num_threads()
    return Compute(threads=threads, device=device, precision=precision, compiled=compiled)


def default_memory(device: str) -> int:
    """Return the bytes of a gradient's budget where none is given: 4 GiB, or half of the GPU's."""
    if device == "cuda" and torch.cuda.is_available():
        return torch.cuda.mem_get_info()[1] // 2
    return 4 * 2**30


def fast_bfloat16(device: str) -> bool:
    """Return whether the device multiplies bfloat16 in hardware."""
    if device == "cuda":
        return torch.cuda.is_available() and torch.cuda.get_device_capability()[0] >= 8
    cpu = torch.cpu
    return any(
        getattr(cpu, name, lambda: False)()
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )


def no_compiler(device: str) -> str:
    """Return why torch.compile cannot work on the device; empty if it can."""
    if device == "cuda":
        if importlib.util.find_spec("triton") is None:
            return "the package triton is missing"
        names = [os.environ.get("CC", ""), "gcc", "clang"]
        return "" if any(map(shutil.which, names)) else "there is no C compiler (gcc)"
    name = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(name) is None:
        return f"there is no C++ compiler ({name})"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    return "" if header.is_file() else f"Python's header files are missing ({header})"
