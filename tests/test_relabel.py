"""Labels of views: replayed exactly, in batches of any size, from seeds and shards alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from labels import whole_logits
from potstill.artefact.labels import LabelPlan, epoch_of, views
from potstill.artefact.quantise import packed, row_bytes, unpacked
from potstill.artefact.stored import read_labels, write_labels
from potstill.augment import Crops, CutMix, MixUp, Params
from potstill.core.compute import Compute
from potstill.core.errors import InputError
from potstill.core.files import file_hash
from potstill.core.keys import generator
from potstill.core.spec import from_json, to_json
from potstill.core.store import Store
from potstill.data import MeanStd
from potstill.engine import run_tasks
from potstill.nets import NetSpec, build
from potstill.recover import relabel
from potstill.recover.gather import gather, gathered, keep_images, open_images
from potstill.recover.relabel import FILE, asking
from potstill.teachers import keep_teacher, open_teacher

SPACE = MeanStd(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))
CPU = Compute(threads=1)
PLAN = LabelPlan(epochs=3, batch=7, seed=4)
SHAPE = (3, 10, 12)


def pictures(n=20):
    chance = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, *SHAPE), generator=chance, dtype=torch.uint8)


def relabel_tasks(images, folder, teacher, where, plan):
    teachers = {teacher: where}
    return relabel.relabel_tasks(images, folder, teachers, plan, space=SPACE, compute=CPU)


def taken(images):
    return lambda rows: SPACE.forward(images[rows])


@pytest.mark.parametrize("mix", [PLAN.mix, MixUp(alpha=0.8)])
@pytest.mark.parametrize("scope", ["batch", "image"])
def test_views_are_those_of_a_plain_loop(scope, mix):
    plan, images = replace(PLAN, mix_scope=scope, mix=mix), pictures()
    epoch = epoch_of(plan, 1, 20, SHAPE)
    got = views(plan, epoch, epoch.order, taken(images))
    assert sorted(epoch.order.tolist()) == list(range(20))
    mixed = 0
    for row, view in zip(epoch.order.tolist(), got, strict=True):

        def crop(k):
            params = Params(ops=("crops",), values=epoch.crops[k : k + 1])
            return plan.crops.apply(SPACE.forward(images[k : k + 1]), params)[0]

        want, (top, bottom, left, right) = crop(row), epoch.box[row].tolist()
        other = crop(int(epoch.partner[row]))
        own = 0.0 if epoch.own is None else float(epoch.own[row])
        want[:, top:bottom, left:right] *= own
        want[:, top:bottom, left:right] += (1 - own) * other[:, top:bottom, left:right]
        assert (view - want).abs().max() < 1e-5
        mixed += top < bottom and left < right
    assert mixed > 10


@pytest.mark.parametrize("mix", [PLAN.mix, MixUp(alpha=0.8)])
@pytest.mark.parametrize("scope", ["batch", "image"])
def test_a_view_does_not_depend_on_its_batch(scope, mix):
    plan, images = replace(PLAN, mix_scope=scope, mix=mix), pictures()
    epoch = epoch_of(plan, 0, 20, SHAPE)
    whole = views(plan, epoch, torch.arange(20), taken(images))
    for size in (1, 6):
        parts = [views(plan, epoch, rows, taken(images)) for rows in torch.arange(20).split(size)]
        assert (torch.cat(parts) - whole).abs().max() < 1e-5


def test_a_batch_shares_its_box_and_its_partners():
    epoch = epoch_of(PLAN, 0, 20, SHAPE)
    for rows in epoch.order.split(7):
        assert (epoch.box[rows] == epoch.box[rows[0]]).all()
        assert sorted(epoch.partner[rows].tolist()) == sorted(rows.tolist())
    own = epoch_of(replace(PLAN, mix_scope="image"), 0, 20, SHAPE)
    assert len(own.box.unique(dim=0)) > 10
    assert sorted(own.partner.tolist()) == list(range(20))
    for plan in (replace(PLAN, mix=None), replace(PLAN, mix=CutMix(prob=0.0))):
        assert not epoch_of(plan, 0, 20, SHAPE).box.any()
    half = epoch_of(replace(PLAN, mix=CutMix(prob=0.5), batch=1), 0, 2000, SHAPE)
    assert 0.3 < float((half.box[:, 1] > half.box[:, 0]).float().mean()) < 0.6


def test_weights_of_mixup_are_a_batchs_or_an_images():
    plan, images = replace(PLAN, mix=MixUp(alpha=0.8)), pictures()
    epoch, chance = epoch_of(plan, 2, 20, SHAPE), generator(4, "labels", 2, "mix")
    for rows in epoch.order.split(7):
        mixing = plan.mix.sample(len(rows), SHAPE, chance)
        x = plan.crops.apply(
            SPACE.forward(images[rows]), Params(ops=("crops",), values=epoch.crops[rows])
        )
        want = plan.mix.images(x, mixing)
        assert (views(plan, epoch, rows, taken(images)) - want).abs().max() < 1e-5
        assert (epoch.own[rows] == mixing.own).all()
        assert torch.equal(epoch.partner[rows], rows[mixing.partner])
    own = epoch_of(replace(plan, mix_scope="image"), 2, 20, SHAPE)
    assert len(own.own.unique()) == 20
    assert ((own.own > 0) & (own.own < 1)).all()
    assert epoch_of(PLAN, 2, 20, SHAPE).own is None


def test_epochs_differ_and_are_used_again():
    first = [epoch_of(PLAN, e, 20, SHAPE) for e in range(6)]
    for name in ("order", "crops", "partner", "box"):
        parts = [getattr(epoch, name) for epoch in first]
        assert all(torch.equal(parts[e], parts[e + 3]) for e in range(3))
        assert not torch.equal(parts[0], parts[1])
    other = epoch_of(replace(PLAN, seed=5), 0, 20, SHAPE)
    assert not torch.equal(other.crops, first[0].crops)


@pytest.fixture
def ready(alone, tmp_path):
    """Return images with their digest and folder, and a teacher with its folder."""
    net = NetSpec(name="resnet10-bn", width=4)
    module = build(net, channels=3, size=SHAPE[1:], classes=5, seed=0).train()
    with torch.no_grad():
        module(torch.randn(16, *SHAPE, generator=torch.Generator().manual_seed(0)))
    for name in ("teacher", "images"):
        (tmp_path / name).mkdir()
    teacher = keep_teacher(
        module, tmp_path / "teacher", net=net, space=SPACE, shape=SHAPE, classes=5
    )
    images = pictures()
    digest = keep_images(tmp_path / "images", images, torch.arange(20) % 5)
    return images, digest, tmp_path / "images", teacher, tmp_path / "teacher"


@pytest.mark.parametrize("codes", ["float16", "uint8", "uint4"])
def test_the_labels_are_what_the_teacher_says_of_the_views(ready, tmp_path, codes):
    images, digest, folder, teacher, where = ready
    plan = replace(PLAN, codes=codes)
    tasks = relabel_tasks(digest, folder, teacher, where, plan)
    done = run_tasks(tasks, Store(tmp_path / "store"))
    assert len(done) == 3
    module = open_teacher(teacher, where)
    ask = asking(module, teacher.space, SPACE, CPU, batch=7)
    for e, shard in enumerate(done):
        epoch = epoch_of(plan, e, 20, SHAPE)
        own = whole_logits([ask], SPACE, images, plan, e, compute=CPU)
        for rows in torch.arange(20).split(6):  # other batches than the labelling had
            want = module(views(plan, epoch, rows, taken(images)))
            assert (own[rows] - want).abs().max() < 1e-4
        found = read_labels(shard / FILE, plan, 5)
        assert torch.equal(found, unpacked(packed(own, codes), codes, 5))  # replayed bit for bit
        some = torch.tensor([3, 19, 0])
        assert torch.equal(read_labels(shard / FILE, plan, 5, some), found[some])
        write_labels(tmp_path / "whole", own, plan)
        assert file_hash(tmp_path / "whole") == file_hash(shard / FILE)
        with pytest.raises(InputError, match="classes, not 7"):
            read_labels(shard / FILE, plan, 7)
    assert plan.nbytes(20, 5) == 3 * 20 * row_bytes(codes, 5)


def test_epochs_can_be_labelled_in_any_order(ready, tmp_path):
    _, digest, folder, teacher, where = ready
    tasks = relabel_tasks(digest, folder, teacher, where, PLAN)
    hashes = []
    for name, specs in (("one", tasks.specs), ("two", tasks.specs[::-1])):
        done = run_tasks(replace(tasks, specs=specs), Store(tmp_path / name))
        hashes.append({file_hash(shard / "labels.safetensors") for shard in done})
    assert hashes[0] == hashes[1]
    assert len(hashes[0]) == 3
    assert from_json(to_json(tasks.specs[0])) == tasks.specs[0]


def test_what_does_not_fit_is_told(ready, tmp_path):
    images, digest, folder, teacher, where = ready
    store = Store(tmp_path / "store")
    with pytest.raises(InputError, match="other images"):
        run_tasks(relabel_tasks("0" * 64, folder, teacher, where, PLAN), store)
    small = keep_images(folder, images[:, :, :8], torch.arange(20) % 5)
    with pytest.raises(InputError, match=r"images \(3, 10, 12\), not \(3, 8, 12\)"):
        run_tasks(relabel_tasks(small, folder, teacher, where, PLAN), store)
    (tmp_path / "cut").mkdir()
    shard = tmp_path / "cut" / "labels.safetensors"
    shard.write_bytes(b"\x00" * 20)
    with pytest.raises(InputError, match="truncated"):
        read_labels(shard, PLAN, 5)
    for options in (
        *({"epochs": 0}, {"batch": 0}, {"codes": "uint2"}, {"mix_scope": "all"}),
        {"crops": Crops(shared=True)},
    ):
        with pytest.raises(InputError):
            replace(PLAN, **options)
    with pytest.raises(InputError, match="epochs 0 to 2, not 3"):
        replace(relabel_tasks(digest, folder, teacher, where, PLAN).specs[0], epoch=3)


def test_units_are_gathered_class_by_class(alone, tmp_path):
    from potstill.core.state import save_tree

    images, pairs = pictures(6), [(0, 1), (1, 1), (2, 1), (2, 0), (0, 0), (1, 0)]
    for name, part in (("a", slice(0, 3)), ("b", slice(3, 6))):
        (tmp_path / name).mkdir()
        labels, indices = torch.tensor(pairs[part]).unbind(1)
        tree = {"images": images[part], "labels": labels, "indices": indices}
        save_tree(tmp_path / name / "images.safetensors", tree)
    folders = [tmp_path / "a", tmp_path / "b"]
    found, labels = gathered(Store(tmp_path), folders, 3, 2), torch.tensor([0, 0, 1, 1, 2, 2])
    want = torch.stack([images[pairs.index((c, k))] for c in range(3) for k in range(2)])
    assert torch.equal(found, want)
    for some, classes in ((folders[:1], 3), (folders + folders[:1], 3), (folders, 4), ([], 3)):
        with pytest.raises(InputError, match=r"is there [02] times"):
            gather(some, classes, 2)
    digest, folder = relabel.kept_images(Store(tmp_path), found, labels)
    assert [folder] == [f for f in (tmp_path / "images").iterdir() if f.name[0] != "."]
    again = open_images(digest, folder)
    assert torch.equal(again[0], found)
    assert torch.equal(again[1], labels)
