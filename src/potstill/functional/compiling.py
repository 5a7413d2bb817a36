"""torch.compile as potstill uses it: static shapes, one graph, a cache on disk, no helpers."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from types import FunctionType
from typing import Any, TypeVar

import torch

from potstill.core.errors import WorkError
from potstill.core.store import default_cache

T = TypeVar("T")


def compiled(fn: Callable[..., T], *, graphs: bool = False) -> Callable[..., T]:
    """Return a pure function of tensors, compiled for its shapes when it is first called.

    What is compiled lies in the user's cache (`compiled`, or TORCHINDUCTOR_CACHE_DIR) and is found
    again by other processes. It is for torch's present number of threads; random numbers are those
    of eager mode. The code of `fn` is copied: torch counts how often a code is compiled, and
    closures of one function share theirs.

    Args:
        fn: a plain function; what it closes over are constants.
        graphs: on CUDA, launch all kernels of a call at once; results are overwritten by the next.

    Raises:
        WorkError: if torch cannot compile the function, at its first call, or write its cache.
    """
    assert isinstance(fn, FunctionType)
    own = FunctionType(
        fn.__code__.replace(), fn.__globals__, fn.__name__, fn.__defaults__, fn.__closure__
    )
    # before torch's compiler is imported, which looks for both and sets the first itself
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(default_cache() / "compiled"))
    os.environ.setdefault("TORCH_WARM_POOL", "0")
    options: dict[str, str | int | bool | Callable[..., Any]] = {
        "fallback_random": True,
        "compile_threads": 1,
        "cpp.threads": torch.get_num_threads(),
        "triton.cudagraphs": graphs,
        "guard_filter_fn": _of_arguments,
    }
    # torch's compiler still uses what torch deprecates
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning), _saying():
        import_module("torch._inductor.compile_fx")
        inner = torch.compile(own, fullgraph=True, dynamic=False, options=options)

    @wraps(fn)
    def call(*args: object) -> T:
        with _saying():
            return inner(*args)

    return call


@contextmanager
def _saying() -> Iterator[None]:
    """Turn what torch's compiler raises into a WorkError of one sentence."""
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except (TorchDynamoException, OSError) as error:
        raise WorkError(f"torch.compile failed ({_cause(error)}); use --compile off.") from error


def _of_arguments(guards: Sequence[Any]) -> list[bool]:
    """Return which checks before each call to keep: those of tensors given and of torch's state."""
    kinds = ((guard.guard_type, guard.is_global) for guard in guards)
    return [kind == "GLOBAL_STATE" or (kind == "TENSOR_MATCH" and not wide) for kind, wide in kinds]


def _cause(error: Exception) -> str:
    """Return the first line of a compiler's message that says something, at most 200 characters."""
    lines = [line.strip() for line in str(error).splitlines()]
    telling = (line for line in lines if line and not line.startswith("backend="))
    return next(telling, type(error).__name__)[:200].rstrip(": .")
