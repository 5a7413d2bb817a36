"""Images that stay on disk: rows of a memory-mapped array that read like a tensor."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from potstill.core.errors import InputError
from potstill.core.usage import bytes_in

if TYPE_CHECKING:
    import numpy as np

RESIDENT = "POTSTILL_RESIDENT"


class Rows:
    """Some rows of a memory-mapped uint8 array [N, C, H, W], in any order.

    Indexing copies the rows asked for into a resident tensor and reads nothing else, so training,
    measuring and feature extraction take it wherever they take a uint8 tensor on the CPU.
    """

    dtype = torch.uint8
    device = torch.device("cpu")
    ndim = 4

    def __init__(self, array: np.ndarray, index: Tensor | None = None) -> None:
        self._array = array
        self._index = torch.arange(len(array)) if index is None else index

    def __len__(self) -> int:
        return len(self._index)

    @property
    def shape(self) -> torch.Size:
        """Return [n, C, H, W]."""
        return torch.Size((len(self), *self._array.shape[1:]))

    @property
    def nbytes(self) -> int:
        """Return the bytes of these rows."""
        return self.shape.numel()

    def is_floating_point(self) -> bool:
        """Return False."""
        return False

    def __getitem__(self, which: Tensor | slice) -> Tensor:
        """Return a copy of the rows that an int64 or bool tensor or a slice names, in memory."""
        return torch.from_numpy(self._array[self._index[which].numpy()])

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """Return a copy of the rows of an int64 tensor, in memory; `dim` must be 0."""
        if dim != 0:
            raise TypeError(f"Only rows can be selected, not dimension {dim}.")
        return self[index]

    def split(self, size: int) -> Iterator[Tensor]:
        """Yield copies of `size` rows after `size` rows, the last perhaps of fewer."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def subset(self, which: Tensor) -> Rows:
        """Return the rows that an int64 or bool tensor names; copies no pixel."""
        return Rows(self._array, self._index[which])


Pixels = Tensor | Rows


def moved(pixels: Pixels, device: torch.device | str) -> Pixels:
    """Return images on a device; memory-mapped ones stay where they are."""
    return pixels if isinstance(pixels, Rows) else pixels.to(device)


def resident_budget() -> int:
    """Return up to how many bytes decoded data are held in memory (POTSTILL_RESIDENT, 4GiB).

    Raises:
        InputError: if the variable holds anything but a number of bytes such as 500MB or 4GiB.
    """
    text = os.environ.get(RESIDENT, "4GiB")
    count = bytes_in(text)
    if count is None:
        raise InputError(
            f"{RESIDENT} is {text!r}; allowed is a number of bytes such as 4GiB, 500MB or 0."
        )
    return count
