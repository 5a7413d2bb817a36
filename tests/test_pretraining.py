"""Evaluation by probes: one pre-training serves all, features of evaluation mode, refusals."""

import dataclasses

import pytest
import torch

from potstill.core.errors import InputError, WorkError
from potstill.core.spec import from_json, to_json
from potstill.core.state import load_tree
from potstill.core.store import Store
from potstill.data import from_arrays, measure_stats
from potstill.evaluation import PROBES, Beside, direct_recipe, evaluate_pretraining
from potstill.evaluation import pretraining_tasks as tasks
from potstill.evaluation.pretraining_entrants import NONE, RANDOM, found_targets
from potstill.evaluation.pretraining_rules import budgets_of, given_rows
from potstill.evaluation.pretraining_specs import (
    PretrainSpec,
    ProbeSpec,
    RealTargets,
    RealViews,
    Untrained,
)
from potstill.evaluation.probe import linear_probe
from potstill.functional import SGD, fit
from potstill.nets import NetSpec, flat, without_head
from probing import COMPUTE, NET, RECIPE, counted, data_set, targets_of


def test_one_pre_training_serves_all_probes_of_a_seed(toy, monkeypatch):
    store, data, _, s = toy
    other = data_set("elsewhere", classes=4)
    seen, fits, probes = [], counted(monkeypatch, "fit"), counted(monkeypatch, "linear_probe")
    options = {"data": data, "transfer": [other], "labels": ["10%", "50%"], "shots": [2]}
    options |= {"seeds": 2, "store": store}
    found = evaluate_pretraining(s, **options, on_done=lambda *at: seen.append(at))
    steps = 3  # of real images: the set's, .1 and 1
    assert len(fits) == 2 * (1 + 2 * steps)  # 2 networks of the set, of 2 kinds of real images
    assert found.pretrainings == len(fits) + 2  # and 2 without pre-training
    assert len(probes) == found.probes == 3 * (found.pretrainings + 2 * 4)
    assert seen[-1] == (2 * 16 + 8, 2 * 16 + 8)
    names = ["distilled", *RANDOM, NONE]
    assert list(dict.fromkeys(row.name for row in found.rows)) == names
    assert len(found.rows) == 4 * 2 * 3
    assert {row.labels for row in found.rows} == {"10%", "50%", "2 shots"}
    counts = {row.labels: row.count for row in found.rows if row.target == "toy"}
    assert counts == {"10%": 9, "50%": 48, "2 shots": 6}
    assert all((row.validation is None) == (row.target != "toy") for row in found.rows)
    fits.clear()
    assert evaluate_pretraining(s, **options).rows == found.rows  # all is found again
    assert not fits
    # one more label budget, one more network: only what is new is trained
    evaluate_pretraining(s, **{**options, "labels": ["20%"], "seeds": 3})
    assert len(fits) == 1 + 2 * steps


@pytest.mark.slow
def test_processes_give_the_numbers_of_one(toy, tmp_path):
    store, data, targets, s = toy
    options = {"data": data, "labels": ["50%"], "seeds": 2}
    found = evaluate_pretraining(s, **options, store=store)
    fresh = Store(tmp_path / "fresh")
    assert targets_of(data, fresh, tmp_path / "again") == targets
    many = evaluate_pretraining(s, **options, store=fresh, engine="processes", workers=2)
    assert [row.accuracies for row in many.rows] == [row.accuracies for row in found.rows]
    assert [row.knn for row in many.rows] == [row.knn for row in found.rows]


def test_a_row_is_what_a_plain_computation_gives(toy):
    store, data, _, s = toy
    found = evaluate_pretraining(s, data=data, labels=["50%"], seeds=1, store=store)
    space, rows = measure_stats(data.train), {}
    for name, lr in (("distilled", 0.05), (NONE, None)):
        net = flat(NET, channels=1, size=(8, 8), classes=3 * 16, seed=0, key=("pretrain",))
        theta = net.theta0
        if lr is not None:
            theta = fit(net, theta, s.images, s.targets.values, RECIPE, seed=0, key=("pretrain",))
        encoder = without_head(net.load(theta), name="net").eval()
        given = given_rows(
            data.train.labels, 3, budgets_of(("50%",), ())[0], stratified=True, seed=0
        )
        with torch.no_grad():
            x = encoder(space.forward(data.train.pixels[given]))
            test = encoder(space.forward(data.test.pixels))
        probe = linear_probe(x, data.train.labels[given], 3, 1e-3)
        rows[name] = probe.accuracy(test, data.test.labels)
    assert found.row("distilled").accuracies == (rows["distilled"],)
    assert found.row(NONE).accuracies == (rows[NONE],)
    assert found.row(NONE).lr is None
    assert found.row(RANDOM[0]).note == "8 steps; best of 3 step sizes"


