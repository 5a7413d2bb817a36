"""High-loss subsets: order, prefixes, balance."""

import pytest
import torch

from potstill.core.errors import InputError, WorkError
from potstill.coresets.high_loss import high_loss_order
from potstill.coresets.sizes import histogram, size_of


def toy(n=1000, experts=3, classes=5):
    chance = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (n,), generator=chance)
    losses = torch.rand(experts, n, generator=chance) + 0.3 * labels  # the last classes are hard
    return losses, labels


def test_the_highest_mean_losses_come_first():
    losses, _ = toy()
    order = high_loss_order(losses)
    mean = losses.double().mean(0)
    assert order.sort().values.tolist() == list(range(1000))
    assert bool((mean[order].diff() <= 0).all())
    assert torch.equal(order, high_loss_order(mean))
    few = order[: size_of("2%", 1000)]
    assert len(few) == 20
    assert torch.equal(few, order[: size_of("5%", 1000)][:20])
    assert high_loss_order(torch.tensor([[1.0, 2, 2, 1]])).tolist() == [1, 2, 0, 3]


def test_unbalanced_subsets_are_skewed_and_balanced_ones_are_not():
    losses, labels = toy()
    plain = histogram(labels, high_loss_order(losses)[:50], 5)
    assert plain.largest > 0.5
    order = high_loss_order(losses, balance="class", labels=labels)
    for size in (20, 50, 52):
        counts = histogram(labels, order[:size], 5).counts
        assert max(counts) - min(counts) == int(size % 5 > 0)
    mean = losses.double().mean(0)
    for label in range(5):
        inside = order[:50][labels[order[:50]] == label]
        best = mean.masked_fill(labels != label, -1).argsort(descending=True, stable=True)
        assert inside.tolist() == best[:10].tolist()
    assert order.sort().values.tolist() == list(range(1000))


def test_a_small_group_gives_all_that_it_has():
    losses = torch.tensor([[5.0, 4, 3, 2, 1, 0]])
    clusters = torch.tensor([0, 0, 0, 0, 0, 2])  # cluster 1 is empty
    order = high_loss_order(losses, balance="cluster", clusters=clusters)
    assert order.tolist() == [0, 5, 1, 2, 3, 4]


def test_losses_are_freed_of_the_targets_norm():
    losses, _ = toy(50)
    targets = torch.randn(50, 7, generator=torch.Generator().manual_seed(1))
    size = torch.linspace(0.1, 10, 50)
    scaled = high_loss_order(losses * size**2, targets=targets * size[:, None])
    assert torch.equal(scaled, high_loss_order(losses, targets=targets))
    assert not torch.equal(scaled, high_loss_order(losses))


def test_refusals():
    losses, _ = toy(20)
    with pytest.raises(InputError, match="balanced by class needs the class of each image"):
        high_loss_order(losses, balance="class")
    with pytest.raises(InputError, match="balanced by cluster needs the cluster"):
        high_loss_order(losses, balance="cluster", labels=torch.zeros(20, dtype=torch.int64))
    with pytest.raises(InputError, match="Unknown balance 'clas': did you mean 'class'"):
        high_loss_order(losses, balance="clas")
    losses[1, 3] = torch.nan
    with pytest.raises(WorkError, match="not finite"):
        high_loss_order(losses)
