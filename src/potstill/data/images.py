"""From image files to uint8 arrays: decoding, resizing, and sizes that must agree."""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from potstill.core.errors import InputError
from potstill.data.types import Fit, Opener, Reading

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

_GRAY = ("1", "L", "LA", "La")
_DEEP = ("I", "F")
_CHUNK = 16
"""Images that one thread decodes in a row."""

A = TypeVar("A")
B = TypeVar("B")


def plain(image: Image, name: str) -> Image:
    """Return the image in mode "L" if it is grayscale, else "RGB"; transparency is dropped.

    Raises:
        InputError: if it has more than 8 bits a channel; names it.
    """
    if image.mode.startswith(_DEEP):
        raise InputError(
            f"The image {name} has more than 8 bits a channel (mode {image.mode}); "
            "save it with 8 bits."
        )
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    mode = "L" if image.mode in _GRAY else "RGB"
    return image if image.mode == mode else image.convert(mode)


def decode(data: bytes, name: str) -> Image:
    """Return the image in a file's bytes, as `plain`.

    Raises:
        InputError: if the bytes are no whole image, or as `plain`; names it.
    """
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except Exception as error:  # the decoders of the many formats raise errors of any kind
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        reason = "no known image format" if "BytesIO" in reason else reason
        raise InputError(f"Cannot read the image {name} ({reason}).") from error
    return plain(image, name)


def decode_file(path: str) -> Image:
    """Return the image in a file, as `decode`."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise InputError(f"Cannot read the image {path} ({error.strerror or error}).") from error
    return decode(data, path)


def fitted(image: Image, side: int, fit: Fit = "crop") -> Image:
    """Return the image as a square of `side` pixels; bilinear, antialiased when it shrinks.

    "crop" resizes the shorter side and cuts the centre, with the rounding of torchvision's Resize
    and CenterCrop, which the published pipelines use; "squash" resizes both sides.
    """
    from PIL import Image

    width, height = image.size
    short = min(width, height)
    squash = fit == "squash"
    wide, high = (side, side) if squash else (n * side // short for n in (width, height))
    left, top = round((wide - side) / 2), round((high - side) / 2)
    resized = image.resize((wide, high), Image.Resampling.BILINEAR)
    return resized.crop((left, top, left + side, top + side))


def resized(pixels: Tensor, reading: Reading) -> Tensor:
    """Return uint8 [N, C, H, W] of any number of channels as the reading asks, as `fitted`."""
    import numpy as np
    from PIL import Image

    side = reading.resize
    if side is None or tuple(pixels.shape[2:]) == (side, side):
        return pixels
    out = np.empty((*pixels.shape[:2], side, side), np.uint8)
    for row, image in enumerate(pixels.numpy()):
        for channel, plane in enumerate(image):
            out[row, channel] = np.asarray(fitted(Image.fromarray(plane), side, reading.fit))
    return torch.from_numpy(out)


def arrays(named: Iterable[tuple[str, Opener]], reading: Reading) -> Iterator[np.ndarray]:
    """Yield images as uint8 [C, H, W] in their order, decoded ahead on all cores; C is 1 or 3.

    Raises:
        InputError: if two images differ in size and are not resized; names both.
    """
    import numpy as np

    def one(item: tuple[str, Opener]) -> tuple[str, np.ndarray]:
        image = item[1]()
        if reading.resize is not None:
            image = fitted(image, reading.resize, reading.fit)
        array = np.asarray(image)
        array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
        return item[0], np.ascontiguousarray(array)

    first, size = "", (0, 0)
    for name, array in _ahead(one, named):
        if not first:
            first, size = name, array.shape[1:]
        if array.shape[1:] != size:
            raise InputError(
                f"The images differ in size: {first} is {size[1]}x{size[0]}, {name} is "
                f"{array.shape[2]}x{array.shape[1]} (width x height); add --resize N (in Python "
                "resize=N) to bring all to NxN."
            )
        yield array


def _ahead(fn: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
    """Yield fn of each item in order, a few chunks worked out ahead in threads."""
    workers = min(os.cpu_count() or 1, 16)
    left = iter(items)
    chunks = iter(lambda: list(islice(left, _CHUNK)), [])
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[list[B]]] = deque()
        for chunk in chunks:
            waiting.append(pool.submit(lambda part: [fn(item) for item in part], chunk))
            if len(waiting) > workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
