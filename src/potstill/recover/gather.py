"""From units to one set of images, class by class, that stays on disk."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from potstill.core.errors import InputError
from potstill.core.state import Blocks, map_tree, save_tree, tensor_digest
from potstill.core.store import Store
from potstill.recover.unit import map_unit

if TYPE_CHECKING:
    import numpy as np

IMAGES = "images"
"""Where sets of images that labels are of lie in the store."""
_FILE = "images.safetensors"
_CHUNK = 2**26
"""Bytes of images that are in memory at a time."""


def gathered(store: Store, folders: Sequence[Path], classes: int, ipc: int) -> Tensor:
    """Return uint8 images [classes * ipc, C, H, W] of finished units, class by class, in a file.

    The file lies in the store, under the hash of the images; some 64 MB are in memory at a time.
    The tensor must not be written to.

    Raises:
        InputError: if an image is missing, or there twice.
    """

    def tree() -> dict[str, Tensor | Blocks]:
        return {"images": gather(folders, classes, ipc), "labels": _labels(classes, ipc)}

    digest = tensor_digest(tree())
    folder = store.put(IMAGES, {"images": digest}, lambda new: save_tree(new / _FILE, tree()))
    return _mapped(folder)["images"]


def gather(folders: Sequence[Path], classes: int, ipc: int) -> Blocks:
    """Return the images of finished units as blocks of some classes, in the order of classes.

    Raises:
        InputError: if an image is missing, or there twice.
    """
    import numpy as np

    where = np.full((classes * ipc, 2), -1)
    seen = np.zeros(classes * ipc, dtype=np.int64)
    shape: tuple[int, ...] = (0, 0, 0)
    for number, folder in enumerate(folders):
        unit = map_unit(folder)
        shape = unit["images"].shape[1:]
        within = np.flatnonzero((unit["labels"] < classes) & (unit["indices"] < ipc))
        places = unit["labels"][within] * ipc + unit["indices"][within]
        np.add.at(seen, places, 1)
        where[places] = np.stack([np.full(len(within), number), within], axis=1)
    if bool((seen != 1).any()):
        wrong = int(np.flatnonzero(seen != 1)[0])
        raise InputError(
            f"The units are not those of {classes} classes with {ipc} images each: image number "
            f"{wrong % ipc} of class {wrong // ipc} is there {seen[wrong]} times."
        )
    return Blocks((classes * ipc, *shape), _arrays(folders, where, shape))


def _arrays(
    folders: Sequence[Path], where: np.ndarray, shape: tuple[int, ...]
) -> Iterator[np.ndarray]:
    """Yield some images after others; `where` has the number of the unit of each, and its row."""
    import numpy as np

    each = max(1, _CHUNK // math.prod(shape))
    for start in range(0, len(where), each):
        units, rows = where[start : start + each].T
        block = np.empty((len(units), *shape), dtype=np.uint8)
        for number in np.unique(units):
            of = units == number
            block[of] = map_unit(folders[number])["images"][rows[of]]
        yield block


def _labels(classes: int, ipc: int) -> Tensor:
    return torch.arange(classes).repeat_interleave(ipc)


def _mapped(folder: Path) -> dict[str, Tensor]:
    """Return images and labels that stay in their file."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return {name: torch.from_numpy(part) for name, part in map_tree(folder / _FILE).items()}


def keep_images(folder: Path, images: Tensor, labels: Tensor) -> str:
    """Write images and labels into a folder and return the hash by which they are known.

    Raises:
        WorkError: if the disk refuses.
    """
    save_tree(folder / _FILE, {"images": images, "labels": labels})
    return tensor_digest({"images": images, "labels": labels})


def open_images(digest: str, folder: Path) -> tuple[Tensor, Tensor]:
    """Return the images and labels that `keep_images` wrote; they stay in their file.

    Raises:
        InputError: if they are missing, truncated, or others.
    """
    found = _mapped(folder)
    if tensor_digest(found) != digest:
        raise InputError(f"{folder} holds other images than {digest[:12]}.")
    return found["images"], found["labels"]
