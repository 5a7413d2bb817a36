"""The study of variance: its numbers against plain loops, its rows, its command."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from potstill import cli
from potstill.core.compute import Wish
from potstill.core.errors import InputError
from potstill.core.store import Store
from potstill.data import measure_stats, open_data, reopen
from potstill.functional.diagnostics import diagnosed
from potstill.nets import NetSpec
from potstill.report import variance_plot
from potstill.studies import Comparison, variance, variance_study
from potstill.studies import variance_tasks as tasks
from potstill.teachers import ENCODERS, open_encoder, read_encoder
from probing import data_set, set_of, targets_of

REAL = Path(os.environ.get("POTSTILL_DATA", Path(__file__).parents[2] / "shared" / "data"))
NET = NetSpec(name="convnet1", width=4)
SMALL = {"batches": (4,), "images": 5, "net": NET, "runs": 2, "steps": 3, "gradients": 3}


@pytest.fixture(autouse=True)
def _alone(alone, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(variance, "THEOREM", variance.THEOREM[::4])


def study(store: Path, data=None, **settings):
    data = data or open_data("standin:3x8x2")
    names = {field.name for field in fields(Comparison)}
    asked = {name: value for name, value in settings.items() if name in names}
    given = {name: value for name, value in settings.items() if name not in names}
    wish = Wish(threads=1)
    return variance_study(
        data, Comparison(**{**SMALL, **asked}), store=Store(store), wish=wish, **given
    )


def timeless(rows):
    times = ("seconds", "cpu_seconds", "peak_bytes")
    return [{name: value for name, value in row.items() if name not in times} for row in rows]


def test_the_study_has_a_row_for_each_objective_batch_and_start(tmp_path):
    told = []
    names = ("ce", "bt", "kd_mse+views")
    ask = {"batches": (4, 8), "seeds": 2, "objectives": names}
    found = study(tmp_path, **ask, on_done=lambda *at: told.append(at))
    runs = [row for row in found.rows if row["kind"] == "runs"]
    asked = [(name, batch, seed) for name in names for batch in (4, 8) for seed in (0, 1)]
    assert [(row["objective"], row["batch"], row["seed"]) for row in runs] == asked
    assert {row["steps"] == [3, 3] for row in runs} == {True}
    assert {row["weights"] for row in runs} == {4 * 3 * 9 + 4 + 8}
    assert [row["control"] for row in runs] == [False] * 8 + [True] * 4
    assert len({row["spread"] for row in runs}) == len(runs)
    assert told[-1] == (12, 12)
    assert [len(found.table), len(found.more[0])] == [1 + 6, 1 + 2]
    theorem = [row for row in found.rows if row["kind"] == "theorem"]
    assert all(row["normalised"] > 1 for row in theorem)
    assert theorem[0]["absolute"] < 1 < theorem[-1]["absolute"]
    figure = variance_plot(found.rows)
    assert figure.axes[0].get_title() == "spread of runs"
    again = study(tmp_path, objectives=["bt"], batches=(8,), seeds=2)
    assert again.rows[:2] == tuple(r for r in runs if (r["objective"], r["batch"]) == ("bt", 8))


def test_runs_end_equally_far_or_the_table_says_so(tmp_path):
    found = study(tmp_path, objectives=["ce", "bt"], distance=0.1, steps=30, lr={"bt": 1e-9})
    near, far = found.rows[:2]
    assert 0.1 <= near["moved"] < 0.15
    assert far["moved"] < 0.1
    assert max(near["steps"]) < 30
    assert [line[3].endswith(" (too few)") for line in found.table[1:]] == [False, True]


def last_first(channels: int, size: tuple[int, int], classes: int) -> nn.Module:
    """Make a network whose last layer draws its weights before the others."""
    last = nn.Linear(4, classes)
    layers = nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, last)


def test_all_objectives_begin_alike(monkeypatch, tmp_path):
    starts = []

    def noted(training, trials, *, measured, **given):
        starts.append(training.theta0[:measured])
        return diagnosed(training, trials, measured=measured, **given)

    monkeypatch.setattr(tasks, "diagnosed", noted)
    study(tmp_path)
    assert len(starts) == len(tasks.OBJECTIVES)
    assert all(torch.equal(start, starts[0]) for start in starts)
    starts.clear()
    study(tmp_path, net=NetSpec(name="module:test_variance.last_first"), objectives=["ce", "bt"])
    assert torch.equal(*starts)


@pytest.mark.slow
def test_workers_and_seeds(tmp_path):
    one = study(tmp_path / "one", objectives=["bt", "ce+views"])
    two = study(tmp_path / "two", objectives=["bt", "ce+views"], engine="processes", workers=2)
    assert timeless(one.rows) == timeless(two.rows)


def test_features_of_an_encoder_are_learned(tmp_path, monkeypatch):
    data, store = data_set(), Store(tmp_path)
    s = set_of(data, targets_of(data, store, tmp_path / "encoder"), store)
    seen = []

    def noted(training, trials, **given):
        seen.append(training.targets)
        return diagnosed(training, trials, **given)

    monkeypatch.setattr(tasks, "diagnosed", noted)
    look = partial(study, tmp_path, data=data, objectives=["kd_mse", "ce"])
    found = look(encoder=tmp_path / "encoder")
    assert [row.get("encoder") for row in found.rows[:2]] == [s.targets.by.digest, None]
    module = open_encoder(read_encoder(tmp_path / "encoder"), tmp_path / "encoder")
    part = reopen(replace(data.ref, limit=5)).train
    values = module(measure_stats(data.train).forward(part.pixels))
    wanted = (values - values.mean(0)) / values.std(0, correction=0)
    torch.testing.assert_close(seen[0], wanted, atol=1e-5, rtol=1e-4)
    s.save(tmp_path / "set")
    with pytest.raises(InputError, match=f"{s.targets.by.digest[:12]}, is not in"):
        look(encoder="set")
    store.put(ENCODERS, "any", lambda to: shutil.copytree("encoder", to, dirs_exist_ok=True))
    assert look(encoder="set").rows == found.rows
    look(encoder=None)
    assert seen[-1].shape == (15, 512)
    torch.testing.assert_close(seen[-1].std(0, correction=0), torch.ones(512), atol=1e-4, rtol=0)
    with pytest.raises(InputError, match="for objectives that learn features"):
        look(objectives=["ce"], encoder="set")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objectives": ["byol"]}, "Unknown objective 'byol'"),
        ({"objectives": ["ce", "ce"]}, "at least one objective, each once, not ce, ce"),
        ({"batches": ()}, "at least one batch, each once, not none"),
        ({"batches": (11,)}, "A batch of 11 images is more than the 10"),
        ({"batches": (0,)}, "at least 1 image"),
        ({"batches": (1,), "objectives": ["bt"]}, "at least 2 images"),
        ({"steps": None}, "Batches of 64 and 256 have a number of steps on record; say how many"),
        ({"runs": 1}, "runs must be at least 2, not 1"),
        ({"images": 1000}, "training images, fewer than 1000"),
        ({"seeds": 0}, "seeds must be at least 1, not 0"),
        ({"lr": {"bt": -1.0}}, "step size lr must be above 0"),
        ({"lr": {"ce": 0.1}, "objectives": ["bt"]}, "step size of ce, which is not looked at"),
        ({"encoder": "nowhere"}, "nowhere"),
    ],
)
def test_what_is_not_possible_is_one_sentence(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        study(tmp_path, **settings)


def test_the_command(tmp_path, capsys):
    flags = ["--batches", "4", "--images", "5", "--net", "convnet1", "--width", "4", "--runs", "2"]
    flags += ["--steps", "3", "--gradients", "3", "--threads", "1", "--out", "out"]
    command = ["study", "variance", "--data"]
    assert cli.run([*command, "standin:3x8x2", *flags, "--lr", "bt=1e-3", "ce=0.01"]) == 0
    out = capsys.readouterr().out
    assert "Barlow Twins (bt)" in out
    assert "contrastive over supervised" in out
    rows = [json.loads(line) for line in Path("out/rows.jsonl").read_text().splitlines()]
    assert [row["lr"] for row in rows[:4]] == [0.01, 0.2, 0.001, 0.1]
    assert "| scale of weights |" in Path("out/table.md").read_text()
    assert Path("out/plot.png").read_bytes()[1:4] == b"PNG"
    for arguments, message in (
        (["standin:3x8x2", *flags], "is there already"),
        (
            ["digits", *flags[:-1], "grey"],
            "Only images of 3 channels, not of 1, have colours that bt augments",
        ),
        (["digits", *flags[:-1], "grey", "--lr", "bt"], "is written as bt=1e-3, not bt"),
        (["digits", *flags[:-1], "grey", "--lr", "bt=1", "bt=2"], "step size of bt is given twice"),
    ):
        assert cli.run([*command, *arguments]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    assert cli.run(["study", "variance", "somewhere", "--out", "x"]) == 2
    assert "is of --data DATA, not of somewhere" in capsys.readouterr().err
    plain = ["digits", *flags[:-1], "grey", "--objectives", "ce", "kd_mse"]
    assert cli.run([*command, *plain]) == 0


@pytest.mark.slow
def test_features_spread_less_than_views_on_real_images(tmp_path):
    source = REAL / "cifar10"
    if not source.is_dir():
        pytest.skip(f"no CIFAR-10 in {REAL} (POTSTILL_DATA names the folder that holds it)")
    found = variance_study(
        open_data(f"parquet:{source}"),
        Comparison(objectives=("kd_mse", "kd_mse+views", "bt"), batches=(64,)),
        store=Store(tmp_path),
        wish=Wish(threads=1),
    )
    spread = {row["objective"]: row["spread"] for row in found.rows if row["kind"] == "runs"}
    assert spread["kd_mse"] < 0.5 * spread["bt"]
    assert spread["kd_mse"] < spread["kd_mse+views"] < 0.5 * spread["bt"]
