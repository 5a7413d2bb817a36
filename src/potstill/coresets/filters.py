"""Filters: which real images a stage of a progressive run sees, by how hard they are.

Source: Chen et al., Data Distillation Can Be Like Vodka: Distilling More Times For Better Quality,
ICLR 2024 (arXiv 2310.06982), discarding easy examples, in the forms of its released code.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from potstill.core.compute import Compute
from potstill.core.errors import InputError, unknown
from potstill.core.keys import generator
from potstill.core.spec import record
from potstill.core.store import Store
from potstill.coresets.features import settle
from potstill.coresets.scores import mean_scores
from potstill.data import DataRef, DataSet, Space, SpaceSpec, moved, open_space, prepared, reopen
from potstill.engine import Tasks
from potstill.experts import ExpertPlan, Trajectory
from potstill.experts.kept import write_rows
from potstill.experts.links import FILTERS, LINKS
from potstill.functional import fresh, predict
from potstill.nets import FlatNet, NetSpec, filled

Rule = Literal["none", "correct", "both", "forgetting"]
_READS: dict[str, tuple[str, ...]] = {
    "none": (),
    "correct": ("keep",),
    "both": ("keep",),
    "forgetting": ("interval", "training"),
}
_PART = 4096  # images whose logits are in memory at a time


@record
@dataclass(frozen=True, kw_only=True)
class RealFilter:
    """Which real images the stages see."""

    rule: Rule = "none"
    """`correct`: images that all networks trained on the union classify correctly are left out, but
    for a part; `both`: those that none does, too; `forgetting`: each stage sees images that
    training forgets more often."""
    keep: float = 0.2
    """Part of the images to be left out that stays all the same, drawn anew in each stage."""
    interval: int = 10
    """Stage k sees images forgotten (k-1) * interval to k * interval - 1 times, the last stage also
    those forgotten more often."""
    training: ExpertPlan = ExpertPlan(count=1, epochs=200, momentum=0.9, weight_decay=5e-4)
    """The networks that are trained on all images to count forgetting; their counts are averaged.
    """

    def __post_init__(self) -> None:
        if self.rule not in _READS:
            raise unknown("filter.rule", self.rule, _READS)
        if not 0 <= self.keep < 1:
            raise InputError(
                f"filter.keep must be at least 0 and less than 1, not {self.keep:g}; "
                "--filter.rule none keeps all images."
            )
        if self.interval < 1:
            raise InputError(f"filter.interval must be at least 1, not {self.interval}.")
        if self.training.imported is not None:
            raise InputError(
                f"Forgetting is counted while networks train; filter.training.imported cannot be "
                f"{self.training.imported!r}."
            )
        if self.training.epochs < 2:
            raise InputError(
                f"filter.training.epochs must be at least 2 to forget, not {self.training.epochs}."
            )

    def refuse_idle(self, stages: int) -> None:
        """Refuse settings that say nothing to the rule, unless they are defaults of some scale.

        Raises:
            InputError: naming the first one, and the rules that it is for.
        """
        usual = [RealFilter(), *(RealFilter().scaled(scale, stages) for scale in ("smoke", "cpu"))]
        for field in fields(self)[1:]:
            own = [rule for rule, names in _READS.items() if field.name in names]
            value = getattr(self, field.name)
            if self.rule not in own and value not in [getattr(u, field.name) for u in usual]:
                raise InputError(
                    f"filter.{field.name} has no effect with --filter.rule {self.rule}; it is for "
                    f"{' and '.join(own)}."
                )

    def scaled(self, scale: Literal["smoke", "cpu"], stages: int) -> RealFilter:
        """Return the filter with at most the counts of the scale, for so many stages.

        As many epochs stay as can be forgotten in: an image is forgotten in every other epoch at
        most.
        """
        smoke, plan = scale == "smoke", self.training
        interval = min(self.interval, 1 if smoke else 2)
        enough = 2 * (stages - 1) * interval + 1
        count, epochs = min(plan.count, 2 if smoke else 3), max(2 if smoke else 20, enough)
        training = replace(plan, count=count, epochs=min(plan.epochs, epochs))
        return replace(self, training=training, interval=interval)


@record
@dataclass(frozen=True, kw_only=True)
class FilterSpec:
    """The real images of one stage: everything that they depend on."""

    data: DataRef
    space: SpaceSpec
    net: NetSpec
    rule: Rule
    keep: float
    interval: int
    stage: int
    """1 = the first."""
    stages: int
    sources: tuple[str, ...]
    """Names in the store of finished scores (rule `forgetting`) or finished links."""
    seed: int
    compute: Compute
    revision: int = 1
    """Raised when the code changes what a filter keeps, so that old ones are not reused."""


def filter_tasks(
    which: RealFilter,
    data: DataSet,
    space: Space,
    net: NetSpec,
    *,
    stage: int,
    stages: int,
    sources: Sequence[str],
    seed: int,
    compute: Compute,
    store: Store,
) -> Tasks:
    """Return the one task of a stage's filter; no task for rule `none`.

    `sources` name finished work in `store`: scores for rule `forgetting`, else links.
    """
    spec = FilterSpec(
        data=data.ref,
        space=space.record(),
        net=filled(net),
        rule=which.rule,
        keep=which.keep,
        interval=which.interval,
        stage=stage,
        stages=stages,
        sources=tuple(sources),
        seed=seed,
        compute=compute,
    )
    specs = () if which.rule == "none" else (spec,)
    context = {"store": str(store.root)}
    return Tasks(kind=FILTERS, fn=kept_rows, specs=specs, context=context, label="filter")


def kept_rows(spec: FilterSpec, context: dict[str, str], folder: Path) -> None:
    """Write which rows of the training part stay, and how many of each class, into the folder.

    Differs: counts of forgetting belong to the images that they were taken of; the original looks
    sorted counts up by place.

    Raises:
        InputError: if a class is left without an image; names it.
    """
    clock, cpu = time.perf_counter(), time.process_time()
    data, root = reopen(spec.data), Path(context["store"])
    if spec.rule == "forgetting":
        scores = mean_scores(tuple(root / "scores" / name for name in spec.sources))
        stays = banded(scores, interval=spec.interval, stage=spec.stage, stages=spec.stages)
        advice = f"choose another filter.interval than {spec.interval}"
    else:
        right = _times_right(spec, data, [Trajectory(root / LINKS / name) for name in spec.sources])
        out = right == len(spec.sources)
        if spec.rule == "both":
            out |= right == 0
        chance = generator(spec.seed, "filter", spec.stage)
        stays = ~out | (torch.rand(len(right), generator=chance) < spec.keep)
        advice = f"raise filter.keep above {spec.keep:g}"
    counts = torch.bincount(data.train.labels[stays], minlength=data.n_classes).tolist()
    if 0 in counts:
        raise InputError(
            f"Stage {spec.stage} has no real image of class {data.classes[counts.index(0)]!r} "
            f"after --filter.rule {spec.rule}: {advice}."
        )
    facts = {
        "kept": sum(counts),
        "of": len(stays),
        "by_class": dict(zip(data.classes, counts, strict=True)),
        "torch": torch.__version__,
        "seconds": time.perf_counter() - clock,
        "cpu_seconds": time.process_time() - cpu,
    }
    write_rows(folder, stays.nonzero()[:, 0], facts)


def banded(scores: Tensor, *, interval: int, stage: int, stages: int) -> Tensor:
    """Return which images a stage (1 = the first) sees by their counts of forgetting: bool [N].

    Counts [N], means over networks, in [(stage - 1) * interval, stage * interval); the last stage
    has no upper end.
    """
    above = stage * interval if stage < stages else math.inf
    return (scores >= (stage - 1) * interval) & (scores < above)


def _times_right(spec: FilterSpec, data: DataSet, networks: Sequence[Trajectory]) -> Tensor:
    """Return how many networks classify each training image correctly, int64 [N]."""
    space, train, device = open_space(spec.space), data.train, torch.device(spec.compute.device)
    net = fresh(spec.net, data)
    pixels, prepare = prepared(space, train.pixels)
    pixels, right = moved(pixels, device), torch.zeros(len(train), dtype=torch.int64)
    for network in networks:
        theta = network.row(0)
        module = net.load(theta)
        settle(module, train, space)  # a trajectory holds no running statistics
        own, theta = FlatNet(module, recipe=net.recipe), theta.to(device)
        parts = [
            predict(own, theta, part, prepare=prepare, compute=spec.compute).argmax(1).cpu()
            for part in pixels.split(_PART)
        ]
        right += torch.cat(parts) == train.labels
    return right
