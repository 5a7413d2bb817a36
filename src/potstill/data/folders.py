"""Folders of image files: DIR/train/CLASS/*.png beside DIR/test/CLASS/, or DIR/CLASS/ alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from potstill.core.errors import InputError
from potstill.data.images import decode_file
from potstill.data.layout import TEST_NAMES, existing_folder, unused_note
from potstill.data.types import Listed, Opener, Parts, Reading

_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")

Files = Sequence[tuple[str, str]]
"""(class name, path of an image file) of each image."""


def subfolders(folder: Path) -> list[str]:
    """Return the names of the folders in a folder that are not hidden, in order."""
    return sorted(f.name for f in os.scandir(folder) if f.is_dir() and f.name[0] != ".")


def _is_image(name: str) -> bool:
    return name[0] != "." and os.path.splitext(name)[1].lower() in _ENDINGS


def image_files(folder: Path) -> Files:
    """Return all image files below the class folders in a folder, in order of names.

    Links to folders are followed.

    Raises:
        InputError: if there are none, or images lie in no class folder.
    """
    found = []
    names = subfolders(folder)
    for name in names:
        below = [
            os.path.join(place, file)
            for place, _, files in os.walk(folder / name, followlinks=True)
            for file in files
            if _is_image(file)
        ]
        found += [(name, path) for path in sorted(below, key=lambda path: path.split(os.sep))]
    if not names and any(_is_image(name) for name in os.listdir(folder)):
        raise InputError(
            f"The images in {folder} lie in no class folders: move each into {folder}/CLASS/ "
            "(for the validation images of ImageNet: val/WNID/)."
        )
    if not found:
        raise InputError(
            f"No images found in {folder}: expected {folder}/CLASS/*.png (or .jpg, ...)."
        )
    return found


def _layout(folder: Path) -> tuple[Path, Path | None, tuple[str, ...]]:
    """Return the folders of the training and test parts, and notes."""
    names = subfolders(folder)
    held_out = [name for name in TEST_NAMES if name in names]
    if "train" in names and subfolders(folder / "train"):
        if not held_out:
            return folder / "train", None, ()
        return folder / "train", folder / held_out[0], unused_note(held_out, held_out[0])
    if names and set(names) <= {"train", *TEST_NAMES}:
        raise InputError(f"There are no class folders in {folder / 'train'}.")
    return folder, None, ()


def open_folder(rest: str, reading: Reading) -> Parts:
    """Return the parts of a folder of image files; classes in order of their names.

    Raises:
        InputError: if the folder, its class folders or its images are missing; for a class that
            only the test part has.
    """
    folder = existing_folder(rest, "folder")
    train, test, notes = _layout(folder)
    classes = tuple(subfolders(train))
    return file_parts(
        folder, classes, image_files(train), image_files(test) if test else None, notes
    )


def file_parts(
    folder: Path,
    classes: tuple[str, ...],
    train: Files,
    test: Files | None,
    notes: tuple[str, ...] = (),
) -> Parts:
    """Return the parts of listed image files in a folder.

    Raises:
        InputError: for a class that is not one of `classes`.
    """
    number = {name: label for label, name in enumerate(classes)}

    def listed(files: Files) -> Listed:
        for name, path in files:
            if name not in number:
                raise InputError(f"The class {name!r} of {path} is not in the training part.")
        labels = torch.tensor([number[name] for name, _ in files])
        return Listed(labels=labels, rows=torch.arange(len(files)), named=_opened(files))

    paths = [path for _, path in (*train, *(test or ()))]
    return Parts(
        train=listed(train),
        test=None if test is None else listed(test),
        classes=classes,
        notes=notes,
        files={os.path.relpath(path, folder): path for path in paths},
    )


def _opened(files: Files) -> Callable[[Tensor], Iterator[tuple[str, Opener]]]:
    def named(rows: Tensor) -> Iterator[tuple[str, Opener]]:
        for row in rows.tolist():
            path = files[row][1]
            yield path, partial(decode_file, path)

    return named
