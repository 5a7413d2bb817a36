"""The files `res_*.pt` in which DC, DSA and DM release their distilled sets.

A dict whose `data` is a list of experiments: images, float [N, C, H, W] in the space of their
normaliser, and class numbers int64. Zhao, Mopuri, Bilen, ICLR 2021 (arXiv 2006.05929); Zhao, Bilen,
ICML 2021 (arXiv 2102.08259) and WACV 2023 (arXiv 2110.04181).
"""

from __future__ import annotations

from pathlib import Path

from potstill.artefact.imports import FORMATS, Format, Found, Images, Told, labelled
from potstill.core.errors import InputError
from potstill.core.torchfile import kind_of, read_torch
from potstill.functional import SGD, TrainSpec, mtt_segments


def read_set(file: Path, *, wanted: Images, told: Told) -> Found:
    """Read the images and labels of one experiment, the last unless told.

    Raises:
        InputError: for a file that is damaged, asks for more than tensors and numbers, or holds
            other things, and for an experiment that it does not have.
    """
    held = read_torch(file, numbers=True)
    data = held.get("data") if isinstance(held, dict) else None
    if not isinstance(data, (list, tuple)) or not data:
        has = kind_of(held) if data is None else f"{kind_of(data)} as 'data'"
        raise InputError(
            f"{file} must hold a dict with a list of experiments as 'data', not {has}."
        )
    k = len(data) - 1 if told.experiment is None else told.experiment
    if not 0 <= k < len(data):
        raise InputError(f"{file} has the experiments 0 to {len(data) - 1}, not {k}.")
    pair, where = data[k], f"{file}, experiment {k}"
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
        raise InputError(f"{where} must be a list of images and labels, not {kind_of(pair)}.")
    found = labelled(*pair, where=where, wanted=wanted)
    return Found(
        images=found.images,
        targets=found.targets,
        facts={"experiment": f"{k} of 0 to {len(data) - 1}"},
    )


def recipe(told: Told, wanted: Images) -> TrainSpec:
    """Return how DC evaluates its sets: 301 epochs without augmentation."""
    return TrainSpec(
        lr=0.01,
        segments=mtt_segments(300),
        batch=256,
        optimizer=SGD(momentum=0.9, weight_decay=5e-4),
        augment=None,
    )


FORMATS.add("dc")(
    Format(
        read=read_set,
        recipe=recipe,
        help="DC's, DSA's and DM's res_*.pt: normalised images and labels of some experiments; "
        "sets of DSA and DM are scored with --protocol dsa",
        protocol="dc",
        takes=("experiment",),
    )
)
