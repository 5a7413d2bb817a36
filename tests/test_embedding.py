"""Sets whose targets are features of an encoder: kept, loaded, and pre-trained on."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from potstill.artefact import Embedding, Encoded, Hard, load, set_digest
from potstill.artefact.preview import sheet
from potstill.core import keys
from potstill.core.errors import InputError
from potstill.functional import SGD, Segment, TrainSpec, fit
from potstill.functional.losses import each, mse
from potstill.nets import NetSpec, build, flat
from test_artefact import SPACE, assert_same, colours, make

RECIPE = TrainSpec(
    lr=0.1, segments=(Segment(epochs=3),), batch=4, optimizer=SGD(), loss="mse", augment=None
)
BY = Encoded(digest="cd" * 32, net=NetSpec(name="resnet18"), space=SPACE, scale="standardised")
D = 5


def features(n=6, seed=0):
    return 3 * torch.randn(n, D, generator=torch.Generator().manual_seed(seed))


def embedded(own=True, **changes):
    pictures, labels = colours()
    targets = Embedding(features(), labels if own else None, BY)
    return make(pictures, labels, **{"targets": targets, "recipe": RECIPE, "blocks": ()} | changes)


@pytest.mark.parametrize("own", [True, False])
def test_the_round_trip_keeps_float16_values_exactly(tmp_path, own):
    s = embedded(own)
    s.save(tmp_path / "a")
    read = load(tmp_path / "a")
    assert_same(s, read)
    assert read.targets.features.dtype == torch.float16
    assert read.targets.values.dtype == torch.float32
    torch.testing.assert_close(read.targets.values, features(), rtol=2**-11, atol=0)
    assert not torch.equal(read.targets.values, features())  # they are rounded
    assert (read.targets.by, set_digest(read)) == (BY, set_digest(s))
    assert (read.targets.own is None) == (not own)
    read.save(tmp_path / "b")
    for name in ("set.safetensors", "set.json", "README.md", "preview.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_card_bytes_and_preview_tell_what_it_is(tmp_path):
    s = embedded()
    assert s.nbytes()["targets"] == 6 * D * 2
    s.save(tmp_path / "a")
    card = (tmp_path / "a" / "README.md").read_text()
    assert 'encoder = potstill.load("path/to/this/folder").pretrain("convnet2")' in card
    for line in (f"| encoder.digest | {BY.digest} |", "| encoder.scale | standardised |"):
        assert line in card
    assert "| encoder.net.name | resnet18 |" in card
    assert "| encoder.space.mean | 0.5, 0.4, 0.3 |" in card
    assert "| targets | embedding |" in card
    assert f"| features | {D} |" in card
    assert "2 images per class" in card
    unknown = embedded(own=False)
    unknown.save(tmp_path / "b")
    assert "which images are of which is not known" in (tmp_path / "b" / "README.md").read_text()
    assert sheet(unknown).height < sheet(s).height  # one row, not three


def test_digests_tell_features_and_classes_apart():
    s = embedded()
    other = embedded(targets=Embedding(features(seed=1), s.targets.own, BY))
    rounded = embedded(targets=Embedding(s.targets.kept, s.targets.own, BY))
    assert len({set_digest(each) for each in (s, other, embedded(own=False))}) == 3
    assert set_digest(rounded) == set_digest(s)


def plain(s, net, seed, steps=3):
    """Train by torch's own SGD in the order of `fit`; return the module."""
    module = build(net, channels=3, size=(16, 16), classes=D, seed=seed, key=("pretrain",))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for epoch in range(steps):
        order = torch.randperm(6, generator=keys.generator(seed, "pretrain", "epoch", epoch))
        for rows in order.split(4):
            optimizer.zero_grad()
            F.mse_loss(module(s.images[rows]), s.targets.values[rows]).backward()
            optimizer.step()
    return module.eval()


def test_pretraining_equals_a_plain_loop():
    s = embedded()
    encoder, module = s.pretrain(seed=7), plain(s, s.net, 7)
    pictures = (colours(seed=3)[0] * 255).to(torch.uint8)
    kept = []
    list(module.modules())[-1].register_forward_pre_hook(lambda _, x: kept.append(x[0]))
    module(SPACE.forward(pictures))
    found = encoder(pictures)
    assert found.shape == (6, 16 * 4 * 4)
    torch.testing.assert_close(found, kept[0].flatten(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoder(pictures / 255), found, rtol=1e-5, atol=1e-6)
    untrained = dataclasses.replace(RECIPE, lr=1e-30)
    still = embedded(recipe=untrained).pretrain(seed=7)(pictures)
    assert not torch.allclose(still, found, rtol=1e-2)  # it learned something
    assert not encoder.training
    assert s.pretrain("convnet1", seed=7)(pictures).shape == (6, 1024)


def test_the_loss_is_the_mean_over_images_and_dimensions():
    x, y = features().double(), features(seed=1).double()
    assert mse(x, y).item() == pytest.approx(((x - y) ** 2).sum().item() / (6 * D), rel=1e-14)
    torch.testing.assert_close(each(mse, x, y), ((x - y) ** 2).sum(1) / D, rtol=1e-14, atol=0)
    net = flat(NetSpec(name="convnet1", width=4), channels=3, size=(16, 16), classes=D, seed=0)
    with pytest.raises(InputError, match=r"features \[N, D\], not torch.int64 \[6\]"):
        fit(net, net.theta0, colours()[0], colours()[1], RECIPE, seed=0)
    with pytest.raises(InputError, match="'mse' take no mix, lesson or smoothing"):
        dataclasses.replace(RECIPE, smoothing=0.1)


def test_parts_of_a_set_keep_their_features():
    s = embedded()
    part = s.taken(torch.tensor([4, 1]))
    assert torch.equal(part.targets.values, s.targets.values[[4, 1]])
    assert part.targets.classes.tolist() == [2, 0]
    assert part.targets.by == BY
    assert s.cut(1).targets.classes.tolist() == [0, 1, 2]
    assert isinstance(s.hardened().targets, Hard)
    assert s.hardened().recipe.loss == "ce"
    balanced = dataclasses.replace(RECIPE, balanced=2)
    assert embedded(recipe=balanced).pretrain()(s.view()).shape == (6, 256)


def test_what_does_not_fit_is_refused_in_a_sentence():
    s = embedded()
    with pytest.raises(InputError, match=r"pretrain\(net\) returns an encoder"):
        s.train()
    with pytest.raises(InputError, match=r"classes, not features of an encoder: use train\(net\)"):
        make().pretrain()
    for targets, said in (
        (Embedding(features(5), None, BY), "6 images but 5 targets"),
        (Embedding(torch.ones(6, D, dtype=torch.int64)), r"floating \[N, D\], not torch.int64"),
        (Embedding(1e5 * features()), "below 65,504"),
        (Embedding(features() / 0), "must be finite"),
        (Embedding(features(), torch.full((6,), 9)), "must lie in 0 to 2"),
    ):
        with pytest.raises(InputError, match=said):
            embedded(targets=targets)
    with pytest.raises(InputError, match="Embedding targets need loss 'mse', not 'ce'"):
        embedded(recipe=dataclasses.replace(RECIPE, loss="ce"))
    with pytest.raises(InputError, match="need the class of each image"):
        embedded(own=False, recipe=dataclasses.replace(RECIPE, balanced=2))
    with pytest.raises(InputError, match="does not tell the classes"):
        embedded(own=False).hardened()
    with pytest.raises(InputError, match="standardised"):
        dataclasses.replace(BY, scale="unit")
