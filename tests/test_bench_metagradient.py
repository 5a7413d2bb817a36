"""The benchmark of the outer step of RaT-BPTT: it runs, its plain version is the same step."""

import json

import pytest

SIZES = ["--repeats", "2", "--widths", "4", "--real", "8", "--start", "1"]
EAGER = ["--versions", "plain", "graph", "adjoint"]


def test_a_tiny_run_appends_one_line_a_configuration(bench, tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    sizes = ["--sizes", "1:2:4", "2:1:3", "--no-memory", "--out", str(out)]
    found = bench("metagradient").main([*SIZES, *EAGER, *sizes])
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["ipc"], row["window"], row["total"]) for row in lines] == [(1, 2, 4), (2, 1, 3)]
    assert lines == json.loads(json.dumps(found))
    assert all(len(seconds) == 2 for seconds in lines[0]["cpu_seconds"].values())
    assert lines[0]["float64_difference"] < 1e-9
    assert min(lines[0]["cosine_to_float64"].values()) > 0.999
    assert "of plain" in capsys.readouterr().out


@pytest.mark.parametrize("start", [0, 4])
def test_the_plain_step_is_the_same_from_the_first_step_on_too(bench, start):
    sizes = {"width": 8, "ipc": 2, "side": 16, "start": start}
    assert bench("metagradient").check_equal(**sizes, versions=("graph", "adjoint")) < 1e-9


def test_a_wrong_gradient_stops_it(bench, monkeypatch):
    benchmark = bench("metagradient")
    monkeypatch.setattr(benchmark, "our_step", lambda p, _: 0.5 * benchmark.plain_step(p))
    with pytest.raises(SystemExit, match="gradient of graph differs"):
        benchmark.check_equal(width=4, ipc=1, start=1, side=8)


def test_a_window_longer_than_the_total_is_refused(bench, capsys):
    with pytest.raises(SystemExit):
        bench("metagradient").main(["--sizes", "1:5:4"])
    assert "--sizes" in capsys.readouterr().err


@pytest.mark.slow
def test_peak_memory_is_that_of_a_process_of_its_own(bench):
    sizes = ["--sizes", "1:6:8", "--widths", "32", "--versions", "plain", "adjoint"]
    (row,) = bench("metagradient").main([*SIZES, *sizes, "--flat", "2", "12"])
    few, many = row["adjoint_peak_bytes"].values()
    assert abs(many - few) < 0.2 * few
    assert row["peak_bytes"]["plain"] > row["peak_bytes"]["adjoint"]


@pytest.mark.slow
def test_compiled_steps_equal_the_plain_ones_and_their_compiler_is_timed(bench):
    (row,) = bench("metagradient").main([*SIZES, "--sizes", "1:2:4", "--no-memory"])
    assert set(row["cpu_seconds"]) == {"plain", "graph", "adjoint", "compiled"}
    took = row["compile_cpu_seconds"]
    assert took["cold"] > took["warm"] > 0
