"""From units to one set of images, class by class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from potstill.core.errors import InputError
from potstill.core.state import load_tree, save_tree, tensor_digest
from potstill.recover.unit import read_unit

_FILE = "images.safetensors"


def gather(folders: Sequence[Path], classes: int, ipc: int) -> tuple[Tensor, Tensor]:
    """Return uint8 images [classes * ipc, C, H, W], class by class, and their labels, int64.

    Raises:
        InputError: if an image is missing, or there twice.
    """
    images: Tensor | None = None
    seen = torch.zeros(classes * ipc, dtype=torch.int64)
    for folder in folders:
        unit = read_unit(folder)
        if images is None:
            images = unit["images"].new_empty(classes * ipc, *unit["images"].shape[1:])
        place = unit["labels"] * ipc + unit["indices"]
        within = (unit["labels"] < classes) & (unit["indices"] < ipc)
        images[place[within]] = unit["images"][within]
        seen += torch.bincount(place[within], minlength=len(seen))
    if images is None or not bool((seen == 1).all()):
        wrong = int((seen != 1).nonzero()[0]) if images is not None else 0
        raise InputError(
            f"The units are not those of {classes} classes with {ipc} images each: image number "
            f"{wrong % ipc} of class {wrong // ipc} is there {int(seen[wrong])} times."
        )
    return images, torch.arange(classes).repeat_interleave(ipc)


def keep_images(folder: Path, images: Tensor, labels: Tensor) -> str:
    """Write images and labels into a folder and return the hash by which they are known.

    Raises:
        WorkError: if the disk refuses.
    """
    save_tree(folder / _FILE, {"images": images, "labels": labels})
    return tensor_digest({"images": images, "labels": labels})


def open_images(digest: str, folder: Path) -> tuple[Tensor, Tensor]:
    """Return the images and labels that `keep_images` wrote.

    Raises:
        InputError: if they are missing, truncated, or others.
    """
    found = load_tree(folder / _FILE)
    if tensor_digest(found) != digest:
        raise InputError(f"{folder} holds other images than {digest[:12]}.")
    return found["images"], found["labels"]
