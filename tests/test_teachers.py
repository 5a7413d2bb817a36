"""Teachers: trained, filed, opened, and found out when they do not fit."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from potstill.augment import Crops
from potstill.core.compute import Compute
from potstill.core.errors import InputError, WorkError
from potstill.core.store import Store
from potstill.data import MeanStd, from_arrays, measure_stats
from potstill.engine import run_tasks
from potstill.functional import SGD, Segment, TrainSpec
from potstill.functional.cosine import cosine_segments
from potstill.nets import NetSpec, build
from potstill.teachers import (
    Teacher,
    check_accuracy,
    check_teacher,
    keep_teacher,
    names_of,
    open_teacher,
    read_teacher,
    teacher_accuracy,
    teacher_facts,
    teacher_tasks,
)

SPACE = MeanStd(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))
NET = NetSpec(name="resnet10-bn", width=4)
CPU = Compute(threads=1)
TRAIN = TrainSpec(
    lr=0.1,
    segments=cosine_segments(6, warmup=1),
    batch=20,
    optimizer=SGD(momentum=0.9, weight_decay=1e-4),
    augment=Crops(scale=(0.5, 1.0)),
)


def colours(count=200, classes=4, size=12):
    """Return data whose classes are colours in noise."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % classes
    means = torch.tensor([[200.0, 60, 60], [60, 200, 60], [60, 60, 200], [180, 180, 60]])
    x = means[labels][:, :, None, None] + 40 * torch.randn(
        count, 3, size, size, generator=generator
    )
    names = ("red", "green", "blue", "yellow")[:classes]
    return from_arrays(x.clamp(0, 255).byte(), labels, classes=names, validation=0.2)


@pytest.fixture
def taught(alone, tmp_path):
    """Return a function that files a fresh network whose statistics are those of some noise."""

    def make(classes=3):
        module = build(NET, channels=3, size=(12, 12), classes=classes, seed=0).train()
        with torch.no_grad():
            module(torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(0)))
        (folder := tmp_path / "teacher").mkdir()
        kept = keep_teacher(
            module, folder, net=NET, space=SPACE, shape=(3, 12, 12), classes=classes
        )
        return kept, folder

    return make


def test_a_teacher_learns_and_is_the_same_again(alone, tmp_path):
    data = colours()
    space, found, told = measure_stats(data.train), [], []
    for name in ("one", "two"):
        tasks = teacher_tasks(data, space, NET, TRAIN, seed=0, compute=CPU)
        (folder,) = run_tasks(tasks, Store(tmp_path / name), on_part=lambda *at: told.append(at))
        found.append(read_teacher(folder))
    assert found[0] == found[1]
    assert told[:5] == told[5:] == [(k / 6, f"epoch {k} of 6") for k in range(1, 6)]
    teacher, module = found[0], open_teacher(found[0], folder)
    check_teacher(teacher, data)
    accuracy = teacher_accuracy(space, module, data)
    logits = module(space.forward(data.val.pixels))
    assert accuracy == float((logits.argmax(1) == data.val.labels).float().mean())
    assert accuracy > 0.9
    check_accuracy(accuracy, teacher, recorded=0.95)
    facts = teacher_facts(folder)
    assert facts["validation_accuracy"] == accuracy
    assert len(facts["train_loss"]) == 6
    assert facts["train_loss"][-1] < 0.5 * facts["train_loss"][0]


def test_a_teacher_that_knows_nothing_is_found_out(alone, tmp_path):
    data = colours()
    module = build(NET, channels=3, size=(12, 12), classes=4, seed=0).eval()
    options = {"net": NET, "space": SPACE, "shape": (3, 12, 12), "classes": 4}
    teacher = keep_teacher(module, tmp_path, **options, names=names_of(data.classes))
    with pytest.raises(InputError, match=r"right on .*% of the validation"):
        check_accuracy(teacher_accuracy(SPACE, module, data), teacher)
    for found, recorded, fine in (
        *((0.51, None, True), (0.49, None, False)),  # of 4 classes
        *((0.51, 0.9, True), (0.6, 1.3, False)),
    ):
        if fine:
            check_accuracy(found, teacher, recorded=recorded)
            continue
        with pytest.raises(InputError, match="order of the"):
            check_accuracy(found, teacher, recorded=recorded)
    check_accuracy(0.76, replace(teacher, classes=2))
    with pytest.raises(InputError):
        check_accuracy(0.74, replace(teacher, classes=2))