def test_the_encoder_in_the_store_is_that_of_pretrain(toy):
    store, data, _, s = toy
    evaluate_pretraining(s, data=data, seeds=1, labels=["50%"], store=store, baselines=False)
    (entry,) = store.entries("pretrained")
    spec = from_json(entry.spec)
    assert isinstance(spec, PretrainSpec)
    net = tasks.open_pretrained(spec, entry.folder)
    x = data.test.pixels[:4]
    with torch.no_grad():
        found = net(net.theta0, measure_stats(data.train).forward(x))
    torch.testing.assert_close(found, s.pretrain(seed=0)(x), rtol=1e-5, atol=1e-6)
    kept = load_tree(entry.folder / "encoder.safetensors")
    assert net.numel == sum(part.numel() for part in kept.values())  # the last layer is gone


def spec_of(data, net, what=None, **changes):
    fields = {
        "what": what or Untrained(),
        "net": net,
        "outputs": 5,
        "train": None,
        "seed": 1,
        "data": data.ref,
        "space": measure_stats(data.train),
        "compute": COMPUTE,
    }
    return PretrainSpec(**(fields | changes))


def test_features_are_those_of_evaluation_mode_throughout(alone, tmp_path):
    """Equal images have equal features in the training and the test part; nothing is moved."""
    x, y = data_set().train.pixels, data_set().train.labels
    data = from_arrays(x, y, test_images=x, test_labels=y, validation=0.2, name="same")
    store, net = Store(tmp_path / "store"), NetSpec(name="convnet2", width=4, norm="batch")
    spec = spec_of(data, net)
    folder = store.put("pretrained", spec, lambda f: tasks.pretrain_one(spec, {}, f))
    encoder = tasks.open_pretrained(spec, folder)
    theta, seen = encoder.theta0, []
    before = {k: v.clone() for k, v in encoder.statistics(theta).items()}
    assert any("running" in name for name in before)
    probe = ProbeSpec(
        pretrained=spec,
        data=data.ref,
        space=spec.space,
        budgets=budgets_of(("100%",), ()),
        l2=1e-3,
        stratified=True,
        whole=False,
        validated=False,
    )

    def encoded(pixels):
        features = tasks.predict(encoder, theta, pixels, prepare=spec.space.forward, batch=7)
        seen.append((pixels, features))
        return features

    found = tasks._probed(probe, data, encoded)
    assert all(torch.equal(v, before[k]) for k, v in encoder.statistics(theta).items())
    (own, train), (whole, test) = seen
    place = {image.numpy().tobytes(): k for k, image in enumerate(whole)}
    same = [place[image.numpy().tobytes()] for image in own]
    torch.testing.assert_close(train, test[same], rtol=1e-5, atol=1e-5)
    assert found["width"] == train.shape[1]


def test_real_images_learn_their_own_targets(toy, monkeypatch):
    store, data, targets, _ = toy
    calls = counted(monkeypatch, "fit")
    what = RealTargets(indices=(5, 2, 9), targets=targets)
    width = targets.encoder.width
    spec = spec_of(data, NET, what, outputs=width, train=RECIPE)
    context = {"store": str(store.root)}
    store.put("pretrained", spec, lambda f: tasks.pretrain_one(spec, context, f))
    _, _, images, values, train = calls[0]
    assert torch.equal(images, data.train.pixels[[5, 2, 9]])
    every = load_tree(next(store.verify("targets", targets).glob("*.safetensors")))["values"]
    assert torch.equal(values, every[[5, 2, 9]])
    assert train == RECIPE
    wrong = dataclasses.replace(spec, outputs=7)
    with pytest.raises(InputError, match="have 48 dimensions"):
        tasks.pretrain_one(wrong, context, store.root)


def test_views_of_random_images_are_trained_on_directly(toy):
    store, data, _, s = toy
    direct = direct_recipe("bt", epochs=3)
    assert [(p.epochs, p.lr_scale) for p in direct.segments] == [(2, 1.0), (1, 0.1)]
    options = {"data": data, "labels": ["50%"], "seeds": 2, "store": store}
    found = evaluate_pretraining(s, **options, direct=direct)
    row = found.row("random, Barlow Twins")
    assert row.note == "trained on views; 3 steps"
    weights = [load_tree(e.folder / "encoder.safetensors") for e in store.entries("pretrained")]
    kinds = [from_json(entry.spec) for entry in store.entries("pretrained")]
    own = [(k.what, w) for k, w in zip(kinds, weights, strict=True) if k.seed == 0]
    (moved,) = [w for what, w in own if isinstance(what, RealViews)]
    (still,) = [w for what, w in own if what == Untrained()]
    assert moved.keys() == still.keys()
    assert not any(torch.equal(moved[name], still[name]) for name in moved)
    assert "targets" not in row.nbytes
    other = evaluate_pretraining(s, **options, direct=direct_recipe("simclr", epochs=2))
    assert other.row("random, SimCLR").lr == 0.01
    with pytest.raises(InputError, match="leave a batch of one, which is no batch of pairs"):
        evaluate_pretraining(s, **options, direct=dataclasses.replace(direct, batch=len(s) - 1))


