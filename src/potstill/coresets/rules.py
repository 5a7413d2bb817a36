"""Rules that choose k of n points of one class, and scores by which images are chosen.

Each rule takes points [n, F] and 1 <= k <= n and returns k distinct places; the first k' < k of
`herding`, `k_center` and `highest` are their choice of k'.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor


def herding(points: Tensor, k: int) -> list[int]:
    """Return the places of k points whose mean stays near the mean mu of all.

    Step t picks the unchosen argmin_i |(t+1) mu - sum of the chosen - phi_i|. With c = phi - mu
    that is argmin_i |s + c_i|^2 = argmin_i 2 s.c_i + |c_i|^2, s = sum of the chosen c: one product
    of a matrix and a vector a step, no table of distances.

    Source: Welling, Herding Dynamical Weights to Learn, ICML 2009, in the form of Rebuffi et al.,
    iCaRL, CVPR 2017 (arXiv 1611.07725). Differs: as in IDC, phi is not normalised.
    """
    c = points - points.mean(0)
    values = c.square().sum(1)
    chosen: list[int] = []
    for _ in range(k):
        chosen.append(int(values.argmin()))
        values += 2 * (c @ c[chosen[-1]])
        values[chosen[-1]] = torch.inf
    return chosen


def k_center(points: Tensor, k: int) -> list[int]:
    """Return the places of k points, farthest first, the first one nearest to the mean.

    Step t picks argmax_i min_{j chosen} |phi_i - phi_j|, which covers the class within twice the
    smallest possible radius.

    Source: Gonzalez, Clustering to Minimize the Maximum Intercluster Distance, 1985; as a coreset
    Sener and Savarese, ICLR 2018 (arXiv 1708.00489). The "K-Center" of DC-BENCH is `medoids`.
    """
    c = points - points.mean(0)
    squares = c.square().sum(1)
    chosen = [int(squares.argmin())]
    nearest = torch.full_like(squares, torch.inf)
    while len(chosen) < k:
        last = chosen[-1]
        distance = (squares - 2 * (c @ c[last]) + squares[last]).clamp(min=0)
        nearest = torch.minimum(nearest, distance)
        nearest[last] = -1.0  # below every distance, also to equal points
        chosen.append(int(nearest.argmax()))
    return chosen


def medoids(points: Tensor, k: int, *, seed: int) -> list[int]:
    """Return for each of k clusters of points [n, F] the member nearest to its centre.

    Clusters that equal points leave empty are filled with the first points not chosen yet.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = KMeans(n_clusters=k, n_init=3, random_state=seed).fit(points.numpy())
    centres = torch.as_tensor(model.cluster_centers_)
    labels = torch.as_tensor(model.labels_)
    distance = torch.linalg.vector_norm(points - centres[labels], dim=1)
    chosen: list[int] = []
    for cluster in range(k):
        inside = torch.nonzero(labels == cluster)[:, 0]
        if len(inside):
            chosen.append(int(inside[distance[inside].argmin()]))
    taken = set(chosen)
    free = (place for place in range(len(points)) if place not in taken)
    return chosen + [next(free) for _ in range(k - len(chosen))]


def highest(scores: Tensor, k: int, *, chance: torch.Generator) -> list[int]:
    """Return the places of the k highest of scores [n], highest first; chance orders equal ones."""
    order = torch.randperm(len(scores), generator=chance)
    return order[scores[order].argsort(descending=True, stable=True)[:k]].tolist()


def repeated(pick: Callable[[int], list[int]], n: int, k: int) -> list[int]:
    """Return k of n places by pick(m), m <= n: every place once before any twice."""
    rounds, rest = divmod(k, n)
    return [place for m in [n] * rounds + [rest] * (rest > 0) for place in pick(m)]


def forgotten(correct: Tensor) -> Tensor:
    """Return how often each image was forgotten: float64 [N] of correct, bool [epochs, N].

    Forgotten = classified correctly after one epoch and wrongly after the next. An image that was
    never classified correctly gets the number of epochs, more than any other can reach.

    Source: Toneva et al., An Empirical Study of Example Forgetting during Deep Neural Network
    Learning, ICLR 2019 (arXiv 1812.05159), section 3.
    """
    counts = (correct[:-1] & ~correct[1:]).sum(0).double()
    return counts.masked_fill(~correct.any(0), len(correct))


def error_norms(logits: Tensor, labels: Tensor) -> Tensor:
    """Return |softmax(logits) - onehot(label)|_2 of each image: float64 [N] of [N, K] and [N].

    Source: Paul, Ganguli and Dziugaite, Deep Learning on a Data Diet, NeurIPS 2021
    (arXiv 2107.07075), section 2: the EL2N score of one network.
    """
    error = logits.double().softmax(1)
    error[torch.arange(len(labels)), labels] -= 1
    return torch.linalg.vector_norm(error, dim=1)
