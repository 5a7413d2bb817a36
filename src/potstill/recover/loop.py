"""The loop of recovery: Adam on images whose crops a teacher should classify and find usual.

Sources: SRe2L (Yin, Xing and Shen, NeurIPS 2023, arXiv 2306.13092); CDA (Yin and Shen, TMLR 2024,
arXiv 2311.18838).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.augment import Params
from potstill.core.compute import Compute
from potstill.core.errors import WorkError
from potstill.core.keys import generator
from potstill.data import MeanStd
from potstill.engine import progress
from potstill.functional.compiling import compiled
from potstill.functional.losses import casting
from potstill.functional.statistics import NormOf, statistics_loss
from potstill.nets.taps import Tapped
from potstill.recover.settings import Recovery
from potstill.recover.units import Unit

LossOf = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Recovered:
    """Images [N, C, H, W] in the space of the teacher, and what was seen on the way."""

    images: Tensor
    snapshots: list[Tensor] = field(default_factory=list)
    losses: list[tuple[int, float, float]] = field(default_factory=list)
    """Step, cross-entropy and statistics loss, means over units and teachers."""


def recovered(
    teachers: Sequence[Tapped],
    x: Tensor,
    units: Sequence[Unit],
    settings: Recovery,
    space: MeanStd,
    *,
    seed: int,
    compute: Compute,
) -> Recovered:
    """Return what becomes of first images x [N, C, H, W], those of one unit after those of another.

    Step t: z = crops of x; L = cross-entropy + bn * statistics loss, a mean over the teachers;
    Adam on x at lr (1 + cos(pi t / T)) / 2; x is clipped to black and white. Each unit has its own
    statistics and random numbers, so units side by side are, up to rounding, units one by one. The
    last images are returned, not the best.

    Raises:
        WorkError: if a loss is not finite.
    """
    device = torch.device(compute.device)
    x = x.to(device, torch.float32)
    labels = torch.cat([unit.labels() for unit in units]).to(device)
    order = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    for teacher in teachers:
        teacher.to(memory_format=order)  # pyrefly: ignore[no-matching-overload]
    how = (settings.bn, settings.first, settings.norm)
    loss_of = _loss(tuple(teachers), *how, len(units), compute)
    chances = [generator(seed, "recover", *unit.key) for unit in units]
    rates = torch.tensor(settings.step_sizes(), device=device)
    black, white = (space.forward(torch.full((1, space.channels, 1, 1), v)) for v in (0.0, 1.0))
    black, white = black.to(device), white.to(device)
    state, found = settings.optimizer.init(x), Recovered(x)
    snapshots, losses = found.snapshots, found.losses
    for t in range(settings.iterations):
        if t in settings.snapshots:
            snapshots.append(x.cpu())
        crops, shape = settings.crops(t), (x.shape[1], x.shape[2], x.shape[3])
        drawn = [
            crops.sample(len(unit), shape, chance)
            for unit, chance in zip(units, chances, strict=True)
        ]
        leaf = x.detach().requires_grad_()
        z = crops.apply(leaf, _together(drawn, units).to(device))
        seen = z.detach().contiguous(memory_format=order).requires_grad_()
        loss, parts = loss_of(seen, labels)
        (grad,) = torch.autograd.grad(z, leaf, torch.autograd.grad(loss, seen))
        with torch.no_grad():
            x, state = settings.optimizer.update(x, grad, state, rates[t], t)
            x = torch.clamp(x, black, white)
        if t % settings.log_every == 0 or t + 1 == settings.iterations:
            losses.append((t, *parts.tolist()))
            if not bool(x.isfinite().all()):
                raise WorkError(f"The recovery diverged by step {t}; lower lr ({settings.lr:g}).")
            if t:  # the time of the first step tells nothing of the others
                progress(t + 1, settings.iterations, "step")
    if settings.iterations in settings.snapshots:
        snapshots.append(x.cpu())
    return Recovered(x.cpu(), snapshots, losses)


@lru_cache(maxsize=4)
def _loss(
    teachers: tuple[Tapped, ...],
    bn: float,
    first: float,
    norm: NormOf,
    groups: int,
    compute: Compute,
) -> LossOf:
    """Return the loss of crops z [N, C, H, W]: a sum over units, and its two parts for people."""
    device = torch.device(compute.device)

    def loss(z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        entropy = torch.zeros((), device=device)
        far = torch.zeros((), device=device)
        for teacher in teachers:
            with casting(device, compute.precision):
                logits, inputs = teacher(z)
            entropy = entropy + F.cross_entropy(logits.float(), labels) * groups
            gaps = statistics_loss(inputs, teacher.norms, first=first, norm=norm, groups=groups)
            far = far + gaps.sum()
        total = (entropy + bn * far) / len(teachers)
        return total, torch.stack([entropy, far]).detach() / (len(teachers) * groups)

    return compiled(loss) if compute.compiled else loss


def _together(drawn: Sequence[Params], units: Sequence[Unit]) -> Params:
    """Return the parameters of all units in one; one row if there is one unit with one row."""
    if len(drawn) == 1:
        return drawn[0]
    rows = [params.values.expand(len(unit), -1) for params, unit in zip(drawn, units, strict=True)]
    return Params(ops=drawn[0].ops, values=torch.cat(rows))
