"""Coresets as methods: real images chosen class by class, at random or by their features.

The rules are in `potstill.coresets`; forgetting and EL2N are in `potstill.methods.scored`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor, nn

from potstill.core.errors import InputError, unknown
from potstill.core.keys import generator
from potstill.core.spec import record
from potstill.coresets import (
    Features,
    cluster_seed,
    expert_features,
    herding,
    k_center,
    medoids,
    module_features,
    pixel_features,
)
from potstill.engine import Tasks
from potstill.experts import ExpertPlan, expert_tasks
from potstill.methods.api import METHODS, Context, Cost, Done, Phase
from potstill.methods.chosen import (
    Pick,
    Use,
    begin,
    check,
    choose,
    cost_of,
    export,
    loop,
    scaled,
)
from potstill.nets import NETS, NetSpec, build, variant

TRAINED = ExpertPlan(count=1, epochs=30, lr=0.01, momentum=0.9, weight_decay=5e-4)


@METHODS.add("random")
@record
@dataclass(frozen=True, kw_only=True)
class Random:
    """Choose random real images of each class."""

    use: Use = Use()
    """How networks are trained on the images."""

    def pick(self, ctx: Context, label: int, rows: Tensor) -> Pick:
        """Return how to take the first of a keyed order; `random_real` takes the same."""
        chance = generator(ctx.seed, "random real", label)
        return lambda m: torch.randperm(len(rows), generator=chance)[:m].tolist()

    def cost(self, ctx: Context) -> Cost:
        """Return that nothing is kept on disk."""
        return cost_of(ctx, 0)

    def phases(self, ctx: Context, done: Done) -> Phase | None:
        """Choose, class by class."""
        return loop(ctx, done)

    check, init, step, export, scaled = check, begin, choose, export, scaled


def _is_trained(name: str) -> bool:
    """Tell whether features of that name need a network trained on the real images."""
    return name != "pixels" and "@" not in name and not name.startswith("module:")


@lru_cache(maxsize=1)
def _module(
    spec: NetSpec, channels: int, size: tuple[int, int], classes: int, seed: int
) -> nn.Module:
    return build(spec, channels=channels, size=size, classes=classes, seed=seed, key=("features",))


def _built(method: _ByFeatures, ctx: Context) -> nn.Module:
    """Return the network for the features as it is built; kept in the process."""
    spec, data = variant(method.features, ctx.net_spec), ctx.data
    return _module(spec, data.channels, data.size, data.n_classes, ctx.seed)


def _points(method: _ByFeatures, ctx: Context, rows: Tensor) -> Tensor:
    """Return the features of these rows of the training part: float64 [n, F]."""
    return _features(method, ctx).fn(ctx.data.train.pixels[rows]).double()


def _features(method: _ByFeatures, ctx: Context) -> Features:
    if method.features == "pixels":
        return pixel_features(ctx.space)
    if not _is_trained(method.features):
        return module_features(_built(method, ctx), ctx.space, name=method.features)
    return expert_features(_expert(method, ctx).specs[0], ctx.done["experts"][0])


def _expert(method: _ByFeatures, ctx: Context) -> Tasks:
    """Return the task that trains the network for the features."""
    return expert_tasks(
        method.training,
        ctx.data,
        ctx.space,
        variant(method.features, ctx.net_spec),
        seed=ctx.seed,
        compute=ctx.plan.tasks,
        store=ctx.store,
    )


def _settings(method: _ByFeatures) -> None:
    if method.training.count != 1:
        raise InputError(f"training.count must be 1 for features, not {method.training.count}.")


def _check(method: _ByFeatures, ctx: Context) -> None:
    """Refuse classes with too few images, and networks that do not fit."""
    check(method, ctx)
    known = ["own", "pixels", *NETS.names()]
    if ":" not in method.features and method.features not in known:
        raise unknown("features", method.features, known)
    if method.features != "pixels":
        features = module_features(_built(method, ctx), ctx.space, name=method.features)
        features.fn(ctx.data.train.pixels[:1])  # some show only then that they do not end so


def _cost(method: _ByFeatures, ctx: Context) -> Cost:
    """Return the bytes of the snapshots of the network."""
    if not _is_trained(method.features) or method.training.imported is not None:
        return cost_of(ctx, 0)
    numel = sum(parameter.numel() for parameter in _built(method, ctx).parameters())
    return cost_of(ctx, 4 * numel * (method.training.epochs + 1), method.training)


def _phases(method: _ByFeatures, ctx: Context, done: Done) -> Phase | None:
    """Train the network for the features, if it is one to train; then choose."""
    if _is_trained(method.features) and "experts" not in done:
        return _expert(method, ctx)
    return loop(ctx, done)


@METHODS.add("herding")
@record
@dataclass(frozen=True, kw_only=True)
class Herding:
    """Choose images whose mean feature stays near that of the class (Welling, ICML 2009)."""

    features: str = "own"
    """`own`: the run's network, trained on the real images; another network's name: that one,
    trained too; a name with weights (torchvision:NAME@WEIGHTS) or module:...: as it is; `pixels`.
    """
    training: ExpertPlan = TRAINED
    """How the network is trained (or imported); of no effect where features need no training."""
    use: Use = Use()
    """How networks are trained on the images."""

    def pick(self, ctx: Context, label: int, rows: Tensor) -> Pick:
        """Return herding of the features."""
        return partial(herding, _points(self, ctx, rows))

    __post_init__ = _settings
    check, cost, phases = _check, _cost, _phases
    init, step, export, scaled = begin, choose, export, scaled


@METHODS.add("k-center")
@record
@dataclass(frozen=True, kw_only=True)
class KCenter:
    """Choose images that lie far from each other, the first nearest to the mean (Gonzalez, 1985).

    Greedy, farthest first. What DC-BENCH calls K-Center is `k-medoids`.
    """

    features: str = "own"
    """As for herding."""
    training: ExpertPlan = TRAINED
    """As for herding."""
    use: Use = Use()
    """How networks are trained on the images."""

    def pick(self, ctx: Context, label: int, rows: Tensor) -> Pick:
        """Return greedy k-center of the features."""
        return partial(k_center, _points(self, ctx, rows))

    __post_init__ = _settings
    check, cost, phases = _check, _cost, _phases
    init, step, export, scaled = begin, choose, export, scaled


@METHODS.add("k-medoids")
@record
@dataclass(frozen=True, kw_only=True)
class KMedoids:
    """Choose of each of ipc k-means clusters the image nearest to its centre (DC-BENCH, 2022)."""

    features: str = "own"
    """As for herding."""
    training: ExpertPlan = TRAINED
    """As for herding."""
    use: Use = Use()
    """How networks are trained on the images."""

    def pick(self, ctx: Context, label: int, rows: Tensor) -> Pick:
        """Return k-means medoids of the features."""
        seed = cluster_seed(ctx.seed, label)
        return partial(medoids, _points(self, ctx, rows), seed=seed)

    __post_init__ = _settings
    check, cost, phases = _check, _cost, _phases
    init, step, export, scaled = begin, choose, export, scaled


_ByFeatures = Herding | KCenter | KMedoids
