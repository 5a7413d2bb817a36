"""Sources of images: digits, Hugging Face parquet, folders of image files, and stand-ins.

A new source is one registration: `SOURCES.add("name")(Source(...))`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from potstill.core.errors import InputError
from potstill.core.registry import Registry
from potstill.data import cache
from potstill.data.folders import folder_files, open_folder
from potstill.data.images import stack
from potstill.data.parquet import open_parquet, parquet_files
from potstill.data.splits import drawn, parted
from potstill.data.types import Parts, Split


@dataclass(frozen=True)
class Source:
    """Describe a kind of source.

    `open(rest, resize)` reads what the user wrote after "name:"; `files(rest)` lists the files it
    depends on by their names relative to it (None: opened anew each time, for quick sources);
    `help` is one line for people.
    """

    open: Callable[[str, int | None], Parts]
    help: str
    files: Callable[[str], Mapping[str, Path]] | None = None


SOURCES: Registry[Source] = Registry("data source")


def open_digits(rest: str, resize: int | None) -> Parts:
    """Return scikit-learn's digits, 1x8x8, 0..16 scaled to 0..255; a third is the test part.

    Raises:
        InputError: if anything follows the name "digits".
    """
    if rest:
        raise InputError(f"The data source 'digits' takes nothing after its name, not {rest!r}.")
    from PIL import Image
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    scaled = (bunch.images * 255 / 16).round().astype("uint8")
    images = ((f"digit {i}", Image.fromarray(array)) for i, array in enumerate(scaled))
    classes = tuple(str(name) for name in bunch.target_names)
    split = Split(
        stack(images, len(scaled), resize=resize), torch.from_numpy(bunch.target.astype("int64"))
    )
    need = (2, "one to train on and one to test")
    train, test = parted(split, drawn(split.labels, classes, 1 / 3, key="digits", need=need))
    return Parts(train=train, test=test, classes=classes)


def open_standin(rest: str, resize: int | None) -> Parts:
    """Return the digits in another shape, "CxSxK": C channels, S pixels a side, K classes.

    For trying a recipe without its data; no number made on it means anything.

    Raises:
        InputError: for another form, or more than 3 channels, 64 pixels or 10 classes.
    """
    try:
        channels, size, classes = (int(part) for part in rest.split("x"))
    except ValueError:
        raise InputError(f"A stand-in is named standin:CxSxK (3x32x10), not {rest!r}.") from None
    if not (channels in (1, 3) and 8 <= size <= 64 and 2 <= classes <= 10):
        raise InputError(
            f"A stand-in has 1 or 3 channels, 8 to 64 pixels and 2 to 10 classes, not {rest!r}."
        )
    digits = open_digits("", resize or size)
    assert digits.test is not None

    def part(split: Split) -> Split:
        chosen = split.labels < classes
        return Split(split.pixels[chosen].repeat(1, channels, 1, 1), split.labels[chosen])

    return Parts(train=part(digits.train), test=part(digits.test), classes=digits.classes[:classes])


def open_cached(rest: str, resize: int | None) -> Parts:
    """Return data that were opened before, by their identity (arrays from Python, for example).

    Raises:
        InputError: if they are not in the cache.
    """
    if resize is not None:
        raise InputError("Data from the cache cannot be resized.")
    return cache.load(rest)


SOURCES.add("digits")(
    Source(open_digits, "scikit-learn's 1,797 digits: 10 classes, 1x8x8, offline")
)
SOURCES.add("folder")(
    Source(
        open_folder,
        "folder:DIR, image files in DIR/train/CLASS/ and DIR/test/CLASS/, or in DIR/CLASS/",
        folder_files,
    )
)
SOURCES.add("parquet")(
    Source(
        open_parquet,
        "parquet:DIR, Hugging Face layout: train-*.parquet and test-*.parquet (or validation-*)",
        parquet_files,
    )
)
SOURCES.add("standin")(
    Source(open_standin, "standin:CxSxK, the digits in another shape, to try a recipe without data")
)
SOURCES.add("cached")(
    Source(open_cached, "cached:IDENTITY, data opened before (arrays from Python)")
)
