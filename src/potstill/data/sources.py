"""Sources of images: digits, files, arrays, downloads, and stand-ins.

A new source is one registration: `SOURCES.add("name")(Source(open, help))`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from potstill.core.errors import InputError
from potstill.core.registry import Registry
from potstill.data import cache
from potstill.data.arrays import open_npz
from potstill.data.folders import open_folder
from potstill.data.hub import open_hub
from potstill.data.images import resized
from potstill.data.named import NAMED, open_named
from potstill.data.parquet import open_parquet
from potstill.data.splits import drawn, parted
from potstill.data.types import Parts, Reading, Source, Split
from potstill.data.vision import open_vision

SOURCES: Registry[Source] = Registry("data source")


def _digits(reading: Reading) -> tuple[Split, Split, tuple[str, ...]]:
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    scaled = torch.from_numpy((bunch.images * 255 / 16).round().astype("uint8"))
    labels = torch.from_numpy(bunch.target.astype("int64"))
    classes = tuple(str(name) for name in bunch.target_names)
    need = (2, "one to train on and one to test")
    chosen = drawn(labels, classes, 1 / 3, key="digits", need=need)
    return *parted(Split(resized(scaled[:, None], reading), labels), chosen), classes


def open_digits(rest: str, reading: Reading) -> Parts:
    """Return scikit-learn's digits, 1x8x8, 0..16 scaled to 0..255; a third is the test part.

    Raises:
        InputError: if anything follows the name "digits".
    """
    if rest:
        raise InputError(f"The data source 'digits' takes nothing after its name, not {rest!r}.")
    train, test, classes = _digits(reading)
    return Parts(train=train, test=test, classes=classes)


def open_standin(rest: str, reading: Reading) -> Parts:
    """Return the digits in another shape, "CxSxK": C channels, S pixels a side, K classes.

    For trying a recipe without its data; no number made on it means anything.

    Raises:
        InputError: for another form, or more than 16 channels, 64 pixels or 10 classes.
    """
    try:
        channels, size, classes = (int(part) for part in rest.split("x"))
    except ValueError:
        raise InputError(f"A stand-in is named standin:CxSxK (3x32x10), not {rest!r}.") from None
    if not (1 <= channels <= 16 and 8 <= size <= 64 and 2 <= classes <= 10):
        raise InputError(
            f"A stand-in has 1 to 16 channels, 8 to 64 pixels and 2 to 10 classes, not {rest!r}."
        )
    *splits, names = _digits(reading if reading.resize else Reading(resize=size))

    def part(split: Any) -> Split:
        chosen = split.labels < classes
        return Split(split.pixels[chosen].repeat(1, channels, 1, 1), split.labels[chosen])

    return Parts(train=part(splits[0]), test=part(splits[1]), classes=names[:classes])


def open_cached(rest: str, reading: Reading) -> Parts:
    """Return data that were opened before, by their identity (arrays from Python, for example).

    Raises:
        InputError: if they are not in the cache, or are to be resized.
    """
    if reading.resize is not None:
        raise InputError("Data from the cache cannot be resized.")
    stored = cache.load(rest)
    return Parts(train=stored.train, test=stored.test, classes=stored.classes, identity=rest)


for _name, _source in {
    "digits": Source(open_digits, "scikit-learn's 1,797 digits: 10 classes, 1x8x8, offline"),
    "folder": Source(
        open_folder,
        "folder:DIR, image files in DIR/train/CLASS/ and DIR/test/CLASS/, or in DIR/CLASS/",
    ),
    "parquet": Source(
        open_parquet,
        "parquet:DIR, Hugging Face layout: train-*.parquet and test-*.parquet (or validation-*)",
    ),
    "npz": Source(
        open_npz,
        "npz:FILE, NumPy arrays images, labels, test_images, test_labels; any number of channels",
    ),
    "hf": Source(
        open_hub,
        "hf:ID or hf:ID,CONFIG, a set of the Hugging Face Hub; hf:ID?label=COLUMN says its labels",
    ),
    "torchvision": Source(
        open_vision, "torchvision:NAME, a set of torchvision.datasets; NAME@DIR for your own copy"
    ),
    "standin": Source(
        open_standin, "standin:CxSxK, the digits in another shape, to try a recipe without data"
    ),
    "cached": Source(open_cached, "cached:IDENTITY, data opened before (arrays from Python)"),
}.items():
    SOURCES.add(_name)(_source)

for _name, _named in NAMED.items():
    SOURCES.add(_name)(Source(partial(open_named, _name), _named.help))
