"""What methods share whose students learn the features of an encoder."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from potstill.artefact import Embedding, Encoded
from potstill.artefact.targets import check_targets
from potstill.coresets import Subset, expert_losses, histogram, loss_tasks, proxies, subset_rows
from potstill.coresets.sas import Objective
from potstill.engine import Tasks
from potstill.experts import ExpertPlan, read_targets, targets_width
from potstill.functional import SGD, Segment, TrainSpec
from potstill.methods.api import Context, Cost, Done
from potstill.methods.work import expert_advice, expert_phase, expert_work
from potstill.nets import FlatNet, NetSpec, flat
from potstill.nets.hidden import head_of
from potstill.teachers import EncoderPlan, encoder_phase, read_encoder, target_tasks
from potstill.teachers.encoders import blank
from potstill.teachers.targets import Scale

EXPERTS = ExpertPlan(
    epochs=20, lr=0.1, momentum=0.9, weight_decay=1e-4, augment=None, objective="kd_mse"
)
"""MKDT's published experts."""


class OfFeatures(Protocol):
    """A method whose images are chosen by what an encoder, and experts, make of them."""

    @property
    def teacher(self) -> EncoderPlan:
        """Return which encoder."""
        ...

    @property
    def targets(self) -> Scale:
        """Return what is done to its features."""
        ...

    @property
    def asked(self) -> ExpertPlan | None:
        """Return the experts that are ever asked, as far as they are read; None: no experts."""
        ...

    @property
    def by_loss(self) -> bool:
        """Return whether images are chosen by how badly the experts fit them."""
        ...


def check_encoder_phase(method: OfFeatures, ctx: Context) -> FlatNet:
    """Refuse encoders that cannot be had, and networks without a head; return the student."""
    given = {"seed": ctx.seed, "compute": ctx.plan.tasks}
    encoder_phase(method.teacher, ctx.data, ctx.net_spec, **given)
    student = student_of(method.teacher, ctx)
    head_of(student.load(student.theta0), name="The student")  # pre-training takes it off
    return student


def preparation(method: OfFeatures, ctx: Context, done: Done) -> Tasks | None:
    """Return the next of: encoder, targets of all images, experts, what they fit; None after it.

    Methods with equal plans share all of them in a store.

    Raises:
        InputError: if the targets are of other data, or of another width than the encoder's.
    """
    compute = ctx.plan.tasks
    if "encoders" not in done:
        given = {"seed": ctx.seed, "compute": compute}
        return encoder_phase(method.teacher, ctx.data, ctx.net_spec, **given)
    encoder = read_encoder(folder := done["encoders"][0])
    if "targets" not in done:
        return target_tasks(ctx.data, encoder, folder, compute=compute, scale=method.targets)
    targets_width(done["targets"][0], data=ctx.data.ref, width=encoder.width)
    if method.asked is None:
        return None
    experts = expert_phase(method.asked, ctx, done["targets"][0])
    if "experts" not in done:
        return experts
    if method.by_loss and "losses" not in done:
        return loss_tasks(experts, done["experts"])
    return None


def preparation_cost(method: OfFeatures, ctx: Context, *, steps: int) -> Cost:
    """Return the bytes of encoder, targets, experts and losses, and their work."""
    plan, images = method.asked, len(ctx.data.train)
    numel, width = encoder_size(method.teacher, ctx)
    views, view_steps = encoder_work(method.teacher, images)
    cost = Cost(
        graph_bytes=0,
        adjoint_bytes=0,
        disk_bytes=4 * (numel + images * width),
        steps=steps,
        task_images=views,
        task_steps=view_steps,
    )
    if plan is None:
        return cost
    floats = plan.count * (plan.epochs + 1) * student_of(method.teacher, ctx).numel
    task_images, task_steps = expert_work(plan, images)
    return replace(
        cost,
        disk_bytes=cost.disk_bytes + 4 * floats + (8 * plan.count * images * method.by_loss),
        task_images=task_images + views,
        task_steps=task_steps + view_steps,
        notes=expert_advice(plan, images),
    )


def chosen_rows(
    method: OfFeatures,
    ctx: Context,
    subset: Subset,
    *,
    clusters: int | None = None,
    normalise: bool = False,
    objective: Objective = "graph_cut",
) -> tuple[Tensor, Tensor]:
    """Return the rows of a subset (`subset_rows`) of the set's size, and their targets.

    Groups are the classes, or so many clusters of the targets.

    Raises:
        InputError: if the targets are of other data, of another width than the encoder's, or too
            large to be kept.
    """
    width = encoder_size(method.teacher, ctx)[1]
    targets = read_targets(ctx.done["targets"][0], data=ctx.data.ref, width=width)
    groups = ctx.data.train.labels
    if clusters is not None:
        groups = proxies(targets, clusters, seed=ctx.seed)
    losses = expert_losses(tuple(ctx.done["losses"])) if method.by_loss else None
    rows = subset_rows(
        subset,
        ctx.count,
        groups=groups,
        targets=targets,
        losses=losses,
        normalise=normalise,
        objective=objective,
        seed=ctx.seed,
    )
    taught = targets[rows]
    found = embedding_of(ctx, taught, rows, method.targets)
    check_targets(found, len(rows), ctx.data.n_classes)  # before the work: what cannot be kept
    return rows, taught


def balance_text(ctx: Context, rows: Tensor) -> str:
    """Return how many classes rows of the training part leave out, in words."""
    return histogram(ctx.data.train.labels, rows, ctx.data.n_classes).text()


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
    if head == 1:
        return None
    module = net.load(net.theta0)
    last = {id(each) for each in head_of(module, name="The student").parameters()}
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
