"""The HDF5 files in which RaT-BPTT's line of work releases its distilled sets.

`data` holds the images, [N, D] or [N, C, H, W], in the space of their normaliser; `label` class
numbers [N] or learned weights of the classes [N, K], not normalised; `epoch` the outer epoch.
Images lie class by class, and are drawn so when learned weights have left their class.
Feng, Vedantam, Kempe, ICLR 2024 (arXiv 2311.07025).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from potstill.artefact.imports import FORMATS, Format, Found, Images, Told
from potstill.artefact.targets import Hard, Soft, Targets
from potstill.augment import RAT
from potstill.core.errors import InputError
from potstill.functional import Adam, Segment, TrainSpec


def read_set(file: Path, *, wanted: Images, told: Told) -> Found:
    """Read a set of images that fit the data; links out of the file are refused.

    Without labels (the original's last save loses them) the images count as lying class by class.

    Raises:
        InputError: for a file that is no HDF5 file, damaged, without images, or with others; and
            without h5py.
    """
    try:
        import h5py
    except ImportError:
        raise InputError("Reading .h5 files needs h5py: pip install 'potstill[hdf5]'.") from None
    try:
        with h5py.File(file, "r") as h5:
            return _read(h5, file, wanted)
    except InputError:
        raise
    except Exception as error:  # h5py raises many kinds for damaged files
        raise InputError(f"{file} is damaged or not an HDF5 file.") from error


def _read(h5: Any, file: Path, wanted: Images) -> Found:
    shape, most = wanted.shape, wanted.most
    data, label, epoch = (_dataset(h5, name, file) for name in ("data", "label", "epoch"))
    if data is None:
        has = ", ".join(map(repr, h5)) or "nothing"
        raise InputError(f"{file} has no images: there is no 'data' in it, but {has}.")
    if data.dtype.kind != "f" or data.shape[1:] not in (shape, (math.prod(shape),)):
        raise InputError(
            f"The images in {file} are {data.dtype} {list(data.shape)}; expected are floats "
            f"[N, {math.prod(shape)}] or [N, {', '.join(map(str, shape))}], as of these data."
        )
    count = len(data)
    if not 0 < count <= most:
        raise InputError(f"{file} holds {count} images; expected are 1 to {most}.")
    facts: dict[str, Any] = {}
    if epoch is not None and epoch.size == 1 and epoch.dtype.kind in "iuf":
        number = float(epoch[()].item())
        facts |= {"epoch": int(number)} if math.isfinite(number) else {}
    if label is None:
        facts["labels"] = "none in the file; the images are taken to lie class by class"
    return Found(
        images=_floats(data).reshape(-1, *shape),
        targets=_targets(label, file, count, wanted.classes),
        facts=facts,
    )


def _dataset(h5: Any, name: str, file: Path) -> Any:
    """Return a data set that lies in the file itself; None if there is none of that name."""
    import h5py

    link = h5.get(name, getlink=True)
    if link is None:
        return None
    found = h5[name] if isinstance(link, h5py.HardLink) else None
    if not isinstance(found, h5py.Dataset) or found.external or found.is_virtual:
        raise InputError(f"{name!r} in {file} must be plain numbers within the file.")
    if found.chunks and any(c > s for c, s in zip(found.chunks, found.shape, strict=True)):
        raise InputError(f"{name!r} in {file} is stored in parts larger than itself.")
    return found


def _targets(label: Any, file: Path, count: int, classes: int) -> Targets:
    if label is None:
        if count % classes:
            raise InputError(
                f"{file} has no labels, and its {count} images are no whole number for each of the "
                f"{classes} classes."
            )
        return Hard(torch.arange(classes).repeat_interleave(count // classes))
    if label.dtype.kind in "iu" and label.shape in ((count,), (count, 1)):
        return Hard(torch.from_numpy(label[()].astype("int64")).flatten())
    if label.dtype.kind == "f" and label.shape == (count, classes):
        weights = _floats(label)
        return Soft(weights, _places(weights))
    raise InputError(
        f"The labels in {file} are {label.dtype} {list(label.shape)}; expected are class numbers "
        f"[{count}] or weights [{count}, {classes}]."
    )


def _places(weights: torch.Tensor) -> torch.Tensor | None:
    """Return the class of each image if they lie class by class, as most likeliest ones tell."""
    count, classes = weights.shape
    if count % classes:
        return None
    places = torch.arange(classes).repeat_interleave(count // classes)
    return places if 2 * int((weights.argmax(1) == places).sum()) > count else None


def _floats(numbers: Any) -> torch.Tensor:
    import numpy as np

    with np.errstate(over="ignore"):  # infinity is refused later
        return torch.from_numpy(numbers[()].astype("float32"))


def recipe(told: Told, wanted: Images) -> TrainSpec:
    """Return how the line's released sets are trained on, for class numbers as labels.

    Adam .001; 100 images of all classes a step, of more than 100 classes 50, one of each. Differs:
    steps of sets of CUB-200 saw all its classes, which its number of classes does not tell.
    """
    classes = wanted.classes
    chosen, images = (classes, 100 // classes) if classes <= 100 else (50, 1)
    return TrainSpec(
        lr=0.001,
        segments=(Segment(epochs=1000),),
        batch=chosen * images,
        balanced=images,
        optimizer=Adam(),
        augment=RAT(),
    )


FORMATS.add("ratbptt-h5")(
    Format(
        read=read_set,
        recipe=recipe,
        help="RaT-BPTT's .h5 files: data, label, epoch",
        protocol="ratbptt",
    )
)
