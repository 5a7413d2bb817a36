"""What methods share whose students learn the features of an encoder."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from potstill.artefact import Embedding, Encoded
from potstill.functional import SGD, Segment, TrainSpec
from potstill.methods.api import Context
from potstill.nets import FlatNet, NetSpec, flat
from potstill.nets.hidden import head_of
from potstill.teachers import EncoderPlan, read_encoder
from potstill.teachers.encoders import blank
from potstill.teachers.targets import Scale


def encoder_size(plan: EncoderPlan, ctx: Context) -> tuple[int, int]:
    """Return the parameters of an encoder and the features that it gives of an image."""
    return _size(plan.of(ctx.net_spec), (ctx.data.channels, *ctx.data.size))


@lru_cache(maxsize=4)
def _size(net: NetSpec, shape: tuple[int, int, int]) -> tuple[int, int]:
    encoder = blank(net, shape).eval()
    with torch.no_grad():
        width = encoder(torch.zeros(1, *shape)).shape[1]
    return sum(each.numel() for each in encoder.parameters()), width


def encoder_work(plan: EncoderPlan, images: int) -> tuple[int, int]:
    """Return the views and the steps of training the encoder of a plan; 0 if it is there."""
    epochs = plan.training.epochs if plan.batch else 0
    return 2 * epochs * images, epochs * -(-images // max(1, plan.batch))


def student_of(plan: EncoderPlan, ctx: Context) -> FlatNet:
    """Return the network of a run with as many outputs as the encoder gives features."""
    return _flat(ctx.net_spec, ctx.data.channels, ctx.data.size, encoder_size(plan, ctx)[1])


@lru_cache(maxsize=2)
def _flat(spec: NetSpec, channels: int, size: tuple[int, int], width: int) -> FlatNet:
    return flat(spec, channels=channels, size=size, classes=width, seed=0, key=("student",))


def weights_of(net: FlatNet, head: float) -> Tensor | None:
    """Return weights [P] of parameters: `head` for those of the last layer, 1 for all others.

    None if all are alike.

    Raises:
        InputError: if the network does not end in a linear layer.
    """
    module = net.load(net.theta0)
    last = {id(each) for each in head_of(module, name="The student").parameters()}
    if head == 1:
        return None
    parts = [
        torch.full((each.numel(),), head if id(each) in last else 1.0)
        for each in module.parameters()
    ]
    return torch.cat(parts)


def embedding_of(ctx: Context, targets: Tensor, rows: Tensor, scale: Scale) -> Embedding:
    """Return targets [N, D] of images that began as these rows, and whose features they are."""
    found = read_encoder(ctx.done["encoders"][0])
    by = Encoded(digest=found.digest, net=found.net, space=found.space, scale=scale)
    return Embedding(targets.cpu().clone(), ctx.data.train.labels[rows], by)


def pretraining(lr: float, epochs: int) -> TrainSpec:
    """Return how MKDT pre-trains networks on a set (arXiv 2410.02116, by its released code)."""
    return TrainSpec(
        lr=lr,
        segments=(Segment(epochs=epochs),),
        batch=256,
        optimizer=SGD(momentum=0.9, weight_decay=1e-4),
        augment=None,
        loss="mse",
    )
