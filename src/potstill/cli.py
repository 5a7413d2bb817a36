"""The command line. Exit codes: 0 done, 1 the work failed, 2 the input was wrong, 130 stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from potstill.core.errors import InputError, WorkError, unknown

if TYPE_CHECKING:
    from potstill.evaluation import Result
    from potstill.run import Run, Where

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Work:
    """Who does the work and where it is kept; changes nothing in the result."""

    engine: str = "inline"
    """inline, or processes for several experts and evaluations side by side."""
    workers: int = 1
    """Worker processes."""
    store: Path | None = None
    """Folder of finished experts and evaluations; in the user's cache by default."""
    device: str = "cpu"
    """cpu (this version computes on the CPU only)."""

    def where(self) -> Where:
        """Return what the runner wants to know."""
        from potstill.run import Where

        if self.device not in ("cpu", "auto"):
            raise InputError(f"device {self.device!r} is not supported yet; allowed: cpu, auto.")
        return Where(engine=self.engine, workers=self.workers, store=self.store)


@dataclass(frozen=True, kw_only=True)
class _RunFlags(Work):
    out: Path | None = None
    """Folder of the run; runs/NAME-SCALE-seedN by default."""


@dataclass(frozen=True, kw_only=True)
class _DistilFlags(_RunFlags):
    evaluate: bool = True
    """Score the set when it is made, as `potstill evaluate` does."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """How a distilled set is scored."""

    data: str | None = None
    """The real images; by default those the set was made of, from the cache."""
    nets: tuple[str, ...] = ()
    """Networks to train on the set; by default the one it was made with."""
    seeds: int | None = None
    """Networks a row; the protocol's number (5) by default."""
    protocol: str = "strict"
    """Rules of the evaluation (see `potstill protocols`)."""
    baselines: bool = True
    """Also train on random and k-means-medoid real images, as many a class."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    sys.exit(run(list(sys.argv[1:] if arguments is None else arguments)))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    from potstill import __version__

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
        print(f"potstill: stopped{f'; {stop}' if str(stop) else '.'}", file=sys.stderr)
        return 130
    except SystemExit as stop:  # tyro leaves so after --help
        return int(stop.code or 0)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - nobody reads any more
        return 0
    except WorkError as error:
        return _fail(error, 1)
    except MemoryError:
        return _fail(WorkError("Out of memory; lower --memory, ipc or the batch."), 1)
    except Exception as error:
        if os.environ.get("POTSTILL_DEBUG"):
            raise
        hint = "set POTSTILL_DEBUG=1 for the traceback"
        return _fail(WorkError(f"{type(error).__name__}: {error} ({hint})."), 1)


def _fail(error: Exception, code: int) -> int:
    if os.environ.get("POTSTILL_DEBUG"):
        raise error
    print(f"potstill: {' '.join(str(error).split())}", file=sys.stderr)
    return code


def _print_help() -> None:
    print("potstill: distil an image data set into a few images that train a network.\n")
    print("usage: potstill COMMAND ...        (potstill COMMAND --help says more)\n")
    for name, command in COMMANDS.items():
        print(f"  {name:<11}{(command.__doc__ or '').splitlines()[0]}")
    print("\nexit codes: 0 done, 1 the work failed, 2 the input was wrong, 130 stopped")


def _parse(cls: type[T], arguments: list[str], *, name: str, text: str) -> T:
    """Parse flags into a dataclass; a mistake becomes one sentence."""
    import tyro

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                cls,
                args=arguments,
                prog=f"potstill {name}",
                description=text,
                registry=_flag_types(),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
    lines = [line.strip("│╭╮╰╯ ") for line in said.getvalue().splitlines()][1:]
    end = next((k for k, line in enumerate(lines) if not line.strip("─")), len(lines))
    sentence = " ".join(lines[:end]).rstrip(".") or "The arguments are wrong"
    sentence = re.sub(r"^Error parsing (?!--)[^:]*: ", "", sentence)
    near = next((lines[k + 1] for k, s in enumerate(lines[:-1]) if s.startswith("Perhaps")), "")
    hint = f" (did you mean {near.split()[0]}?)" if near else ""
    raise InputError(f"{sentence}{hint}; potstill {name} --help lists what is allowed.")


def _flag_types() -> Any:
    """Return how tyro reads types that are no plain values: an augmentation is `none` or a name."""
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

    from potstill.augment import DSA

    registry = ConstructorRegistry()

    @registry.primitive_rule
    def augmentation(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        if info.type != DSA | None:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="none|OPERATIONS",
            instance_from_str=lambda texts: None if texts[0] == "none" else DSA(strategy=texts[0]),
            is_instance=lambda thing: thing is None or isinstance(thing, DSA),
            str_from_instance=lambda thing: ["none" if thing is None else thing.strategy],
        )

    return registry


def _one(arguments: list[str], name: str, what: str) -> tuple[str, list[str]]:
    """Split off the one positional argument of a command."""
    if not arguments or arguments[0].startswith("-"):
        if {"-h", "--help"} & set(arguments):
            return "", arguments
        raise InputError(f"What is missing is the {what}: potstill {name} {what.upper()} [flags].")
    return arguments[0], arguments[1:]


def _taken(arguments: list[str], flag: str) -> tuple[str | None, list[str]]:
    """Take `--flag value` or `--flag=value` out of a list of arguments."""
    rest, value, k = [], None, 0
    while k < len(arguments):
        if arguments[k] == flag:
            if k + 1 == len(arguments):
                raise InputError(f"{flag} needs a value.")
            value, k = arguments[k + 1], k + 2
        elif arguments[k].startswith(flag + "="):
            value, k = arguments[k].split("=", 1)[1], k + 1
        else:
            rest.append(arguments[k])
            k += 1
    return value, rest


def _settings(default: Run, *more: type, missing: Sequence[str] = ()) -> type[Any]:
    """Return a class of flags: those of a run with their defaults, and those of `more`.

    The method has its own type; flags in `missing` have to be given.
    """
    import tyro

    own = {"method": type(default.method), "recipe": tyro.conf.Suppress[str | None]}
    fields = [
        (
            f.name,
            own.get(f.name, f.type),
            dataclasses.field(default=getattr(default, f.name), kw_only=True),
        )
        for f in dataclasses.fields(default)
        if f.name not in missing
    ]
    bases, space = (type(default), *more), {"__module__": type(default).__module__}
    return dataclasses.make_dataclass(
        "Settings", fields, bases=bases, namespace=space, frozen=True, kw_only=True
    )


def _run_from(arguments: list[str], name: str) -> tuple[Run, Any]:
    """Return the run that the arguments of `distill` or `plan` describe, and the other flags."""
    from potstill.methods import METHODS
    from potstill.recipes import SCALES, from_recipe, scaled
    from potstill.run import Run

    method, rest = _taken(arguments, "--method")
    data, rest = _taken(rest, "--data")
    scale, rest = _taken(rest, "--scale")
    scale = scale or "full"
    if scale not in SCALES:
        raise unknown("scale", scale, SCALES)
    asked = bool({"-h", "--help"} & set(rest))
    recipe = rest.pop(0) if rest and not rest[0].startswith("-") else None
    missing = ["data"] if asked and data is None else []
    if recipe is not None and method is not None:
        raise InputError("Give a recipe or --method, not both.")
    if recipe is not None:
        default = from_recipe(recipe, data=data or ("DATA" if asked else None), scale=scale)
    else:
        if method is None and not asked:
            raise InputError(
                "Give a recipe (see `potstill recipes`) or --method M --data D --ipc N."
            )
        if data is None and not asked:
            raise InputError("Name the images with --data: digits, folder:DIR or parquet:DIR.")
        spec = METHODS.get(method or "mtt")()
        ipc, rest = _taken(rest, "--ipc")
        if ipc is None and not asked:
            raise InputError("Say how many images a class are wanted: --ipc N.")
        if ipc is not None and not ipc.lstrip("-").isdecimal():
            raise InputError(f"--ipc must be a whole number, not {ipc!r}.")
        missing += ["ipc"] if ipc is None else []
        default = scaled(Run(method=spec, data=data or "DATA", ipc=int(ipc or 1)), scale)
    about = f"The recipe {recipe}" if recipe else f"The method {method or 'mtt'}"
    which = "RECIPE, or --method M --data D --ipc N."
    text, *more = {
        "distill": (f"Distil images. {which}", _DistilFlags),
        "plan": (f"Say what a run will need before it starts. {which}",),
        "reproduce": ("Carry out a recipe and compare with its published number.", _RunFlags),
    }[name]
    found = _parse(
        _settings(default, *more, missing=missing),
        rest,
        name=f"{name} RECIPE" if name == "reproduce" else name,
        text=f"{text} {about} at scale {scale} has the defaults below.",
    )
    return Run(**{f.name: getattr(found, f.name) for f in dataclasses.fields(Run)}), found


def _console() -> Any:
    from potstill.core.log import Console

    return Console()


def _distill(arguments: list[str]) -> int:
    """Distil images: potstill distill RECIPE | --method M --data D --ipc N [--scale cpu]."""
    run_spec, found = _run_from(arguments, "distill")
    name = run_spec.recipe or type(run_spec.method).__name__.lower()
    out = found.out or Path("runs") / f"{name}-{run_spec.scale}-seed{run_spec.seed}"
    return _carry_out(run_spec, out, found.where(), evaluate=found.evaluate)


def _carry_out(run_spec: Run, out: Path, where: Where, *, evaluate: bool) -> int:
    from potstill.run import distil, resume_line, stoppable

    report = _console()
    distil(run_spec, out, where=where, report=report)
    report.say(f"distilled set: {out / 'distilled'} (preview.png shows it)")
    if evaluate:
        with stoppable(resume_line(out)):
            _score(out, Score(), where)
    return 0


def _score(path: Path, score: Score, where: Where) -> Result:
    """Evaluate a set or run, print the table, keep the rows beside a run."""
    from potstill.job import score as score_set
    from potstill.report import rich_table

    report = _console()
    result = score_set(
        path,
        data=score.data,
        nets=score.nets,
        seeds=score.seeds,
        protocol=score.protocol,
        baselines=score.baselines,
        where=where,
        report=report,
    )
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 140).print(rich_table(result))
    return result


def _resume(arguments: list[str]) -> int:
    """Go on with an interrupted run: potstill resume RUN."""
    path, rest = _one(arguments, "resume", "run")
    work = _parse(Work, rest, name="resume RUN", text="Go on with the run in the folder RUN.")
    from potstill.run import read_run

    where, out = work.where(), Path(path)
    return _carry_out(read_run(out), out, where, evaluate=True)


@dataclass(frozen=True, kw_only=True)
class _EvaluateFlags(Score, Work):
    """Score a distilled set beside matched real images."""


def _evaluate(arguments: list[str]) -> int:
    """Score a set or run beside random and k-means real images: potstill evaluate SET_OR_RUN."""
    path, rest = _one(arguments, "evaluate", "set_or_run")
    flags = _parse(
        _EvaluateFlags,
        rest,
        name="evaluate SET_OR_RUN",
        text="Train fresh networks on a distilled set and on as many real images; compare.",
    )
    from potstill.run import stoppable

    with stoppable("the same command; what is finished is kept"):
        _score(Path(path), flags, flags.where())
    return 0


def _reproduce(arguments: list[str]) -> int:
    """Carry out a recipe and compare with its published number: potstill reproduce RECIPE."""
    name, rest = _one(arguments, "reproduce", "recipe")
    from potstill.job import verdict
    from potstill.recipes import RECIPES

    run_spec, found = _run_from([name, *rest] if name else rest, "reproduce")
    out = found.out or Path("runs") / f"{name}-{run_spec.scale}-seed{run_spec.seed}"
    _carry_out(run_spec, out, found.where(), evaluate=True)
    print(verdict(RECIPES.get(name), run_spec, out))
    return 0


def _plan(arguments: list[str]) -> int:
    """Say what a run will need before it starts (flags as for distill)."""
    from potstill.run import open_run_data, plan_lines

    run_spec, _ = _run_from(arguments, "plan")
    for line in plan_lines(run_spec, open_run_data(run_spec)):
        print(line)
    return 0


def _demo(arguments: list[str]) -> int:
    """Show the main job offline on scikit-learn's digits, in about two minutes."""
    from potstill.demo import DemoFlags, demo

    text = "Show the main job offline, in about two minutes: distil scikit-learn's digits, compare."
    flags = _parse(DemoFlags, arguments, name="demo", text=text)
    return demo(flags.out, _console())


