"""SAS and sizes of subsets: each against a plain count."""

import pytest
import torch
import torch.nn.functional as F

from potstill.core.errors import InputError
from potstill.coresets.sas import proxies, sas_order, sas_subset
from potstill.coresets.sizes import Histogram, budgets, histogram, size_of


def points(n, d=5, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cut(similar, inside):
    """f(A): the sum of S over pairs of an element outside and one inside."""
    outside = [i for i in range(len(similar)) if i not in inside]
    return sum(float(similar[i, j]) for i in outside for j in inside)


@pytest.mark.parametrize("n", [12, 50])
def test_each_step_of_sas_takes_the_largest_gain(n):
    z = points(n)
    similar = F.normalize(z, dim=1) @ F.normalize(z, dim=1).T
    similar = similar.clamp(min=0)
    order, inside = sas_order(z).tolist(), []
    assert sorted(order) == list(range(n))
    steps = n if n == 12 else 20
    for place in order[:steps]:
        before = cut(similar, inside)
        left = [i for i in range(n) if i not in inside]
        gains = {i: cut(similar, [*inside, i]) - before for i in left}
        assert gains[place] == pytest.approx(max(gains.values()), abs=1e-12)
        assert place == max(gains, key=lambda i: gains[i])
        inside.append(place)
    assert sas_order(z, 7).tolist() == order[:7]


def test_released_sas_is_the_order_of_the_row_sums_and_differs_from_the_cut():
    z = points(40)
    unit = F.normalize(z, dim=1)
    sums = (unit @ unit.T).clamp(min=0).sum(1)
    released = sas_order(z, objective="released")
    assert released.tolist() == sums.argsort(descending=True).tolist()
    assert released.tolist() != sas_order(z).tolist()
    with pytest.raises(InputError, match="Unknown SAS objective 'graphcut': did you mean"):
        sas_order(z, objective="graphcut")


def test_the_cut_spreads_over_clusters_where_the_released_order_does_not():
    centres = 4 * points(4, 16)
    z = centres.repeat_interleave(torch.tensor([30, 20, 10, 10]), 0) + points(70, 16, seed=1)
    group = torch.arange(4).repeat_interleave(torch.tensor([30, 20, 10, 10]))
    released = group[sas_order(z, 20, objective="released")].bincount(minlength=4)
    cut = group[sas_order(z, 20)].bincount(minlength=4)
    assert (released > 0).sum() < (cut > 0).sum()


def test_sas_chooses_within_each_class():
    labels = torch.arange(60) % 3
    labels[0] = 1  # 19, 21 and 20 points
    z = points(60)
    chosen = sas_subset(z, labels, "26%")
    assert [len(rows) for rows in chosen] == [4, 5, 5]  # rounded down: 4.94, 5.46, 5.2
    for label, rows in enumerate(chosen):
        inside = torch.nonzero(labels == label)[:, 0]
        assert rows.tolist() == inside[sas_order(z[inside], len(rows))].tolist()
    assert sum(map(len, sas_subset(z, labels, 16))) == 16
    smaller = sas_subset(z, labels, "10%")
    for few, more in zip(smaller, chosen, strict=True):
        assert few.tolist() == more[: len(few)].tolist()
    with pytest.raises(InputError, match="leaves no image of any of 3 groups"):
        sas_subset(z, labels, "4%")


def test_proxies_are_clusters_that_equal_seeds_find_again():
    z = torch.cat([points(20) + 30, points(30, seed=1) - 30])
    found = proxies(z, 2, seed=3)
    assert found[:20].unique().tolist() != found[20:].unique().tolist()
    assert sorted(found.bincount().tolist()) == [20, 30]
    assert torch.equal(found, proxies(z, 2, seed=3))
    assert len(proxies(torch.zeros(9, 2), 3, seed=0)) == 9  # equal points: fewer clusters
    with pytest.raises(InputError, match="50 images make 1 to 50 clusters, not 51"):
        proxies(z, 51, seed=0)


def test_sizes():
    assert [size_of(size, 50000) for size in ("2%", "5%", "0.5%", "100%", "1000", 7)] == [
        1000,
        2500,
        250,
        50000,
        1000,
        7,
    ]
    assert size_of("29%", 100) == 29  # int(0.29 * 100) is 28
    assert size_of("2%", 149) == 2
    for bad in ("-1", "1e3", "two", "2 percent", "nan%", "1/2", 0.02, ""):
        with pytest.raises(InputError, match="such as 2% or a whole number of images, not"):
            size_of(bad, 100)
    for bad in ("0", "0%", "101%", "101", "0.5%"):
        with pytest.raises(InputError, match=r"1 to all of the 100 images, not '"):
            size_of(bad, 100)
    with pytest.raises(InputError, match="all of the 0 images"):
        size_of("1", 0)


def test_budgets_make_the_total():
    assert budgets([50, 30, 20], 10) == [5, 3, 2]
    assert budgets([5, 5, 5], 4) == [2, 1, 1]
    assert budgets([0, 3, 1], 4) == [0, 3, 1]
    for total in range(100):
        given = budgets([60, 33, 7], total)
        assert sum(given) == total
        assert all(g - 1 < total * c / 100 < g + 1 for g, c in zip(given, (60, 33, 7), strict=True))


def test_histogram_of_a_subset():
    labels = torch.tensor([0, 1, 1, 3, 3, 3])
    found = histogram(labels, [1, 2, 5], 5)
    assert found == Histogram(counts=(0, 2, 0, 1, 0))
    assert found.absent == (0, 2, 4)
    assert found.largest == pytest.approx(2 / 3)
    assert found.text() == "3 of 5 classes are absent, the largest has 2 of 3 images"
