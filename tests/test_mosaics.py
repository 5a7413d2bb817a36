"""Random mosaics: the baseline of sets that store several training images in one."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from potstill.artefact import Identity, MultiFormation, Soft, set_digest
from potstill.core.compute import Compute, Wish
from potstill.core.spec import from_json, spec_hash, to_json
from potstill.core.state import tensor_digest
from potstill.core.store import Store
from potstill.coresets import random_real
from potstill.evaluation import evaluate
from potstill.evaluation.images import images_of, random_mosaics
from potstill.evaluation.protocol import STRICT
from potstill.evaluation.regimes import teacher_of
from potstill.evaluation.specs import Mosaics
from potstill.experts import Trajectory
from potstill.functional import accuracy, fit, predict
from potstill.nets import FlatNet, build
from potstill.report import matrix
from test_evaluate import CLASSES, NET, RECIPE, toy_data, toy_set

pytestmark = pytest.mark.usefixtures("alone")
QUICK = replace(RECIPE, segments=(replace(RECIPE.segments[0], epochs=2),))


def mosaic_set(data, *, ipc=2, **fields):
    s = toy_set(data, ipc=ipc, recipe=QUICK)
    return replace(s, decode=MultiFormation(**fields).normalised(s.space))


def by_hand(s, data, seed):
    """Cut and paste the baseline's images with no function of the decoder but `take`."""
    counts, factor = [2, 2, 2], s.decode.factor
    chosen = random_real(data.train, [n * factor**2 for n in counts], seed=seed)
    side, images, labels = data.size[0] // factor, [], []
    for label in range(CLASSES):
        own = data.train.pixels[torch.tensor(chosen)].split(2 * factor**2)[label]
        for i in range(2):
            image = torch.empty(1, *data.size, dtype=torch.uint8)
            for cell in range(factor**2):
                small = own[2 * cell + i][:, ::factor, ::factor]
                top, left = cell // factor * side, cell % factor * side
                image[:, top : top + side, left : left + side] = small
            images.append(image)
            labels.append(label)
    stored, labels = s.space.forward(torch.stack(images)), torch.tensor(labels)
    index = s.decode.index(labels)
    return s.decode.take(stored, index), labels[index[:, 0]]


def test_the_row_is_a_training_on_mosaics_under_the_decoder(tmp_path):
    data = toy_data()
    s, store = mosaic_set(data, factor=2), Store(tmp_path)
    result = evaluate(s, seeds=2, store=store)
    row = result.row("random mosaics, own step")
    for seed in range(2):
        images, labels = by_hand(s, data, seed)
        net = FlatNet(build(NET, channels=1, size=(8, 8), classes=3, seed=seed, key=("evaluate",)))
        theta = fit(net, net.theta0, images, labels, QUICK, seed=seed, key=("evaluate",))
        test = data.test
        wanted = accuracy(net, theta, test.pixels, test.labels, prepare=s.space.forward)
        assert row.accuracies[seed] == wanted
    assert row.note == "4 real images in each"
    assert row.nbytes == result.row("random real, own step").nbytes  # as many pixels are stored
    assert row.nbytes["images"] == 6 * 64
    own = [r.name for r in result.rows if "best" not in r.name]
    assert own == ["distilled", *(f"{n}, own step" for n in
                   ("random real", "k-means medoid", "random mosaics"))]  # fmt: skip
    assert "random mosaics, own step" in [line[0] for line in matrix(result)]
    specs = [json.loads(f.read_text()) for f in (tmp_path / "evaluations").glob("*/done.json")]
    grid = {from_json(each["spec"]).train.lr for each in specs}
    assert grid == {QUICK.lr, *STRICT.lr_grid}
    made = sorted(tmp_path.rglob("result.json"))
    assert evaluate(s, seeds=2, store=store).rows == result.rows
    assert sorted(tmp_path.rglob("result.json")) == made


def test_single_images_stay_as_many_as_are_stored():
    data = toy_data()
    s = mosaic_set(data, factor=2)
    found = {item.name: item for item in images_of(s, data, STRICT, None, None)}
    assert len(found["random real"].what) == len(found["random mosaics"].what) == STRICT.seeds
    assert {len(what.indices) for what in found["random real"].what} == {6}
    assert {len(what.indices) for what in found["random mosaics"].what} == {24}
    assert len({what.indices for what in found["random mosaics"].what}) == STRICT.seeds
    plain = images_of(replace(s, decode=Identity()), data, STRICT, None, None)
    assert [item.name for item in plain] == ["distilled", "random real", "k-means medoid"]
    one = images_of(replace(s, decode=MultiFormation(factor=1)), data, STRICT, None, None)
    assert len(one) == 3  # mosaics of one picture are random real images


