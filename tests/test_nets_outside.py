"""Networks from outside: torchvision with and without weights, timm, the user's own functions."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from potstill import cli
from potstill.core.errors import InputError, WorkError
from potstill.core.keys import forked
from potstill.core.vision import import_torchvision
from potstill.functional import SGD, Adam, Batch, Segment, TrainSpec, fit, unroll
from potstill.nets import EXTERNAL, NETS, FlatNet, NetSpec, build, filled, hindrance

torch.set_num_threads(1)


def made(name: str, *, channels: int = 3, size=32, classes: int = 10, seed: int = 0, **settings):
    size = size if isinstance(size, tuple) else (size, size)
    spec = NetSpec(name=name, **settings)
    return build(spec, channels=channels, size=size, classes=classes, seed=seed)


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.fixture(scope="module")
def models():
    try:
        return import_torchvision().models
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture
def timm():
    import_torchvision()
    return pytest.importorskip("timm", reason="the extra `nets` is not installed")


# ---- torchvision ------------------------------------------------------------------------------


def test_torchvision_takes_any_channels_and_classes(models):
    with torch.device("meta"):
        assert count(made("torchvision:resnet18")) == 11_181_642
        assert count(made("torchvision:resnet18", channels=1)) == 11_181_642 - 2 * 64 * 49
        assert count(made("torchvision:resnet18", classes=1000)) == 11_689_512
        net = made("torchvision:vit_b_16", size=48)
    assert net.get_parameter("encoder.pos_embedding").shape[1] == 1 + 9


def test_torchvision_is_keyed_and_leaves_the_generator(models):
    before = torch.random.get_rng_state()

    def weights(seed: int, **images) -> torch.Tensor:
        return FlatNet(made("torchvision:squeezenet1_1", seed=seed, **images)).theta0

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
    assert torch.equal(weights(1, channels=5), weights(1, channels=5))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "images", "message"),
    [
        ("resnet81", {}, "Unknown torchvision network 'resnet81': did you mean 'resnet18'"),
        (
            "alexnet",
            {"size": 20},
            r"alexnet does not work on images of 3x20x20 and 10 classes "
            r"\(RuntimeError.*\); squares of 64, 96, 128, 224, 256, 384 pixels would do\.$",
        ),
        ("vit_b_16", {"size": (32, 48)}, "takes square images, not 32x48"),
        ("vit_b_16", {"size": 30}, "indivisible by patch size.*squares of 32, 64, "),
        ("resnet18@IMAGENET", {}, "weights of torchvision:resnet18 'IMAGENET': did you mean"),
        ("resnet18@DEFAULT", {}, "weights of torchvision:resnet18 'DEFAULT'"),
        ("resnet18@IMAGENET1K_V1", {"channels": 1}, "take 3 channels, not 1"),
        ("vit_b_16@IMAGENET1K_V1", {"size": 32}, "take 224x224 pixels only"),
    ],
)
def test_torchvisions_mistakes_are_one_sentence(models, name, images, message):
    with torch.device("meta"), pytest.raises(InputError, match=message):
        made(f"torchvision:{name}", **images)


class Published:
    """A stand-in for published weights: random ones, in a file with the hash in its name."""

    def __init__(self, models, folder: Path, patch: pytest.MonkeyPatch, name: str) -> None:
        self.cache = folder / "cache"
        patch.setenv("POTSTILL_CACHE", str(self.cache))
        self.value = models.get_model_weights(name).IMAGENET1K_V1.value
        with forked(7, name):
            net = models.get_model(name, weights=None)
        self.state = {
            key: value + 1 if value.is_floating_point() else value
            for key, value in net.state_dict().items()
        }
        self.patch, self.folder, self.name = patch, folder, name
        self.write(self.state)

    def write(self, state: object) -> None:
        torch.save(state, self.folder / "weights.pth")
        digest = hashlib.sha256((self.folder / "weights.pth").read_bytes()).hexdigest()[:8]
        self.file = self.folder / f"{self.name}-{digest}.pth"
        (self.folder / "weights.pth").rename(self.file)
        self.patch.setattr(self.value, "url", self.file.as_uri())


@pytest.mark.parametrize(
    ("name", "head"),
    [("squeezenet1_1", "classifier.1"), ("mobilenet_v3_small", "classifier.3")],
)
def test_published_weights_arrive_and_are_kept(models, tmp_path, monkeypatch, name, head):
    """With 1,000 classes all of them, with others all but the last layer; then from the cache."""
    published = Published(models, tmp_path, monkeypatch, name)
    whole = made(f"torchvision:{name}@IMAGENET1K_V1", classes=1000)
    assert whole.state_dict().keys() == published.state.keys()
    assert all(torch.equal(v, published.state[k]) for k, v in whole.state_dict().items())
    assert [f.name for f in (published.cache / "downloads").iterdir()] == [published.file.name]
    published.file.unlink()
    nets = [made(f"torchvision:{name}@IMAGENET1K_V1", seed=seed) for seed in (0, 0, 1)]
    for key, value in nets[0].state_dict().items():
        if not key.startswith(head):
            assert torch.equal(value, published.state[key])
    weights = [net.get_parameter(f"{head}.weight") for net in nets]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert all(net(torch.zeros(2, 3, 32, 32)).shape == (2, 10) for net in nets)


def test_densenets_weights_have_older_names(models, tmp_path, monkeypatch):
    published = Published(models, tmp_path, monkeypatch, "densenet121")
    renamed = {
        key.replace("norm1.", "norm.1.")
        .replace("norm2.", "norm.2.")
        .replace("conv1.", "conv.1.")
        .replace("conv2.", "conv.2."): value
        for key, value in published.state.items()
    }
    assert renamed.keys() != published.state.keys()
    published.write(renamed)
    net = made("torchvision:densenet121@IMAGENET1K_V1", classes=1000)
    assert all(torch.equal(v, published.state[k]) for k, v in net.state_dict().items())


class Evil:
    def __reduce__(self):
        return print, ("run by a pickle",)


@pytest.mark.parametrize("trouble", ["absent", "other bytes", "truncated", "evil", "misfit"])
def test_weights_that_cannot_be_had_are_one_sentence(
    models, tmp_path, monkeypatch, capsys, trouble
):
    published = Published(models, tmp_path, monkeypatch, "squeezenet1_1")
    kept = published.cache / "downloads" / published.file.name
    kept.parent.mkdir(parents=True)
    if trouble == "absent":
        published.file.unlink()
    elif trouble == "other bytes":
        published.file.write_bytes(published.file.read_bytes() + b"?")
    elif trouble == "truncated":
        kept.write_bytes(published.file.read_bytes()[:1000])
    elif trouble == "evil":
        torch.save({"x": Evil()}, kept)
    else:
        torch.save({"x": torch.zeros(1)}, kept)
    with pytest.raises(WorkError) as said:
        made("torchvision:squeezenet1_1@IMAGENET1K_V1")
    assert str(said.value).startswith(f"Cannot get the weights {published.file.name} (")
    assert str(kept.parent) in str(said.value)
    assert "\n" not in str(said.value)
    assert "run by a pickle" not in capsys.readouterr().out


def test_without_torchvision_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(InputError, match=r"pip install 'potstill\[nets\]'"):
        made("torchvision:resnet18")


# ---- timm -------------------------------------------------------------------------------------


def test_timm_takes_channels_classes_and_size(timm):
    resnet = made("timm:test_resnet", channels=2, classes=7, size=(32, 40))
    assert resnet(torch.zeros(3, 2, 32, 40)).shape == (3, 7)
    vit = made("timm:test_vit", channels=1, classes=5, size=48)
    assert vit.get_parameter("pos_embed").shape[1] == 1 + 9
    assert torch.equal(
        FlatNet(resnet).theta0,
        FlatNet(made("timm:test_resnet", channels=2, classes=7, size=(32, 40))).theta0,
    )


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("resnet81", 32, "Unknown timm network 'resnet81': did you mean 'resnet"),
        ("xyzzy", 32, r"Unknown timm network 'xyzzy': timm.list_models\(\) names all"),
        ("resnet18.a1_in1k", 32, "untrained here: timm:resnet18, not timm:resnet18.a1_in1k"),
        ("resnet18@pretrained", 32, "untrained here: timm:resnet18, not"),
        ("test_vit", 30, r"timm:test_vit does not work on images of 3x30x30"),
    ],
)
def test_timms_mistakes_are_one_sentence(timm, name, size, message):
    with torch.device("meta"), pytest.raises(InputError, match=message):
        made(f"timm:{name}", size=size)


def test_without_timm_the_extra_is_named(monkeypatch):
    import_torchvision()
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"timm: pip install 'potstill\[nets\]'"):
        made("timm:resnet18")


# ---- the user's own ---------------------------------------------------------------------------

MINE = """
from torch import nn
import torch

