"""Mean and standard deviation: the published tables, measuring, and what is refused."""

import pytest
import torch

from potstill import data
from potstill.core.errors import InputError
from potstill.data import STATISTICS, MeanStd, Split, measure_stats

CIFAR10 = ".4914 .4822 .4465 | .2023 .1994 .2010"
IMAGENET = ".485 .456 .406 | .229 .224 .225"
SVHN = ".4377 .4438 .4728 | .1980 .2010 .1970"
PUBLISHED = {
    # trajectory-matching.md 3.1
    "cifar10@mtt": CIFAR10,
    "cifar100@mtt": CIFAR10,
    "tiny@mtt": IMAGENET,
    # gradient-matching.md 3.6: DC, DSA, DM and IDC
    "cifar10@dc": CIFAR10,
    "cifar10@idc": CIFAR10,
    "cifar100@idc": CIFAR10,
    "cifar100@dc": ".5071 .4866 .4409 | .2673 .2564 .2762",
    "svhn@dc": SVHN,
    "svhn@idc": SVHN,
    "mnist@dc": ".1307 | .3081",
    "mnist@idc": ".1307 | .3081",
    "fashion@dc": ".2861 | .3530",
    "fashion@idc": ".2861 | .3530",
    "imagenet@dc": IMAGENET,
    "imagenet@idc": IMAGENET,
    "tiny@dc": IMAGENET,
    # meta-gradients.md 8
    "cifar10@kip": CIFAR10,
    "cifar100@kip": ".5071 .4867 .4408 | .2675 .2565 .2761",
    # ssl-distillation.md 3
    "cifar10@mixbt": CIFAR10,
    "cifar100@mixbt": CIFAR10,
    "tiny@mixbt": ".480 .448 .398 | .277 .269 .282",
    "cifar10@sololearn": ".4914 .4822 .4465 | .2470 .2435 .2616",
    "cifar100@sololearn": ".5071 .4865 .4409 | .2673 .2564 .2762",
    "tiny@sololearn": ".480 .448 .398 | .277 .269 .282",
    # squeeze-recover-relabel.md 1.1
    "tiny@sre2l": ".4802 .4481 .3975 | .2302 .2265 .2262",
    "imagenet21k@cda": "0 0 0 | 1 1 1",
}


def test_published_statistics():
    assert set(STATISTICS.names()) == set(PUBLISHED)
    for name, table in PUBLISHED.items():
        mean, std = (tuple(map(float, part.split())) for part in table.split("|"))
        assert data.named_stats(name) == MeanStd(mean=mean, std=std), name


def test_what_a_normaliser_says_of_itself():
    stats = data.named_stats("mnist@dc")
    assert (stats.channels, stats.nbytes(), stats.record()) == (1, 8, stats)
    assert stats.describe() == "mean 0.1307, std 0.3081"
    assert data.named_stats("cifar10@dc").describe() == (
        "mean 0.4914 0.4822 0.4465, std 0.2023 0.1994 0.201"
    )
    x = torch.rand(2, 1, 3, 3, requires_grad=True)
    stats.forward(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, 1 / 0.3081))
    with pytest.raises(InputError, match=r"1 channels, not for the shape \(3, 3\)"):
        stats.forward(torch.zeros(3, 3))


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_measured_from_any_parts(channels):
    draw = torch.Generator().manual_seed(channels)
    pixels = torch.randint(0, 256, (90, channels, 5, 3), generator=draw, dtype=torch.uint8)

    class InParts:
        shape = pixels.shape

        def split(self, n):
            return iter(pixels.split(min(n, 17)))

    once = measure_stats(Split(pixels, torch.zeros(90)))
    assert measure_stats(Split(InParts(), torch.zeros(90))) == once
    rows = pixels.double().movedim(1, 0).flatten(1) / 255
    assert once.mean == pytest.approx(rows.mean(1).tolist(), abs=1e-13)
    assert once.std == pytest.approx(rows.std(1, correction=0).tolist(), abs=1e-13)
