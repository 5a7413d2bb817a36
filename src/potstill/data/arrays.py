"""Images and labels that are already in memory, as NumPy arrays or tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from potstill.core.errors import InputError
from potstill.data.splits import numbered_classes
from potstill.data.types import Parts, Split

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def _tensor(values: ArrayLike | Tensor, what: str) -> Tensor:
    import numpy as np

    if isinstance(values, Tensor):
        return values.detach().cpu().clone()
    try:
        return torch.from_numpy(np.array(values))
    except (TypeError, ValueError) as error:
        raise InputError(f"The {what} are no array of numbers ({error}).") from error


def as_pixels(images: ArrayLike | Tensor, what: str = "images") -> Tensor:
    """Return images as uint8 [N, C, H, W], C 1 or 3.

    Args:
        images: [N, H, W], [N, C, H, W] or [N, H, W, C]; uint8, or floating in [0, 1].
        what: what to call them in errors.

    Raises:
        InputError: for another shape or type, no images, NaN, or values outside [0, 1].
    """
    x = _tensor(images, what)
    shape = tuple(x.shape)
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and shape[1] not in (1, 3) and shape[3] in (1, 3):
        x = x.permute(0, 3, 1, 2)
    if x.ndim != 4 or x.shape[1] not in (1, 3) or not x.numel():
        raise InputError(
            f"The {what} have the shape {shape}; allowed are [N, H, W], [N, C, H, W] and "
            "[N, H, W, C] with N at least 1 and C 1 or 3."
        )
    if x.dtype == torch.uint8:
        return x.contiguous()
    if not x.is_floating_point():
        raise InputError(f"The {what} are {x.dtype}; allowed are uint8, and floating in [0, 1].")
    if x.isnan().any():
        raise InputError(f"The {what} contain NaN; allowed are numbers in [0, 1].")
    low, high = x.min().item(), x.max().item()
    if low < 0 or high > 1:
        raise InputError(
            f"The {what} reach from {low:g} to {high:g}; floating images must be in [0, 1]."
        )
    return (x.to(torch.float32) * 255).round().to(torch.uint8).contiguous()


def as_labels(labels: ArrayLike | Tensor, count: int, what: str = "labels") -> Tensor:
    """Return labels as int64 [count].

    Raises:
        InputError: for another shape, or labels that are no integers.
    """
    y = _tensor(labels, what)
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise InputError(f"The {what} are {y.dtype}; allowed are integers 0..K-1.")
    if tuple(y.shape) != (count,):
        raise InputError(f"The {what} have the shape {tuple(y.shape)}; expected ({count},).")
    return y.to(torch.int64)


def array_parts(
    images: Any, labels: Any, test_images: Any, test_labels: Any, classes: Sequence[str] | None
) -> Parts:
    """Return arrays as the parts of a data set.

    Raises:
        InputError: as `as_pixels` and `as_labels`; if the test images differ in shape or come
            without labels; if two classes have one name.
    """
    pixels = as_pixels(images)
    y = as_labels(labels, len(pixels))
    if (test_images is None) != (test_labels is None):
        raise InputError("Test images and test labels must be given together.")
    test = None
    if test_images is not None:
        test_pixels = as_pixels(test_images, "test images")
        if test_pixels.shape[1:] != pixels.shape[1:]:
            raise InputError(
                f"The test images have the shape {tuple(test_pixels.shape[1:])}, the training "
                f"images {tuple(pixels.shape[1:])}; they must be equal."
            )
        test = Split(test_pixels, as_labels(test_labels, len(test_pixels), "test labels"))
    names = numbered_classes(y) if classes is None else tuple(map(str, classes))
    if len(set(names)) < len(names):
        raise InputError(f"Two classes have the same name: {', '.join(names)}.")
    return Parts(train=Split(pixels, y), test=test, classes=names)
