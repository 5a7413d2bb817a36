"""`potstill study`: windows of meta-gradients, subsets of sets, variance of trainings."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from potstill.cli.flags import parse
from potstill.cli.options import Machine, Work
from potstill.core.errors import InputError, unknown

if TYPE_CHECKING:
    from potstill.studies import Studied, Study


@dataclass(frozen=True, kw_only=True)
class WindowsFlags:
    """Flags of `study windows`."""

    out: Path
    """Folder of the rows, the table and the plot."""
    data: str | None = None
    """The real images of recipes, as in `potstill distill`."""
    scale: str = "full"
    """Counts of recipes: full, cpu or smoke."""
    first: bool = False
    """Look at the first images of runs, not at the distilled ones."""
    window: int | None = None
    """M: differentiated steps; by default those of the run."""
    total: int | None = None
    """T: the most steps of a student; by default those of the run."""
    draws: int = 4
    """Students in each window."""
    positions: int = 5
    """Places of the window, from the first start to the last."""
    whole: Literal["auto", "on", "off"] = "auto"
    """Also differentiate whole trainings (BPTT, R-BPTT); auto = where T is at most 100."""


@dataclass(frozen=True, kw_only=True)
class CorrelationFlags(Work, Machine):
    """Flags of `study correlation`."""

    out: Path
    """Folder of the rows, the table and the plot."""
    data: str | None = None
    """The real images; by default those the set was made of, from the cache."""
    sizes: tuple[int, ...] = ()
    """Images a class of subsets, beside those of smaller sets and of first blocks."""
    seeds: int = 5
    """Networks a row, and random subsets of each size."""
    candidates: int = 4
    """Random images of each class among which greedy subsets choose; 0: no greedy ones."""


def study(arguments: list[str]) -> int:
    """Look into methods and sets: potstill study windows RUN... | correlation SET... | variance."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: potstill study STUDY ... --out DIR\n")
        print("  windows      RUN_OR_RECIPE...    meta-gradients by where the window lies")
        print("  correlation  SET [SMALLER...]    subsets of a set against smaller sets")
        print("  variance     --data DATA         how far trainings from one beginning differ")
        return 0
    name, *rest = arguments
    if name not in STUDIES:
        raise unknown("study", name, STUDIES)
    count = next((k for k, word in enumerate(rest) if word.startswith("-")), len(rest))
    paths, flags = rest[:count], rest[count:]
    if name == "variance":
        if paths:
            raise InputError(f"The study variance is of --data DATA, not of {paths[0]}.")
    elif not paths and not {"-h", "--help"} & set(flags):
        what = "RUN_OR_RECIPE" if name == "windows" else "SET"
        raise InputError(f"Name what to study: potstill study {name} {what} ... --out DIR.")
    return STUDIES[name](paths, flags)


def _windows(paths: list[str], arguments: list[str]) -> int:
    text = "Norms and cosines of meta-gradients by where the differentiated window lies."
    flags = parse(WindowsFlags, arguments, name="study windows RUN_OR_RECIPE...", text=text)
    from potstill.core.log import Console
    from potstill.report import windows_plot
    from potstill.run import stoppable
    from potstill.studies import free, windows

    free(flags.out)
    what = [_studied(path, flags) for path in paths]
    with stoppable("the same command"), Console().phase("gradients", 1) as advance:
        found = windows(
            what,
            draws=flags.draws,
            positions=flags.positions,
            whole={"auto": None, "on": True, "off": False}[flags.whole],
            on_done=lambda done, total: advance(done, total=total),
        )
    return _show(found, windows_plot(found.rows), flags.out)


def _studied(path: str, flags: WindowsFlags) -> Studied:
    """Return the images and students of a run, or of a recipe that has not begun."""
    from potstill.artefact import load
    from potstill.recipes import RECIPES, from_recipe
    from potstill.run import open_run_data, preflight, read_run, recorded_data, recorded_plan
    from potstill.studies import studied, windowed

    folder, s = Path(path).expanduser(), None
    if (folder / "config.json").is_file():
        run, data = read_run(folder), recorded_data(folder)
        other = flags.window is not None or flags.total is not None
        plan = None if other else recorded_plan(folder)  # that of the run's own window
        if not flags.first and (folder / "distilled").is_dir():
            s = load(folder)
    elif path in RECIPES.names():
        run = from_recipe(path, data=flags.data, scale=flags.scale)
        data, plan = open_run_data(run), None
    else:
        raise InputError(f"{path} is neither the folder of a run nor a recipe (potstill recipes).")
    run = replace(run, method=windowed(run.method, flags.window, flags.total))
    ctx, _ = preflight(run, data, plan, recorded=path not in RECIPES.names())
    return studied(path, run.method, ctx, s)


def _correlation(paths: list[str], arguments: list[str]) -> int:
    text = "Subsets of a distilled set against its first blocks and sets distilled at their size."
    flags = parse(CorrelationFlags, arguments, name="study correlation SET [SMALLER...]", text=text)
    from potstill.core.log import Console
    from potstill.evaluation import evaluate
    from potstill.report import correlation_plot
    from potstill.run import opened, stoppable
    from potstill.studies import correlation, free

    free(flags.out)
    where, known = flags.where(), opened(paths[0], flags.data, flags.wish())
    again = "the same command; what is finished is kept"
    with stoppable(again), Console().phase("trainings", 1) as advance:
        found = correlation(
            known.s,
            paths[1:],
            sizes=flags.sizes,
            seeds=flags.seeds,
            candidates=flags.candidates,
            evaluated=partial(
                evaluate,
                data=known.data,
                store=where.open_store(),
                engine=where.engine,
                workers=where.workers,
                wish=known.wish.among(where.workers),
                on_done=lambda done, total: advance(done, total=total),
            ),
        )
    return _show(found, correlation_plot(found.rows), flags.out)


def _variance(_: list[str], arguments: list[str]) -> int:
    from potstill.cli.variance import variance

    return _show(*variance(arguments))


def _show(found: Study, figure: Any, out: Path) -> int:
    """Print the tables and keep everything."""
    from rich.console import Console

    from potstill.report import rich_of
    from potstill.studies import keep

    keep(found, figure, out)
    console = Console(width=None if sys.stdout.isatty() else 160)
    for table in (found.table, *found.more):
        console.print(rich_of(table))
    print(f"rows, table and plot are in {out}")
    return 0


STUDIES = {"windows": _windows, "correlation": _correlation, "variance": _variance}