def flat(*, channels, size, classes):
    inputs = channels * size[0] * size[1]
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(inputs, classes))

def positional(channels, size, classes):
    return flat(channels=channels, size=size, classes=classes)

def square64(*, channels, size, classes):
    return nn.Sequential(nn.AvgPool2d(16), nn.Flatten(), nn.Linear(channels * 16, classes))

def raises(*, channels, size, classes):
    raise KeyError("two\\nlines")

def nothing(*, channels, size, classes):
    pass

def other(*, width):
    pass

def wrong(*, channels, size, classes):
    return flat(channels=channels, size=size, classes=classes + 1)

class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 2)
    def forward(self, x):
        y = self.head(x.mean((2, 3)))
        return y, y

def pair(*, channels, size, classes):
    return Pair()

def empty(*, channels, size, classes):
    return nn.Flatten()

def frozen(*, channels, size, classes):
    net = flat(channels=channels, size=size, classes=classes)
    net[2].bias.requires_grad = False
    return net
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module `mine_<n>` in the current directory, imported by nobody before."""
    name = f"mine_{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:8]}"
    (tmp_path / f"{name}.py").write_text(MINE)
    (tmp_path / "broken_one.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    return f"module:{name}"


def test_own_functions_are_found_in_the_current_directory(mine):
    path = list(sys.path)
    for name in ("flat", "positional"):
        net = made(f"{mine}.{name}", channels=2, size=(4, 5), classes=3)
        assert net(torch.zeros(6, 2, 4, 5)).shape == (6, 3)
    assert sys.path == path


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("absent", r"has no function absent\.$"),
        ("raises", r"raises failed for channels=3, size=\(32, 32\), classes=10 \(KeyError"),
        ("nothing", "returned a NoneType, not a torch module"),
        ("other", "failed for .*TypeError.*unexpected keyword argument"),
        ("wrong", r"for 2 images it returns \[2, 11\], not \[2, 10\]"),
        ("pair", "it returns a tuple, not one tensor of logits"),
        ("empty", "it has no parameters"),
        ("frozen", r"its parameter 2\.bias is frozen, but all would be trained; make it a buffer"),
        ("square64", r"3x32x32 and 10 classes \(RuntimeError.*\); squares of 64 pixels would do"),
    ],
)
def test_own_mistakes_are_one_sentence(mine, function, message):
    with pytest.raises(InputError, match=message) as said:
        made(f"{mine}.{function}")
    assert "\n" not in str(said.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("module:nodots", "should be module:PACKAGE.FUNCTION"),
        ("module:there.is.none", "There is no module there for module:there.is.none"),
        ("module:broken_one.f", "broken_one cannot be imported .*SyntaxError"),
        ("modul:a.b", "source of networks 'modul': did you mean 'module'"),
    ],
)
def test_modules_that_cannot_be_imported(mine, name, message):
    with pytest.raises(InputError, match=message):
        made(name)


def test_outside_networks_have_no_settings(mine):
    with pytest.raises(InputError, match=r"has no setting width \(8\); it has no settings"):
        filled(NetSpec(name=f"{mine}.flat", width=8))
    assert filled(NetSpec(name=f"{mine}.flat")) == NetSpec(name=f"{mine}.flat")


# ---- together ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["torchvision:squeezenet1_1", "timm:test_vit", "mine"])
def test_fit_trains_them(mine, models, timm, name):
    """As a function of one vector; dropout is keyed, running statistics follow."""
    losses: list[float] = []
    net = FlatNet(made(name.replace("mine", f"{mine}.flat"), classes=2))
    g, labels = torch.Generator().manual_seed(0), torch.arange(8) % 2
    x = torch.randn(8, 3, 32, 32, generator=g) + labels[:, None, None, None]
    spec = TrainSpec(lr=1e-3, segments=(Segment(epochs=6),), optimizer=Adam(), augment=None)
    ends = [
        fit(net, net.theta0, x, labels, spec, seed=0, on_epoch=lambda e, t, s: losses.append(s))
        for _ in range(2)
    ]
    assert torch.equal(*ends)
    assert losses[5] < losses[0]


def test_fused_attention_can_be_differentiated_twice(timm):
    """A step of unrolled training, against differences; torch's fused attention could not."""
    module = made("timm:test_vit", classes=3, size=32).double()
    assert hindrance(module, 3, (32, 32)) == ""
    net, g = FlatNet(module), torch.Generator().manual_seed(0)
    x, away = torch.randn(2, 2, 3, 32, 32, dtype=torch.float64, generator=g)
    probe = torch.randn(net.numel, dtype=torch.float64, generator=g)

    def trained(images: torch.Tensor) -> torch.Tensor:
        theta = unroll(
            lambda theta, rows: nn.functional.cross_entropy(net(theta, rows[0]), rows[1]),
            net.theta0.requires_grad_(),
            (images, torch.arange(2)),
            torch.tensor(0.1, dtype=torch.float64),
            [Batch(torch.arange(2))],
            optimizer=SGD(),
            strategy="adjoint",
        )
        return theta @ probe

    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(trained(leaf), leaf)
    numeric = (trained(x + 1e-6 * away) - trained(x - 1e-6 * away)) / 2e-6
    assert (grad * away).sum().item() == pytest.approx(numeric.item(), rel=1e-5)


def test_the_listing_names_all(capsys):
    assert cli.run(["nets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    texts = dict(line.split(maxsplit=1) for line in lines)
    assert list(texts) == [*NETS.names(), *(source.form for source in EXTERNAL.values())]
    named = [text for name, text in texts.items() if name in NETS.names()]
    assert len(set(named)) == len(named)
    assert max(map(len, lines)) <= 110
