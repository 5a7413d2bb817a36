"""Coresets: real images chosen by rule, as baselines and as methods."""

from potstill.coresets.features import (
    Features,
    expert_features,
    expert_module,
    module_features,
    net_features,
    pixel_features,
)
from potstill.coresets.filters import FilterSpec, RealFilter, filter_tasks
from potstill.coresets.rules import herding, highest, k_center, medoids, repeated
from potstill.coresets.scores import Score, ScoreSpec, mean_scores, score_tasks
from potstill.coresets.select import (
    CLASS_CAP,
    cluster_seed,
    counts_of,
    medoid_real,
    members_of,
    random_real,
    shuffled,
)

__all__ = [
    "CLASS_CAP",
    "Features",
    "FilterSpec",
    "RealFilter",
    "Score",
    "ScoreSpec",
    "cluster_seed",
    "counts_of",
    "expert_features",
    "expert_module",
    "filter_tasks",
    "herding",
    "highest",
    "k_center",
    "mean_scores",
    "medoid_real",
    "medoids",
    "members_of",
    "module_features",
    "net_features",
    "pixel_features",
    "random_real",
    "repeated",
    "score_tasks",
    "shuffled",
]
