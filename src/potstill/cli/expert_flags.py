"""Flags of `potstill experts`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from potstill.cli.flags import parse
from potstill.core.errors import InputError

if TYPE_CHECKING:
    from potstill.core.store import Store
    from potstill.data import DataSet


@dataclass(frozen=True, kw_only=True)
class StoreFlags:
    """Which store."""

    store: Path | None = None
    """Folder of the experts; in the user's cache by default."""

    def open(self) -> Store:
        """Return the store.

        Raises:
            InputError: if the user names a store that does not exist.
        """
        from potstill.run import Where

        if self.store is not None and not self.store.exists():
            raise InputError(f"There is no store {self.store}.")
        return Where(store=self.store).open_store()


@dataclass(frozen=True, kw_only=True)
class RemoveFlags(StoreFlags):
    """Flags of `experts rm`."""

    all: bool = False
    """Remove every pool."""
    dry_run: bool = False
    """Only say what would be removed."""


@dataclass(frozen=True, kw_only=True)
class ImageFlags:
    """Which real images."""

    data: str
    """The real images behind what is imported (see `potstill datasets`)."""
    resize: int | None = None
    """Resize the images to this many pixels a side (see --fit)."""
    fit: Literal["crop", "squash"] = "crop"
    """With --resize: crop the centre to a square, or squash the whole image into it."""
    classes: str | None = None
    """Only these classes, in this order: names with commas, or a list such as imagenette@mtt."""
    limit: int | None = None
    """Use at most this many training images a class (for a normaliser that is measured on them)."""
    validation: float = 0.1
    """Part of the training images kept for validation (as for --limit)."""
    normaliser: str
    """What they were normalised with there, as --normaliser of `distill`; cifar10@mtt for example.
    """

    def images(self) -> DataSet:
        """Return the images."""
        from potstill.data import open_data

        return open_data(
            self.data,
            resize=self.resize,
            fit=self.fit,
            classes=self.classes,
            validation=self.validation,
            limit=self.limit,
        )


@dataclass(frozen=True, kw_only=True)
class ImportFlags(ImageFlags, StoreFlags):
    """Flags of `experts import`."""

    lr: float | None = None
    """The step size that the experts were trained with; noted for people."""

    def open(self) -> Store:
        """Return the store, which need not exist yet."""
        from potstill.run import Where

        return Where(store=self.store).open_store()


def several(
    cls: type[Any], arguments: list[str], name: str, what: str, text: str, *more: Any
) -> tuple[tuple[str, ...], Any]:
    """Return any number of positional arguments, and the flags of `cls`."""
    import tyro

    kind = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar=f"[{what} ...]")]
    fields = [("names", kind, dataclasses.field(default=())), *more]
    flags = dataclasses.make_dataclass(
        "Flags",
        fields,
        bases=(cls,),
        namespace={"__module__": cls.__module__},
        frozen=True,
        kw_only=True,
    )
    found = parse(flags, arguments, name=f"experts {name}", text=text)
    return found.names, found
