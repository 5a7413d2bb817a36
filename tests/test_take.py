"""Teachers from elsewhere: files, published weights, and what is wrong with some of them."""

from __future__ import annotations

import argparse
import hashlib
import shutil
from dataclasses import replace

import pytest
import torch
from torch import nn

from potstill.core.compute import Compute
from potstill.core.errors import InputError
from potstill.core.keys import forked, generator
from potstill.core.store import Store
from potstill.core.vision import import_torchvision
from potstill.data import MeanStd, from_arrays, measure_stats
from potstill.engine import run_tasks
from potstill.functional import SGD
from potstill.functional.cosine import cosine_segments
from potstill.nets import NetSpec, build
from potstill.teachers import (
    CIFAR100,
    TINY,
    Squeeze,
    TeacherPlan,
    check_facts,
    open_teacher,
    planned,
    read_teacher,
    taken,
    teacher_facts,
)
from potstill.teachers import take as take_module

OWN = NetSpec(name="resnet10-bn", width=4)
CPU = Compute(threads=1)


@pytest.fixture
def data(alone):
    """Return images of four classes, bright in one of four corners."""
    labels = torch.arange(120) % 4
    pixels = torch.randint(0, 60, (120, 3, 12, 12), generator=generator(0, "test"))
    for k, label in enumerate(labels):
        top, left = 6 * (label // 2), 6 * (label % 2)
        pixels[k, :, top : top + 6, left : left + 6] += 120
    return from_arrays(pixels.byte(), labels, validation=0.2)


@pytest.fixture
def trained(data):
    """Return a network that knows these classes."""
    module = build(OWN, channels=3, size=(12, 12), classes=4, seed=0).train()
    adam, space = torch.optim.Adam(module.parameters(), lr=0.01), measure_stats(data.train)
    x = space.forward(data.train.pixels)
    for _ in range(12):
        adam.zero_grad()
        nn.functional.cross_entropy(module(x), data.train.labels).backward()
        adam.step()
    for _ in range(20):
        module(x)
    return module.eval()


def tasks_of(data, *nets, space=None, **options):
    space = space or measure_stats(data.train)
    plan = TeacherPlan(nets=tuple(map(str, nets)), **options)
    return planned(plan, data, space, OWN, seed=0, compute=CPU)


def take(data, store, *nets, **options):
    return run_tasks(tasks_of(data, *nets, **options), Store(store))


def test_all_forms_of_a_file_are_one_teacher(data, trained, tmp_path, monkeypatch):
    from safetensors.torch import save_file

    state, files = trained.state_dict(), []
    settings = argparse.Namespace(lr=0.2, model="resnet18", output_dir="x", workers=[1, 2])
    checkpoint = {"model": state, "optimizer": {"state": {}}, "epoch": 49, "args": settings}
    forms = {
        "plain.pth": state,
        "sre2l.pth": checkpoint,
        "lightning.pt": {"state_dict": state, "epoch": 3},
        "gpus.pth": {f"module.{name}": value for name, value in state.items()},
        "old.pth": {n: t for n, t in state.items() if not n.endswith("num_batches_tracked")},
    }
    for name, held in forms.items():
        files.append(tmp_path / name)
        torch.save(held, files[-1])
    files.append(tmp_path / "plain.safetensors")
    save_file({name: value.contiguous() for name, value in state.items()}, files[-1])
    x = measure_stats(data.train).forward(data.val.pixels)
    with torch.no_grad():
        want = trained(x)
    for file in files:
        (folder,) = take(data, tmp_path / "store", f"own@{file}")
        teacher = read_teacher(folder)
        assert torch.equal(open_teacher(teacher, folder)(x), want)
        facts = teacher_facts(folder)
        right = float((want.argmax(1) == data.val.labels).float().mean())
        assert facts["validation_accuracy"] == right > 0.9
        assert facts["weights"] == file.name
        assert facts["validation_images"] == len(data.val)
    monkeypatch.setattr(take_module, "LOOKED", 6)
    (few,) = take(data, tmp_path / "other", f"own@{file}")
    right = (want.argmax(1) == data.val.labels)[[0, 4, 8, 11, 15, 19]].float().mean()
    assert teacher_facts(few)["validation_accuracy"] == float(right)
    shutil.copytree(folder, tmp_path / "kept")
    (again,) = take(data, tmp_path / "store", f"own@{tmp_path / 'kept'}")
    assert read_teacher(again) == teacher
    assert teacher_facts(again)["recorded_accuracy"] == facts["validation_accuracy"]
    check_facts(teacher_facts(again), teacher)
    with pytest.raises(InputError, match="order of the"):  # knows less here than it is known for
        check_facts({"validation_accuracy": 0.49, "recorded_accuracy": 0.99}, teacher)
    part = data.train.pixels, data.train.labels
    renamed, space = from_arrays(*part, classes="abdc", validation=0.2), measure_stats(data.train)
    with pytest.raises(InputError, match="or come in another order"):
        take(renamed, tmp_path / "renamed", f"own@{tmp_path / 'kept'}", space=space)
    grey = MeanStd(mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(InputError, match="not what is asked for"):
        take(data, tmp_path / "store", f"own@{tmp_path / 'kept'}", space=grey)


class Bad:
    """Something that would run code when it is unpickled."""

    def __reduce__(self):
        return print, ("never",)


def test_weights_that_are_not_those_of_the_network(data, trained, tmp_path, capsys):
    state = trained.state_dict()
    wide = build(replace(OWN, width=8), channels=3, size=(12, 12), classes=4, seed=0).state_dict()
    cases = {
        "lacks 1 weight such as fc.bias": {n: t for n, t in state.items() if n != "fc.bias"},
        "has, unlike the network, 1 weight such as more": {**state, "more": torch.ones(1)},
        r"conv1.weight of shape \[8, 3, 3, 3\]; the network's is \[4, 3": wide,
        "NaN": {**state, "fc.bias": torch.full((4,), torch.nan)},
        "holds a list of 1, not the weights": [torch.ones(2)],
        "not the weights of a network": {"epoch": 3},
        "asks for print": {"model": state, "args": Bad()},
    }
    for number, (message, held) in enumerate(cases.items()):
        torch.save(held, file := tmp_path / f"{number}.pth")
        with pytest.raises(InputError, match=message):
            take(data, tmp_path / "store", f"own@{file}")
    whole = (tmp_path / "0.pth").read_bytes()
    for name, message in (("cut.pth", "damaged"), ("cut.safetensors", "not a file of safetensors")):
        (tmp_path / name).write_bytes(whole[:500])
        with pytest.raises(InputError, match=message):
            take(data, tmp_path / "store", f"own@{tmp_path / name}")
    with pytest.raises(InputError, match=r"no file nowhere\.pth with weights of resnet10-bn\."):
        take(data, tmp_path / "store", "own@nowhere.pth")
    still = build(NetSpec(name="convnet2", width=8), channels=3, size=(12, 12), classes=4, seed=0)
    torch.save(still.state_dict(), tmp_path / "still.pth")
    with pytest.raises(InputError, match="no batch norm"):
        take(data, tmp_path / "store", f"convnet2@{tmp_path / 'still.pth'}")
    assert "never" not in capsys.readouterr().out


def test_timm_takes_weights_from_a_file(data, tmp_path):
    import_torchvision()
    timm = pytest.importorskip("timm", reason="the extra `nets` is not installed")
    with forked(0, "test"):
        net = timm.create_model("resnet10t", num_classes=4).eval()
    torch.save(net.state_dict(), tmp_path / "net.pth")
    (folder,) = take(data, tmp_path / "store", f"timm:resnet10t@{tmp_path / 'net.pth'}")
    x = measure_stats(data.train).forward(data.val.pixels)
    with torch.no_grad():
        assert torch.equal(open_teacher(read_teacher(folder), folder)(x), net(x))


def test_published_weights(alone, data, tmp_path, monkeypatch):
    try:
        models = import_torchvision().models
    except InputError as error:
        pytest.skip(str(error))
    name, images = "mobilenet_v3_small", torch.arange(3000)[:, None, None, None] % 251
    many = from_arrays(
        images.expand(-1, 3, 12, 12).byte(),
        torch.arange(3000) % 1000,
        test_images=torch.zeros(1000, 3, 12, 12, dtype=torch.uint8),
        test_labels=torch.arange(1000),
        validation=0.34,
    )
    with forked(7, "test"):
        net = models.get_model(name, weights=None)
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    digest = hashlib.sha256((tmp_path / "weights.pth").read_bytes()).hexdigest()[:8]
    file = (tmp_path / "weights.pth").rename(tmp_path / f"{name}-{digest}.pth")
    weights = models.get_model_weights(name).IMAGENET1K_V1
    monkeypatch.setattr(weights.value, "url", file.as_uri())
    space = MeanStd(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    full = f"torchvision:{name}@IMAGENET1K_V1"
    (folder,) = take(many, tmp_path / "store", full, space=space)
    teacher = read_teacher(folder)
    assert teacher.net == NetSpec(name=f"torchvision:{name}")
    state = open_teacher(teacher, folder).state_dict()
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    for which, options, message in (
        (data, {"space": space}, "knows 1000 classes, the data have 4"),
        (many, {}, "--normaliser imagenet@dc"),
    ):
        with pytest.raises(InputError, match=message):
            tasks_of(which, full, **options)
    with pytest.raises(InputError, match=r"no file V9 .* publishes only IMAGENET1K_V1"):
        tasks_of(many, f"torchvision:{name}@V9", space=space)


def test_plans(data, trained, tmp_path):
    torch.save(trained.state_dict(), file := tmp_path / "net.pth")
    both = tasks_of(data, "own", f"own@{file}", "own")
    assert [type(spec).__name__ for spec in both.specs] == [
        "TeacherSpec",
        "TakeSpec",
        "TeacherSpec",
    ]
    assert both.specs[0] != both.specs[2]
    assert taken(both).specs == both.specs[1:2]
    assert tasks_of(data, "convnet2", norm="batch").specs[0].net.norm == "batch"
    with pytest.raises(InputError, match="no batch norm"):
        tasks_of(data, "convnet2")
    with pytest.raises(InputError, match="so its training has no settings"):
        TeacherPlan(nets=("own@a",), training=Squeeze(lr=0.1))
    with pytest.raises(InputError, match="must be different"):
        TeacherPlan(nets=("own@a", "own", "own@a"))
    for wrong in ({"epochs": 5}, {"batch": 0}, {"lr": 0.0}, {"momentum": 1.5}):
        with pytest.raises(InputError):
            Squeeze(**wrong)
    for scale in ("smoke", "cpu"):
        TeacherPlan(nets=("own@a",)).scaled(scale)


def test_published_trainings():
    assert (TINY.lr, TINY.epochs, TINY.warmup, TINY.batch) == (0.2, 50, 5, 256)
    assert (CIFAR100.lr, CIFAR100.epochs, CIFAR100.warmup, CIFAR100.batch) == (0.1, 200, 0, 128)
    for squeeze, decay in ((TINY, 1e-4), (CIFAR100, 5e-4)):
        assert squeeze.spec.optimizer == SGD(momentum=0.9, weight_decay=decay)
        assert squeeze.spec.segments == cosine_segments(squeeze.epochs, warmup=squeeze.warmup)
    assert TINY.augment.scale == (0.08, 1.0)
    assert TINY.augment.ratio == (3 / 4, 4 / 3)
    assert TINY.augment.flip_prob == 0.5
