"""The command line. Exit codes: 0 done, 1 the work failed, 2 the input was wrong, 130 stopped."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.cli.doctor import doctor
from potstill.cli.experts import experts
from potstill.cli.flags import one, parse, run_from
from potstill.cli.imports import import_command
from potstill.cli.listings import LISTINGS
from potstill.cli.options import EvaluateFlags, ResumeFlags, Score
from potstill.cli.probe import probe, probe_run
from potstill.cli.studies import study
from potstill.core.errors import InputError, PartDone, WorkError, unknown
from potstill.core.torchrun import rank

if TYPE_CHECKING:
    from potstill.core.compute import Wish
    from potstill.evaluation import Result
    from potstill.run import Run, Where


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    sys.exit(run(list(sys.argv[1:] if arguments is None else arguments)))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    from potstill import __version__

    if rank() and not _together(arguments):
        return 0
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        _print_help()
        return 0
    if arguments[0] == "--version":
        print(f"potstill {__version__}")
        return 0
    try:
        command = COMMANDS.get(arguments[0])
        if command is None:
            raise unknown("command", arguments[0], COMMANDS)
        return command(arguments[1:])
    except InputError as error:
        return _fail(error, 2)
    except KeyboardInterrupt as stop:
        _say(f"stopped{f'; {stop}' if str(stop) else '.'}")
        return 130
    except PartDone as part:
        _say(str(part))
        return 0
    except SystemExit as stop:  # tyro leaves so after --help
        return int(stop.code or 0)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - nobody reads any more
        return 0
    except WorkError as error:
        return _fail(error, 1)
    except MemoryError:
        return _fail(WorkError("Out of memory; lower --memory, ipc or the batch."), 1, alone=True)
    except Exception as error:
        if os.environ.get("POTSTILL_DEBUG"):
            raise
        told = f"{type(error).__name__}: {error} (set POTSTILL_DEBUG=1 for the traceback)."
        return _fail(WorkError(told), 1, alone=True)


def _together(arguments: list[str]) -> bool:
    """Return whether the processes of torchrun do a command together; else the first does it."""
    shared = arguments[:1] in (["distill"], ["resume"], ["reproduce"])
    return shared and not {"-h", "--help"} & set(arguments)


def _fail(error: Exception, code: int, *, alone: bool = False) -> int:
    """Say what is wrong; `alone`: other processes of the run may not have met it."""
    if os.environ.get("POTSTILL_DEBUG"):
        raise error
    _say(" ".join(str(error).split()), alone=alone)
    return code


def _say(text: str, *, alone: bool = False) -> None:
    """Print on stderr; the first process speaks for those that share its run."""
    if alone or not rank():
        print(f"potstill: {text}", file=sys.stderr)


def _print_help() -> None:
    print("potstill: distil an image data set into a few images that train a network.\n")
    print("usage: potstill COMMAND ...        (potstill COMMAND --help says more)\n")
    for name, command in COMMANDS.items():
        print(f"  {name:<11}{(command.__doc__ or '').splitlines()[0]}")
    print("\nexit codes: 0 done, 1 the work failed, 2 the input was wrong, 130 stopped")


def _console() -> Any:
    from potstill.core.log import Console, Quiet

    return Quiet() if rank() else Console()


def _distill(arguments: list[str]) -> int:
    """Distil images: potstill distill RECIPE | --method M --data D --ipc N [--scale cpu]."""
    run_spec, found = run_from(arguments, "distill")
    out = found.out or _folder(run_spec)
    return _carry_out(run_spec, out, found.where(), Score() if found.evaluate else None)


def _folder(run_spec: Run) -> Path:
    """Return where a run goes that names no folder."""
    from potstill.methods import name_of

    own = f"{name_of(run_spec.method)}_{run_spec.amount}"
    name = run_spec.recipe or own.replace(":", "-").replace(" ", "").replace("%", "pc")
    return Path("runs") / f"{name}-{run_spec.scale}-seed{run_spec.seed}"


def _carry_out(run_spec: Run, out: Path, where: Where, score: Score | None) -> int:
    from potstill.run import distil

    report = _console()
    distil(run_spec, out, where=where, report=report)
    return _finish(out, where, report, score)


def _finish(out: Path, where: Where, report: Any, score: Score | None) -> int:
    """Say where the set is and score it: work of the first process."""
    from potstill.artefact import load
    from potstill.run import resume_line, stoppable

    if rank():
        return 0
    report.say(f"distilled set: {out / 'distilled'} (preview.png shows it)")
    if score is not None:
        with stoppable(resume_line(out)):
            (probe_run if load(out).pretrains else _score)(out, score, where)
    return 0


def _score(path: Path, score: Score, where: Where, wish: Wish | None = None) -> Result:
    """Evaluate a set or run, print the table, keep the rows beside a run."""
    from potstill.job import score as score_set
    from potstill.report import rich_matrix, rich_table

    result = score_set(
        path,
        data=score.data,
        nets=score.nets,
        seeds=score.seeds,
        protocol=score.protocol,
        regimes=score.regimes,
        prefix=score.prefix,
        continual=score.continual,
        beside=score.beside,
        baselines=score.baselines,
        wish=wish,
        where=where,
        report=_console(),
    )
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(rich_table(result))
    if len({row.net for row in result.rows}) > 1:
        console.print(rich_matrix(result))
    return result


def _resume(arguments: list[str]) -> int:
    """Go on with an interrupted run: potstill resume RUN."""
    path, rest = one(arguments, "resume", "run")
    text = "Go on with the run in the folder RUN."
    flags = parse(ResumeFlags, rest, name="resume RUN", text=text)
    from potstill.run import resume

    where, out, report = flags.where(), Path(path), _console()
    resume(out, where=where, report=report)
    return _finish(out, where, report, Score() if flags.evaluate else None)


def _evaluate(arguments: list[str]) -> int:
    """Score a set or run beside random and k-means real images: potstill evaluate SET_OR_RUN."""
    path, rest = one(arguments, "evaluate", "set_or_run")
    text = "Train fresh networks on a distilled set and on as many real images; compare."
    flags = parse(EvaluateFlags, rest, name="evaluate SET_OR_RUN", text=text)
    from potstill.run import stoppable

    with stoppable("the same command; what is finished is kept"):
        _score(Path(path), flags, flags.where(), flags.wish())
    return 0


def _reproduce(arguments: list[str]) -> int:
    """Carry out a recipe and compare with its published number: potstill reproduce RECIPE."""
    name, rest = one(arguments, "reproduce", "recipe")
    from potstill.recipes import RECIPES
    from potstill.verdict import rules_of, verdict

    run_spec, found = run_from([name, *rest] if name else rest, "reproduce")
    out, recipe = found.out or _folder(run_spec), RECIPES.get(name)
    protocol, regime = rules_of(recipe, run_spec)
    regimes: Any = (regime,) if regime else ()
    _carry_out(run_spec, out, found.where(), Score(protocol=protocol, regimes=regimes))
    if not rank():
        print(verdict(recipe, run_spec, out))
    return 0


def _plan(arguments: list[str]) -> int:
    """Say what a run will need before it starts (flags of the run as for distill)."""
    from potstill.run import open_run_data, plan_lines

    run_spec, found = run_from(arguments, "plan")
    where, data = found.where(), open_run_data(run_spec)
    for line in plan_lines(run_spec, data, where.open_store(), workers=where.workers):
        print(line)
    return 0


def _demo(arguments: list[str]) -> int:
    """Show the main job offline on scikit-learn's digits, in about two minutes."""
    from potstill.demo import DemoFlags, demo

    text = "Show the main job offline, in about two minutes: distil scikit-learn's digits, compare."
    flags = parse(DemoFlags, arguments, name="demo", text=text)
    return demo(flags.out, _console())


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "demo": _demo,
    "distill": _distill,
    "resume": _resume,
    "plan": _plan,
    "evaluate": _evaluate,
    "probe": probe,
    "reproduce": _reproduce,
    "study": study,
    "experts": experts,
    "import": import_command,
    **LISTINGS,
    "doctor": doctor,
}
