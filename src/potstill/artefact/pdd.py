"""What PDD releases: distilled sets of several stages, over IDC and over MTT.

Over IDC, `interval_{k}_data.pt` of stage k (from 0): a list of the images of all stages so far and
their class numbers, as in IDC's data.pt, class by class, and for each slot of a class one image a
stage. Images of earlier stages were clipped to [0, 1], the last ones were not.

Over MTT, a folder for each stage, `interval{i}_...` (from 1): `images_best.pt`, all images so far,
stage by stage, in the space of their normaliser; `labels_best.pt`; `syn_lr_best.pt`, the step size.

Source: Progressive Dataset Distillation, ICLR 2024 (arXiv 2310.06982).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from potstill.artefact import idc
from potstill.artefact.imports import FORMATS, Format, Found, Images, Told, labelled
from potstill.artefact.records import Block
from potstill.artefact.targets import Hard
from potstill.augment import DSA
from potstill.core.errors import InputError
from potstill.core.torchfile import kind_of, read_torch
from potstill.functional import SGD, Segment, TrainSpec, idc_segments, mtt_segments

WHOLE = 5
"""Stages over IDC that are trained on at the whole step size; later ones at half of it."""
EPOCHS = 500
"""Nominal epochs of training on each union."""


def read_file(file: Path, *, wanted: Images, told: Told) -> Found:
    """Read a file of PDD over IDC; images are put in the order of stages.

    Raises:
        InputError: for a number of stages that neither the name nor the user says or that do not
            agree, labels that do not lie as described, and as for IDC's files.
    """
    stages = _stages(file, told)
    found = idc.read_set(file, wanted=wanted, told=told)
    images, labels, classes = found.images, found.targets.classes, wanted.classes
    if len(images) % (classes * stages):
        raise InputError(
            f"{file} holds {len(images)} images, which are no whole number for each of {classes} "
            f"classes and {stages} stages."
        )
    if not torch.equal(labels, _each(len(labels), classes)):
        raise InputError(
            f"The labels in {file} must lie class by class, {len(labels) // classes} times each of "
            f"0 to {classes - 1}."
        )
    order = torch.arange(len(images)).view(-1, stages).T.flatten()
    size = len(images) // stages
    blocks = _blocks([size] * stages, [None] * stages, _over_idc)
    return _staged(images[order], labels[order], blocks)


def read_folders(file: Path, *, wanted: Images, told: Told) -> Found:
    """Read the folders of PDD over MTT in the folder `file`, or those up to it if it is one.

    Raises:
        InputError: for folders that are no stages 1, 2, ..., for files that are missing, damaged or
            not as described, and for images that do not begin with those of the stage before.
    """
    sizes: list[int] = []
    lrs: list[float | None] = []
    files: list[Path] = []
    found = None
    for stage, folder in enumerate(_folders(file), 1):
        paths = [folder / f"{name}_best.pt" for name in ("images", "labels", "syn_lr")]
        for path in paths:
            if not path.is_file():
                raise InputError(f"There is no file {path}.")
        images, labels, lr = (read_torch(path) for path in paths)
        union = labelled(images, labels, where=str(folder), wanted=wanted)
        new = _new(union, found, f"Stage {stage}, {folder},", wanted.classes)
        found, sizes, files = union, [*sizes, new], [*files, *paths]
        lrs.append(_step_size(lr, paths[-1]))
    assert found is not None
    blocks = _blocks(sizes, lrs, lambda stage: mtt_segments(EPOCHS))
    made = _staged(found.images, found.targets.classes, blocks)
    steps = ", ".join(f"{lr:.3g}" for lr in lrs)
    return replace(made, files=tuple(files), facts={**made.facts, "step sizes": steps})


def recipe(told: Told, wanted: Images) -> TrainSpec:
    """Return how MTT trains on a whole set; the step size is that of its last stage."""
    return TrainSpec(
        lr=0.01,
        segments=mtt_segments(),
        batch=256,
        optimizer=SGD(momentum=0.9, weight_decay=5e-4),
        augment=DSA(),
    )


def _stages(file: Path, told: Told) -> int:
    """Return the number of stages in a file over IDC."""
    named = re.fullmatch(r"interval_(\d+)_data", file.stem)
    if named is None and told.stages is None:
        raise InputError(
            f"The name of {file} does not say how many stages it holds (interval_4_data.pt holds "
            "five): name their number with --stages."
        )
    stages = told.stages if named is None else int(named[1]) + 1
    assert stages is not None
    if told.stages not in (None, stages):
        raise InputError(f"{file} holds {stages} stages by its name, not {told.stages}.")
    if stages < 1:
        raise InputError(f"stages must be at least 1, not {stages}.")
    return stages


def _folders(folder: Path) -> list[Path]:
    """Return the folders of the stages in a folder, or beside one of them the stages up to it."""
    last = _number(folder) if (folder / "images_best.pt").exists() else None
    parent = folder if last is None else folder.absolute().parent
    stages: dict[int, Path] = {}
    for each in sorted(parent.iterdir()):
        stage = _number(each) if each.is_dir() else None
        if stage is None or (last is not None and stage > last):
            continue
        if stage in stages:
            both = f"{stages[stage].name} and {each.name}"
            raise InputError(f"{parent} has two folders of stage {stage}, {both}.")
        stages[stage] = each
    if sorted(stages) != list(range(1, len(stages) + 1)) or not stages:
        has = ", ".join(map(str, sorted(stages))) or "none"
        raise InputError(
            f"{parent} must have a folder for each stage from 1, such as interval1_epoch1-5; those "
            f"in it are of the stages: {has}."
        )
    return [stages[stage] for stage in sorted(stages)]


def _number(folder: Path) -> int | None:
    """Return which stage a folder is of, by its name."""
    named = re.match(r"(?:interval|stage)_?(\d+)", folder.absolute().name)
    return None if named is None else int(named[1])


def _new(union: Found, before: Found | None, name: str, classes: int) -> int:
    """Return how many images a stage adds to the one before, which it must begin with."""
    labels, done = union.targets.classes, 0
    if before is not None:
        done = len(before.images)
        same = torch.equal(_bits(union.images[:done]), _bits(before.images))
        if not same or not torch.equal(labels[:done], before.targets.classes):
            raise InputError(f"{name} does not begin with the images of the stage before it.")
    new = len(labels) - done
    if not new or not torch.equal(labels[done:].sort().values, _each(new, classes)):
        raise InputError(
            f"{name} must add as many images of each of the classes 0 to {classes - 1}; it adds "
            f"{new}."
        )
    return new


def _step_size(lr: object, file: Path) -> float:
    """Return a step size that was read, a number or a tensor of one."""
    if isinstance(lr, Tensor) and lr.numel() == 1 and not lr.is_meta:
        lr = lr.item()
    if not isinstance(lr, float) or not 0 < lr < math.inf:
        what = f"{lr:g}" if isinstance(lr, float) else kind_of(lr)
        raise InputError(f"{file} must hold a step size above 0, not {what}.")
    return lr


def _each(count: int, classes: int) -> Tensor:
    """Return labels class by class, as many of each as `count` allows."""
    return torch.arange(classes).repeat_interleave(count // classes)


def _bits(images: Tensor) -> Tensor:
    return images.view(torch.int32)


def _over_idc(stage: int) -> tuple[Segment, ...]:
    """Return how a network is trained on the union of stage 0, 1, ... over IDC."""
    scale = 1.0 if stage < WHOLE else 0.5
    return tuple(replace(part, lr_scale=part.lr_scale * scale) for part in idc_segments(EPOCHS))


def _blocks(
    sizes: Sequence[int],
    lrs: Sequence[float | None],
    train: Callable[[int], tuple[Segment, ...]],
) -> tuple[Block, ...]:
    ends = torch.tensor([0, *sizes]).cumsum(0).tolist()
    return tuple(
        Block(name=f"stage{k + 1}", start=ends[k], stop=ends[k + 1], lr=lr, train=train(k))
        for k, lr in enumerate(lrs)
    )


def _staged(images: Tensor, labels: Tensor, blocks: tuple[Block, ...]) -> Found:
    sizes = ", ".join(str(block.stop - block.start) for block in blocks)
    facts = {"stages": f"{len(blocks)}, of {sizes} images"}
    return Found(images=images, targets=Hard(labels), blocks=blocks, facts=facts)


FORMATS.add("pdd-idc")(
    Format(
        read=read_file,
        recipe=idc.recipe,
        help="PDD's interval_K_data.pt over IDC: as idc, of K + 1 stages (another name needs "
        "--stages)",
        protocol="staged-idc",
        takes=("factor", "decoder", "augment", "cutmix", "stages"),
        needs=("factor",),
        raw=True,
        decoder=idc.decoder,
    )
)
FORMATS.add("pdd-mtt")(
    Format(
        read=read_folders,
        recipe=recipe,
        help="PDD's folders over MTT: name the folder that holds one for each stage (such as "
        "interval1_epoch1-5, each with images_best.pt, labels_best.pt and syn_lr_best.pt), or one "
        "of these for the stages up to it",
        protocol="staged",
        folder=True,
    )
)
