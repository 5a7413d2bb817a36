"""Classification sets of torchvision.datasets, downloaded or from the user's own copy."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill.core.errors import InputError
from potstill.core.store import default_cache
from potstill.core.vision import import_torchvision
from potstill.data.images import plain
from potstill.data.layout import existing_folder
from potstill.data.splits import numbered_classes
from potstill.data.types import Listed, Opener, Parts, Reading

_TRAIN = ("trainval", "train")
_TEST = ("test", "val", "valid")


def open_vision(rest: str, reading: Reading) -> Parts:
    """Return the parts of "NAME" or, from a folder as torchvision lays it out, "NAME@DIR".

    Raises:
        InputError: for an unknown name, a set without classes or images, missing files, or a
            download that fails.
    """
    name, _, place = rest.partition("@")
    own = existing_folder(place, "torchvision") if place else None
    return vision_parts(name, own)


def vision_parts(name: str, own: Path | None) -> Parts:
    """Return the parts of a set in the user's own folder, or in the cache; as `open_vision`."""
    root = own or default_cache() / "downloads" / "torchvision" / name
    make = _maker(name, root, download=own is None)
    train, used = make(_TRAIN, True)
    test, _ = make(_TEST, False) if used else (None, None)
    labels = _labels(name, train)
    return Parts(
        train=_listed(name, train, labels),
        test=None if test is None else _listed(name, test, _labels(name, test)),
        classes=_classes(train, labels),
        files={
            os.path.relpath(path, root): path
            for folder, _, files in os.walk(root)
            for path in (os.path.join(folder, file) for file in files)
        },
    )


def _sets() -> dict[str, Any]:
    """Return the sets of torchvision that can be made from a folder alone."""
    datasets = import_torchvision().datasets
    found = {name: getattr(datasets, name) for name in datasets.__all__}
    return {
        name: each
        for name, each in found.items()
        if {"root", "download"} <= set(inspect.signature(each).parameters)
    }


def _maker(name: str, root: Path, *, download: bool) -> Callable[[tuple[str, ...], bool], Any]:
    """Return a function of (split names, is it for training) -> (set, was it split)."""
    sets = _sets()
    if name not in sets:
        near = difflib.get_close_matches(name, sets, n=3, cutoff=0.4) or sorted(sets)[:5]
        raise InputError(f"torchvision has no such image set {name!r}; nearest: {', '.join(near)}.")
    takes = inspect.signature(sets[name]).parameters

    def made(**options: Any) -> Any:
        try:
            return sets[name](str(root), download=False, **options)
        except (RuntimeError, OSError) as error:
            if not download:
                raise InputError(
                    f"{root} does not hold {name} as torchvision lays it out ({error})."
                ) from error
        try:
            root.mkdir(parents=True, exist_ok=True)
            with contextlib.redirect_stdout(sys.stderr):
                return sets[name](str(root), download=True, **options)
        except (RuntimeError, OSError) as error:
            raise InputError(
                f"{name} cannot be downloaded ({error}); bring a copy and name its folder: "
                f"torchvision:{name}@DIR."
            ) from error

    def make(splits: tuple[str, ...], train: bool) -> tuple[Any, bool]:
        if "train" in takes:
            return made(train=train), True
        if "split" not in takes:
            return made(), False
        for split in splits:
            try:
                return made(split=split), True
            except InputError:
                raise
            except ValueError:
                continue  # a word that this set does not know
        raise InputError(f"torchvision's {name} has none of the parts {', '.join(splits)}.")

    return make


def _labels(name: str, images: Any) -> Tensor:
    """Return the class numbers of a set, from what it keeps in memory if it does."""
    for attribute in ("targets", "labels", "_labels", "y"):
        found = getattr(images, attribute, None)
        if found is not None and len(found) == len(images):
            break
    else:
        pairs = getattr(images, "_samples", None) or images
        found = [pairs[row][1] for row in range(len(images))]
    try:
        labels = torch.as_tensor(found)
    except (TypeError, ValueError, RuntimeError):
        labels = torch.zeros(0)
    if labels.ndim != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
        raise InputError(f"torchvision's {name} gives no class number with each image.")
    return labels.long()


def _classes(images: Any, labels: Tensor) -> tuple[str, ...]:
    found = getattr(images, "classes", None) or ()
    names = tuple(", ".join(n) if isinstance(n, (tuple, list)) else str(n) for n in found)
    return names if len(set(names)) == len(names) > 0 else numbered_classes(labels)


def _listed(name: str, images: Any, labels: Tensor) -> Listed:
    def opened(row: int, title: str) -> Any:
        from PIL.Image import Image

        try:
            image = images[row][0]
        except (OSError, ValueError, SyntaxError) as error:
            raise InputError(f"Cannot read the image {title} ({error}).") from error
        if not isinstance(image, Image):
            raise InputError(f"torchvision's {name} gives {type(image).__name__}, no images.")
        return plain(image, title)

    def named(rows: Tensor) -> Iterator[tuple[str, Opener]]:
        for row in rows.tolist():
            title = f"{row} of torchvision:{name}"
            yield title, partial(opened, row, title)

    return Listed(labels=labels, rows=torch.arange(len(images)), named=named)