def test_protocols_are_what_they_say(toy):
    store, data, _, s = toy
    parity, own = PROBES.get("mkdt-parity"), PROBES.get("recommended")
    train = parity.train_spec(dataclasses.replace(RECIPE, lr=0.3))
    assert (train.lr, train.batch, train.epochs, train.augment) == (0.3, 256, 20, None)
    assert train.optimizer == SGD(momentum=0.9, weight_decay=1e-4)
    assert [each.lr for each in parity.real_specs(RECIPE)] == [0.1]
    assert own.train_spec(RECIPE) == RECIPE
    assert [each.lr for each in own.real_specs(RECIPE)] == [0.05, 0.1, 1.0]
    assert (parity.seeds, parity.ddof, parity.stratified, parity.l2) == (3, 0, False, 1e-3)
    assert (own.seeds, own.ddof, own.stratified, own.l2) == (5, 1, True, 1e-3)
    assert from_json(to_json(parity)) == parity
    options = {"data": data, "labels": ["50%"], "seeds": 2, "store": store}
    found = evaluate_pretraining(s, **options, protocol="mkdt-parity")
    row = found.row("distilled")
    assert row.count == 60  # half of training and validation part
    assert row.validation is None
    low, high = sorted(row.accuracies)
    assert row.std == pytest.approx((high - low) / 2)  # of the population
    assert {each.protocol for each in found.rows} == {"mkdt-parity"}
    assert found.row(RANDOM[0]).lr == 0.1


def test_other_sets_stand_beside_and_targets_are_looked_up(toy, tmp_path):
    store, data, targets, s = toy
    assert found_targets(s, store) == targets
    assert found_targets(s, Store(tmp_path / "none")) is None
    rows = tuple(range(40, 52))
    origin = dataclasses.replace(s.origin, rows=rows)
    real = dataclasses.replace(s, images=s.images.flip(0), origin=origin)
    real.save(tmp_path / "high-loss")
    options = {"data": data, "labels": ["50%"], "seeds": 1}
    beside = [tmp_path / "high-loss", Beside(name="again", sets=(s,))]
    found = evaluate_pretraining(s, **options, beside=beside, store=store, baselines=False)
    assert [row.name for row in found.rows] == ["distilled", "high-loss", "again"]
    assert "real images, 0 of 3 classes are absent" in found.row("high-loss").note
    assert found.row("again").accuracies == found.row("distilled").accuracies
    assert found.pretrainings == 1 + 3  # real images choose among the set's step, .1 and 1
    lonely = evaluate_pretraining(s, **options, store=Store(tmp_path / "none"))
    assert [row.name for row in lonely.rows] == ["distilled", NONE]
    assert "not in the store" in lonely.notes[0]


def test_a_set_of_real_images_chooses_its_step_as_the_others_do(toy):
    store, data, _, s = toy
    origin = dataclasses.replace(s.origin, rows=tuple(range(12)))
    own = dataclasses.replace(RECIPE, lr=0.02)
    real = dataclasses.replace(s, origin=origin, recipe=own)
    options = {"data": data, "labels": ["50%"], "seeds": 1, "store": store}
    beside = [Beside(name="real", sets=(real,))]
    found = evaluate_pretraining(s, **options, beside=beside)
    assert found.row("real").note.endswith("best of 4 step sizes")  # its own, too
    assert found.row(RANDOM[0]).note == "8 steps; best of 3 step sizes"
    found = evaluate_pretraining(real, **options)
    assert found.row("distilled").note.endswith("best of 3 step sizes")
    assert found.row(RANDOM[0]).note == "8 steps; best of 3 step sizes"
    found = evaluate_pretraining(s, **options, beside=beside, protocol="mkdt-parity")
    assert [row.lr for row in found.rows] == [0.05, 0.1, 0.1, 0.1, None]


def test_training_that_diverges_is_told_and_not_chosen(toy):
    store, data, _, s = toy
    wild = dataclasses.replace(s, recipe=dataclasses.replace(RECIPE, lr=1e18))
    options = {"data": data, "labels": ["50%"], "seeds": 1, "store": store}
    found = evaluate_pretraining(wild, **options)
    assert found.row("distilled").mean == 0
    assert found.row("distilled").note == "8 steps; 1 of 1 diverged and count as 0"
    assert found.row(RANDOM[0]).lr in (0.1, 1.0)


def test_a_probe_without_an_optimum_counts_as_diverged_and_stops_no_other(toy, monkeypatch):
    store, data, _, s = toy
    real, calls = tasks.linear_probe, []

    def first_fails(*given):
        calls.append(given)
        if len(calls) == 1:
            raise WorkError("A linear probe did not reach its optimum.")
        return real(*given)

    monkeypatch.setattr(tasks, "linear_probe", first_fails)
    found = evaluate_pretraining(s, data=data, labels=["50%"], seeds=1, store=store)
    assert (found.row("distilled").mean, found.row("distilled").knn) == (0, 0)
    assert "1 of 1 diverged and count as 0" in found.row("distilled").note
    assert found.row(NONE).mean > 0


def test_parts_of_labels_are_without_rounding_errors():
    (budget,) = budgets_of(("0.7%",), ())
    assert (
        len(given_rows(torch.zeros(1000, dtype=torch.int64), 1, budget, stratified=True, seed=0))
        == 7
    )
