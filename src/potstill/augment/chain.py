"""Policies one after another, and the cells of RDED's images in another order.

Source of the latter: Sun et al., CVPR 2024 (arXiv 2312.03526), whose evaluation does so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from potstill.augment.operations import Params
from potstill.core.errors import InputError
from potstill.core.keys import generator as keyed
from potstill.core.spec import record


class Part(Protocol):
    """What a chain needs of its policies."""

    def sample(self, n: int, shape: tuple[int, int, int], generator: torch.Generator) -> Params:
        """Draw the parameters for n images of shape (C, H, W)."""
        ...

    def apply(self, x: Tensor, params: Params) -> Tensor:
        """Return the augmented images."""
        ...


@record
@dataclass(frozen=True, kw_only=True)
class Chain:
    """Policies one after another; each draws from a generator of its own.

    Raises:
        InputError: for fewer than two, or a chain among them.
    """

    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        if len(self.parts) < 2 or any(isinstance(part, Chain) for part in self.parts):
            raise InputError("A chain is of two or more policies, none of them a chain.")

    def sample(self, n: int, shape: tuple[int, int, int], generator: torch.Generator) -> Params:
        """Draw the parameters for n images of shape (C, H, W) on the CPU.

        Image 0 gets the same numbers for every n.
        """
        seed = int(torch.randint(2**62, (), generator=generator, device="cpu"))
        parts = tuple(
            part.sample(n, shape, keyed(seed, "chain", k)) for k, part in enumerate(self.parts)
        )
        return Params(ops=("chain",), values=torch.empty(n, 0, dtype=torch.float64), parts=parts)

    def apply(self, x: Tensor, params: Params) -> Tensor:
        """Return the images after all policies, of the shape [N, C, H, W] and type of x."""
        for part, drawn in zip(self.parts, params.parts, strict=True):
            x = part.apply(x, drawn)
        return x


@record
@dataclass(frozen=True, kw_only=True)
class ShufflePatches:
    """Cut each image into factor x factor cells; bring their columns and rows into random orders.

    All rows of cells take the same order of columns, and the reverse.

    Raises:
        InputError: for a factor below 2.
    """

    factor: int = 2
    """Cells a side; that of RDED's images at 224 pixels."""

    def __post_init__(self) -> None:
        if self.factor < 2:
            raise InputError(f"Cells a side to be shuffled (factor) are 2 or more, not {self}.")

    def sample(self, n: int, shape: tuple[int, int, int], generator: torch.Generator) -> Params:
        """Draw which row, and which column, of cells comes first, second, ...: [n, 2 factor].

        Image 0 gets the same numbers for every n.

        Raises:
            InputError: if cells of images of that shape (C, H, W) are no whole pixels.
        """
        if any(side % self.factor for side in shape[1:]):
            raise InputError(
                f"Images of {shape[1]}x{shape[2]} cannot be cut into {self.factor} x {self.factor} "
                "cells of whole pixels."
            )
        u = torch.rand((n, 2, self.factor), generator=generator, dtype=torch.float64, device="cpu")
        return Params(ops=("shuffle",), values=u.argsort(2).flatten(1).double())

    def apply(self, x: Tensor, params: Params) -> Tensor:
        """Return the shuffled images, of the shape [N, C, H, W] and type of x; differentiable.

        Parameters drawn for n = 1 are for any number of images.
        """
        orders = params.values.to(x.device).long().split(self.factor, dim=1)
        for dim, order in zip((2, 3), orders, strict=True):
            cell = x.shape[dim] // self.factor
            index = (order[:, :, None] * cell + torch.arange(cell, device=x.device)).flatten(1)
            shape = (-1, 1, x.shape[2], 1) if dim == 2 else (-1, 1, 1, x.shape[3])
            x = x.gather(dim, index.view(shape).expand(x.shape))
        return x
