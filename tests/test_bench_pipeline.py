"""The benchmark of a whole job: both programs do all of it."""

from dataclasses import replace

import pytest


def tiny(pipeline):
    method = pipeline.method_of("smoke")
    experts = replace(method.experts, count=2, epochs=2)
    return replace(method, iterations=2, steps=2, evaluation_epochs=1, experts=experts)


def test_both_programs_do_the_whole_job(bench):
    pipeline, common = bench("pipeline"), bench("common")
    with common.workplace(1):
        data, method = common.images(None, train=20, test=20), tiny(pipeline)
        found = [
            pipeline.plain_program(data, method, width=4, seed=0),
            pipeline.our_program(data, method, width=4, seed=0, threads=1, compiling="auto"),
        ]
    for one in found:
        assert set(one["cpu_seconds"]) == set(pipeline.PARTS)
        assert all(seconds > 0 for seconds in one["cpu_seconds"].values())
        assert len(one["accuracies"]) == pipeline.NETWORKS
    assert found[1]["plan"]["window"]["threads"] == 1


def test_the_setting_is_the_recipe_at_its_scale(bench):
    method = bench("pipeline").method_of("cpu")
    assert (method.experts.count, method.experts.epochs, method.iterations) == (3, 8, 300)
    assert (method.steps, method.evaluation_epochs, method.batch_syn) == (15, 300, None)


@pytest.mark.slow
def test_programs_run_in_fresh_processes_and_ours_once_more_without_compiled_code(bench):
    words = ["--scale", "smoke", "--widths", "4", "--train", "40", "--repeats", "2"]
    (row,) = bench("pipeline").main([*words, "--test", "20", "--data", "standin:3x32x10"])
    assert {name: len(each) for name, each in row["programs"].items()} == {
        "plain": 2,
        "potstill": 2,
    }
    assert row["cold"]["plan"] == row["programs"]["potstill"][0]["plan"]
    assert [len(row["accuracies"][name]) for name in ("plain", "potstill")] == [2, 2]
    assert bench("rows").ratios(row)["potstill"][0] > 0
