"""`potstill doctor`: what there is to compute with, on one screen."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

from potstill.core.errors import InputError

EXTRAS = {"timm": "nets", "torchvision": "nets", "h5py": "hdf5", "ray": "ray"}
"""Packages that are not needed for everything, and the extra that installs each."""


def doctor(arguments: list[str]) -> int:
    """Say what this machine has: versions, devices, compiler, cache, extras."""
    if arguments in (["-h"], ["--help"]):
        print(f"usage: potstill doctor\n\n{doctor.__doc__}\n")
    elif arguments:
        raise InputError(f"potstill doctor takes no arguments, not {arguments[0]!r}.")
    for name, text in (*_versions(), *_machine(), *_cache(), *_extras()):
        print(f"{name:<15}{text}")
    return 0


def _versions() -> Iterator[tuple[str, str]]:
    import platform

    import torch

    from potstill.core.version import __version__

    yield "potstill", __version__
    yield "Python", f"{platform.python_version()}, {platform.platform(terse=True)}"
    yield "torch", str(torch.__version__)


def _machine() -> Iterator[tuple[str, str]]:
    import torch

    from potstill.core.compute import NO_GPU, fast_bfloat16, no_compiler

    yield "cores", f"{os.cpu_count()}, of which torch uses {torch.get_num_threads()}"
    gpus = [torch.cuda.get_device_properties(k) for k in range(torch.cuda.device_count())]
    for gpu in gpus:
        yield "GPU", f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB"
    if not gpus:
        yield "GPU", f"none: {NO_GPU}"
    for device in ("cpu", "cuda") if gpus else ("cpu",):
        yield "fast bfloat16", f"{device}: {'yes' if fast_bfloat16(device) else 'no'}"
        yield "torch.compile", f"{device}: {no_compiler(device) or 'possible'}"


def _cache() -> Iterator[tuple[str, str]]:
    from potstill.core.store import default_cache
    from potstill.report.pools import size_text

    cache = default_cache()
    nbytes = sum(item.lstat().st_size for item in cache.rglob("*") if not item.is_dir())
    yield "cache", f"{cache}, {size_text(nbytes)}"
    there = next(folder for folder in (cache, *cache.absolute().parents) if folder.is_dir())
    yield "free there", size_text(shutil.disk_usage(there).free)


def _extras() -> Iterator[tuple[str, str]]:
    from importlib.metadata import PackageNotFoundError, version

    for name, extra in EXTRAS.items():
        try:
            yield name, version(name)
        except PackageNotFoundError:
            yield name, f"not installed (pip install 'potstill[{extra}]')"