def _listing(rows: Sequence[tuple[str, str]]) -> int:
    width = max((len(name) for name, _ in rows), default=0)
    for name, text in rows:
        print(f"{name:<{width}}  {text}".rstrip())
    return 0


def _first_line(thing: Any) -> str:
    return (thing.__doc__ or "").strip().splitlines()[0] if thing.__doc__ else ""


def _recipes(arguments: list[str]) -> int:
    """List the recipes with their published numbers."""
    from potstill.recipes import RECIPES

    _nothing(arguments, "recipes")
    rows = []
    for name in RECIPES.names():
        recipe = RECIPES.get(name)
        spread = "" if recipe.published.std is None else f" ± {recipe.published.std}"
        number = f"published {recipe.published.accuracy}{spread} % ({recipe.published.source})"
        rows.append(
            (
                name,
                f"{recipe.data}; {number}{'; ' if recipe.differs else ''}"
                f"{'; '.join(recipe.differs)}",
            )
        )
    return _listing(rows)


def _methods(arguments: list[str]) -> int:
    """List the methods."""
    from potstill.methods import METHODS

    _nothing(arguments, "methods")
    return _listing([(n, _first_line(METHODS.get(n))) for n in METHODS.names()])


def _datasets(arguments: list[str]) -> int:
    """List where images can come from."""
    from potstill.data import SOURCES

    _nothing(arguments, "datasets")
    return _listing([(n, SOURCES.get(n).help) for n in SOURCES.names()])


def _nets(arguments: list[str]) -> int:
    """List the networks."""
    from potstill.nets import NETS

    _nothing(arguments, "nets")
    return _listing([(n, _first_line(NETS.get(n))) for n in NETS.names()])


def _protocols(arguments: list[str]) -> int:
    """List the rules of evaluation."""
    from potstill.evaluation import PROTOCOLS

    _nothing(arguments, "protocols")
    return _listing([(n, PROTOCOLS.get(n).help) for n in PROTOCOLS.names()])


def _nothing(arguments: list[str], name: str) -> None:
    """Refuse arguments of a listing; its help says what the list below it is."""
    if arguments in (["-h"], ["--help"]):
        print(f"usage: potstill {name}\n\n{_first_line(COMMANDS[name])}\n")
    elif arguments:
        raise InputError(f"potstill {name} takes no arguments, not {arguments[0]!r}.")


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "demo": _demo,
    "distill": _distill,
    "resume": _resume,
    "plan": _plan,
    "evaluate": _evaluate,
    "reproduce": _reproduce,
    "recipes": _recipes,
    "methods": _methods,
    "datasets": _datasets,
    "nets": _nets,
    "protocols": _protocols,
}
