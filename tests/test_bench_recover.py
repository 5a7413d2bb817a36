"""The benchmarks of recovery and of labels: they run, and their plain versions do the same."""

import json
from dataclasses import replace

import pytest
import torch

from potstill.nets import NetSpec, filled

NET = filled(NetSpec(name="resnet10-bn", width=4))
EAGER = ["--versions", "plain", "float32", "bfloat16"]
pytestmark = pytest.mark.usefixtures("alone")


@pytest.fixture
def small(bench, monkeypatch):
    """Let the benchmarks take a small network."""
    monkeypatch.setattr(bench("recover_setting"), "net_spec", lambda side: (NET, 12))


@pytest.mark.usefixtures("small")
def test_a_tiny_recovery_appends_a_line(bench, tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    sizes = ["--sides", "16", "--batch", "4", "--steps", "2", "--repeats", "2", "--out", str(out)]
    found = bench("recover").main([*EAGER, *sizes])
    (line,) = map(json.loads, out.read_text().splitlines())
    assert [line] == json.loads(json.dumps(found))
    assert {name: len(own) for name, own in line["cpu_seconds"].items()} == {
        "plain": 2,
        "float32": 2,
        "bfloat16": 2,
    }
    far = line["loss_differences"]
    assert max(far["float32"], far["two units"]) < 1e-5 < far["bfloat16"] < 0.05
    assert far["images"] < 1e-4
    assert "the published code was not timed at this size" in capsys.readouterr().out


@pytest.mark.usefixtures("small")
def test_another_loss_stops_the_recovery(bench, monkeypatch):
    setting = bench("recover_setting")
    p, usual = setting.problem(side=16, batch=4), setting.recovered

    def evenly(teachers, x, units, settings, space, *, seed, compute):
        return usual(
            teachers, x, units, replace(settings, first=1), space, seed=seed, compute=compute
        )

    monkeypatch.setattr(setting, "recovered", evenly)
    with pytest.raises(SystemExit, match="losses of float32 differ"):
        setting.check_equal(p, ())


def test_the_plain_crop_falls_back_to_the_whole_image(bench):
    plain, chance = bench("plain_recover"), torch.Generator().manual_seed(0)
    whole = [plain.random_box(64, 0.99, chance) == (0, 0, 64, 64) for _ in range(400)]
    assert 0.65 < sum(whole) / 400 < 0.84  # 0.746 by the description
    boxes = [plain.random_box(64, 0.08, chance) for _ in range(400)]
    areas = [height * width / 64**2 for _, _, height, width in boxes]
    assert sum(areas) / 400 == pytest.approx(0.48, abs=0.04)


@pytest.mark.usefixtures("small")
def test_tiny_labels_and_trainings_append_a_line_each(bench, tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    sizes = ["--side", "16", "--count", "8", "--batch", "4", "--repeats", "2", "--out", str(out)]
    bench("relabel_setting").net_spec = bench("recover_setting").net_spec
    bench("relabel").main([*EAGER, *sizes])
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["task"] for line in lines] == ["labels", "training"]
    assert lines[0]["difference"] < 2**-11
    assert lines[1]["difference"] < 1e-9
    assert "kept labels equal the plain ones" in capsys.readouterr().out


def test_the_teacher_is_opened_once_for_all_epochs(bench, tmp_path, monkeypatch):
    setting, relabel = bench("relabel_setting"), bench("potstill.recover.relabel")
    opened, usual = [], relabel.open_teacher
    monkeypatch.setattr(relabel, "open_teacher", lambda *a: opened.append(a) or usual(*a))
    s = setting.setting(tmp_path, side=16, count=4, batch=4, epochs=3, net=NET)
    assert len(setting.our_labels(s, tmp_path, "float32")) == 3
    assert len(opened) == 1


def test_sets_of_both_precisions_are_compared(bench):
    sizes = dict.fromkeys(("squeeze", "ipc", "iterations", "epochs"), 2)
    module = bench("recover_accuracy")
    row = module.compare_sets(None, repeats=2, threads=1, sizes={**sizes, "train": 60, "test": 20})
    assert {name: len(own) for name, own in row["accuracies"].items()} == {
        "float32": 2,
        "bfloat16": 2,
    }
    text = bench("recover").show({**row, "threads": 1})
    assert any("% right (" in line for line in text)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_compiled_versions_are_checked_and_their_compiler_is_timed(bench):
    sizes = ["--sides", "16", "--batch", "4", "--steps", "1", "--repeats", "1"]
    (row,) = bench("recover").main([*sizes, "--no-compile-time"])
    assert row["loss_differences"]["compiled"] < 0.05
    assert row["loss_differences"]["grouped"] < 0.05
