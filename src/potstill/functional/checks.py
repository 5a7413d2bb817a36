"""What first-order training refuses before it begins."""

from __future__ import annotations

import torch
from torch import Tensor

from potstill.core import keys
from potstill.core.errors import InputError
from potstill.data import Pixels
from potstill.functional.advance import Prepare, as_input
from potstill.functional.schedule import TrainSpec
from potstill.nets.flat import FlatNet


def check_parts(spec: TrainSpec, view: bool, replay: bool) -> None:
    """Refuse segments with blocks without a set that has them, and labels of views for parts."""
    staged = any(segment.blocks for segment in spec.segments)
    if staged and not view:
        raise InputError("A training in stages needs a set with blocks (view).")
    if replay and (staged or spec.balanced is not None):
        raise InputError(
            "Stored labels are for epochs of all images, not for stages or class-balanced batches."
        )


def check_training(
    images: Pixels, targets: Tensor, spec: TrainSpec, prepare: Prepare | None
) -> None:
    """Refuse images and targets that differ in number, or do not suit a spec."""
    if not len(images) or len(images) != len(targets):
        raise InputError(f"There are {len(images)} images and {len(targets)} targets.")
    if prepare is None and not images.is_floating_point():
        raise InputError(f"Images of type {images.dtype} need a normaliser (prepare).")
    if spec.pairs is not None:
        return
    shape, dtype = list(targets.shape), targets.dtype
    if spec.loss == "ce" and (targets.dim() != 1 or dtype != torch.int64):
        raise InputError(f"Loss 'ce' takes class numbers int64 [N], not {dtype} {shape}.")
    if spec.loss == "mse" and (targets.dim() != 2 or not targets.is_floating_point()):
        raise InputError(f"Loss 'mse' takes features [N, D], not {dtype} {shape}.")
    if spec.loss == "soft_ce" and (targets.dim() != 2 or not targets.is_floating_point()):
        raise InputError(f"Loss 'soft_ce' takes probabilities [N, K], not {dtype} {shape}.")


def check_last(
    net: FlatNet, theta: Tensor, images: Pixels, spec: TrainSpec, prepare: Prepare | None
) -> None:
    """Refuse a last batch of one image where batch norm (of 1x1 maps) cannot train on it."""
    net.train()
    check_pairs(len(images), spec)
    if told := _alone(len(images), spec):
        check_one(net, theta, images, prepare, told)


def check_pairs(count: int, spec: TrainSpec) -> None:
    """Refuse pairs of views of so many images if one image is alone in its batch."""
    if spec.pairs is not None and (told := _alone(count, spec)):
        raise InputError(f"{told}, which is no batch of pairs; choose another batch.")


def _alone(count: int, spec: TrainSpec) -> str:
    """Return that the last of so many images is alone in its batch, or nothing."""
    if spec.balanced or count % spec.batch != 1:
        return ""
    return f"{count} images in batches of {spec.batch} leave a batch of one"


def check_one(
    net: FlatNet, theta: Tensor, images: Pixels, prepare: Prepare | None, told: str
) -> None:
    """Refuse a network that cannot train on one image."""
    if net.separable:
        return
    try:
        with net.keeping_statistics(), keys.forked(0, "last batch"), torch.no_grad():
            net(theta, as_input(images[:1].to(theta.device), theta, prepare))
    except ValueError as error:
        raise InputError(
            f"{told}, of which batch norm can take no statistics in this network; choose another "
            "batch or number of images."
        ) from error
