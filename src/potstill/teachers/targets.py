"""Targets: the features that an encoder gives of all training images, encoded once.

Source: Joshi, Ni and Mirzasoleiman, Dataset Distillation via Knowledge Distillation (MKDT), ICLR
2025 (arXiv 2410.02116), section 4.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from potstill.core.compute import Compute
from potstill.core.errors import InputError, WorkError
from potstill.core.ranges import one_of
from potstill.core.spec import record
from potstill.data import DataRef, DataSet, Pixels, reopen
from potstill.engine import Tasks
from potstill.experts import TARGETS, write_targets
from potstill.functional import predict
from potstill.nets import FlatNet
from potstill.teachers.encoders import Encoder, open_encoder

Scale = Literal["raw", "standardised"]
BATCHES = {"cpu": 64, "cuda": 512}
"""Images that are encoded at a time, by device."""


@record
@dataclass(frozen=True, kw_only=True)
class TargetsSpec:
    """Targets of the training images of some data: everything that they depend on."""

    data: DataRef
    encoder: Encoder
    scale: Scale = "raw"
    """raw: as the encoder gives them; standardised: mean 0 and std 1 of each dimension."""
    compute: Compute
    revision: int = 1
    """Raised when the code changes what is encoded, so that old targets are not reused."""

    def __post_init__(self) -> None:
        one_of(("raw", "standardised"), self, "scale", prefix="targets' ")


def target_tasks(
    data: DataSet, encoder: Encoder, folder: Path, *, compute: Compute, scale: Scale = "raw"
) -> Tasks:
    """Return the one task that encodes the training images by the encoder in a folder.

    Raises:
        InputError: for images of another shape than the encoder's, or an unknown scale.
    """
    check_encoder(encoder, data)
    spec = TargetsSpec(data=data.ref, encoder=encoder, scale=scale, compute=compute)
    context = {"source": data.source, encoder.digest: str(folder)}
    return Tasks(kind=TARGETS, fn=encode, specs=(spec,), context=context, label="targets")


def check_encoder(encoder: Encoder, data: DataSet) -> None:
    """Refuse data of another shape than the encoder's; looks at no image.

    Raises:
        InputError: naming both.
    """
    shape = (data.channels, *data.size)
    if encoder.shape != shape:
        raise InputError(f"The encoder is for images {encoder.shape}, the data have {shape}.")


def encode(spec: TargetsSpec, context: dict[str, str], folder: Path) -> None:
    """Encode all training images, in their order, and write the targets into the folder.

    Images are not augmented and are normalised as the encoder's own. context[digest] is the folder
    of the encoder.

    Differs: the original encodes one image at a time, and normalises them by the statistics of
        the run, not of the encoder.

    Raises:
        InputError: if the folder of the context holds another encoder.
        WorkError: if features are not finite.
    """
    data = reopen(spec.data)
    check_encoder(spec.encoder, data)
    clock, cpu = time.perf_counter(), time.process_time()
    where = Path(context[spec.encoder.digest])
    values = encoded(spec.encoder, where, data.train.pixels, compute=spec.compute)
    if not bool(values.isfinite().all()):
        raise WorkError("The encoder gives features that are not finite.")
    variance, mean = torch.var_mean(values.double(), dim=0, correction=0)
    std = variance.sqrt()
    if spec.scale == "standardised":
        values = ((values - mean) / torch.where(std > 0, std, 1)).float()
    facts = {
        "source": context.get("source"),
        "encoder": spec.encoder.digest,
        "net": spec.encoder.net.name,
        "scale": spec.scale,
        "torch": torch.__version__,
        "seconds": time.perf_counter() - clock,
        "cpu_seconds": time.process_time() - cpu,
    }
    moments = {"mean": mean.float(), "std": std.float()}
    write_targets(folder, values, data=spec.data, **moments, facts=facts)


def encoded(encoder: Encoder, folder: Path, pixels: Pixels, *, compute: Compute) -> Tensor:
    """Return the features float32 [N, F], on the CPU, of uint8 images by the encoder in a folder.

    Raises:
        InputError: as `open_encoder`, or if there is no image.
    """
    net = opened(encoder, folder)
    return features_by(encoder, net, net.theta0.to(compute.device), pixels, compute=compute).cpu()


def opened(encoder: Encoder, folder: Path) -> FlatNet:
    """Return the encoder in a folder as a function of its weights; these are its `theta0`.

    Raises:
        InputError: as `open_encoder`.
    """
    recipe = ("features", encoder.net, encoder.shape)
    own = encoder.net.name.startswith("module:")
    return FlatNet(open_encoder(encoder, folder), recipe=None if own else recipe)


def features_by(
    encoder: Encoder, net: FlatNet, theta: Tensor, pixels: Pixels, *, compute: Compute
) -> Tensor:
    """Return the features [N, F], on theta's device, that an opened encoder gives of images.

    The images are uint8, or floating in [0, 1]; they are normalised as the encoder's own.

    Raises:
        InputError: if there is no image.
    """
    return predict(
        net,
        theta,
        pixels,
        batch=BATCHES[compute.device],
        prepare=encoder.space.forward,
        compute=compute,
    )
