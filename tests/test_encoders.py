"""Encoders: filed, trained by themselves, taken from elsewhere, and refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from potstill.core.compute import Compute
from potstill.core.errors import InputError
from potstill.core.keys import forked, generator
from potstill.core.store import Store
from potstill.core.vision import import_torchvision
from potstill.data import MeanStd, from_arrays, named_stats
from potstill.engine import run_tasks
from potstill.nets import NetSpec, build, projected
from potstill.nets.hidden import features
from potstill.nets.projector import HEADS
from potstill.teachers import (
    EncoderPlan,
    encoder_facts,
    encoder_phase,
    keep_encoder,
    keep_teacher,
    open_encoder,
    read_encoder,
)

NET = NetSpec(name="resnet10-bn", width=4)
SPACE = MeanStd(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))
SHAPE = (3, 12, 12)
SOLO = "cifar100@sololearn"
CPU = Compute(threads=1)


@pytest.fixture
def data(alone):
    """Return noise of three classes."""
    pixels = torch.randint(0, 256, (60, *SHAPE), generator=generator(0, "test"))
    return from_arrays(pixels.byte(), torch.arange(60) % 3, validation=0.2)


def trained(classes: int = 3) -> nn.Module:
    """Return a network whose running statistics are those of some noise."""
    module = build(NET, channels=3, size=SHAPE[1:], classes=classes, seed=0).train()
    with torch.no_grad():
        module(torch.randn(16, *SHAPE, generator=generator(0, "noise")))
    return module.eval()


def kept(folder, module=None, **changes):
    folder.mkdir()
    options = {"net": NET, "space": SPACE, "shape": SHAPE} | changes
    return keep_encoder(trained() if module is None else module, folder, **options)


def taken(data, store, net, *, own=NET, **options):
    phase = encoder_phase(EncoderPlan(net=net, **options), data, own, seed=0, compute=CPU)
    (folder,) = run_tasks(phase, Store(store))
    return folder


def test_an_encoder_gives_the_features_of_its_network(tmp_path):
    module, encoder = trained(), kept(tmp_path / "a")
    assert read_encoder(tmp_path / "a") == encoder
    opened, x = open_encoder(encoder, tmp_path / "a"), torch.rand(5, *SHAPE)
    with torch.no_grad():
        want = features(module, module, x, name="it")
        assert torch.equal(opened(x), want)
    assert encoder.width == want.shape[1] == 32
    assert not opened.training
    assert not any(p.requires_grad for p in opened.parameters())
    assert "fc.weight" not in "".join(opened.state_dict())
    other = build(NET, channels=3, size=SHAPE[1:], classes=7, seed=5)  # another last layer only
    state = {n: t for n, t in module.state_dict().items() if not n.startswith("fc.")}
    other.load_state_dict(state, strict=False)
    assert kept(tmp_path / "b", other) == encoder
    assert kept(tmp_path / "c", opened) == encoder
    elsewhere = replace(SPACE, mean=(0.0,) * 3)
    assert kept(tmp_path / "d", space=elsewhere).digest != encoder.digest
    for wrong in (replace(encoder, space=elsewhere), replace(encoder, digest="0" * 64)):
        with pytest.raises(InputError, match="another encoder"):
            open_encoder(wrong, tmp_path / "a")


def test_folders_that_hold_no_encoder(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match="There is no file"):
        read_encoder(tmp_path / "a")
    (tmp_path / "a" / "encoder.json").write_text("{}")
    with pytest.raises(InputError, match="does not describe an encoder"):
        encoder_facts(tmp_path / "a")
    with torch.no_grad():
        next((module := trained()).parameters()).fill_(torch.nan)
    with pytest.raises(InputError, match="NaN"):
        kept(tmp_path / "b", module)
    whole = projected(NET, HEADS["toy"], channels=3, size=SHAPE[1:], seed=0)
    encoder = kept(tmp_path / "c", whole.load(whole.theta0))
    assert encoder.width == 32


def forms():
    """Return checkpoints of the same network, and what is left out of each."""
    state = {n: t.clone() for n, t in trained().state_dict().items()}
    bare = {n: t for n, t in state.items() if not n.startswith("fc.")}
    under = {f"backbone.{n}": t for n, t in bare.items()}
    online = {f"encoder.{n}": t for n, t in bare.items()}
    return {
        "supervised.pth": (state, ["fc"]),
        "bare.pth": (bare, []),
        "krrst.pt": ({**bare, "fc.0.weight": torch.ones(2), "fc.2.bias": torch.ones(3)}, ["fc"]),
        "sololearn.ckpt": (
            {"state_dict": {**under, "projector.0.weight": torch.ones(2, 2),
                            "classifier.weight": torch.ones(3, 32)}, "epoch": 999},
            ["classifier", "projector"],
        ),
        "moco.pth": ({**online, "queue": torch.ones(2)}, ["queue"]),
        "gpus.pth": ({f"module.{n}": t for n, t in state.items()}, ["fc"]),
        "old.pth": ({n: t for n, t in state.items() if "tracked" not in n}, ["fc"]),
    }  # fmt: skip


def test_all_forms_of_a_checkpoint_are_one_encoder(data, tmp_path):
    want, x = trained(), named_stats(SOLO).forward(data.val.pixels)
    with torch.no_grad():
        wanted = features(want, want, x, name="it")
    for name, (held, left) in forms().items():
        torch.save(held, tmp_path / name)
        folder = taken(data, tmp_path / "store", f"own@{tmp_path / name}", space=SOLO)
        encoder = read_encoder(folder)
        assert torch.equal(open_encoder(encoder, folder)(x), wanted), name
        assert encoder.space == named_stats(SOLO)
        facts = encoder_facts(folder)
        assert facts["left_out"] == left
        assert facts["weights"] == name
        assert 0 <= facts["validation_knn"] <= 1


def test_folders_of_potstill_know_their_normaliser(data, tmp_path):
    encoder = kept(tmp_path / "mine")
    store = tmp_path / "store"
    again = taken(data, store, f"own@{tmp_path / 'mine'}")
    assert read_encoder(again) == encoder
    (teacher := tmp_path / "teacher").mkdir()
    keep_teacher(trained(), teacher, net=NET, space=SPACE, shape=SHAPE, classes=3)
    supervised = taken(data, store, f"own@{teacher}")
    assert read_encoder(supervised) == encoder
    assert encoder_facts(supervised)["left_out"] == ["fc"]
    with pytest.raises(InputError, match=r"by mean 0\.5 0\.4 0\.3.*, not by mean 0\.5071"):
        taken(data, store, f"own@{teacher}", space=SOLO)
    with pytest.raises(InputError, match="or with other settings"):
        taken(data, store, f"own@{teacher}", own=replace(NET, width=8))
    bad = from_arrays(data.train.pixels[:, :, :10, :10], data.train.labels)
    with pytest.raises(InputError, match=r"for images \(3, 12, 12\), not resnet10-bn for \(3, 10"):
        taken(bad, store, f"own@{teacher}")


def test_weights_that_do_not_fit_are_never_skipped(data, tmp_path):
    state = forms()["bare.pth"][0]
    wide = build(replace(NET, width=8), channels=3, size=SHAPE[1:], classes=3, seed=0).state_dict()
    cases = {
        "lacks 1 weight such as conv1.weight": {
            n: t for n, t in state.items() if n != "conv1.weight"
        },
        "has, unlike the network, 1 weight such as layer9.weight": {
            **state, "layer9.weight": torch.ones(1),
        },
        r"conv1.weight of shape \[8, 3, 3, 3\]": wide,
        "NaN": {**state, "conv1.weight": torch.full_like(state["conv1.weight"], torch.nan)},
        "lacks 6": {f"strange.{n}": t for n, t in state.items()},
        "not the weights of a network": {"epoch": 3},
    }  # fmt: skip
    for number, (message, held) in enumerate(cases.items()):
        torch.save(held, file := tmp_path / f"{number}.pth")
        with pytest.raises(InputError, match=message):
            taken(data, tmp_path / "store", f"own@{file}", space=SOLO)
    with pytest.raises(InputError, match="There is no file"):
        taken(data, tmp_path / "store", "own@nowhere.pth", space=SOLO)


def test_normalisers_that_nobody_knows_are_refused(data, tmp_path):
    torch.save(forms()["bare.pth"][0], file := tmp_path / "bare.pth")
    store = tmp_path / "store"
    with pytest.raises(InputError, match=r"Nobody knows how .* are normalised: name its statist"):
        taken(data, store, f"own@{file}")
    with pytest.raises(InputError, match="sololearn"):
        taken(data, store, f"own@{file}", space="cifar10@sololern")
    with pytest.raises(InputError, match="takes images of 1 channels"):
        taken(data, store, f"own@{file}", space="mnist@dc")


def test_weights_of_timm_and_torchvision(data, tmp_path):
    models = import_torchvision().models
    timm = pytest.importorskip("timm", reason="the extra `nets` is not installed")
    with forked(0, "test"):
        net = timm.create_model("resnet10t", num_classes=4).eval()
    torch.save(net.state_dict(), tmp_path / "net.pth")
    name = f"timm:resnet10t@{tmp_path / 'net.pth'}"
    folder = taken(data, tmp_path / "store", name, space=SOLO)
    x = named_stats(SOLO).forward(data.val.pixels)
    with torch.no_grad():
        want = net.forward_head(net.forward_features(x), pre_logits=True)
        assert torch.equal(open_encoder(read_encoder(folder), folder)(x), want)
    assert encoder_facts(folder)["left_out"] == ["fc"]
    weights = models.get_model_weights("mobilenet_v3_small").IMAGENET1K_V1
    plan = EncoderPlan(net=f"torchvision:mobilenet_v3_small@{weights.name}")
    (spec,) = encoder_phase(plan, data, NET, seed=0, compute=CPU).specs
    assert spec.space == MeanStd(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    with pytest.raises(InputError, match=r"not by mean 0\.5071"):
        encoder_phase(replace(plan, space=SOLO), data, NET, seed=0, compute=CPU)
    wrong = EncoderPlan(net="torchvision:mobilenet_v3_small@V9")
    with pytest.raises(InputError, match="publishes only IMAGENET1K_V1"):
        encoder_phase(wrong, data, NET, seed=0, compute=CPU)
