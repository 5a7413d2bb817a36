"""What features are worth by their nearest neighbours."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.core.errors import InputError

_PART = 1024  # test images that are compared with all training images at a time


def knn_accuracy(
    features: Tensor,
    labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    k: int = 20,
    *,
    temperature: float = 0.07,
) -> float:
    """Return the part of test features that their k nearest features give their label.

    Nearest by cosine s; each of the k has exp(s / temperature) votes for its label.

    Source: Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination,
    CVPR 2018 (arXiv 1805.01978), section 3.4.

    Raises:
        InputError: for a k below one or above the number of features.
    """
    if not 1 <= k <= len(features):
        raise InputError(f"k nearest of {len(features)} images: k cannot be {k}.")
    known, found = F.normalize(features, dim=1), []
    for part in F.normalize(test_features, dim=1).split(_PART):
        near, places = (part @ known.T).topk(k)
        votes = torch.zeros(len(part), int(labels.max()) + 1).to(near)
        votes.scatter_add_(1, labels[places], ((near - 1) / temperature).exp())
        found.append(votes.argmax(1))
    return float((torch.cat(found) == test_labels).double().mean())
