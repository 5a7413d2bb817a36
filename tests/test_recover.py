"""Recovery: the loop against a plain one, units against each other, starts, files."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from potstill.augment import Curriculum
from potstill.core.compute import Compute, no_compiler
from potstill.core.errors import InputError, WorkError
from potstill.core.files import file_hash, read_json
from potstill.core.keys import generator
from potstill.core.spec import from_json, to_json
from potstill.core.store import Store
from potstill.coresets.patch_tasks import PatchSpec, patch_tasks, read_patches
from potstill.data import MeanStd, from_arrays
from potstill.engine import run_tasks
from potstill.nets import NetSpec, build
from potstill.nets.taps import Tapped
from potstill.recover import (
    RecoverSpec,
    Recovery,
    Unit,
    read_unit,
    recover_tasks,
    recover_unit,
    recovered,
    units_of,
)
from potstill.recover.codec import stored
from potstill.recover.start import noise
from potstill.teachers import keep_teacher, open_teacher

SPACE = MeanStd(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))
NET = NetSpec(name="resnet10-bn", width=4)
CPU = Compute(threads=1)
SHORT = Recovery(iterations=6, lr=0.1, bn=0.05, roll=1 / 4, log_every=1)


@pytest.fixture
def taught(alone, tmp_path):
    """Return a function that files a teacher of three or more patterns in noise."""

    def make(net=NET, classes=3, seed=0):
        module = build(net, channels=3, size=(12, 12), classes=classes, seed=seed).train()
        adam = torch.optim.Adam(module.parameters(), lr=0.01)
        patterns = torch.randn(classes, 3, 12, 12, generator=generator(0, "patterns"))
        for k in range(20):
            chance = generator(k, "test", seed)
            labels = torch.randint(classes, (16,), generator=chance)
            x = 0.5 * patterns[labels] + 0.5 * torch.randn(16, 3, 12, 12, generator=chance)
            adam.zero_grad()
            nn.functional.cross_entropy(module(x), labels).backward()
            adam.step()
        folder = tmp_path / f"teacher-{net.name}-{classes}-{seed}"
        folder.mkdir()
        shape = (3, 12, 12)
        return (
            keep_teacher(module, folder, net=net, space=SPACE, shape=shape, classes=classes),
            folder,
        )

    return make


def spec_of(teachers, units, **options):
    options = {"recovery": SHORT, "seed": 5, "compute": CPU, **options}
    return RecoverSpec(teachers=tuple(teachers), units=tuple(units), **options)


def run(spec, folders, where, store="."):
    where.mkdir(parents=True)
    context = {t.digest: str(f) for t, f in zip(spec.teachers, folders, strict=True)}
    recover_unit(spec, {**context, "store": str(store)}, where)
    return read_unit(where)


# -- units ----------------------------------------------------------------------------------------


def test_many_classes_make_blocks_of_classes():
    units = units_of(250, 2)
    assert [len(unit) for unit in units] == [100, 100, 50] * 2
    assert units[1].classes == tuple(range(100, 200))
    assert units[3].pairs()[:2] == [(0, 1), (1, 1)]
    assert {pair for unit in units for pair in unit.pairs()} == {
        (c, k) for c in range(250) for k in range(2)
    }
    assert len(units_of(10_450, 20)) == 20 * 105


def test_few_classes_make_units_of_several_images_a_class():
    units = units_of(10, 25)
    assert [len(unit) for unit in units] == [100, 100, 50]
    assert units[1].indices == tuple(range(10, 20))
    assert units[0].labels().tolist() == list(range(10)) * 10
    assert [len(unit) for unit in units_of(30, 6)] == [120, 60]


def test_permuted_classes_are_all_classes_once():
    units = units_of(250, 2, order="permuted", seed=3)
    first = [c for unit in units[:3] for c in unit.classes]
    assert sorted(first) == list(range(250))
    assert first != sorted(first)
    assert units == units_of(250, 2, order="permuted", seed=3)
    assert units != units_of(250, 2, order="permuted", seed=4)
    assert len({unit.key for unit in units}) == len(units)
    for options in ({"order": "random"}, {"batch": 0}):
        with pytest.raises(InputError):
            units_of(3, 1, **options)


# -- the loop -------------------------------------------------------------------------------------


def plain(net, x, labels, settings, seed, unit):
    """Recover as the paper says: hooks, torch.optim.Adam, torch.roll and so on, image by image."""
    chance = generator(seed, "recover", *unit.key)
    low = torch.tensor([-m / s for m, s in zip(SPACE.mean, SPACE.std, strict=True)])
    high = torch.tensor([(1 - m) / s for m, s in zip(SPACE.mean, SPACE.std, strict=True)])
    x = x.clone().requires_grad_()
    adam = torch.optim.Adam([x], lr=settings.lr, betas=(0.5, 0.9), eps=1e-8)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    seen: dict[int, torch.Tensor] = {}
    for norm in norms:
        norm.register_forward_pre_hook(lambda m, given: seen.__setitem__(id(m), given[0]))
    trace = []
    for t in range(settings.iterations):
        for group in adam.param_groups:
            group["lr"] = settings.lr * (1 + math.cos(math.pi * t / settings.iterations)) / 2
        least = 0.08 + 0.92 * (1 + math.cos(math.pi * t / settings.iterations)) / 2
        row = replace(settings.crops(t), scale=(least, 1.0)).sample(1, x.shape[1:], chance).values
        top, left, height, width, flip, down, right = (int(v) for v in row[0])
        z = x[:, :, top : top + height, left : left + width]
        z = nn.functional.interpolate(z, x.shape[2:], mode="bilinear", align_corners=False)
        z = z.flip(3) if flip else z
        z = torch.roll(z, (down, right), (2, 3))
        entropy = nn.functional.cross_entropy(net(z), labels)
        far = torch.zeros(())
        for k, norm in enumerate(norms):
            a = seen[id(norm)]
            var = a.permute(1, 0, 2, 3).flatten(1).var(1, unbiased=False)
            gap = (norm.running_var - var).norm() + (norm.running_mean - a.mean((0, 2, 3))).norm()
            far = far + (settings.first if k == 0 else 1) * gap
        adam.zero_grad()
        (entropy + settings.bn * far).backward()
        adam.step()
        with torch.no_grad():
            for c in range(3):
                x[:, c].clamp_(float(low[c]), float(high[c]))
        trace.append((t, float(entropy.detach()), float(far.detach())))
    return x.detach(), trace


def test_the_loop_equals_a_plain_one(taught):
    teacher, folder = taught()
    (unit,) = units_of(3, 2, batch=6)
    first = noise(unit, teacher, seed=5)
    found = recovered(
        [Tapped(open_teacher(teacher, folder))], first, [unit], SHORT, SPACE, seed=5, compute=CPU
    )
    net = open_teacher(teacher, folder)
    want, trace = plain(net, first, unit.labels(), SHORT, 5, unit)
    assert [t for t, *_ in found.losses] == list(range(6))
    for got, own in zip(found.losses, trace, strict=True):
        assert got == pytest.approx(own, rel=1e-4)
    assert found.losses[0] == pytest.approx(trace[0], rel=1e-5)
    assert (found.images - want).abs().median() < 1e-4  # Adam's first steps magnify rounding
    assert not torch.equal(found.images, first)


@pytest.mark.parametrize(("bn", "column"), [(0.0, 1), (10.0, 2)])
def test_each_loss_falls(taught, tmp_path, bn, column):
    teacher, folder = taught()
    whole = Curriculum(kind="constant", least=1.0)
    settings = replace(SHORT, iterations=80, curriculum=whole, bn=bn)
    run(spec_of([teacher], units_of(3, 4), recovery=settings), [folder], tmp_path / "u")
    losses = read_json(tmp_path / "u" / "unit.json")["losses"]
    assert losses[-1][column] < 0.7 * losses[0][column]


def test_images_stay_between_black_and_white(taught, tmp_path):
    teacher, folder = taught()
    settings = replace(SHORT, lr=5.0, snapshots=(0, 1, 6))
    found = run(spec_of([teacher], units_of(3, 1), recovery=settings), [folder], tmp_path / "u")
    assert found["images"].dtype == torch.uint8
    assert found["images"].min() == 0
    assert found["images"].max() == 255
    assert found["snapshots"].shape == (3, 3, 3, 12, 12)
    assert torch.equal(found["snapshots"][2], found["images"])
    first = SPACE.inverse(noise(units_of(3, 1)[0], teacher, seed=5)).clamp(0, 1) * 255
    assert torch.equal(found["snapshots"][0], first.round().to(torch.uint8))
    assert not torch.equal(found["snapshots"][1], found["images"])


def test_units_side_by_side_are_units_one_by_one(taught):
    teacher, folder = taught()
    units = units_of(3, 4, batch=3)
    first = {unit: noise(unit, teacher, seed=5) for unit in units}
    for sharing in ("batch", "image"):
        settings = replace(SHORT, sharing=sharing, iterations=3)

        def images(some, settings=settings):
            x = torch.cat([first[unit] for unit in some])
            nets = [Tapped(open_teacher(teacher, folder))]
            return recovered(nets, x, some, settings, SPACE, seed=5, compute=CPU)

        together, alone = images(units), [images([unit]) for unit in units]
        parts = torch.cat([each.images for each in alone])
        assert (together.images - parts).abs().median() < 1e-5
        for column in (1, 2):
            mean = sum(each.losses[0][column] for each in alone) / len(alone)
            assert together.losses[0][column] == pytest.approx(mean, rel=1e-5)
    assert not torch.equal(parts[0], parts[3])


def test_a_committee_averages_its_losses(taught):
    found = {}
    (unit,) = units_of(3, 1)
    pairs = [taught(seed=0), taught(seed=1)]
    x = noise(unit, pairs[0][0], seed=0)
    for name, some in (("a", pairs[:1]), ("b", pairs[1:]), ("both", pairs)):
        nets = [Tapped(open_teacher(*pair)) for pair in some]
        losses = recovered(nets, x, [unit], SHORT, SPACE, seed=0, compute=CPU).losses
        found[name] = np.array(losses[0][1:])
    assert np.allclose(found["both"], (found["a"] + found["b"]) / 2, rtol=1e-5)


def test_recovery_that_diverges_is_told(taught):
    teacher, folder = taught()
    (unit,) = units_of(3, 1)
    x = torch.full((3, 3, 12, 12), torch.nan)
    nets = [Tapped(open_teacher(teacher, folder))]
    with pytest.raises(WorkError, match="diverged"):
        recovered(nets, x, [unit], SHORT, SPACE, seed=0, compute=CPU)


@pytest.mark.parametrize("precision", ["bfloat16"])
def test_bfloat16_begins_as_float32_does(taught, precision):
    teacher, folder = taught()
    (unit,) = units_of(3, 8)
    x, found = noise(unit, teacher, seed=0), []
    for compute in (CPU, replace(CPU, precision=precision)):
        nets = [Tapped(open_teacher(teacher, folder))]
        found.append(recovered(nets, x, [unit], SHORT, SPACE, seed=0, compute=compute))
    full, half = found
    assert half.images.dtype == torch.float32
    assert half.losses[0] == pytest.approx(full.losses[0], rel=2e-2)
    assert half.losses != full.losses


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_compiled_steps_equal_eager_ones(taught, precision):
    if no_compiler("cpu"):
        pytest.skip(no_compiler("cpu"))
    teacher, folder = taught()
    units = units_of(3, 2, batch=3)
    x, found = torch.cat([noise(u, teacher, seed=0) for u in units]), []
    for on in (False, True):
        nets = [Tapped(open_teacher(teacher, folder))]
        compute = replace(CPU, compiled=on, precision=precision)
        found.append(recovered(nets, x, units, SHORT, SPACE, seed=0, compute=compute))
    close = 1e-4 if precision == "float32" else 3e-2
    for got, want in zip(found[1].losses, found[0].losses, strict=True):
        assert got == pytest.approx(want, rel=close)


# -- units as tasks -------------------------------------------------------------------------------


def test_the_same_bytes_whatever_the_workers(taught, tmp_path):
    teacher, folder = taught()
    units = units_of(3, 3, batch=3)
    hashes = []
    for engine, workers, some in (("inline", 1, units), ("processes", 2, units)):
        store = Store(tmp_path / engine)
        tasks = recover_tasks(
            [teacher],
            SHORT,
            some,
            seed=1,
            compute=CPU,
            folders={teacher.digest: folder},
            store=store,
        )
        done = run_tasks(tasks, store, engine=engine, workers=workers)
        hashes.append([file_hash(path / "images.safetensors") for path in done])
    assert hashes[0] == hashes[1]
    assert len(set(hashes[0])) == 3


def test_finished_units_are_not_done_again_and_a_part_is_that_of_the_whole(taught, tmp_path):
    teacher, folder = taught()
    store, units = Store(tmp_path / "store"), units_of(3, 3, batch=3)

    def tasks(some):
        return recover_tasks(
            [teacher],
            SHORT,
            some,
            seed=1,
            compute=CPU,
            folders={teacher.digest: folder},
            store=store,
        )

    told = []
    (middle,) = run_tasks(tasks(units[1:2]), store, on_part=lambda *at: told.append(at))
    assert told == [(k / 6, f"step {k} of 6") for k in range(2, 6)]
    stamp = (middle / "images.safetensors").stat().st_mtime_ns
    whole = run_tasks(tasks(units), store)
    assert whole[1] == middle
    assert (middle / "images.safetensors").stat().st_mtime_ns == stamp
    found = read_unit(middle)
    assert found["labels"].tolist() == [0, 1, 2]
    assert found["indices"].tolist() == [1, 1, 1]
    assert found["snapshots"].shape == (0, 3, 3, 12, 12)


def test_units_of_unequal_size_are_not_put_side_by_side(taught, tmp_path):
    teacher, folder = taught(classes=5)
    tasks = recover_tasks(
        [teacher],
        SHORT,
        units_of(5, 3, batch=3),
        seed=1,
        compute=CPU,
        folders={teacher.digest: folder},
        store=Store(tmp_path),
        together=2,
    )
    sizes = [[len(unit) for unit in spec.units] for spec in tasks.specs]
    assert sizes == [[6, 6]] if len(sizes) == 1 else all(len(set(s)) == 1 for s in sizes)
    assert sum(map(len, sizes)) == len(units_of(5, 3, batch=3))
    for spec in tasks.specs:
        assert from_json(to_json(spec)) == spec


def test_real_images_to_start_from(taught, tmp_path):
    teacher, folder = taught()
    pixels = torch.randint(
        0, 256, (30, 3, 12, 12), generator=generator(0, "pixels"), dtype=torch.uint8
    )
    data = from_arrays(pixels, torch.arange(30) % 3, validation=0.2)
    settings = replace(SHORT, start="real", snapshots=(0,))
    per = torch.bincount(data.train.labels).tolist()
    units = units_of(3, per[0] + 1, batch=3)
    seen = {label: [] for label in range(3)}
    for k, unit in enumerate(units):
        spec = spec_of([teacher], [unit], recovery=settings, data=data.ref)
        found = run(spec, [folder], tmp_path / str(k))
        for label, image in zip(found["labels"].tolist(), found["snapshots"][0], strict=True):
            seen[label].append(image.numpy().tobytes())
    own = {
        label: {x.numpy().tobytes() for x in data.train.pixels[data.train.labels == label]}
        for label in range(3)
    }
    for label in range(3):
        assert set(seen[label][: per[0]]) == own[label]  # each once
        assert seen[label][-1] == seen[label][0]  # then again


def test_patches_to_start_from(taught, tmp_path):
    teacher, folder = taught()
    pixels = torch.randint(
        0, 256, (60, 3, 12, 12), generator=generator(0, "pixels"), dtype=torch.uint8
    )
    data = from_arrays(pixels, torch.arange(60) % 3, validation=0.2)
    store = Store(tmp_path / "store")
    patch = PatchSpec(
        teacher=teacher, data=data.ref, classes=(0,), ipc=2, images=8, seed=0, compute=CPU
    )
    tasks = patch_tasks(patch, [(0, 1), (2,)], teacher=folder)
    made = torch.cat([read_patches(done)["images"] for done in run_tasks(tasks, store)])
    settings = replace(SHORT, start="patches", snapshots=(0,))
    work = recover_tasks(
        [teacher],
        settings,
        units_of(3, 2, batch=3),
        seed=1,
        compute=CPU,
        folders={teacher.digest: folder},
        store=store,
        patches=tasks.specs,
    )
    for k, done in enumerate(run_tasks(work, store)):
        assert torch.equal(read_unit(done)["snapshots"][0], made[:, k])
    short = replace(work.specs[0], patches=tasks.specs[:1])
    with pytest.raises(InputError, match="no image of patches number 0 of class 2"):
        run(short, [folder], tmp_path / "short", store.root)


def test_specs_that_cannot_work_are_refused(taught):
    teacher, _ = taught()
    units = units_of(3, 2)
    ref = from_arrays(torch.zeros(30, 3, 12, 12), torch.arange(30) % 3).ref
    for wrong in (
        {"teachers": ()},
        {"units": ()},
        {"units": units_of(4, 2)},
        {"units": (units[0], Unit(classes=(0,), indices=(7,)))},
        {"teachers": (teacher, replace(teacher, classes=4))},
        {"data": ref},
        {"recovery": replace(SHORT, start="real")},
        {"recovery": replace(SHORT, start="patches")},
    ):
        with pytest.raises(InputError):
            spec_of(**{"teachers": (teacher,), "units": units, **wrong})
    for wrong in (
        *({"iterations": 0}, {"lr": 0.0}, {"bn": -1.0}, {"norm": "l1"}, {"start": "black"}),
        *({"codec": "png"}, {"sharing": "none"}, {"snapshots": (7,)}, {"snapshots": (2, 1)}),
        *({"roll": 2.0}, {"log_every": 0}),
    ):
        with pytest.raises(InputError):
            replace(SHORT, **wrong)


def test_jpeg_is_what_pillow_makes_and_exact_rounds():
    values = 255 * torch.rand(2, 3, 16, 16, generator=generator(0, "values"))
    assert torch.equal(stored(values, "exact"), values.round().to(torch.uint8))
    lossy = stored(values, "jpeg75")
    assert lossy.dtype == torch.uint8
    error = (lossy.double() - values).square().mean().sqrt()
    assert 20 < error < 90  # noise is the worst case: 47 at 64 pixels
    assert stored(values[:, :1], "jpeg75").shape == (2, 1, 16, 16)
    with pytest.raises(InputError, match="1 or 3"):
        stored(values[:, :2], "jpeg75")
