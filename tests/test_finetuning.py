"""Fine-tuning of pre-trained networks, and KRR-ST's rules of probes."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from potstill.augment import DSA
from potstill.cli import run
from potstill.core.errors import InputError
from potstill.core.files import read_json
from potstill.core.registry import Registry
from potstill.core.spec import from_json, to_json
from potstill.core.store import Store
from potstill.evaluation import PROBES, evaluate_pretraining, pretraining_asked
from potstill.evaluation.finetuning import FINETUNED, _network, finetune_one
from potstill.evaluation.pretraining_rules import FineTune
from potstill.functional import SGD, Segment
from probing import NET, RECIPE, data_set, set_of, targets_of


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)


@pytest.fixture
def toy(tmp_path):
    store, data = Store(tmp_path / "store"), data_set()
    return store, data, set_of(data, targets_of(data, store, tmp_path / "encoder"), store)


@pytest.fixture
def short(monkeypatch):
    """Make KRR-ST's protocol one of few epochs."""
    rules = PROBES.get("krr-st")
    registry = Registry("probe protocol")
    tune = replace(rules.finetune, steps=10**9, few=24, batch=40, lr=0.05, pad=1)
    short = replace(rules, segments=(Segment(epochs=4),), finetune=tune, labels=("50%",), seeds=2)
    registry.add("krr-st")(short)
    registry.add("mkdt-parity")(PROBES.get("mkdt-parity"))
    monkeypatch.setattr(pretraining_asked, "PROBES", registry)
    return short


def test_the_rules_are_the_published_ones():
    rules = PROBES.get("krr-st")
    assert from_json(to_json(rules)) == rules
    train = rules.train_spec(replace(RECIPE, lr=0.1))
    assert (train.lr, train.batch, train.epochs, train.augment) == (0.1, 256, 1000, None)
    assert train.optimizer == SGD(momentum=0.9, weight_decay=1e-3)
    assert [each.lr for each in rules.real_specs(RECIPE)] == [0.1]
    assert (rules.labels, rules.whole, rules.seeds) == (("100%",), True, 3)
    for images, side, steps, pad in ((50_000, 32, 9996, 0.125), (6_000, 64, 4992, 0.0625)):
        tuned = FineTune().train_spec(images, (side, side))
        assert tuned.steps(images) == steps
        assert (tuned.lr, tuned.batch, tuned.loss) == (0.01, 256, "ce")
        assert tuned.optimizer == SGD(momentum=0.9, weight_decay=5e-4)
        assert tuned.augment == DSA(strategy="crop_flip", mode="M", crop_pad=pad)
        assert tuned.segments[0].lr_scale == 1
        half = tuned.segments[len(tuned.segments) // 2].lr_scale
        assert half == pytest.approx(0.5, abs=0.02)
        assert {each.optimizer for each in tuned.segments} == {"carried"}


def test_fine_tuned_networks_are_rows_of_their_own(toy, short):
    store, data, s = toy
    other = data_set("another", classes=4)
    given = {"data": data, "transfer": [other], "store": store, "protocol": "krr-st"}
    found = evaluate_pretraining(s, **given, finetune=True)
    for target, images in (("toy", 120), ("another", 160)):
        for name in ("distilled", "random, targets", "no pre-training"):
            row = found.row(name, target=target, labels="all, fine-tuned")
            assert (row.count, row.n, row.knn) == (images, 2, None)
            assert row.mean > 0.6 > 1 / 3
            assert found.row(name, target=target, labels="50%").knn is not None
    assert len(list(store.entries(FINETUNED))) == 2 * 2 * 4
    assert found.probes == 2 * 2 * 4
    again = evaluate_pretraining(s, **given)
    assert {row.labels for row in again.rows} == {"50%"}
    with pytest.raises(InputError, match="'mkdt-parity' does not fine-tune networks; krr-st does"):
        evaluate_pretraining(s, **{**given, "protocol": "mkdt-parity"}, finetune=True)


def test_it_is_plain_training_of_encoder_and_head(toy, short, tmp_path):
    store, data, s = toy
    net = replace(NET, norm="batch")
    options = {"data": data, "store": store, "protocol": "krr-st", "nets": [net]}
    evaluate_pretraining(s, **options, baselines=False, finetune=True)
    spec = from_json(next(iter(store.entries(FINETUNED))).spec)
    train = replace(spec.train, augment=None, segments=(Segment(epochs=5),), batch=1000)
    spec = replace(spec, train=train, whole=False)
    kept = _network(spec, data, store.verify("pretrained", spec.pretrained))
    module = kept.load(kept.theta0).train()
    x, test = (s.space.forward(part.pixels) for part in (data.train, data.test))
    assert module(x[:2]).shape == (2, 3)
    options = {"momentum": 0.9, "weight_decay": 5e-4}
    sgd = torch.optim.SGD(module.parameters(), train.lr, **options)
    for _ in range(5):
        sgd.zero_grad()
        F.cross_entropy(module.train()(x), data.train.labels).backward()
        sgd.step()
    hits = (module.eval()(test).argmax(1) == data.test.labels).double().mean()
    (folder := tmp_path / "one").mkdir()
    finetune_one(spec, {"store": str(store.root)}, folder)
    result = read_json(folder / "result.json")
    assert result["budgets"] == [{"labels": len(data.train), "test": float(hits)}]
    assert (result["diverged"], result["steps"]) == (False, 5)
    wild = replace(spec, train=replace(train, lr=1e30))
    finetune_one(wild, {"store": str(store.root)}, folder)
    assert read_json(folder / "result.json")["budgets"][0]["test"] == 0
    assert read_json(folder / "result.json")["diverged"]


def test_the_command_line_shows_them(toy, short, tmp_path, capsys):
    store, _, s = toy
    s.save(tmp_path / "set")
    flags = ["--protocol", "krr-st", "--finetune", "--seeds", "1", "--store", str(store.root)]
    out = ["--out", str(tmp_path / "out"), "--threads", "1"]
    assert run(["probe", str(tmp_path / "set"), *flags, *out]) == 0
    assert "all, fine-tuned" in " ".join(capsys.readouterr().out.split())
    assert "all, fine-tuned" in (tmp_path / "out" / "table.md").read_text()
    refused = ["probe", str(tmp_path / "set"), "--finetune", "--protocol", "mkdt-parity"]
    assert run(refused) == 2
    assert "does not fine-tune networks; krr-st does" in " ".join(capsys.readouterr().err.split())
