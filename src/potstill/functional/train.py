"""First-order training on resident tensors: one fast loop for experts, students and evaluation.

Nothing here is differentiated through; see `potstill.functional.unroll` for that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby

import torch
from torch import Tensor

from potstill.core import keys
from potstill.core.compute import Compute
from potstill.core.errors import InputError
from potstill.core.threads import using_threads
from potstill.data import Pixels
from potstill.engine import Ranks
from potstill.functional.advance import Job, Prepare, Replay, Teach, advance, as_input
from potstill.functional.checks import check_last, check_one, check_parts, check_training
from potstill.functional.kernels import logits
from potstill.functional.optim import State
from potstill.functional.sampling import Sampler, sampler
from potstill.functional.schedule import Segment, TrainSpec
from potstill.nets.flat import FlatNet

OnEpoch = Callable[[int, Tensor, float], None]
Part = tuple[Segment, Job, Sampler]
View = Callable[[int], tuple[Pixels, Tensor] | tuple[Pixels, Tensor, Tensor | None]]


def fit(
    net: FlatNet,
    theta: Tensor,
    images: Pixels,
    targets: Tensor,
    spec: TrainSpec,
    *,
    seed: int,
    key: tuple[str | int, ...] = (),
    places: Tensor | None = None,
    prepare: Prepare | None = None,
    on_epoch: OnEpoch | None = None,
    view: View | None = None,
    teach: Teach | None = None,
    replay: Replay | None = None,
    compute: Compute | None = None,
    ranks: Ranks | None = None,
) -> Tensor:
    """Return the weights after training from theta by the spec.

    Epoch e draws all its numbers from the key (seed, *key, "epoch", e): its images (a permutation,
    or see `TrainSpec.balanced`), then the augmentation of each batch; dropout draws from the same
    key with "net". The global generator is not moved, and equal arguments give equal bytes at an
    equal number of threads. Without `on_epoch` nothing is read back from a GPU.

    Args:
        net: the network as a function of theta; left in training mode.
        theta: starting weights [P]; not changed.
        images: [N, C, H, W]; floating, or anything that prepare takes; on theta's device, or on the
            CPU, from where batches then come.
        targets: int64 [N] for "ce", probabilities [N, K] for "soft_ce", features [N, D] for "mse",
            anything of length N for pairs.
        spec: see `TrainSpec`.
        seed, key: of the training; `key` names it among others with the same seed.
        places: class of each image, int64 [N], for class-balanced batches; by default its target's.
        prepare: applied to each batch before augmentation, e.g. a normaliser's `forward`.
        on_epoch: called as (epoch index, theta, mean loss) after each epoch; theta is never
            overwritten afterwards.
        view: images, targets and, if any, places of the first so many blocks, for segments with
            blocks; asked once a run of segments with the same number.
        teach: the teacher of a spec with a lesson: its logits of augmented, mixed images.
        replay: instead: views and their logits by the epoch, in its order; they take the place of
            permutation, augmentation and mixing.
        compute: how; by default in eager float32 on theta's device, by torch's threads.
        ranks: of processes that share each batch; running statistics are those of own parts.

    Raises:
        InputError: if images, targets and spec do not suit each other or theta's device that of
            `compute`, or what a segment's blocks, a lesson or a replay need is not there.
    """
    check_parts(spec, view is not None, replay is not None)
    job = partial(_job, net, theta, spec, prepare, compute, teach, replay, ranks)
    parts = _parts(job, spec, (images, targets, places), view)
    with _computing(compute, theta):
        return _through(parts, net, theta, spec, seed, key, on_epoch)


def _job(
    net: FlatNet,
    theta: Tensor,
    spec: TrainSpec,
    prepare: Prepare | None,
    compute: Compute | None,
    teach: Teach | None,
    replay: Replay | None,
    ranks: Ranks | None,
    images: Pixels,
    targets: Tensor,
) -> Job:
    """Return the job of a training on some images."""
    check_training(images, targets, spec, prepare)
    check_last(net, theta, images, spec, prepare)
    return Job.of(net, theta, images, targets, spec, prepare, compute, teach, replay, ranks)


def _parts(
    job_of: Callable[[Pixels, Tensor], Job],
    spec: TrainSpec,
    whole: tuple[Pixels, Tensor, Tensor | None],
    view: View | None,
) -> Iterator[Part]:
    """Yield each segment with its job and what draws its batches."""
    for blocks, segments in groupby(spec.segments, lambda segment: segment.blocks):
        x, y, *by = whole if blocks is None or view is None else view(blocks)
        job, drawn = job_of(x, y), sampler(y, spec, *by)
        yield from ((segment, job, drawn) for segment in segments)


def _through(
    parts: Iterator[Part],
    net: FlatNet,
    theta: Tensor,
    spec: TrainSpec,
    seed: int,
    key: tuple[str | int, ...],
    on_epoch: OnEpoch | None,
) -> Tensor:
    """Return the weights after all segments."""
    theta, state, step, epoch = theta.detach().clone(), (), 0, 0
    for segment, job, drawn in parts:
        if epoch == 0 or segment.optimizer == "new":
            state, step = job.begin(theta), 0
        lr = torch.tensor(spec.lr * segment.lr_scale, dtype=theta.dtype, device=theta.device)
        for _ in range(segment.epochs):
            if not net.training:  # whoever listens may have predicted
                net.train()
            with keys.forked(seed, *key, "epoch", epoch, "net", device=theta.device):
                chance = keys.generator(seed, *key, "epoch", epoch)
                now, rows = job.at(epoch, drawn, chance)
                theta, state, step, mean = advance(now, theta, state, step, lr, rows, chance)
            if on_epoch is not None:
                on_epoch(epoch, theta, float(mean))
            epoch += 1
    return theta


def take_steps(
    net: FlatNet,
    theta: Tensor,
    state: State,
    images: Pixels,
    targets: Tensor,
    spec: TrainSpec,
    batches: Sequence[Tensor],
    *,
    step: int,
    seed: int,
    key: tuple[str | int, ...],
    lr_scale: float = 1.0,
    prepare: Prepare | None = None,
    compute: Compute | None = None,
) -> tuple[Tensor, State]:
    """Return weights and optimizer state after one step on the rows of each batch.

    As an epoch of `fit`, on rows that the caller chose: equal arguments give equal bytes.

    Args:
        net: left in training mode, its running statistics moved on.
        theta: weights [P] before; not changed.
        state: of the optimizer; `spec.optimizer.init(theta)` before the first step.
        images, targets, spec, prepare, compute: as in `fit`; the segments of the spec and its
            `balanced` are not read.
        batches: rows of each step, int64, at most `spec.batch` of them.
        step: steps taken before with this state.
        seed, key: of augmentation and dropout, which go on through all batches.
        lr_scale: the step size is so many times `spec.lr`.

    Raises:
        InputError: as `fit`, or if a batch is empty or larger than that of the spec.
    """
    check_training(images, targets, spec, prepare)
    for rows in batches:
        if not 1 <= len(rows) <= spec.batch:
            raise InputError(f"A step takes 1 to {spec.batch} images (batch), not {len(rows)}.")
    net.train()
    if any(len(rows) == 1 for rows in batches):
        check_one(net, theta, images, prepare, "A batch has one image")
    job = Job.of(net, theta, images, targets, spec, prepare, compute)
    lr = torch.tensor(spec.lr * lr_scale, dtype=theta.dtype, device=theta.device)
    with _computing(compute, theta), keys.forked(seed, *key, "net", device=theta.device):
        chance = keys.generator(seed, *key)
        theta, state, *_ = advance(job, theta.detach(), state, step, lr, batches, chance)
    return theta, state


def predict(
    net: FlatNet,
    theta: Tensor,
    images: Pixels,
    *,
    batch: int = 64,
    prepare: Prepare | None = None,
    compute: Compute | None = None,
) -> Tensor:
    """Return the logits [N, K] of images [N, C, H, W] in evaluation mode, without a graph.

    The network is left in evaluation mode. Images may be on the CPU while theta is on a GPU;
    `compute` is as in `fit`. Batches of 64 stay in the caches of a CPU: 2.5 times
    as fast as batches of 512 (ConvNet-3 of width 32, 32 px).

    Raises:
        InputError: if there is no image, or theta is not on the device of `compute`.
    """
    if not len(images):
        raise InputError("There is no image to predict.")
    net.eval()
    with _computing(compute, theta), torch.no_grad():
        parts = (as_input(x.to(theta.device), theta, prepare) for x in images.split(batch))
        return torch.cat([logits(net, theta, x, compute=compute, batch=batch) for x in parts])


def accuracy(
    net: FlatNet,
    theta: Tensor,
    images: Pixels,
    labels: Tensor,
    *,
    batch: int = 64,
    prepare: Prepare | None = None,
    compute: Compute | None = None,
) -> float:
    """Return the fraction of images whose largest logit is at their label; as `predict`."""
    found = predict(net, theta, images, batch=batch, prepare=prepare, compute=compute)
    return float((found.argmax(1) == labels.to(found.device)).double().mean())


@contextmanager
def _computing(compute: Compute | None, theta: Tensor) -> Iterator[None]:
    """Use the threads of a `Compute`, which must name theta's device."""
    if compute is None:
        yield
        return
    if compute.device != theta.device.type:
        raise InputError(f"Weights on {theta.device} cannot be used on {compute.device!r}.")
    with using_threads(compute.threads):
        yield
