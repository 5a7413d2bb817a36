"""The benchmark of an inner step of IDC: it runs, its plain program takes the same step."""

import json

import pytest
import torch

from potstill.artefact import MultiFormation

TINY = ["--sizes", "4:1:70", "--train", "700"]
EAGER = ["--versions", "plain", "live", "pool", "--repeats", "2"]


def test_a_tiny_run_appends_one_line_a_size(bench, tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    words = ["--sizes", "4:1:70", "4:2:64", "--train", "700", *EAGER, "--out", str(out)]
    found = bench("gradient_matching").main(words)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["width"], row["ipc"], row["n_data"]) for row in lines] == [(4, 1, 70), (4, 2, 64)]
    assert lines == json.loads(json.dumps(found))
    for row in lines:
        assert row["float64_difference"] < 1e-9
        assert all(len(seconds) == 2 for seconds in row["cpu_seconds"].values())
        assert row["losses"]["live"] == pytest.approx(row["losses"]["plain"], rel=1e-4)
        assert row["losses"]["pool"] == row["losses"]["live"]
        assert len(set(row["losses"]["plain"])) == 2
    said = capsys.readouterr().out
    assert "of plain" in said
    assert "losses within" in said
    assert "NOT equal" not in said


@pytest.mark.parametrize(("side", "factor"), [(32, 2), (32, 3), (9, 2), (8, 1)])
def test_it_decodes_as_ours(bench, side, factor):
    x = torch.rand(3, 3, side, side, dtype=torch.float64)
    ours = MultiFormation(factor=factor)
    wanted = ours.take(x, ours.index(torch.zeros(3, dtype=torch.int64)))
    got = bench("plain_idc").decoded(x, factor)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-14)


@pytest.mark.parametrize("wrong", ["distance", "train", "decoded", "augmented"])
def test_another_step_is_noticed(bench, monkeypatch, wrong):
    setting, plain = bench("idc_setting"), bench("plain_idc")
    right = getattr(plain, wrong)
    other = {
        "distance": lambda *args: right(*args) * (1 + 1e-6),
        "train": lambda job, batches: right(job, batches[1:]),
        "decoded": lambda images, factor: right(images.mT, factor).mT,
        "augmented": lambda x, operation: right(x, operation) * (1 + 1e-6),
    }
    monkeypatch.setattr(plain, wrong, other[wrong])
    with (
        bench("common").workplace(1),
        pytest.raises(SystemExit, match="differs from the plain one"),
    ):
        setting.check_equal(width=4)


def test_losses_that_are_far_apart_are_told(bench):
    row = {"losses": {"plain": [1.0, 2.0], "live": [1.0, 2.1], "compiled": [1.0, 2.1]}}
    notes = bench("gradient_matching").loss_notes(row)
    assert notes == {
        "live": "losses within 5.0e-02, NOT equal",
        "compiled": "losses within 5.0e-02",
    }


@pytest.mark.parametrize("words", [["--sizes", "4:1"], ["--run", "0:2"], ["--compile", "on"]])
def test_wrong_words_are_refused(bench, capsys, words):
    with pytest.raises(SystemExit):
        bench("gradient_matching").main(words)
    assert words[0] in capsys.readouterr().err


@pytest.mark.slow
def test_a_second_run_finds_the_pool(bench):
    (row,) = bench("gradient_matching").main([*TINY, "--run", "2:3", "--repeats", "1"])
    assert set(row["cpu_seconds"]) == {"empty", "filled"}
    assert "filled" in bench("rows").ratios(row)


@pytest.mark.slow
def test_compiled_versions_run_and_their_compiler_is_timed(bench):
    words = [*TINY, "--repeats", "1", "--versions", "plain", "compiled", "compiled-pool"]
    (row,) = bench("gradient_matching").main(words)
    assert set(row["cpu_seconds"]) == {"plain", "compiled", "compiled-pool"}
    assert row["compile_cpu_seconds"]["cold"] > row["compile_cpu_seconds"]["warm"] > 0


@pytest.mark.slow
def test_compiled_second_derivatives_equal_the_plain_ones(bench):
    words = [*TINY, "--repeats", "1", "--versions", "plain", "whole", "--no-compile-time"]
    (row,) = bench("gradient_matching").main(words)
    assert row["float64_difference"] < 1e-9
    assert row["losses"]["whole"] == pytest.approx(row["losses"]["plain"], rel=0.05)