def test_a_mosaic_is_of_one_class_and_small_classes_give_images_twice():
    data = toy_data()
    decode = MultiFormation(factor=2, kind="bound", bound=9)
    what = random_mosaics(data.train, (3, 0, 1), decode, seed=0)
    cells = data.train.labels[torch.tensor(what.indices)].view(4, 4)
    assert cells.tolist() == [[0, 0, 0, 2]] * 4
    assert what.labels(data.train).tolist() == [0, 0, 0, 2]
    assert len(set(what.indices)) == 16
    assert from_json(to_json(what)) == what
    assert spec_hash(what) != spec_hash(replace(what, decode=MultiFormation(factor=2)))
    s = mosaic_set(data, ipc=7, factor=2)  # 28 of 24 images a class
    notes = {item.name: item.note for item in images_of(s, data, STRICT, None, None)}
    assert notes["random real"] == ""
    assert notes["random mosaics"] == "4 real images in each; small classes give images twice"


@pytest.mark.parametrize("kind", ["single", "bound"])
def test_the_work_counts_decoded_images(tmp_path, monkeypatch, kind):
    asked = []

    def chosen(wish, **work):
        asked.append(work)
        return Compute(threads=1)

    monkeypatch.setattr("potstill.evaluation.computing.choose", chosen)
    data = toy_data()
    s = mosaic_set(data, factor=2, kind=kind, bound=6)
    count = {"single": 24, "bound": 15}[kind]
    assert len(s.decoded()[0]) == count
    evaluate(s, seeds=2, protocol="strict", store=Store(tmp_path), wish=Wish(threads=1))
    images = 2 * 2 * (count + 4 * (6 + 6 + count))  # seeds, epochs; steps of the baselines
    predicted = 2 * (1 + 3 * 4) * (len(data.val) + len(data.test)) // 3
    assert asked[0]["images"] == images + predicted


def test_a_teacher_labels_decoded_images(tmp_path):
    data = toy_data()
    s, store = mosaic_set(data, factor=2), Store(tmp_path)
    result = evaluate(s, seeds=1, regimes=["soft"], store=store)
    rows = {row.name: row for row in result.rows if "best" not in row.name}
    assert all("soft labels by" in row.note for row in rows.values())
    assert rows["random mosaics, own step"].nbytes["targets"] == 24 * CLASSES * 4
    images, _ = by_hand(s, data, 0)
    teacher = teacher_of(s, data, Wish(threads=1))
    expert = Trajectory(store.verify("experts", teacher))
    net = FlatNet(build(NET, channels=1, size=(8, 8), classes=3, seed=0, key=("expert", 0)))
    targets = predict(net, expert.row(teacher.train.epochs), images).softmax(1)
    fresh = FlatNet(build(NET, channels=1, size=(8, 8), classes=3, seed=0, key=("evaluate",)))
    train = replace(QUICK, loss="soft_ce")
    theta = fit(fresh, fresh.theta0, images, targets, train, seed=0, key=("evaluate",))
    test = data.test
    wanted = accuracy(fresh, theta, test.pixels, test.labels, prepare=s.space.forward)
    assert rows["random mosaics, own step"].accuracies == (wanted,)


def test_soft_sets_have_mosaics_of_hard_classes():
    data = toy_data()
    s = mosaic_set(data, factor=2)
    soft = replace(
        s,
        targets=Soft(torch.full((6, CLASSES), 1 / CLASSES)),
        recipe=replace(QUICK, loss="soft_ce"),
    )
    (what, *_) = images_of(soft, data, STRICT, None, None)[-1].what
    assert isinstance(what, Mosaics)
    assert what.labels(data.train).tolist() == [0, 0, 1, 1, 2, 2]


def test_digests_tell_decoders_apart_and_know_old_sets():
    data = toy_data()
    s = toy_set(data)
    old = tensor_digest({"images": s.images, "targets": s.targets.values})
    assert set_digest(s) == old
    others = [MultiFormation(factor=2), MultiFormation(factor=3), MultiFormation(pad=(0.0,))]
    assert len({old, *(set_digest(replace(s, decode=d)) for d in others)}) == 4


def test_processes_find_the_same(tmp_path):
    s = mosaic_set(toy_data(), factor=2)
    one = evaluate(s, seeds=1, store=Store(tmp_path / "a"))
    two = evaluate(s, seeds=1, store=Store(tmp_path / "b"), engine="processes", workers=2)
    assert [r.accuracies for r in one.rows] == [r.accuracies for r in two.rows]
