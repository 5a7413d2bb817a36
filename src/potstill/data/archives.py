"""Image sets as their authors pack them: Tiny-ImageNet, CUB-200-2011, Stanford Dogs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from potstill.core.errors import InputError
from potstill.data.folders import Files, file_parts, image_files, subfolders
from potstill.data.types import Parts


def _table(path: Path) -> list[list[str]]:
    """Return the words of each line of a text file."""
    try:
        return [line.split() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read {path} ({error}).") from error


def tiny_imagenet(folder: Path) -> Parts:
    """Return Tiny-ImageNet: train/WNID/images/, val/images/ with val/val_annotations.txt.

    Raises:
        InputError: if a file is missing or damaged.
    """
    train = image_files(folder / "train")
    try:
        test = [
            (row[1], str(folder / "val" / "images" / row[0]))
            for row in _table(folder / "val" / "val_annotations.txt")
        ]
    except IndexError:
        raise InputError(f"{folder}/val/val_annotations.txt has a line without a class.") from None
    return file_parts(folder, tuple(subfolders(folder / "train")), train, test)


def cub(folder: Path) -> Parts:
    """Return CUB-200-2011: images/CLASS/ with images.txt and train_test_split.txt.

    Raises:
        InputError: if a file is missing or damaged.
    """
    try:
        trains = {row[0]: row[1] == "1" for row in _table(folder / "train_test_split.txt")}
        files = [(row[1], trains[row[0]]) for row in _table(folder / "images.txt")]
    except (IndexError, KeyError) as error:
        raise InputError(
            f"images.txt and train_test_split.txt in {folder} do not fit together ({error})."
        ) from error
    return _by_lists(
        folder,
        folder / "images",
        [file for file, is_train in files if is_train],
        [file for file, is_train in files if not is_train],
    )


def dogs(folder: Path) -> Parts:
    """Return Stanford Dogs: Images/CLASS/ with train_list.mat and test_list.mat, also in lists/.

    Raises:
        InputError: if a file is missing or damaged.
    """
    lists = folder / "lists" if (folder / "lists").is_dir() else folder
    train, test = (_mat_files(lists / f"{part}_list.mat") for part in ("train", "test"))
    return _by_lists(folder, folder / "Images", train, test)


def _mat_files(path: Path) -> list[str]:
    from scipy.io import loadmat

    try:
        table: Any = loadmat(str(path))["file_list"]
        return [str(cell[0][0]) for cell in table]
    except Exception as error:  # loadmat raises errors of any kind on damaged files
        raise InputError(f"Cannot read the list of files {path} ({error}).") from error


def _by_lists(folder: Path, images: Path, train: list[str], test: list[str]) -> Parts:
    """Return the parts of files named CLASS/FILE below a folder of images."""

    def files(names: list[str]) -> Files:
        return [(os.path.dirname(name), str(images / name)) for name in names]

    classes = tuple(sorted({os.path.dirname(name) for name in train}))
    return file_parts(folder, classes, files(train), files(test))
