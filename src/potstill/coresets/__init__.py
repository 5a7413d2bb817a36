"""Coresets: real images chosen by rule, as baselines and as methods."""

from potstill.coresets.select import (
    Features,
    counts_of,
    medoid_real,
    medoids,
    net_features,
    pixel_features,
    random_real,
)

__all__ = [
    "Features",
    "counts_of",
    "medoid_real",
    "medoids",
    "net_features",
    "pixel_features",
    "random_real",
]
