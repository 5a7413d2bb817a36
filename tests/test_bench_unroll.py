"""The benchmark of the unrolled step: it runs, and its plain version is the same step."""

import json

import pytest

SIZES = ["--batch", "2", "--repeats", "2", "--no-memory"]
EAGER = ["--versions", "plain", "graph", "adjoint"]


def test_a_tiny_run_appends_one_line_a_configuration(bench, tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    sizes = [*SIZES, *EAGER, "--steps", "1", "2", "--widths", "4", "8", "--out", str(out)]
    found = bench("unroll").main(sizes)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    wanted = [(4, 1), (4, 2), (8, 1), (8, 2)]
    assert [(line["width"], line["steps"]) for line in lines] == wanted
    assert lines == json.loads(json.dumps(found))
    assert all(len(seconds) == 2 for seconds in lines[0]["cpu_seconds"].values())
    assert lines[0]["float64_difference"] < 1e-9
    assert set(bench("rows").ratios(lines[0])) == {"graph", "adjoint"}
    assert "of plain" in capsys.readouterr().out


def test_wide_nets_equal_the_plain_version_too(bench):
    versions = ("graph", "adjoint")
    assert bench("unroll").check_equal(width=64, batch=2, side=16, versions=versions) < 1e-9


def test_learned_features_equal_the_plain_version_too(bench):
    unroll = bench("unroll")
    sizes = {"width": 4, "batch": 3, "features": 7, "side": 16}
    assert unroll.check_equal(**sizes, versions=("graph", "adjoint")) < 1e-9
    by_images, by_lr, by_features = unroll.plain_step(unroll.problem(**sizes, steps=2))
    assert by_features.shape == (3, 7)
    assert all(bool(each.any()) for each in (by_images, by_lr, by_features))


def test_a_wrong_gradient_stops_it(bench, monkeypatch):
    unroll = bench("unroll")

    def halved(p, strategy):
        images, lr = unroll.plain_step(p)
        return images / 2, lr

    monkeypatch.setattr(unroll, "our_step", halved)
    with pytest.raises(SystemExit, match="gradient of graph differs"):
        unroll.check_equal(width=4, batch=2, side=8)


@pytest.mark.slow
def test_peak_memory_is_that_of_a_process_of_its_own(bench):
    unroll, common = bench("unroll"), bench("common")
    asked = common.parsed(common.parser("", versions=unroll.VERSIONS, repeats=1), [])
    small, large = (
        common.fresh(
            unroll.__file__,
            {
                "task": "peak",
                "version": "plain",
                "width": 32,
                "batch": 4,
                "steps": n,
                "features": 0,
            },
            asked,
        )
        for n in (2, 12)
    )
    assert large > 2 * small


@pytest.mark.slow
def test_compiled_steps_equal_the_plain_ones_and_their_compiler_is_timed(bench):
    (row,) = bench("unroll").main([*SIZES, "--steps", "2", "--widths", "4"])
    assert set(row["cpu_seconds"]) == {"plain", "graph", "adjoint", "compiled"}
    took = row["compile_cpu_seconds"]
    assert took["cold"] > took["warm"] > 0
