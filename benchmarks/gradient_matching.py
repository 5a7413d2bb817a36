"""Time one inner step of IDC, ours against a plain implementation of the same step.

An inner step matches the gradients of 64 real images of each of 10 classes with those of the images
decoded (factor 2) from the distilled ones, and then trains the network, ConvNet-3, on real images.
The plain version is stock PyTorch, written from a description. Ours: `live`, the same; `pool`,
whose network lies in the store, walked before anything is timed; both with all that is
differentiated once compiled, in bfloat16 where the machine has it: `compiled`, `compiled-pool`; and
with what is differentiated twice compiled too, in float32: `whole`, `whole-pool`. All versions make
the same choices from the same start, and their losses are compared; before, images and weights
after two steps of ours (`live`, and as `whole` matches) must agree with the plain ones in float64.

    python benchmarks/gradient_matching.py --sizes 128:10:2000 --repeats 5 --out FILE.jsonl

A size is width, images a class, and real images that the network is trained on in a step. ORIGINAL
are CPU seconds of the published code on one core of another machine. With --run, whole runs of
potstill are timed instead, each in a fresh process: with an empty pool of networks, and again with
the filled one. A short run before them fills the cache of compiled code.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import common
import plain_idc
import rows
from idc_setting import (
    Problem,
    Size,
    check_equal,
    choices,
    method_of,
    networks,
    plain_job,
    problem,
    run_of,
)
from rows import Row

from potstill.data import DataSet
from potstill.experts import NetworkPool
from potstill.methods.condensation import IDCMethod
from potstill.run import Where, distil, preflight

ORIGINAL = {
    (128, 10, 2000): (15.8, 28.0),
    (128, 1, 256): (5.0, 5.2),
    (32, 1, 256): (0.97, 1.08),
}
"""(width, images a class, real images) -> CPU seconds of the published code, lowest and highest; at
the first size 15.8 on a quiet core, 20 to 28 on a busy one."""
VERSIONS = ("plain", "live", "pool", "compiled", "compiled-pool", "whole", "whole-pool")
TOLERANCE = 1e-3
"""Of the losses in float32, relative, over all inner steps that are timed."""
MOST = 0.6
"""Of the CPU seconds of a run with an empty pool, what one with a filled pool may take."""
Step = Callable[[int], float]
"""Take inner step `it` of the first network; return its loss, the mean over classes."""


def plain_steps(p: Problem) -> Step:
    """Return the inner steps of the plain program; its choices are made in advance."""
    job, made = plain_job(p), [choices(p, it) for it in range(p.method.matches - 1)]
    return lambda it: plain_idc.inner_step(job, made[it])


def our_steps(p: Problem, name: str) -> Step:
    """Return the inner steps of potstill."""
    method, ctx, state = p.method, p.ctx, p.state
    if name.endswith("pool"):
        method = replace(method, pool=NetworkPool(size=1))
        ctx = replace(ctx, nets=networks(method, ctx))
    if name.startswith(("compiled", "whole")):
        fast = common.first_order("compiled", ctx.plan.tasks.threads)
        twice = replace(ctx.plan.window, compiled=name.startswith("whole"))
        ctx = replace(ctx, plan=replace(ctx.plan, tasks=fast, window=twice))

    def step(it: int) -> float:
        nonlocal state
        state, numbers = method.step(ctx, state, it)
        return numbers["loss"]

    return step


def steps_of(p: Problem, name: str) -> Step:
    """Return the inner steps of a version, each of which goes on from the one before."""
    return plain_steps(p) if name == "plain" else our_steps(p, name)


def opened(asked: argparse.Namespace) -> DataSet:
    """Return the images."""
    return common.images(asked.data, train=asked.train, test=10)


def measure(asked: argparse.Namespace, size: Size) -> Row:
    """Return what inner steps take, versions in turns, the first step of each not counted."""
    method = method_of(size, matches=asked.repeats + 2)
    p = problem(method, opened(asked), size, threads=asked.threads)
    steps = {name: steps_of(p, name) for name in asked.versions}
    for step in steps.values():
        step(0)
    seconds, losses = common.in_turns(
        asked.versions, asked.repeats, lambda name, k: steps[name](k + 1)
    )
    return {
        "benchmark": "gradient_matching",
        **asdict(size),
        "data": asked.data or "noise",
        "n": asked.repeats,
        "cpu_seconds": seconds,
        "losses": losses,
        "original_cpu_seconds": ORIGINAL.get((size.width, size.ipc, size.n_data)),
        "compile_cpu_seconds": common.compile_seconds(
            __file__,
            {"size": asdict(size)},
            asked,
            version="whole" if "whole" in asked.versions else "compiled",
        ),
    }


def pooled(size: Size, nets: int, matches: int) -> IDCMethod:
    """Return the method with a pool of all its networks."""
    return method_of(size, matches=matches, networks=nets, pool=NetworkPool(size=nets))


def measure_runs(asked: argparse.Namespace, size: Size) -> Row:
    """Return what whole runs take with an empty and with a filled pool, in turns."""
    data, (nets, matches) = opened(asked), asked.run
    method = pooled(size, nets, matches)
    run = run_of(method, data, size, threads=asked.threads, compiling=asked.compile)
    plan = preflight(run, data)[0].plan
    what = {"size": asdict(size), "run": [nets, matches], "compile": asked.compile}
    with tempfile.TemporaryDirectory() as folder:

        def outcome(_: str, k: int) -> Row:
            return common.fresh(__file__, {**what, "store": str(Path(folder) / str(k))}, asked)

        compiling = "on" if plan.tasks.compiled else "off"
        short = {**what, "run": [1, 2], "compile": compiling, "store": str(Path(folder) / "short")}
        before = common.fresh(__file__, short, asked)
        _, found = common.in_turns(("empty", "filled"), asked.repeats, outcome)
    for empty, filled in zip(*found.values(), strict=True):
        if empty["images"] != filled["images"]:
            raise SystemExit("Runs with an empty and with a filled pool make different images.")
    return {
        "benchmark": "gradient_matching",
        **asdict(size),
        "data": asked.data or "noise",
        "run": [nets, matches],
        "n": asked.repeats,
        "base": "empty",
        "cpu_seconds": {name: [one["cpu_seconds"] for one in own] for name, own in found.items()},
        "first_order": plan.tasks.describe(),
        "second_order": plan.window.describe(),
        "short_run_cpu_seconds": before["cpu_seconds"],
    }


def in_fresh_process(asked: argparse.Namespace, what: Row) -> None:
    """Print the CPU seconds of a run and the hash of its images, or those of a step taken twice."""
    size, data = Size(**what["size"]), opened(asked)
    if "run" not in what:
        p = problem(method_of(size, matches=2), data, size, threads=asked.threads)
        pair = [common.timed(lambda: steps_of(p, what["version"])(0))[0] for _ in range(2)]
        print(json.dumps(pair))
        return
    run = run_of(
        pooled(size, *what["run"]), data, size, threads=asked.threads, compiling=what["compile"]
    )
    with tempfile.TemporaryDirectory() as out:
        where = Where(store=Path(what["store"]))
        took, s = common.timed(lambda: distil(run, Path(out), data=data, where=where))
    digest = hashlib.sha256(s.images.numpy().tobytes()).hexdigest()
    print(json.dumps({"cpu_seconds": took, "images": digest}))


def loss_notes(row: Row) -> dict[str, str]:
    """Return how far the losses of each version are from the plain ones, at most."""
    found, losses = {}, row["losses"]
    for name in [name for name in losses if name != "plain" and "plain" in losses]:
        pairs = zip(losses[name], losses["plain"], strict=True)
        far = max(abs(ours / other - 1) for ours, other in pairs)
        found[name] = f"losses within {far:.1e}"
        if name in ("live", "pool") and not far < TOLERANCE:
            found[name] += ", NOT equal"
    return found


def show(row: Row) -> list[str]:
    """Return a row as a few lines of text."""
    title = "width {width}, IPC {ipc}, network trained on {n_data}".format(**row)
    if "run" not in row:
        return [
            *rows.lines(row, title, loss_notes(row)),
            *rows.beside_original(row, "CPU s a step", row["original_cpu_seconds"]),
        ]
    nets, matches = row["run"]
    title += f", a run of {nets} networks with {matches} matchings"
    ratio = rows.ratios(row)["filled"][0]
    return [
        *rows.lines(row, title),
        f"  differentiated once: {row['first_order']}; twice: {row['second_order']}; the short run "
        f"before took {row['short_run_cpu_seconds']:.1f} CPU s",
        f"  {ratio:.3f} is {'at most' if ratio <= MOST else 'MORE than'} {MOST}",
    ]


def numbers(text: str) -> tuple[int, ...]:
    """Read whole numbers of at least 1 with colons between."""
    found = tuple(map(int, text.split(":")))
    if min(found) < 1:
        raise ValueError(text)
    return found


def size_of(text: str) -> Size:
    """Read a size WIDTH:IPC:N_DATA."""
    width, ipc, n_data = numbers(text)
    return Size(width=width, ipc=ipc, n_data=n_data)


def run_counts(text: str) -> tuple[int, int]:
    """Read NETWORKS:MATCHES."""
    nets, matches = numbers(text)
    return nets, matches


def flags() -> argparse.ArgumentParser:
    """Return the parser of the flags."""
    parser = common.parser(__doc__, versions=VERSIONS, repeats=5, width=None)
    sizes = [Size(width=width, ipc=ipc, n_data=n_data) for width, ipc, n_data in ORIGINAL]
    parser.add_argument("--sizes", type=size_of, nargs="+", default=sizes, help="WIDTH:IPC:N_DATA")
    parser.add_argument("--data", help=common.DATA)
    parser.add_argument("--train", type=int, default=2000, help="training images in all")
    parser.add_argument(
        "--run", type=run_counts, metavar="NETWORKS:MATCHES", help="time whole runs instead"
    )
    parser.add_argument(
        "--compile", choices=("auto", "on", "off"), default="auto", help="in whole runs"
    )
    return parser


def measured(asked: argparse.Namespace) -> Iterator[tuple[Row, list[str]]]:
    """Measure every configuration asked for; yield rows and their text."""
    if asked.compile != "auto" and not asked.run:
        flags().error("--compile is for whole runs (--run)")
    for size in asked.sizes:
        if asked.run:
            row = measure_runs(asked, size)
        else:
            ways = (False, True) if {"whole", "whole-pool"} & set(asked.versions) else (False,)
            difference = max(check_equal(width=size.width, compiled=way) for way in ways)
            print(f"width {size.width}: float64 agrees to {difference:.1e}")
            row = {**measure(asked, size), "float64_difference": difference}
        yield row, show(row)


def main(arguments: list[str] | None = None) -> list[Row]:
    """Measure every configuration asked for, print it and append it to --out."""
    return common.run(flags(), arguments, measured, in_fresh_process)


if __name__ == "__main__":
    common.command(main)
