"""Decoders: which training images are cut out of the stored ones, and how.

`MultiFormation` stores several training images in one: Kim et al., IDC, ICML 2022 (arXiv
2205.14959). It has one grid of cells, for `take` and for `mosaic`. Differs: the published mosaics
have cells of side // factor (plus 1 for the first side % factor), which lie shifted against the
decoder's cells where the side is neither a multiple of the factor nor one short of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from potstill.core.errors import InputError, unknown
from potstill.core.spec import record
from potstill.data.normalise import MeanStd, column
from potstill.data.space import Space


class Decoder(Protocol):
    """Cut training images out of stored ones; a record.

    `index` says which there are and `take` makes them, so that some can be chosen before any is
    made.
    """

    def check(self, shape: tuple[int, ...]) -> None:
        """Refuse stored images of a shape (C, H, W) that cannot be decoded."""
        ...

    def index(self, classes: Tensor) -> Tensor:
        """Return for each training image its stored row, factor and cell: int64 [K, 3].

        `classes` holds the class of each stored image, int64 [N].
        """
        ...

    def take(self, images: Tensor, index: Tensor) -> Tensor:
        """Return the training images of some rows of an index: [K, C, H', W'].

        `images` are all stored ones, floating [N, C, H, W]; the result is linear in them.
        """
        ...


@record
@dataclass(frozen=True, kw_only=True)
class Identity:
    """The decoder of sets whose stored images are the training images."""

    def check(self, shape: tuple[int, ...]) -> None:
        """Accept all images."""

    def index(self, classes: Tensor) -> Tensor:
        """Return every row, at factor 1."""
        return _cut(torch.arange(len(classes), device=classes.device), 1, 1)

    def take(self, images: Tensor, index: Tensor) -> Tensor:
        """Return the images of the rows."""
        return images.index_select(0, index[:, 0].to(images.device))


@record
@dataclass(frozen=True, kw_only=True)
class MultiFormation:
    """Cut each stored image into a grid of cells; each cell, enlarged, is a training image.

    Cells are numbered row by row; their side is that of the image over the factor, rounded up, and
    what is missing at the right and at the bottom is padded.

    Raises:
        InputError: for a factor or a bound below 1, no pad, or an unknown kind or axes.
    """

    factor: int = 2
    """Cells a side."""
    kind: Literal["single", "multi", "bound"] = "single"
    """All cells at this factor; at every factor from 1 to it; or at most `bound` of a class."""
    bound: int = 128
    """Of `bound`: the most training images of a class. The first stored images are cut finest."""
    pad: tuple[float, ...] = (0.5,)
    """Value of padding, one a channel or one for all, in the space of the images."""
    axes: Literal["both", "width"] = "both"
    """What is cut: height and width, or (spectrograms of speech) the width alone."""

    def __post_init__(self) -> None:
        if self.kind not in (kinds := ("single", "multi", "bound")):
            raise unknown("kind of decoder", self.kind, kinds)
        if self.axes not in ("both", "width"):
            raise unknown("axes of a decoder", self.axes, ("both", "width"))
        if self.factor < 1 or self.bound < 1:
            found = f"not {self.factor} and {self.bound}"
            raise InputError(f"A decoder needs a factor and a bound of at least 1, {found}.")
        if not self.pad or not all(map(math.isfinite, self.pad)):
            raise InputError(f"Padding needs one number, or one a channel, not {self.pad}.")

    @property
    def cells(self) -> int:
        """Return the number of cells of an image at the whole factor."""
        return self._cells(self.factor)

    def check(self, shape: tuple[int, ...]) -> None:
        """Refuse images of a shape (C, H, W) in which a cell would be nothing but padding.

        Raises:
            InputError: for those, and for another number of channels than the padding has.
        """
        channels, height, width = shape
        sides = (height, width) if self.axes == "both" else (width,)
        for factor in self._factors():
            if any((factor - 1) * -(-side // factor) >= side for side in sides):
                raise InputError(
                    f"Images of {height} x {width} pixels cannot be cut with the factor {factor}: "
                    "a cell would have no pixel."
                )
        if len(self.pad) not in (1, channels):
            raise InputError(
                f"The padding is for {len(self.pad)} channels; the images have {channels}."
            )

    def index(self, classes: Tensor) -> Tensor:
        """Return stored row, factor and cell of every training image: int64 [K, 3].

        Cell by cell, each of all rows; `multi`: factor by factor; `bound`: class by class, in each
        as many images as possible at the greatest factor, then of the rest at the next one.

        Raises:
            InputError: if a class has more stored images than `bound`.
        """
        if self.kind != "bound":
            rows = torch.arange(len(classes), device=classes.device)
            return torch.cat([_cut(rows, g, self._cells(g)) for g in self._factors()])
        parts: list[Tensor] = []
        for label in classes.unique().tolist():
            parts += self._bounded((classes == label).nonzero()[:, 0], label)
        return torch.cat(parts)

    def take(self, images: Tensor, index: Tensor) -> Tensor:
        """Return the training images [K, C, H, W] of some rows of an index, only these.

        Cells are enlarged bilinearly (align_corners False). Where the index lies on the CPU, a GPU
        is not waited for.
        """
        self.check(tuple(images.shape[1:]))
        rows, factors, cells = index.unbind(1)
        if self.kind == "single":
            return self._enlarged(images, rows, cells, self.factor)
        parts, places = [], []
        for factor in self._factors():
            here = (factors == factor).nonzero()[:, 0]
            if len(here):
                parts.append(self._enlarged(images, rows[here], cells[here], factor))
                places.append(here)
        order = torch.cat(places).argsort().to(images.device)
        return torch.cat(parts).index_select(0, order)

    def mosaic(self, pictures: Tensor) -> Tensor:
        """Return images [n, C, H, W] whose cells at the whole factor are pictures made small.

        Group k of n pictures [n * cells, C, H, W], any type, becomes cell k, by the nearest pixel.

        Raises:
            InputError: if the pictures are no whole number of groups, or too small.
        """
        self.check(tuple(pictures.shape[1:]))
        if not len(pictures) or len(pictures) % self.cells:
            raise InputError(
                f"A mosaic takes {self.cells} pictures; {len(pictures)} are no multiple of it."
            )
        found = pictures.new_empty(len(pictures) // self.cells, *pictures.shape[1:])
        tall, wide = self._sides(pictures, self.factor)
        for cell, group in enumerate(pictures.split(len(found))):
            top, left = cell // self.factor * tall, cell % self.factor * wide
            place = found[:, :, top : top + tall, left : left + wide]
            place.copy_(F.interpolate(group, place.shape[2:], mode="nearest"))
        return found

    def normalised(self, space: Space) -> MultiFormation:
        """Return the decoder that does the same in the space of a normaliser.

        So `d.normalised(s).take(s.forward(x), index)` is `s.forward(d.take(x, index))`.

        Raises:
            InputError: for whitening, which mixes pixels and so does not go with cells.
        """
        if not isinstance(space, MeanStd):
            raise InputError(
                f"Images that are cut into cells cannot be whitened ({space.describe()}); name "
                "means and standard deviations, such as cifar10@idc."
            )
        pad = torch.tensor(self.pad, dtype=torch.float64).view(-1, 1, 1)
        pad = space.apply(pad, space.parts(pad.dtype, pad.device))
        return replace(self, pad=tuple(pad.flatten().tolist()))

    def _factors(self) -> range:
        if self.kind == "bound":
            return range(self.factor, 0, -1)
        return range(self.factor if self.kind == "single" else 1, self.factor + 1)

    def _cells(self, factor: int) -> int:
        return factor**2 if self.axes == "both" else factor

    def _sides(self, images: Tensor, factor: int) -> tuple[int, int]:
        """Return height and width of a cell."""
        height, width = images.shape[2:]
        return -(-height // factor) if self.axes == "both" else height, -(-width // factor)

    def _bounded(self, rows: Tensor, label: int) -> list[Tensor]:
        """Return the index of one class, a part for each factor."""
        if len(rows) > self.bound:
            raise InputError(
                f"The bound of {self.bound} training images is below the {len(rows)} stored "
                f"images of class {label}."
            )
        parts, made = [], 0
        for factor in self._factors():
            cells = self._cells(factor)
            free = self.bound - made - len(rows)
            count = min(free // cells, len(rows)) if factor > 1 else len(rows)
            parts.append(_cut(rows[:count], factor, cells))
            rows, made = rows[count:], made + count * cells
        return parts

    def _enlarged(self, images: Tensor, rows: Tensor, cells: Tensor, factor: int) -> Tensor:
        """Return cells of rows at one factor, as large as the images."""
        count, channels, height, width = images.shape
        tall, wide = self._sides(images, factor)
        down = self._cells(factor) // factor
        right, bottom = factor * wide - width, down * tall - height
        if right or bottom:
            pad = column(self.pad, images.dtype, images.device)
            images = torch.cat([images, pad.expand(count, channels, height, right)], 3)
            images = torch.cat([images, pad.expand(count, channels, bottom, width + right)], 2)
        grid = images.reshape(count, channels, down, tall, factor, wide).permute(0, 2, 4, 1, 3, 5)
        chosen = (rows * (down * factor) + cells).to(images.device)
        found = grid.reshape(-1, channels, tall, wide).index_select(0, chosen)
        return F.interpolate(found, (height, width), mode="bilinear", align_corners=False)


def _cut(rows: Tensor, factor: int, cells: int) -> Tensor:
    """Return the index of all cells of rows, cell by cell."""
    cell = torch.arange(cells, device=rows.device).repeat_interleave(len(rows))
    return torch.stack([rows.repeat(cells), torch.full_like(cell, factor), cell], 1)
