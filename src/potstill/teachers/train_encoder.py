"""The training of an encoder by itself, as a task."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from potstill.core.compute import Compute
from potstill.core.errors import InputError, WorkError
from potstill.core.spec import record
from potstill.data import DataRef, DataSet, MeanStd, moved, reopen
from potstill.engine import Watch
from potstill.functional import TrainSpec, fit
from potstill.functional.checks import check_pairs
from potstill.functional.neighbours import knn_accuracy
from potstill.functional.restoring import restoring
from potstill.nets import HEADS, HeadSpec, NetSpec, filled, projected
from potstill.teachers.encoders import Encoder, keep_encoder
from potstill.teachers.selfsup import SelfSupervised
from potstill.teachers.targets import encoded

NEIGHBOURS, LOOKED = 20, 5000
"""Of the k-NN accuracy: nearest images, and training and validation images, at most, looked at."""


@record
@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """An encoder to be trained: everything that its weights depend on."""

    data: DataRef
    space: MeanStd
    net: NetSpec
    head: HeadSpec
    train: TrainSpec
    seed: int
    compute: Compute
    revision: int = 1
    """Raised when the code changes what an encoder becomes, so that old ones are not reused."""


def encoder_spec(
    training: SelfSupervised,
    data: DataSet,
    space: MeanStd,
    net: NetSpec,
    *,
    seed: int,
    compute: Compute,
) -> EncoderSpec:
    """Return the spec of an encoder that is trained on some data.

    Raises:
        InputError: if the network takes no head, images have no colours that are augmented, or one
            is alone in a batch of pairs.
    """
    shape, train, head = (data.channels, *data.size), training.spec, HEADS[training.head]
    check_pairs(len(data.train), train)
    projected(net, head, channels=data.channels, size=data.size, seed=seed)
    own, second = (restoring(p, space, shape) for p in (train.augment, train.second))
    return EncoderSpec(
        data=data.ref,
        space=space,
        net=filled(net),
        head=head,
        train=replace(train, augment=own, second=second),
        seed=seed,
        compute=compute,
    )


def train_encoder(spec: EncoderSpec, context: dict[str, str], folder: Path) -> None:
    """Train an encoder and write it, with its running statistics, into the folder.

    Its facts hold the loss of every epoch and its k-NN accuracy on the validation part.

    Raises:
        WorkError: if the parameters stop being finite.
    """
    data, device = reopen(spec.data), torch.device(spec.compute.device)
    shape = (data.channels, *data.size)
    size: dict[str, Any] = {"channels": data.channels, "size": data.size}
    net = projected(spec.net, spec.head, **size, seed=spec.seed, key=("encoder",))
    watch = Watch(spec.train.epochs)
    theta = fit(
        net,
        net.theta0.to(device),
        moved(data.train.pixels, device),
        data.train.labels.to(device),
        spec.train,
        seed=spec.seed,
        key=("encoder",),
        prepare=spec.space.forward,
        on_epoch=watch.epoch,
        compute=spec.compute,
    )
    if not bool(theta.isfinite().all()):
        raise WorkError(f"The encoder diverged; lower its step size (now {spec.train.lr:g}).")
    net.eval()
    own: dict[str, Any] = {"net": spec.net, "space": spec.space, "shape": shape}
    module = net.load(theta).cpu()
    try:
        encoder = keep_encoder(module, folder, **own)
    except InputError as error:  # running statistics that are not finite
        raise WorkError(f"{error} Lower its step size (now {spec.train.lr:g}).") from error
    facts = {
        **watch.facts(context),
        "epochs": spec.train.epochs,
        **neighbours(encoder, folder, data, compute=spec.compute),
    }
    keep_encoder(module, folder, **own, facts=facts)


def neighbours(
    encoder: Encoder, folder: Path, data: DataSet, *, compute: Compute
) -> dict[str, float | int]:
    """Return facts: the k-NN accuracy of an encoder on validation images, and of how many.

    Of more than 5,000 training or validation images so many, evenly spaced, are looked at.
    """
    found = []
    for part in (data.train, data.val):
        rows = torch.linspace(0, len(part) - 1, min(len(part), LOOKED)).round().long()
        some = part.take(rows)
        found += [encoded(encoder, folder, some.pixels, compute=compute), some.labels]
    k = min(NEIGHBOURS, len(found[0]))
    accuracy = knn_accuracy(found[0], found[1], found[2], found[3], k)
    return {"validation_knn": accuracy, "validation_images": len(found[2]), "neighbours": k}
