"""Folders of images as SRe2L, CDA and RDED release them, with a teacher's labels if there are any.

One folder a class, `new###` with files `class###_id###.jpg` (five digits for ImageNet-21K), or just
five digits; the number of the folder is the class, in the order of the data's.

Sources: SRe2L, NeurIPS 2023 (arXiv 2306.13092); CDA, TMLR 2024 (arXiv 2311.18838); RDED, CVPR 2024
(arXiv 2312.03526).
"""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import torch

from potstill.artefact import fkd
from potstill.artefact.imports import FORMATS, Format, Found, Images, Told
from potstill.artefact.targets import Hard
from potstill.augment import Crops, CutMix
from potstill.core.errors import InputError
from potstill.data.folders import Files, image_files, subfolders
from potstill.data.images import arrays, decode_file
from potstill.data.types import Reading
from potstill.functional import SGD, TrainSpec
from potstill.functional.cosine import cosine_segments


def read_folders(file: Path, *, wanted: Images, told: Told) -> Found:
    """Read the images in the folders of a folder, uint8, class by class, and labels if told.

    Raises:
        InputError: for folders that are not those of all classes, classes without images, images
            that are damaged or of another size, and labels that are not of these images.
    """
    found = image_files(file)
    numbers = _numbers(file, found)
    if missing := sorted(set(range(wanted.classes)) - set(numbers.values())):
        raise InputError(
            f"{file} has no images of class {missing[0]}; the data have {wanted.classes} classes, "
            f"so its folders are numbered 0 to {wanted.classes - 1}."
        )
    if (most := max(numbers.values())) >= wanted.classes:
        raise InputError(f"{file} has a folder of class {most}, the data {wanted.classes} classes.")
    if len(found) > wanted.most:
        raise InputError(f"{file} holds {len(found)} images; expected are 1 to {wanted.most}.")
    found = sorted(found, key=lambda item: numbers[item[0]])  # a class keeps its order of names
    labels = torch.tensor([numbers[name] for name, _ in found])
    images = _pixels([path for _, path in found], wanted.shape)
    counts = sorted({len(list(files)) for _, files in groupby(labels.tolist())})
    facts = {"images a class": " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))}
    made = Found(
        images=images,
        targets=Hard(labels),
        facts=facts,
        files=tuple(Path(path) for _, path in found),
    )
    if told.labels is None:
        return made
    store = fkd.import_labels(told.labels, labels, wanted)
    recipe = fkd.recipe_of(store.plan)
    return replace(made, targets=store, recipe=recipe)


def _numbers(file: Path, found: Files) -> dict[str, int]:
    """Return the class of each folder."""
    numbers: dict[str, int] = {}
    for name in subfolders(file):
        match = re.fullmatch(r"(?:new)?(\d{3,5})", name)
        if match is None:
            raise InputError(
                f"{file / name} is no folder of a class: they are named new000 or 00000."
            )
        if int(match[1]) in numbers.values():
            raise InputError(f"{file} has two folders of class {int(match[1])}.")
        numbers[name] = int(match[1])
    used = {name for name, _ in found}
    return {name: number for name, number in numbers.items() if name in used}


def _pixels(paths: list[str], shape: tuple[int, int, int]) -> torch.Tensor:
    images = torch.empty(len(paths), *shape, dtype=torch.uint8)
    named = ((path, lambda path=path: decode_file(path)) for path in paths)
    for row, array in enumerate(arrays(named, Reading())):
        if array.shape[1:] != shape[1:] or array.shape[0] not in (1, shape[0]):
            raise InputError(
                f"{paths[row]} is {list(array.shape)}; images of these data are {list(shape)}."
            )
        images[row] = torch.from_numpy(array)
    return images


def recovered_recipe(told: Told, wanted: Images) -> TrainSpec:
    """Return the training of `tiny-kd`, of large images that of `cda-in1k`, without a teacher."""
    if max(wanted.shape[1:]) > 64:
        return fkd.adamw_recipe(epochs=300, batch=128)
    return TrainSpec(
        lr=0.2,
        segments=cosine_segments(100, warmup=5),
        batch=256,
        optimizer=SGD(momentum=0.9, weight_decay=1e-4),
        augment=Crops(),
    )


def tiled_recipe(told: Told, wanted: Images) -> TrainSpec:
    """Return the training of `rded`, without a teacher and with batches of 100."""
    return replace(
        fkd.adamw_recipe(epochs=300, batch=100),
        segments=cosine_segments(300, zeta=2),
        augment=Crops(scale=(1.0, 1.0)),
        mix=CutMix(prob=1.0),
    )


FORMATS.add("recovered")(
    Format(
        read=read_folders,
        recipe=recovered_recipe,
        help="images of SRe2L or CDA: a folder with new000, new001, ... of each class; --labels "
        "for a folder of stored labels",
        protocol="tiny-kd",
        large="cda-in1k",
        takes=("labels",),
        raw=True,
        folder=True,
    )
)
FORMATS.add("rded")(
    Format(
        read=read_folders,
        recipe=tiled_recipe,
        help="images of RDED: a folder with 00000, 00001, ... of each class",
        protocol="rded",
        large="rded-imagenet",
        raw=True,
        folder=True,
    )
)
