"""Folders of image files: DIR/train/CLASS/*.png beside DIR/test/CLASS/, or DIR/CLASS/ alone."""

from __future__ import annotations

from pathlib import Path

import torch

from potstill.core.errors import InputError
from potstill.data.images import decode, stack
from potstill.data.layout import TEST_NAMES, existing_folder, unused_note
from potstill.data.types import Parts, Split

_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def _subfolders(folder: Path) -> list[str]:
    return sorted(f.name for f in folder.iterdir() if f.is_dir() and f.name[0] != ".")


def _image_files(folder: Path) -> list[tuple[str, Path]]:
    """Return (class name, file) of all image files below class folders, in order of names."""
    found = [
        (name, path)
        for name in _subfolders(folder)
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in _ENDINGS and path.name[0] != "." and path.is_file()
    ]
    if not found:
        raise InputError(
            f"No images found in {folder}: expected {folder}/CLASS/*.png (or .jpg, ...)."
        )
    return found


def _layout(folder: Path) -> tuple[Path, Path | None, tuple[str, ...]]:
    """Return the folders of the training and test parts, and notes."""
    names = _subfolders(folder)
    held_out = [name for name in TEST_NAMES if name in names]
    if "train" in names and _subfolders(folder / "train"):
        if not held_out:
            return folder / "train", None, ()
        return folder / "train", folder / held_out[0], unused_note(held_out, held_out[0])
    if names and set(names) <= {"train", *TEST_NAMES}:
        raise InputError(f"There are no class folders in {folder / 'train'}.")
    return folder, None, ()


def folder_files(rest: str) -> dict[str, Path]:
    """Return the image files by their names relative to the folder.

    Raises:
        InputError: if the folder, its class folders or its images are missing.
    """
    folder = existing_folder(rest, "folder")
    train, test, _ = _layout(folder)
    parts = [part for part in (train, test) if part is not None]
    return {str(path.relative_to(folder)): path for part in parts for _, path in _image_files(part)}


def open_folder(rest: str, resize: int | None) -> Parts:
    """Return the parts of a folder of image files; classes in order of their names.

    Raises:
        InputError: as `folder_files`; for an unreadable image or images of different sizes; for
            a class that only the test part has.
    """
    train, test, notes = _layout(existing_folder(rest, "folder"))
    files = _image_files(train)
    n_train = len(files)
    classes = tuple(_subfolders(train))
    files += _image_files(test) if test else []
    for name, path in files:
        if name not in classes:
            raise InputError(f"The class {name!r} of {path} is not in {train}.")
    images = ((str(path), decode(path.read_bytes(), str(path))) for _, path in files)
    pixels = stack(images, len(files), resize=resize)
    number = {name: label for label, name in enumerate(classes)}
    labels = torch.tensor([number[name] for name, _ in files])
    return Parts(
        train=Split(pixels[:n_train], labels[:n_train]),
        test=Split(pixels[n_train:], labels[n_train:]) if test else None,
        classes=classes,
        notes=notes,
    )
