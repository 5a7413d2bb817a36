"""The file `data.pt` in which IDC releases its distilled sets.

A list of images, float [C * ipc, C, H, W], and class numbers int64. Images are pixels in about
[0, 1], as they were optimised: not clipped, and not yet cut into cells. Kim et al., IDC, ICML 2022
(arXiv 2205.14959).
"""

from __future__ import annotations

from pathlib import Path

from potstill.artefact.decode import Decoder, Identity, MultiFormation
from potstill.artefact.imports import FORMATS, Format, Found, Images, Told, labelled
from potstill.augment import policy_of, text_of
from potstill.core.errors import InputError
from potstill.core.torchfile import kind_of, read_torch
from potstill.data import Space
from potstill.functional import IDC_AUGMENT, TrainSpec, idc_recipe


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


def recipe(told: Told, wanted: Images) -> TrainSpec:
    """Return how IDC evaluates sets of small images; `idc-imagenet` is the protocol of others.

    Digits are not mirrored, and mosaics of MNIST not mixed, which the file does not say.

    Raises:
        InputError: for an unknown augmentation, a part to mix outside [0, 1], and for images of one
            channel, which may be digits, without a word on their augmentation.
    """
    if told.augment is None and wanted.shape[0] == 1:
        raise InputError(
            "Images of one channel may be digits, which IDC does not mirror: name --augment "
            "idc:color_crop_scale_rotate for them (of MNIST with a factor above 1 also --cutmix "
            f"0), or {text_of(IDC_AUGMENT)}."
        )
    return idc_recipe(
        augment=IDC_AUGMENT if told.augment is None else policy_of(told.augment),
        cutmix=0.5 if told.cutmix is None else told.cutmix,
    )


FORMATS.add("idc")(
    Format(
        read=read_set,
        recipe=recipe,
        help="IDC's data.pt: images (pixels, not normalised) and labels; needs --factor (the name "
        "of its folder has it), --decoder unless it is single, and --augment and --cutmix for "
        "digits, which IDC trains on in another way",
        protocol="idc",
        large="idc-imagenet",
        takes=("factor", "decoder", "augment", "cutmix"),
        needs=("factor",),
        raw=True,
        decoder=decoder,
    )
)
