"""The file `data.pt` in which IDC releases its distilled sets.

A list of images, float [C * ipc, C, H, W], and class numbers int64. Images are pixels in about
[0, 1], as they were optimised: not clipped, and not yet cut into cells. Kim et al., IDC, ICML 2022
(arXiv 2205.14959).
"""

from __future__ import annotations

from pathlib import Path

from potstill.artefact.decode import Decoder, Identity, MultiFormation
from potstill.artefact.imports import FORMATS, Format, Found, Images, Told, labelled
from potstill.augment import IDC, CutMix
from potstill.core.errors import InputError
from potstill.core.torchfile import kind_of, read_torch
from potstill.data import Space
from potstill.functional import SGD, TrainSpec, idc_segments


def read_set(file: Path, *, wanted: Images, told: Told) -> Found:
    """Read images, as they are stored, and labels.

    Raises:
        InputError: for a file that is damaged, asks for more than tensors, or holds other things.
    """
    held = read_torch(file)
    if not isinstance(held, (list, tuple)) or len(held) != 2:
        raise InputError(f"{file} must hold a list of images and labels, not {kind_of(held)}.")
    return labelled(*held, where=str(file), wanted=wanted)


def decoder(told: Told, space: Space) -> Decoder:
    """Return the decoder of a file's images once they are normalised.

    Raises:
        InputError: for a factor below 1, a way of cutting for images that are not cut, and for
            whitened images.
    """
    if told.factor == 1:
        if told.decoder is not None:
            raise InputError("Images of factor 1 are not cut: leave the decoder out.")
        return Identity()
    assert told.factor is not None
    made = MultiFormation(factor=told.factor, kind=told.decoder or "single")
    return made.normalised(space)


def recipe(classes: int) -> TrainSpec:
    """Return how IDC evaluates sets of small images; `idc-imagenet` is the protocol of others."""
    return TrainSpec(
        lr=0.01,
        segments=idc_segments(1000),
        batch=64,
        optimizer=SGD(momentum=0.9, weight_decay=5e-4),
        augment=IDC(strategy="color_crop_scale_rotate_flip"),
        mix=CutMix(prob=0.5),
    )


FORMATS.add("idc")(
    Format(
        read=read_set,
        recipe=recipe,
        help="IDC's data.pt: images (pixels, not normalised) and labels; needs --factor (the name "
        "of its folder has it), and --decoder unless it is single",
        protocol="idc",
        takes=("factor", "decoder"),
        needs=("factor",),
        raw=True,
        decoder=decoder,
    )
)
