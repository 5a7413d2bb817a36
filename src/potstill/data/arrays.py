"""Images and labels in memory, as NumPy arrays or tensors, and in .npz files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from potstill.core.errors import InputError
from potstill.data.images import resized
from potstill.data.splits import numbered_classes
from potstill.data.types import Parts, Reading, Split

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def _tensor(values: ArrayLike | Tensor, what: str) -> Tensor:
    import numpy as np

    if isinstance(values, Tensor):
        return values.detach().cpu().clone()
    try:
        array = np.array(values)
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
    except (TypeError, ValueError) as error:
        raise InputError(f"The {what} are no array of numbers ({error}).") from error


def _channels_first(x: Tensor) -> Tensor | None:
    """Return 4-dim images with the channels in dimension 1; None if it cannot be told which are.

    Channels are the dimension of size 1 or 3, else the one that leaves square images, else the
    smaller one; dimension 1 is asked before dimension 3.
    """
    _, first, middle, last = x.shape
    if first in (1, 3) or last in (1, 3):
        return x if first in (1, 3) else x.permute(0, 3, 1, 2)
    if first == last:
        return None
    if middle in (first, last):
        return x if middle == last else x.permute(0, 3, 1, 2)
    return x if first < last else x.permute(0, 3, 1, 2)


def as_pixels(images: ArrayLike | Tensor, what: str = "images") -> Tensor:
    """Return images as uint8 [N, C, H, W].

    Args:
        images: [N, H, W], [N, C, H, W] or [N, H, W, C]; uint8, or floating in [0, 1]. C is the
            dimension of size 1 or 3, else the one beside two equal ones, else the smaller one.
        what: what to call them in errors.

    Raises:
        InputError: for another shape or type, no images, NaN, or values outside [0, 1].
    """
    x = _tensor(images, what)
    shape = tuple(x.shape)
    if x.ndim not in (3, 4) or not x.numel():
        raise InputError(
            f"The {what} have the shape {shape}; allowed are [N, H, W], [N, C, H, W] and "
            "[N, H, W, C] with N at least 1."
        )
    x = x[:, None] if x.ndim == 3 else _channels_first(x)
    if x is None:
        raise InputError(
            f"Images of the shape {shape} may have their channels first or last; give them with "
            "another height or width, or one channel at a time."
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
    """Return labels, [count] or [count, 1], as int64 [count].

    Raises:
        InputError: for another shape, or labels that are no integers.
    """
    y = _tensor(labels, what)
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise InputError(f"The {what} are {y.dtype}; allowed are integers 0..K-1.")
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
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


_KEYS = ("images", "labels"), ("train_images", "train_labels")


def open_npz(rest: str, reading: Reading) -> Parts:
    """Return the parts of a .npz file with images and labels of any number of channels.

    Keys: `images` and `labels` (or `train_images`, `train_labels`), perhaps `test_images` and
    `test_labels`; shapes and types as `as_pixels` and `as_labels`. A validation part is not used.

    Raises:
        InputError: if there is no such file, it holds Python objects, or arrays do not fit.
    """
    import numpy as np

    if not rest:
        raise InputError("The data source 'npz' needs a file: npz:FILE.")
    path = Path(rest).expanduser()
    try:
        with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as file:
            names = tuple(file.files)
            keys = next((pair for pair in _KEYS if set(pair) <= set(names)), None)
            if keys is None:
                raise InputError(
                    f"{path} has no arrays 'images' and 'labels' (or 'train_images' and "
                    f"'train_labels'); it has: {', '.join(names) or 'none'}."
                )
            found = [
                file[key] if key in names else None for key in (*keys, "test_images", "test_labels")
            ]
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"There is no file {path}.") from None
    except Exception as error:  # damaged archives raise errors of any kind
        if "Object arrays" in str(error):
            raise InputError(
                f"{path} holds Python objects, which are never loaded; save plain arrays."
            ) from error
        alone = "pickle" in str(error) or isinstance(error, TypeError)  # TypeError: one array
        reason = "no archive" if alone else error
        raise InputError(f"{path} is not a readable .npz file ({reason}).") from error
    parts = array_parts(found[0], found[1], found[2], found[3], None)
    unused = [name for name in names if name.startswith("val")]
    notes = (f"Not used: {', '.join(unused)}.",) if unused else ()

    def fit(split: Any) -> Split:
        return Split(resized(split.pixels, reading), split.labels)

    test = None if parts.test is None else fit(parts.test)
    return replace(parts, train=fit(parts.train), test=test, notes=notes)
