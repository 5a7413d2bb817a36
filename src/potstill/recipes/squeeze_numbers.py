"""Published numbers of SRe2L, CDA and RDED, and what their sets cost.

SRe2L, arXiv 2306.13092; CDA, arXiv 2311.18838, whose project lists both; RDED, arXiv 2312.03526.
"""

from __future__ import annotations

RECOVERED: dict[tuple[str, str], dict[int, tuple[float, ...]]] = {
    ("sre2l", "tiny"): {50: (41.1, 42.2, 42.5), 100: (49.7, 51.2, 51.5)},
    ("cda", "tiny"): {50: (48.7, 49.7, 50.6), 100: (53.2, 54.4, 55.0)},
    ("sre2l", "imagenet"): {
        10: (21.3, 28.4, 30.9),
        50: (46.8, 55.6, 57.6),
        100: (52.8, 61.0, 62.8),
        200: (57.0, 64.6, 65.9),
    },
    ("cda", "imagenet"): {
        10: (33.6,),
        50: (53.5, 61.3, 61.6),
        100: (58.0, 65.1, 65.9),
        200: (63.3, 67.6, 68.4),
    },
    ("sre2l", "imagenet21k"): {10: (18.5, 27.4, 27.3), 20: (21.8, 31.3, 33.2)},
    ("cda", "imagenet21k"): {10: (22.6, 32.4, 34.2), 20: (26.4, 35.3, 36.1)},
    ("sre2l", "cifar100"): {50: (49.4,)},
    ("cda", "cifar100"): {1: (13.4,), 10: (49.8,), 50: (64.4,)},
}
"""Accuracies of ResNet-18, 50 and 101 by images a class; sets and labels are of a ResNet-18."""
TILED: dict[str, dict[int, tuple[float, ...]]] = {
    "cifar10": {1: (22.9,), 10: (37.1,), 50: (62.1,)},
    "cifar100": {1: (11.0,), 10: (42.6,), 50: (62.6,)},
    "tiny": {1: (9.7, 8.2, 3.8), 10: (41.9, 38.4, 22.9), 50: (58.2, 45.6, 41.2)},
    "imagenet": {
        1: (6.6, 8.0, 5.9),
        10: (42.0, 49.7, 48.3),
        50: (56.5, 62.0, 61.2),
        100: (59.8,),
    },
}
"""The same of RDED's."""
COSTS = {
    "cda_tiny_ipc50": "4.5 h on an RTX 4090",
    "cda_imagenet_ipc50": "29 h on an RTX 4090",
    "cda_imagenet21k_ipc20": "55 h on four RTX 4090 (whether of all or of each is not said)",
    "sre2l_imagenet_ipc10": "6 h (RDED's authors)",
    "rded_imagenet_ipc10": "7 min on an RTX 4090",
}
