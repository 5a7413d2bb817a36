"""Chains of policies, shuffled cells, RandAugment against torchvision, and MixUp against loops."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from potstill.augment import (
    DSA,
    Chain,
    Crops,
    CutMix,
    MixUp,
    RandAugment,
    ShufflePatches,
    Views,
    policy_of,
    text_of,
)
from potstill.augment.randaugment import CHANGES
from potstill.core.errors import InputError
from potstill.core.spec import from_json, to_json
from potstill.core.vision import import_torchvision
from potstill.functional import SGD, Segment, TrainSpec

SHAPE = (3, 12, 8)
RDED = Chain(parts=(ShufflePatches(factor=2), Crops(scale=(0.5, 1.0))))


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n, shape=SHAPE, dtype=torch.float64):
    return torch.rand(n, *shape, generator=rng(9), dtype=dtype)


def test_a_chain_does_one_after_the_other():
    x = images(4)
    drawn = RDED.sample(4, SHAPE, rng())
    first = ShufflePatches(factor=2).apply(x, drawn.parts[0])
    assert torch.equal(RDED.apply(x, drawn), Crops().apply(first, drawn.parts[1]))
    few = RDED.sample(1, SHAPE, rng())
    for own, more in zip(few.parts, drawn.parts, strict=True):
        assert torch.equal(own.values, more.values[:1])
    assert not torch.equal(RDED.sample(4, SHAPE, rng(1)).parts[1].values, drawn.parts[1].values)
    assert torch.equal(drawn.to("cpu").parts[1].values, drawn.parts[1].values)
    for parts in ((Crops(),), (), (RDED, Crops())):
        with pytest.raises(InputError, match="two or more policies"):
            Chain(parts=parts)


@pytest.mark.parametrize(("factor", "shape"), [(2, SHAPE), (4, SHAPE), (3, (1, 9, 12))])
def test_cells_are_shuffled_as_a_loop_does(factor, shape):
    x, policy = images(6, shape), ShufflePatches(factor=factor)
    drawn = policy.sample(6, shape, rng(3))
    got, high, wide = policy.apply(x, drawn), shape[1] // factor, shape[2] // factor
    orders = set()
    for k in range(6):
        rows, columns = drawn.values[k].long().split(factor)
        orders.add((*rows.tolist(), *columns.tolist()))
        for i in range(factor):
            for j in range(factor):
                a, b = int(rows[i]), int(columns[j])
                want = x[k, :, a * high : (a + 1) * high, b * wide : (b + 1) * wide]
                have = got[k, :, i * high : (i + 1) * high, j * wide : (j + 1) * wide]
                assert torch.equal(have, want)
    assert len(orders) > 2
    one = policy.sample(1, shape, rng(3))
    assert torch.equal(one.values, drawn.values[:1])
    assert torch.equal(policy.apply(x, one)[:1], got[:1])
    assert torch.autograd.gradcheck(lambda t: policy.apply(t, drawn), x.requires_grad_())


def test_orders_are_uniform():
    values = ShufflePatches(factor=2).sample(20_000, SHAPE, rng()).values
    share = (values[:, [0, 2]] == 0).double().mean(0)
    assert (share - 0.5).abs().max() < 0.02
    with pytest.raises(InputError, match="12x8 cannot be cut into 5 x 5"):
        ShufflePatches(factor=5).sample(1, SHAPE, rng())
    with pytest.raises(InputError, match="are 2 or more"):
        ShufflePatches(factor=1)


@pytest.mark.parametrize("magnitude", [0, 9, 30])
def test_every_change_is_torchvisions(magnitude):
    """Blends cut to whole levels, so the last bit of a strength may be one level."""
    import_torchvision()
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.autoaugment import RandAugment as Theirs
    from torchvision.transforms.autoaugment import _apply_op

    space = Theirs()._augmentation_space(31, (32, 32))
    pixels = torch.randint(0, 256, (2, 3, 32, 32), generator=rng(), dtype=torch.uint8)
    policy = RandAugment(count=1, magnitude=magnitude)
    for k, (name, (sizes, signed)) in enumerate(space.items()):
        assert CHANGES[k][1] == signed
        for way in (1, -1) if signed else (1,):
            size = way * float(sizes[magnitude]) if sizes.ndim else 0.0
            want = _apply_op(pixels, name, size, InterpolationMode.NEAREST, None)
            values = torch.tensor([[k, way]], dtype=torch.float64)
            drawn = policy.sample(1, (3, 32, 32), rng())
            got = policy.apply(pixels.double() / 255, type(drawn)(ops=drawn.ops, values=values))
            off = (got * 255 - want).abs()
            blend = name in ("Brightness", "Color", "Contrast", "Sharpness")
            assert off.max() <= (1 if blend else 0), name


def test_randaugment_draws_each_change_alike_and_takes_pixels_only():
    policy = RandAugment()
    values = policy.sample(14_000, SHAPE, rng()).values
    counts = torch.bincount(values[:, :2].flatten().long(), minlength=14)
    assert len(counts) == 14
    assert (counts - 2000).abs().max() < 5 * math.sqrt(2000)
    assert values[:, 2:].unique().tolist() == [-1.0, 1.0]
    x = images(3, dtype=torch.float32)
    drawn = policy.sample(3, SHAPE, rng(1))
    apart = [
        policy.apply(x[k : k + 1], type(drawn)(ops=drawn.ops, values=drawn.values[k : k + 1]))
        for k in range(3)
    ]
    assert torch.equal(policy.apply(x, drawn), torch.cat(apart))
    with pytest.raises(InputError, match=r"pixels in \[0, 1\]"):
        policy.apply(x - 0.5, drawn)
    for wrong in ({"count": 0}, {"magnitude": 31}):
        with pytest.raises(InputError, match="RandAugment takes"):
            RandAugment(**wrong)


def test_mixup_adds_parts_of_images_and_targets():
    mix, ratios = MixUp(alpha=0.8), []
    x, y = images(5), torch.rand(5, 4, generator=rng(2), dtype=torch.float64)
    for seed in range(400):
        mixing = mix.sample(5, SHAPE, rng(seed))
        own, partner = mixing.ratio, mixing.partner
        ratios.append(own)
        if seed < 5:
            assert sorted(partner.tolist()) == list(range(5))
            got, targets = mix.apply(x, y, mixing)
            assert (got - (own * x + (1 - own) * x[partner])).abs().max() < 1e-15
            assert (targets - (own * y + (1 - own) * y[partner])).abs().max() < 1e-15
            assert torch.equal(mix.images(x, mixing), got)
    assert stats.kstest(ratios, stats.beta(0.8, 0.8).cdf).pvalue > 0.01
    for alpha in (0.0, -1.0, math.nan):
        with pytest.raises(InputError, match="alpha of MixUp"):
            MixUp(alpha=alpha)


def test_texts_and_json():
    for policy in (RDED, RandAugment(count=3), ShufflePatches(factor=4), MixUp(alpha=0.2)):
        assert from_json(to_json(policy)) == policy
    spec = TrainSpec(lr=1, segments=(Segment(epochs=1),), optimizer=SGD(), mix=MixUp())
    assert from_json(to_json(spec)) == spec
    for policy in (
        *(Crops(scale=(0.5, 1.0)), Crops(flip_prob=0.0, roll=0.25, two_sided=True)),
        *(Crops(ratio=(1.0, 1.0), shared=True), Crops()),
    ):
        assert policy_of(text_of(policy)) == policy
    assert text_of(Crops(scale=(0.5, 1.0), flip_prob=0.0)) == "crops:scale=0.5-1.0,flip_prob=0.0"
    assert text_of(RDED) == "shuffle+crops:scale=0.5-1.0"
    assert text_of(Chain(parts=(DSA(strategy="cutout", mode="M"), RandAugment()))) == (
        "cutout:M+randaugment"
    )
    for name in ("views", "shuffle", "randaugment", "chain"):
        with pytest.raises(InputError, match="for protocols and recipes only"):
            policy_of(name)
    for text, message in (
        ("crops:M", "setting of the policy crops"),
        ("crops:scale=1", "two numbers"),
        ("crops:flip_prob=a", "written as flip_prob=0.5"),
        ("crops:shared=1", "written as shared=False"),
    ):
        with pytest.raises(InputError, match=message):
            policy_of(text)
    assert (text_of(Views()), text_of(None)) == ("views", "none")
    assert CutMix(prob=1.0).prob == MixUp().prob
