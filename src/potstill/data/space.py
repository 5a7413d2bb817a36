"""Normalisers: from pixels to what networks see and back, invertible and counted in bytes.

A `Space` is a normaliser at work, a `SpaceSpec` its record in specs. Both are one and the same for
`MeanStd`; the tensors of a `Zca` lie in `<cache>/spaces/<digest>.safetensors`, and
`<cache>/spaces/index/<key>.json` leads from a data set and a kind to the whole fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from potstill.core.errors import InputError, unknown
from potstill.core.files import read_json, write_json
from potstill.core.spec import from_json, spec_hash, to_json
from potstill.core.state import load_tree, save_tree
from potstill.core.store import default_cache
from potstill.data.normalise import STATISTICS, MeanStd, measure_stats, named_stats
from potstill.data.rows import Pixels, moved
from potstill.data.types import DataSet
from potstill.data.whitening import LARGEST, cut, fit_zca
from potstill.data.zca import KINDS, Zca, ZcaRef, restored, sealed

Space = MeanStd | Zca
SpaceSpec = MeanStd | ZcaRef
FORMAT = 1
"""Raised when the code changes what is fitted."""
RESIDENT = 2 * 2**30
"""Bytes of whitened images that are kept instead of whitening every batch."""


def make_space(name: str, data: DataSet) -> Space:
    """Return the normaliser of that name for a data set; a ZCA then lies in the cache.

    Args:
        name: `measured` (mean and std of the training part), a published one (`cifar10@mtt`),
            `zca-mtt`, `zca-kip`, either of some rank (`zca-mtt:800`), or `zca-mtt:full`, which
            fits a matrix of any size. A rank is cut from the whole fit without a new one.
        data: the data set; ZCA is fitted on its training part, once for equal `data.ref`.

    Raises:
        InputError: for an unknown name, other channels, a rank out of range, or a matrix of more
            than 4096 x 4096 that was not asked for in full.
        WorkError: if the cache cannot be written.
    """
    kind = name.partition(":")[0]
    if name == "measured":
        return measure_stats(data.train)
    if kind in KINDS:
        return _whitening(name, data)
    if "@" not in name and name not in STATISTICS.names():
        raise unknown("normaliser", name, ["measured", *KINDS, *STATISTICS.names()])
    space = named_stats(name)
    if space.channels != data.channels:
        raise InputError(
            f"The statistics {name!r} are for {space.channels} channels; the images of "
            f"{data.source} have {data.channels}."
        )
    return space


def open_space(spec: SpaceSpec) -> Space:
    """Return the normaliser of a record; the tensors of a ZCA come from the cache, once a process.

    Raises:
        InputError: if they are not there, or were altered.
    """
    return spec if isinstance(spec, MeanStd) else _opened(_path(spec), spec)


def keep_space(space: Space) -> None:
    """Put the tensors of a ZCA in the cache, unless sound there, so that any process can open it.

    Raises:
        WorkError: if the cache cannot be written.
    """
    if isinstance(space, Zca):
        try:
            _read(_path(space.ref), space.ref)
        except InputError:
            save_tree(_path(space.ref), space.tensors())


def prepared(space: Space, pixels: Pixels) -> tuple[Pixels, Callable[[Tensor], Tensor] | None]:
    """Return images to train on or to measure with, and what prepares each batch of them, if any.

    Whitening costs a network's pass or more, so images are whitened once if the result fits in
    2 GiB. Which way is taken follows from the arguments; the last bits of a matrix product
    depend on the number of its rows, so the two ways may differ in them.
    """
    if isinstance(space, Zca) and 4 * len(pixels) * math.prod(pixels.shape[1:]) <= RESIDENT:
        return torch.cat([space.forward(part) for part in pixels.split(256)]), None
    return pixels, space.forward


class AtHand(NamedTuple):
    """Training images (those not in memory stay where they are), labels, what prepares images."""

    pixels: Pixels
    labels: Tensor
    prepare: Callable[[Tensor], Tensor] | None


@lru_cache(maxsize=1)
def at_hand(data: DataSet, space: Space, device: str) -> AtHand:
    """Return the training part on a device, "cpu" or "cuda": what was asked for last is kept."""
    pixels, prepare = prepared(space, data.train.pixels)
    return AtHand(moved(pixels, device), data.train.labels.to(device), prepare)


def _whitening(name: str, data: DataSet) -> Zca:
    kind, _, asked = name.partition(":")
    if asked not in ("", "full") and not asked.isdecimal():
        raise InputError(f"After {kind}: comes a rank, as in {kind}:800, or full, not {asked!r}.")
    shape = (data.channels, *data.size)
    wide = math.prod(shape)
    if asked.isdecimal() and not 1 <= int(asked) < wide:
        raise InputError(f"{kind}:{asked}: the rank must lie in 1 to {wide - 1}.")
    index = default_cache() / "spaces" / "index" / f"{spec_hash([FORMAT, kind, data.ref])}.json"
    whole = _recalled(index)
    if wide > LARGEST and (not asked or (whole is None and asked != "full")):
        side = math.isqrt(LARGEST // data.channels)
        then = f", from which {name} is cut then" if asked else ""
        raise InputError(
            f"{kind} of images {shape} needs a matrix of {4e-6 * wide**2:.0f} MB: "
            f"make them smaller (--resize {side} or less), or ask for all of it with {kind}:full"
            f"{then}."
        )
    if whole is None:
        whole = sealed(fit_zca(kind, data.train.pixels, data=data.ref.identity))
        keep_space(whole)
        write_json(index, to_json(whole.ref))
    if not asked.isdecimal():
        return whole
    space = sealed(cut(whole, int(asked)))
    keep_space(space)
    return space


def _recalled(index: Path) -> Zca | None:
    try:
        ref = from_json(read_json(index))
        return _opened(_path(ref), ref) if isinstance(ref, ZcaRef) else None
    except InputError:
        return None


def _path(ref: ZcaRef) -> Path:
    return default_cache() / "spaces" / f"{ref.digest}.safetensors"


@lru_cache(maxsize=4)
def _opened(path: Path, ref: ZcaRef) -> Zca:
    try:
        return _read(path, ref)
    except InputError as error:
        raise InputError(
            f"The normaliser {ref.kind} cannot be read from the cache ({error}) "
            "Name its data and itself again to have it fitted anew."
        ) from error


def _read(path: Path, ref: ZcaRef) -> Zca:
    return restored(ref, load_tree(path))
