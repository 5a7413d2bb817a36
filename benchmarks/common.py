"""What the benchmarks share: their flags, workplace, images, CPU seconds, turns, processes.

CPU seconds are those of this process and of its finished children (the C++ compiler of
torch.compile), user and system. Versions take turns in one process. What must not be shared runs
in a fresh process, which prints one line of JSON: peak memory, and the seconds of compiling with
an empty cache and with a filled one.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from rows import Row, keep

from potstill.core.compute import Compute, Wish, choose
from potstill.core.errors import InputError
from potstill.data import DataSet, from_arrays, open_data

T = TypeVar("T")
FIRST_ORDER = ("plain", "eager", "compiled")
"""The plain program; ours as it is; ours compiled, in bfloat16 where the machine has it."""
SIDE, CLASSES, VALIDATION = 32, 10, 0.002
DATA = "real images of 32 px in 10 classes, e.g. parquet:DIR; noise by default"


def parser(
    about: str | None, *, versions: Sequence[str], repeats: int, width: int | None = 128
) -> argparse.ArgumentParser:
    """Return a parser with the flags of all benchmarks; no width: --widths is not among them."""
    made = argparse.ArgumentParser(description=next(iter((about or "").splitlines()), ""))
    made.add_argument("--versions", nargs="+", default=list(versions), choices=versions)
    if width is not None:
        made.add_argument("--widths", type=int, nargs="+", default=[width], help="of ConvNet-3")
    made.add_argument("--repeats", type=int, default=repeats, help="n")
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--no-compile-time", action="store_true", help="do not time the compiler")
    made.add_argument("--out", type=Path, help="JSONL file that gets one line a configuration")
    made.add_argument("--in-fresh-process", type=json.loads, help=argparse.SUPPRESS)
    return made


def parsed(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """Return the flags, and as `words` what they were read from."""
    words = sys.argv[1:] if arguments is None else arguments
    return parser.parse_args(words, argparse.Namespace(words=words))


def run(
    parser: argparse.ArgumentParser,
    arguments: list[str] | None,
    each: Callable[[argparse.Namespace], Iterable[tuple[Row, list[str]]]],
    in_fresh_process: Callable[[argparse.Namespace, Row], None] | None = None,
) -> list[Row]:
    """Keep every row that `each` yields with its text, or do what a fresh process is asked to."""
    asked = parsed(parser, arguments)
    with workplace(asked.threads):
        if asked.in_fresh_process and in_fresh_process:
            in_fresh_process(asked, asked.in_fresh_process)
            return []
        return [keep(row, text, asked.out) for row, text in each(asked)]


@contextmanager
def workplace(threads: int) -> Iterator[None]:
    """Keep data, store and compiled code in a new folder, for this process and its children.

    A child that is started inside shares the folder; where there is one already, it is used.
    """
    names = ("POTSTILL_BENCHMARK", "POTSTILL_CACHE", "TORCHINDUCTOR_CACHE_DIR")
    before, used = {name: os.environ.get(name) for name in names}, torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        if before["POTSTILL_BENCHMARK"]:
            yield
            return
        with tempfile.TemporaryDirectory(prefix="potstill-") as folder:
            os.environ |= {name: str(Path(folder) / name.lower()) for name in names}
            yield
    finally:
        torch.set_num_threads(used)
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def images(source: str | None, *, train: int, test: int) -> DataSet:
    """Return the first data set that the flags ask for: real images, or noise of CIFAR's shape.

    `train` is about the number of training images in all, `test` that of the noise only.
    """
    limit = max(1, train // CLASSES)
    if source is not None:
        return open_data(source, validation=VALIDATION, limit=limit)
    chance = torch.Generator().manual_seed(0)

    def noise(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (count, 3, SIDE, SIDE)
        pixels = torch.randint(256, shape, generator=chance, dtype=torch.uint8)
        return pixels, torch.arange(count) % CLASSES

    (x, y), (test_x, test_y) = noise(CLASSES * (limit + 1)), noise(test)
    return from_arrays(x, y, test_images=test_x, test_labels=test_y, validation=VALIDATION)


def first_order(version: str, threads: int) -> Compute:
    """Return how ours is computed in the versions "eager" and "compiled"."""
    wish = Wish(device="cpu", threads=threads, compile="on" if version == "compiled" else "off")
    return choose(wish, order=1, flops=0, images=0, steps=0)


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of its finished children so far."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


CLOCKS: Mapping[str, Callable[[], float]] = {"cpu": cpu_seconds, "cuda": time.perf_counter}
"""What tells the seconds of work on a device."""


def timed(work: Callable[[], T], clock: Callable[[], float] = cpu_seconds) -> tuple[float, T]:
    """Return the CPU seconds of some work, or those of another clock, and its result."""
    start = clock()
    result = work()
    return clock() - start, result


def in_turns(
    versions: Sequence[str],
    repeats: int,
    work: Callable[[str, int], T],
    clock: Callable[[], float] = cpu_seconds,
) -> tuple[dict[str, list[float]], dict[str, list[T]]]:
    """Return seconds and results of `work(version, repeat)`; each repeat takes all in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in versions}
    results: dict[str, list[T]] = {name: [] for name in versions}
    for k in range(repeats):
        for name in versions:
            took, result = timed(lambda name=name, k=k: work(name, k), clock)
            seconds[name].append(took)
            results[name].append(result)
    return seconds, results


def fresh(
    script: str,
    what: Mapping[str, Any],
    asked: argparse.Namespace,
    compiled_code: str | None = None,
) -> Any:
    """Return what a script prints last, as JSON, when told `what` beside the flags asked.

    Its compiled code lies in the folder named, by default in that of this process.
    """
    command = [sys.executable, script, *asked.words, "--in-fresh-process", json.dumps(what)]
    own = {"TORCHINDUCTOR_CACHE_DIR": compiled_code} if compiled_code else {}
    out = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **own})
    if out.returncode:
        raise SystemExit(f"A fresh process of {Path(script).name} failed:\n{out.stderr}")
    return json.loads(out.stdout.splitlines()[-1])


def compile_seconds(
    script: str, what: Mapping[str, Any], asked: argparse.Namespace, version: str = "compiled"
) -> dict[str, float] | None:
    """Return what compiling costs without compiled code in the cache ("cold") and with ("warm").

    A fresh process prints the seconds of the same work twice; the first time it compiles too.
    None where the flags asked do not want to know.
    """
    if asked.no_compile_time or version not in asked.versions:
        return None
    what, found = {**what, "version": version}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("cold", "warm"):
            first, second = fresh(script, what, asked, folder)
            found[name] = first - second
    return found


def peak_bytes() -> int:
    """Return the peak resident bytes; getrusage would give those of the parent process."""
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x)
    return int(line.split()[1]) * 1024


def command(main: Callable[[], object]) -> None:
    """Run a benchmark's main function; the user's mistakes end in one sentence."""
    try:
        main()
    except InputError as error:
        raise SystemExit(str(error)) from error
