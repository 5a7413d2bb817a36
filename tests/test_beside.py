"""Several distilled sets in one evaluation: cut, subsets, by folders."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from potstill import cli
from potstill.artefact import Block, Soft
from potstill.core.errors import InputError
from potstill.core.store import Store
from potstill.evaluation import Beside, evaluate
from test_evaluate import CLASSES, toy_data, toy_set


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)


def test_a_cut_takes_the_first_of_each_class():
    s = toy_set(toy_data(), ipc=3)  # class by class in turn
    s = replace(s, origin=replace(s.origin, rows=tuple(range(10, 19)), accuracy='{"mean": 1}'))
    order = torch.tensor([0, 3, 6, 1, 4, 7, 2, 5, 8])  # class-major
    shuffled = s.taken(order)
    for whole, rows in ((s, range(6)), (shuffled, (0, 3, 1, 4, 2, 5))):
        small = whole.cut(2)
        assert torch.equal(small.images, s.images[list(rows)])
        assert small.targets.values.tolist() == [k % CLASSES for k in rows]
        assert small.origin.rows == tuple(10 + k for k in rows)
        assert (small.ipc, small.origin.measured) == ((2,) * CLASSES, {})
    soft = replace(
        s,
        targets=Soft(torch.nn.functional.one_hot(s.targets.classes).float()),
        recipe=replace(s.recipe, loss="soft_ce"),
    )
    assert torch.equal(soft.cut(1).targets.values, soft.targets.values[:CLASSES])
    for bad in (0, 4):
        with pytest.raises(InputError, match=f"1 to 3 images a class, not {bad}"):
            s.cut(bad)


def test_sets_beside_a_set_score_as_alone_and_share_the_store(tmp_path):
    data, store = toy_data(), Store(tmp_path / "store")
    big, small = toy_set(data, ipc=4), toy_set(data, ipc=2)
    small = replace(small, images=small.images + 0.1, recipe=replace(small.recipe, lr=0.01))
    big.save(tmp_path / "big" / "distilled")
    small.save(tmp_path / "small")
    blocks = tuple(Block(name=f"block{k}", start=6 * k, stop=6 * k + 6) for k in range(2))
    boosted = replace(big, images=big.images * 1.1, blocks=blocks)
    options = {"seeds": 2, "baselines": False, "store": store}
    alone = [evaluate(s, **options).rows[0] for s in (boosted.prefix(1), big.cut(2), small)]
    done, paths = [], [tmp_path / "big" / "distilled", "small"]
    told = {"on_done": lambda *at: done.append(at)}
    found = evaluate(boosted, prefix=1, beside=paths, **options, **told)
    assert [row.name for row in found.rows] == [
        "distilled",
        "big, first 2 a class",
        "small, whole",
    ]
    assert [row.accuracies for row in found.rows] == [row.accuracies for row in alone]
    assert [row.lr for row in found.rows] == [0.02, 0.02, 0.01]
    assert len({row.accuracies for row in found.rows}) > 1
    assert found.cpu_seconds == sum(row.cpu_seconds for row in alone)  # nothing is trained again
    subsets = tuple(big.taken(torch.arange(6) + 3 * k) for k in range(2))
    both = evaluate(small, beside=[Beside(name="parts", sets=subsets)], **options).rows[1]
    each = [evaluate(s, **options).rows[0].accuracies[k] for k, s in enumerate(subsets)]
    assert both.accuracies == tuple(each)


def test_soft_labels_beside_hard_ones(tmp_path):
    data, store = toy_data(), Store(tmp_path / "store")
    hard = toy_set(data)
    soft = replace(
        hard,
        targets=Soft(torch.nn.functional.one_hot(hard.targets.classes).float() * 0.9 + 0.03),
        recipe=replace(hard.recipe, loss="soft_ce"),
    )
    soft.save(tmp_path / "soft")
    options = {"seeds": 1, "baselines": False, "store": store}
    own = evaluate(hard, beside=["soft"], **options)
    assert [row.regime for row in own.rows] == ["hard", "soft"]
    assert own.rows[1].accuracies == evaluate(soft, **options).rows[0].accuracies
    as_hard = evaluate(hard, beside=["soft"], regimes=("hard",), **options).rows
    assert as_hard[0].accuracies == as_hard[1].accuracies
    with pytest.raises(InputError, match="hard labels only"):
        evaluate(hard, beside=["soft"], protocol="mtt", **options)


def test_what_cannot_stand_beside_is_refused(tmp_path):
    data = toy_data()
    s = toy_set(data, ipc=2)
    toy_set(data, ipc=1).save(tmp_path / "tiny")
    with pytest.raises(
        InputError, match=r"'tiny' has fewer images a class \(1\) than the set \(2\)"
    ):
        evaluate(s, beside=["tiny"])
    other = toy_data(shuffle_test=True)
    toy_set(other).save(tmp_path / "other")
    with pytest.raises(InputError, match="is not the data set"):
        evaluate(s, beside=["other"])


def test_the_flag(tmp_path, capsys):
    data = toy_data()
    toy_set(data, ipc=2).save(tmp_path / "small")
    toy_set(data, ipc=3).save(tmp_path / "big")
    flags = ["--beside", "big", "small", "--seeds", "1", "--no-baselines"]
    assert cli.run(["evaluate", "small", *flags]) == 0
    out = capsys.readouterr().out
    assert "big, first 2 a class" in out
    assert "small, whole" in out
    assert cli.run(["evaluate", "small", "--beside", "nothing"]) == 2
    assert "nothing" in capsys.readouterr().err
