"""Registries: name -> thing, open to other packages by entry points `potstill.<kind>`."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from potstill.core.errors import InputError, unknown

T = TypeVar("T")


class Registry(Generic[T]):
    """A named table of one kind of thing ("method", "recipe", "network", ...)."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._things: dict[str, T] = {}
        self._outside_loaded = False

    def add(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers a thing under a name, once."""

        def register(thing: T) -> T:
            if name in self._things:
                raise InputError(f"Two {self.kind}s are named {name!r}.")
            self._things[name] = thing
            return thing

        return register

    def get(self, name: str) -> T:
        """Return the thing of that name.

        Raises:
            InputError: for an unknown name, with the nearest known one.
        """
        if name not in self._things:
            self._load_outside()
        if name not in self._things:
            raise unknown(self.kind, name, self._things)
        return self._things[name]

    def names(self) -> list[str]:
        """Return all names in alphabetical order."""
        self._load_outside()
        return sorted(self._things)

    def _load_outside(self) -> None:
        if self._outside_loaded:
            return
        self._outside_loaded = True
        for point in entry_points(group=f"potstill.{self.kind}"):
            if point.name not in self._things:
                self._things[point.name] = point.load()