def test_classes_that_come_in_another_order_are_refused(taught):
    data, (teacher, _) = colours(classes=3), taught()
    check_teacher(teacher, data)  # of classes whose names are not known
    check_teacher(replace(teacher, names=names_of(data.classes)), data)
    shuffled = replace(teacher, names=names_of(("blue", "red", "green")))
    with pytest.raises(InputError, match="another order"):
        check_teacher(shuffled, data)
    for other in (replace(teacher, classes=4), replace(teacher, shape=(1, 12, 12))):
        with pytest.raises(InputError, match="the data have 3 of"):
            check_teacher(other, data)


def test_a_network_without_batch_norm_is_no_teacher(alone):
    data = colours()
    with pytest.raises(InputError, match="no batch norm"):
        teacher_tasks(data, SPACE, NetSpec(name="resnet18"), TRAIN, seed=0, compute=CPU)


def test_a_teacher_that_diverges_is_told(alone, tmp_path):
    tasks = teacher_tasks(colours(), SPACE, NET, replace(TRAIN, lr=1e30), seed=0, compute=CPU)
    with pytest.raises(WorkError, match="ower its step size"):
        run_tasks(tasks, Store(tmp_path / "store"))


def test_cosines_by_epoch():
    def scales(epochs, **options):
        segments = cosine_segments(epochs, **options)
        assert all(s.epochs == 1 and s.optimizer == "carried" for s in segments)
        return [s.lr_scale for s in segments]

    assert scales(4) == pytest.approx([(1 + math.cos(math.pi * e / 4)) / 2 for e in range(4)])
    fkd = scales(300, zeta=2)
    assert fkd[150] == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert 0.5 < fkd[-1] < 0.51
    weight = torch.nn.Parameter(torch.zeros(()))
    sgd = torch.optim.SGD([weight], lr=1.0)
    warm = torch.optim.lr_scheduler.LinearLR(sgd, start_factor=0.01, total_iters=5)
    cool = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, T_max=45)
    both = torch.optim.lr_scheduler.SequentialLR(sgd, [warm, cool], milestones=[5])
    want = []
    for _ in range(50):
        want.append(sgd.param_groups[0]["lr"])
        sgd.step()
        both.step()
    assert scales(50, warmup=5) == pytest.approx(want, rel=1e-6)
    assert sum(s.epochs for s in cosine_segments(50, warmup=5)) == 50
    assert cosine_segments(1) == (Segment(epochs=1, optimizer="carried"),)
    for options in ({"warmup": 5}, {"zeta": 0.5}, {"start": 0.0}):
        with pytest.raises(InputError):
            cosine_segments(5, **options)


def test_a_teacher_is_named_by_its_content(taught, tmp_path):
    teacher, folder = taught()
    assert read_teacher(folder) == teacher
    module = open_teacher(teacher, folder)
    assert not module.training
    assert not any(p.requires_grad for p in module.parameters())
    (again := tmp_path / "again").mkdir()
    options = {"net": NET, "space": SPACE, "shape": (3, 12, 12), "classes": 3}
    assert keep_teacher(module, again, **options) == teacher
    other = keep_teacher(
        module, again, **{**options, "space": MeanStd(mean=(0.0,) * 3, std=(1.0,) * 3)}
    )
    assert other.digest != teacher.digest
    for wrong in (replace(teacher, space=other.space), replace(teacher, digest="0" * 64)):
        with pytest.raises(InputError, match="another teacher"):
            open_teacher(wrong, folder)


def test_weights_that_do_not_fit_are_never_skipped(taught, tmp_path):
    _, folder = taught()
    (other := tmp_path / "other").mkdir()
    module = open_teacher(read_teacher(folder), folder)
    for broken, message in (
        (nn.Sequential(), "lacks"),
        (nn.ModuleDict({**dict(module.named_children()), "extra": nn.Linear(2, 2)}), "has, unlike"),
    ):
        teacher = keep_teacher(broken, other, net=NET, space=SPACE, shape=(3, 12, 12), classes=3)
        with pytest.raises(InputError, match=message):
            open_teacher(teacher, other)
    wide = build(replace(NET, width=8), channels=3, size=(12, 12), classes=3, seed=0)
    teacher = keep_teacher(wide, other, net=NET, space=SPACE, shape=(3, 12, 12), classes=3)
    with pytest.raises(InputError, match="of shape"):
        open_teacher(teacher, other)
    with torch.no_grad():
        next(wide.parameters()).fill_(torch.nan)
    with pytest.raises(InputError, match="NaN"):
        keep_teacher(wide, other, net=NET, space=SPACE, shape=(3, 12, 12), classes=3)
    (other / "teacher.json").write_text("{}")
    with pytest.raises(InputError, match="does not describe a teacher"):
        read_teacher(other)
    assert isinstance(read_teacher(folder), Teacher)
