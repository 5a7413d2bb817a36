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
from potstill.coresets.firsts import GROUPED, Subset, subset_rows
from potstill.coresets.high_loss import high_loss_order
from potstill.coresets.losses import LOSSES, LossSpec, expert_losses, loss_tasks
from potstill.coresets.rules import herding, highest, k_center, medoids, repeated
from potstill.coresets.sas import proxies, sas_order, sas_subset
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
from potstill.coresets.sizes import Histogram, budgets, check_size, histogram, share_of, size_of

__all__ = [
    "CLASS_CAP",
    "GROUPED",
    "LOSSES",
    "Features",
    "FilterSpec",
    "Histogram",
    "LossSpec",
    "RealFilter",
    "Score",
    "ScoreSpec",
    "Subset",
    "budgets",
    "check_size",
    "cluster_seed",
    "counts_of",
    "expert_features",
    "expert_losses",
    "expert_module",
    "filter_tasks",
    "herding",
    "high_loss_order",
    "highest",
    "histogram",
    "k_center",
    "loss_tasks",
    "mean_scores",
    "medoid_real",
    "medoids",
    "members_of",
    "module_features",
    "net_features",
    "pixel_features",
    "proxies",
    "random_real",
    "repeated",
    "sas_order",
    "sas_subset",
    "score_tasks",
    "share_of",
    "shuffled",
    "size_of",
    "subset_rows",
]
