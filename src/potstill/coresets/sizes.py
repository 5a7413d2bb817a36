"""Sizes of subsets as people write them, their shares of groups, and the classes they hold."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from potstill.core.errors import InputError
from potstill.core.spec import record


def share_of(size: str | int, of: int) -> Fraction:
    """Return the part of `of` images that a size names: "2%" of them, or a whole number of them.

    Raises:
        InputError: for other words, and for a size below one image or above all.
    """
    percent, number = _read(size)
    share = Fraction(percent) / 100 if percent else Fraction(int(number), max(of, 1))
    if not 1 <= share * of <= of:
        raise InputError(f"A size must be 1 to all of the {of} images, not {size!r}.")
    return share


def check_size(size: str | int) -> None:
    """Refuse words that are no size, before it is known of how many images.

    Raises:
        InputError: saying what a size is.
    """
    _read(size)


def _read(size: str | int) -> tuple[str, str]:
    """Return the percentage or the number of a size; the other one is empty."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)%|(\d+)", str(size).strip())
    if not found:
        raise InputError(
            f"A size is a percentage such as 2% or a whole number of images, not {size!r}."
        )
    return found[1] or "", found[2] or ""


def size_of(size: str | int, of: int) -> int:
    """Return how many of `of` images a size names: "2%" is int(0.02 of), without rounding errors.

    Raises:
        InputError: as `share_of`.
    """
    return int(share_of(size, of) * of)


def budgets(counts: Sequence[int], total: int) -> list[int]:
    """Return how many of each group's `counts` images make `total`, in proportion to the counts.

    Shares are rounded down; the images that are left go to the largest remainders.
    """
    shares = [Fraction(total * count, sum(counts)) for count in counts]
    given = [int(share) for share in shares]
    rest = sorted(range(len(counts)), key=lambda group: given[group] - shares[group])
    for group in rest[: total - sum(given)]:
        given[group] += 1
    return given


@record
@dataclass(frozen=True, kw_only=True)
class Histogram:
    """How many images of each class a subset holds."""

    counts: tuple[int, ...]

    @property
    def absent(self) -> tuple[int, ...]:
        """Return the classes without an image."""
        return tuple(label for label, count in enumerate(self.counts) if not count)

    @property
    def largest(self) -> float:
        """Return the part of the subset that its largest class is."""
        return max(self.counts) / max(1, sum(self.counts))

    def text(self) -> str:
        """Return the balance in words."""
        return (
            f"{len(self.absent)} of {len(self.counts)} classes are absent, the largest has "
            f"{max(self.counts)} of {sum(self.counts)} images"
        )


def histogram(labels: Tensor, rows: Tensor | Sequence[int], classes: int) -> Histogram:
    """Return the class histogram of a subset: `rows` of labels (int64 [N])."""
    chosen = labels[torch.as_tensor(rows, dtype=torch.int64)]
    return Histogram(counts=tuple(torch.bincount(chosen, minlength=classes).tolist()))
