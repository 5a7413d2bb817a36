"""The benchmarks of experts and evaluation: they run, and both versions do the same work."""

import json
from dataclasses import replace

import pytest

from potstill.core.compute import no_compiler
from potstill.functional import kernels

EXPERTS = ["--widths", "4", "--train", "40", "--batch", "16", "--repeats", "2"]
EVALUATE = ["--widths", "4", "--ipc", "1", "--epochs", "2", "--test", "20", "--repeats", "2"]
EAGER = ["--versions", "plain", "eager"]


def test_experts_of_noise_are_timed(bench, tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    (row,) = bench("experts").main([*EXPERTS, *EAGER, "--epochs", "2", "--out", str(out)])
    assert json.loads(out.read_text()) == json.loads(json.dumps(row))
    assert row["images"] == 2 * row["train_images"] == 80
    assert [len(row["cpu_seconds"][name]) for name in EAGER[1:]] == [2, 2]
    assert row["accuracies"] == {"plain": [], "eager": []}
    assert "ms an image" in capsys.readouterr().out


def test_experts_of_real_images_are_tested_too(bench, capsys):
    (row,) = bench("experts").main([*EXPERTS, *EAGER, "--data", "standin:3x32x10"])
    assert all(0 <= value <= 1 for own in row["accuracies"].values() for value in own)
    assert "% right" in capsys.readouterr().out


def test_experts_start_from_the_same_weights(bench):
    experts, common = bench("experts"), bench("common")
    with common.workplace(1):
        flags = common.parsed(experts.flags(), ["--batch", "16"])
        s = experts.setting(flags, width=4, train=20, epochs=1)
        s = replace(s, plan=replace(s.plan, lr=1e-30))
        images = s.space.forward(s.data.train.pixels)
        ends = [experts.plain_expert(s, images, 3), experts.our_expert(s, "eager", 3)]
    assert all(float((end - s.start(3)).abs().max()) < 1e-20 for end in ends)


def test_evaluation_of_noise_is_timed(bench, capsys):
    (row,) = bench("evaluate").main([*EVALUATE, *EAGER])
    assert (row["set_images"], row["epochs"], row["test_images"]) == (10, 3, 20)
    assert [len(row["cpu_seconds"][name]) for name in EAGER[1:]] == [2, 2]
    assert row["accuracies"] == {}
    assert "of plain" in capsys.readouterr().out


def test_networks_on_real_images_start_and_are_tested_alike(bench, tmp_path):
    """With a step size of almost nothing both measure the same network."""
    evaluate, common = bench("evaluate"), bench("common")
    with common.workplace(1):
        words = ["--data", "standin:3x32x10", "--epochs", "1"]
        x = evaluate.setting(common.parsed(evaluate.flags(), words), width=4, ipc=2)
        still = replace(x.s.recipe, lr=1e-30)
        x = replace(x, s=replace(x.s, recipe=still))
        network = evaluate.work(x, tmp_path / "set")
        pairs = [(network("plain", k), network("eager", k)) for k in range(3)]
    assert len(x.s) == 20
    assert all(plain == eager for plain, eager in pairs)
    assert len({plain for plain, _ in pairs}) > 1


@pytest.mark.skipif(bool(no_compiler("cpu")), reason="there is no C++ compiler")
@pytest.mark.parametrize("name", ["experts", "evaluate"])
def test_nothing_is_compiled_while_it_is_timed(bench, monkeypatch, name):
    """With a compiler that does nothing but count."""
    common, made, counts = bench("common"), [], []
    in_turns = common.in_turns

    def counted(*args):
        counts.append(len(made))
        found = in_turns(*args)
        counts.append(len(made))
        return found

    monkeypatch.setattr(kernels, "compiled", lambda fn, *, graphs=False: made.append(fn) or fn)
    monkeypatch.setattr(common, "in_turns", counted)
    caches = kernels._gradient, kernels._logits
    for cache in caches:
        cache.cache_clear()
    words = EXPERTS if name == "experts" else EVALUATE
    try:
        bench(name).main([*words, "--versions", "compiled", "--no-compile-time"])
    finally:
        for cache in caches:
            cache.cache_clear()
    assert counts[0] == counts[1] >= 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["experts", "evaluate"])
def test_compiled_versions_run_and_their_compiler_is_timed(bench, name):
    (row,) = bench(name).main(EXPERTS if name == "experts" else EVALUATE)
    assert set(row["cpu_seconds"]) == {"plain", "eager", "compiled"}
    assert row["compile_cpu_seconds"]["cold"] > row["compile_cpu_seconds"]["warm"] > 0


def test_networks_side_by_side_are_timed(bench):
    words = ["--widths", "4", "--batch", "2", "40", "--repeats", "2", "--eager-only"]
    found = bench("grouping").main(words)
    assert [row["batch"] for row in found] == [2, 40]
    assert all(set(bench("rows").ratios(row)) == {"vmap"} for row in found)
