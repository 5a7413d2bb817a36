"""The benchmark of the unrolled step: it runs, and its plain version is the same step."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

PATH = Path(__file__).parents[1] / "benchmarks" / "unroll.py"


@pytest.fixture
def bench(monkeypatch):
    spec = importlib.util.spec_from_file_location("bench_unroll", PATH)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_unroll", module)  # dataclasses look themselves up
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    yield module
    torch.set_num_threads(threads)


def test_a_tiny_run_appends_one_line_a_configuration(bench, tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    sizes = ["--steps", "1", "2", "--width", "4", "--batch", "2", "--repeats", "2"]
    rows = bench.main([*sizes, "--no-memory", "--out", str(out)])
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["steps"] for line in lines] == [1, 2] == [row["steps"] for row in rows]
    assert all(len(seconds) == 2 for seconds in lines[0]["cpu_seconds"].values())
    assert lines[0]["float64_difference"] < 1e-9
    assert set(bench.ratios(lines[0])) == {"graph", "adjoint"}
    assert "of plain" in capsys.readouterr().out


def test_wide_nets_equal_the_plain_version_too(bench):
    assert bench.check_equal(width=64, batch=2, side=16) < 1e-9


def test_a_wrong_gradient_stops_it(bench, monkeypatch):
    def halved(p, strategy):
        images, lr = bench.plain_step(p)
        return images / 2, lr

    monkeypatch.setattr(bench, "our_step", halved)
    with pytest.raises(SystemExit, match="differ"):
        bench.check_equal(width=4, batch=2, side=8)


@pytest.mark.slow
def test_peak_memory_is_that_of_a_process_of_its_own(bench):
    small, large = (bench.peak_bytes("plain", width=32, batch=4, steps=n) for n in (2, 12))
    assert large > 2 * small
