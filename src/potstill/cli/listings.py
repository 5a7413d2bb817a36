"""Commands that list what there is."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from potstill.core.errors import InputError


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
        inferred = ["settings inferred"] * (recipe.settings == "inferred")
        number = f"published {recipe.published}" if recipe.published else "no published number"
        cost = [f"published cost {recipe.cost}"] * bool(recipe.cost)
        parts = (recipe.data, number, *inferred, *cost, *recipe.differs, *recipe.notes)
        rows.append((name, "; ".join(parts)))
    return _listing(rows)


def _methods(arguments: list[str]) -> int:
    """List the methods."""
    from potstill.methods import METHODS

    _nothing(arguments, "methods")
    return _listing([(n, _first_line(METHODS.get(n))) for n in METHODS.names()])


def _datasets(arguments: list[str]) -> int:
    """List where images can come from."""
    from potstill.data import CLASS_LISTS, SOURCES, STATISTICS

    _nothing(arguments, "datasets")
    _listing([(n, SOURCES.get(n).help) for n in SOURCES.names()])
    print("\nLists for --classes, of imagenet-1k:\n")
    _listing([(n, CLASS_LISTS.get(n).help) for n in CLASS_LISTS.names()])
    print("\nStatistics for --normaliser:\n")
    names = " ".join(STATISTICS.names())
    print(textwrap.fill(names, 88))
    return 0


def _nets(arguments: list[str]) -> int:
    """List the networks."""
    from potstill.nets import EXTERNAL, NETS

    _nothing(arguments, "nets")
    rows = [(name, NETS.get(name).help) for name in NETS.names()]
    return _listing([*rows, *((source.form, source.help) for source in EXTERNAL.values())])


def _protocols(arguments: list[str]) -> int:
    """List the rules of evaluation."""
    from potstill.evaluation import PROBES, PROTOCOLS

    _nothing(arguments, "protocols")
    _listing([(n, PROTOCOLS.get(n).help) for n in PROTOCOLS.names()])
    print("\nOf `potstill probe`:\n")
    return _listing([(n, PROBES.get(n).help) for n in PROBES.names()])


def _nothing(arguments: list[str], name: str) -> None:
    """Refuse arguments of a listing; its help says what the list below it is."""
    if arguments in (["-h"], ["--help"]):
        print(f"usage: potstill {name}\n\n{_first_line(LISTINGS[name])}\n")
    elif arguments:
        raise InputError(f"potstill {name} takes no arguments, not {arguments[0]!r}.")


LISTINGS: dict[str, Callable[[list[str]], int]] = {
    "recipes": _recipes,
    "methods": _methods,
    "datasets": _datasets,
    "nets": _nets,
    "protocols": _protocols,
}
