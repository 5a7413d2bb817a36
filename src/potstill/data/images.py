"""From image files to one uint8 tensor: decoding, resizing, and sizes that must agree."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from potstill.core.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

_GRAY = ("1", "L", "LA", "La")
_DEEP = ("I", "F")


def decode(data: bytes, name: str) -> Image:
    """Return the image in a file's bytes in mode "L" (grayscale files) or "RGB" (all others).

    Transparency is dropped.

    Raises:
        InputError: if the bytes are no whole image or have more than 8 bits a channel; names it.
    """
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except Exception as error:  # the decoders of the many formats raise errors of any kind
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        reason = "no known image format" if "BytesIO" in reason else reason
        raise InputError(f"Cannot read the image {name} ({reason}).") from error
    if image.mode.startswith(_DEEP):
        raise InputError(
            f"The image {name} has more than 8 bits a channel (mode {image.mode}); "
            "save it with 8 bits."
        )
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    mode = "L" if image.mode in _GRAY else "RGB"
    return image if image.mode == mode else image.convert(mode)


def fitted(image: Image, side: int) -> Image:
    """Return the image with its shorter side resized to `side`, centre-cropped to a square.

    Bilinear, antialiased when it shrinks.
    """
    from PIL import Image

    width, height = image.size
    short = min(width, height)
    wide, high = round(width * side / short), round(height * side / short)
    left, top = (wide - side) // 2, (high - side) // 2
    resized = image.resize((wide, high), Image.Resampling.BILINEAR)
    return resized.crop((left, top, left + side, top + side))


def stack(images: Iterable[tuple[str, Image]], count: int, *, resize: int | None) -> Tensor:
    """Return `count` named images of mode "L" or "RGB" as uint8 [count, C, H, W].

    C is 1 if all images are grayscale, else 3.

    Raises:
        InputError: if two images differ in size and `resize` is None; names both.
    """
    import numpy as np

    pixels = np.empty((0, 1, 0, 0), np.uint8)
    first = ""
    for row, (name, image) in enumerate(images):
        array = np.asarray(image if resize is None else fitted(image, resize))
        array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
        if row == 0:
            first = name
            pixels = np.empty((count, *array.shape), np.uint8)
        high, wide = pixels.shape[2:]
        if array.shape[1:] != (high, wide):
            raise InputError(
                f"The images differ in size: {first} is {wide}x{high}, {name} is "
                f"{array.shape[2]}x{array.shape[1]} (width x height); add --resize N (in Python "
                "resize=N) to bring all to NxN."
            )
        if len(array) > pixels.shape[1]:
            pixels = np.repeat(pixels, len(array), axis=1)
        pixels[row] = array
    return torch.from_numpy(pixels)
