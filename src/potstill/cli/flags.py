"""From the arguments of the commands to flags and runs; tyro stays in here."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from potstill.cli.options import DistilFlags, RunFlags, Work
from potstill.core.errors import InputError, unknown

if TYPE_CHECKING:
    from potstill.run import Run

T = TypeVar("T")


def parse(cls: type[T], arguments: list[str], *, name: str, text: str) -> T:
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
    ends = [k for k, line in enumerate(lines) if not line.strip("─-")]  # a rule, or an empty line
    start = 1 if 0 in ends else 0  # without UTF-8 the heading has a rule of its own
    end = next((k for k in ends if k >= start), len(lines))
    sentence = " ".join(lines[start:end]).rstrip(".") or "The arguments are wrong"
    sentence = re.sub(r"^Error parsing (?!--)[^:]*: ", "", sentence)
    near = next((lines[k + 1] for k, s in enumerate(lines[:-1]) if s.startswith("Perhaps")), "")
    hint = f" (did you mean {near.split()[0]}?)" if near else ""
    raise InputError(f"{sentence}{hint}; potstill {name} --help lists what is allowed.")


def _flag_types() -> Any:
    """Return how tyro reads types that are no plain values: augmentations, losses of pairs."""
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

    from potstill.augment import Policy, policy_of, text_of
    from potstill.functional.selfsup import PairLoss, pair_loss_of, text_of_loss

    registry = ConstructorRegistry()

    @registry.primitive_rule
    def augmentation(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        if info.type != Policy | None:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="none|dsa|rat|idc|OPERATIONS",
            instance_from_str=lambda texts: policy_of(texts[0]),
            is_instance=lambda thing: thing is None or isinstance(thing, Policy),
            str_from_instance=lambda thing: [text_of(thing)],
        )

    @registry.primitive_rule
    def pair_loss(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        if info.type != PairLoss:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="bt|simclr",
            instance_from_str=lambda texts: pair_loss_of(texts[0]),
            is_instance=lambda thing: isinstance(thing, PairLoss),
            str_from_instance=lambda thing: [text_of_loss(thing)],
        )

    return registry


def one(arguments: list[str], name: str, what: str) -> tuple[str, list[str]]:
    """Split off the one positional argument of a command."""
    if not arguments or arguments[0].startswith("-"):
        if {"-h", "--help"} & set(arguments):
            return "", arguments
        raise InputError(f"What is missing is the {what}: potstill {name} {what.upper()} [flags].")
    return arguments[0], arguments[1:]


def taken(arguments: list[str], flag: str) -> tuple[str | None, list[str]]:
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


def short(arguments: list[str]) -> list[str]:
    """Replace --net NAME by --net.name NAME."""
    name, rest = taken(arguments, "--net")
    return rest if name is None else [*rest, "--net.name", name]


def _settings(default: Run, *more: type, missing: Sequence[str] = ()) -> type[Any]:
    """Return a class of flags: those of a run with their defaults, and those of `more`.

    The method has its own type; flags in `missing` have to be given.
    """
    import tyro

    method = _typed(default.method)
    own: dict[str, Any] = {"method": type(method), "recipe": tyro.conf.Suppress[str | None]}
    own["ipc"] = int if default.size is None else int | None
    return _flags_of(dataclasses.replace(default, method=method), own, *more, missing=missing)


def _typed(method: Any) -> Any:
    """Return a method whose type knows that of the method it wraps, if it wraps one."""
    base = getattr(method, "base", None)
    return method if base is None else _as(_flags_of(method, {"base": type(base)}), method)


def _flags_of(
    default: Any, own: dict[str, Any], *more: type, missing: Sequence[str] = ()
) -> type[Any]:
    """Return a class of the fields of `default`, which are their defaults, some of `own` types."""
    fields = [
        (
            f.name,
            own.get(f.name, f.type),
            dataclasses.field(kw_only=True)
            if f.name in missing
            else dataclasses.field(default=getattr(default, f.name), kw_only=True),
        )
        for f in dataclasses.fields(default)
    ]
    bases, space = (type(default), *more), {"__module__": type(default).__module__}
    return dataclasses.make_dataclass(
        type(default).__name__, fields, bases=bases, namespace=space, frozen=True, kw_only=True
    )


def run_from(arguments: list[str], name: str) -> tuple[Run, Any]:
    """Return the run that the arguments of `distill` or `plan` describe, and the other flags."""
    from potstill.methods import method_of
    from potstill.nets import NetSpec
    from potstill.recipes import SCALES, from_recipe, scaled
    from potstill.run import Run

    method, rest = taken(arguments, "--method")
    data, rest = taken(rest, "--data")
    scale, rest = taken(rest, "--scale")
    net, rest = taken(short(rest), "--net.name")
    scale = scale or "full"
    if scale not in SCALES:
        raise unknown("scale", scale, SCALES)
    asked = bool({"-h", "--help"} & set(rest))
    recipe = rest.pop(0) if rest and not rest[0].startswith("-") else None
    missing = ["data"] if asked and data is None else []
    if recipe is not None and method is not None:
        raise InputError("Give a recipe or --method, not both.")
    if recipe is not None:
        default = from_recipe(recipe, data="DATA" if asked and data is None else data, scale=scale)
    else:
        if method is None and not asked:
            raise InputError(
                "Give a recipe (see `potstill recipes`) or --method M --data D --ipc N."
            )
        if data is None and not asked:
            raise InputError(
                "Name the images with --data, folder:DIR for example (see `potstill datasets`)."
            )
        spec = method_of(method or "mtt")
        amount, rest = _amount(rest, asked)
        missing += ["ipc"] if not amount else []
        amount = amount or {"ipc": 1}
        default = scaled(Run(method=spec, data="DATA" if data is None else data, **amount), scale)
    if net is not None:  # with the settings of its own, not those of the default network
        default = scaled(dataclasses.replace(default, net=NetSpec(name=net)), scale)
    about = f"The recipe {recipe}" if recipe else f"The method {method or 'mtt'}"
    which = "RECIPE, or --method M --data D --ipc N."
    text, *more = {
        "distill": (f"Distil images. {which}", DistilFlags),
        "plan": (f"Say what a run will need before it starts. {which}", Work),
        "reproduce": ("Carry out a recipe and compare with its published number.", RunFlags),
        "experts train": ("Train the experts that a run uses. RECIPE, or --data D.", Work),
    }[name]
    found = parse(
        _settings(default, *more, missing=missing),
        rest,
        name=f"{name} RECIPE" if name == "reproduce" else name,
        text=f"{text} {about} at scale {scale} has the defaults below.",
    )
    settings = {f.name: getattr(found, f.name) for f in dataclasses.fields(Run)}
    return Run(**{**settings, "method": _as(type(default.method), found.method)}), found


def _amount(arguments: list[str], asked: bool) -> tuple[dict[str, Any], list[str]]:
    """Take --ipc and --size out of a list of arguments; none is needed if help is asked for."""
    ipc, rest = taken(arguments, "--ipc")
    size, rest = taken(rest, "--size")
    if ipc is None and size is None and not asked:
        raise InputError("Say how many images a class are wanted: --ipc N.")
    if ipc is not None and not ipc.lstrip("-").isdecimal():
        raise InputError(f"--ipc must be a whole number, not {ipc!r}.")
    given = {"ipc": None if ipc is None else int(ipc), "size": size}
    return {name: value for name, value in given.items() if value is not None}, rest


def _as(cls: type[T], settings: Any) -> T:
    """Return settings as an instance of a class with the same fields."""
    return cls(**{f.name: getattr(settings, f.name) for f in dataclasses.fields(cls)})  # pyrefly: ignore[bad-argument-type]
