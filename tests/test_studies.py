"""The studies: what they measure, against plain computations of the same."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from potstill import cli
from potstill.artefact import Block, load
from potstill.core.errors import InputError
from potstill.core.store import Store
from potstill.evaluation import evaluate
from potstill.methods.boost import Boost
from potstill.methods.inner import Inner
from potstill.methods.ratbptt import RaTBPTT
from potstill.methods.real import RealImages
from potstill.methods.windows import Window
from potstill.nets import NetSpec
from potstill.report import correlation_plot, windows_plot
from potstill.run import Run, distil, open_run_data, preflight, read_run
from potstill.studies import correlation, free, keep, studied, windowed, windows
from potstill.studies.correlation import greedy_rows, random_rows
from test_evaluate import CLASSES, toy_data, toy_set

METHOD = RaTBPTT(
    iterations=2,
    window=Window(length=2, total=6, least=1),
    real=RealImages(batch=8),
    evaluation_steps=4,
)
RUN = Run(method=METHOD, data="standin:1x8x2", ipc=1, net=NetSpec(name="convnet1", width=4))
RUN = replace(RUN, threads=1, compile="off", strategy="adjoint", limit=20)


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)


def first(run: Run = RUN, name: str = "it"):
    ctx, _ = preflight(run, open_run_data(run))
    return studied(name, run.method, ctx, None)


def test_windows_of_all_kinds_and_their_gradients():
    one, seen = first(), []
    found = windows([one], draws=3, positions=3, on_done=lambda *at: seen.append(at))
    rows, kinds = found.rows, {}
    for row in rows:
        kinds.setdefault(row["window"], []).append((row["start"], row["length"]))
    assert kinds["by position"] == [(start, 2) for start in (0, 2, 4) for _ in range(3)]
    assert kinds["BPTT"] == [(0, 6)] * 3
    assert kinds["T-BPTT"] == [(4, 2)] * 3
    assert all(start == 0 and 2 <= length <= 6 for start, length in kinds["R-BPTT"])
    assert all(1 <= start <= 4 and length == 2 for start, length in kinds["RaT"])
    assert len(found.table) == 1 + 3 + 4
    assert seen[-1] == (21, 21)
    fixed = [row for row in rows if row["window"] == "T-BPTT"]
    late = [row for row in rows if row["window"] == "by position" and row["start"] == 4]
    assert [row["norm"] for row in fixed] == [row["norm"] for row in late]
    gradients, wholes = [], []
    for k in range(3):  # of the method itself, at its first images
        for start, length, own in ((4, 2, gradients), (0, 6, wholes)):
            state = {**one.state, "turn": {**one.state["turn"], "start": start, "length": length}}
            own.append(torch.cat(one.method.task(one.ctx, state, k, 0).images).flatten().double())
    cosine = partial(torch.cosine_similarity, dim=0)
    for k, row in enumerate(fixed):
        assert row["norm"] == pytest.approx(float(gradients[k].norm()))
        assert row["cosine_to_whole"] == pytest.approx(float(cosine(gradients[k], wholes[k])))
        others = [float(cosine(gradients[k], gradients[j])) for j in range(3) if j != k]
        assert row["cosine_of_students"] == pytest.approx(sum(others) / 2)
    whole = [row["cosine_to_whole"] for row in rows if row["window"] in ("BPTT", "R-BPTT")]
    assert whole == pytest.approx([1.0] * 6)


def test_windows_without_whole_trainings_and_with_others():
    found = windows([first()], draws=2, positions=1, whole=False)
    assert {row["window"] for row in found.rows} == {"by position", "T-BPTT", "RaT"}
    assert {row["cosine_to_whole"] for row in found.rows} == {None}
    longer = windowed(METHOD, 4, 5)
    assert (longer.window.length, longer.window.total, longer.window.least) == (4, 5, 1)
    assert windowed(Boost(base=METHOD), 5, 5).base.window.least == 0
    with pytest.raises(InputError, match="at most window"):
        windowed(METHOD, 7, None)
    for nothing in ((0, None), (None, 0)):
        with pytest.raises(InputError, match=r"window.length must be .*, not"):
            windowed(METHOD, *nothing)
    with pytest.raises(InputError, match="draws must be at least 2"):
        windows([first()], draws=1)


@pytest.mark.parametrize("boosted", [False, True])
def test_windows_at_the_distilled_images_of_a_run(tmp_path, capsys, boosted):
    method = Boost(base=METHOD) if boosted else replace(METHOD, labels="raw")
    run = replace(RUN, method=method, ipc=2)
    distil(run, tmp_path / "run")
    run = read_run(tmp_path / "run")
    s = load(tmp_path / "run")
    ctx, _ = preflight(run, open_run_data(run))
    one = studied("run", method, ctx, s)
    assert torch.equal(torch.cat(one.state["images"]), s.images)
    assert len(one.state["images"]) == 1 + boosted
    assert bool(one.state["labels"]) != boosted
    flags = ["--draws", "2", "--positions", "2", "--out", "study"]
    assert cli.run(["study", "windows", "run", *flags]) == 0
    assert "T-BPTT" in capsys.readouterr().out
    rows = [json.loads(line) for line in Path("study/rows.jsonl").read_text().splitlines()]
    assert rows[0]["norm"] == windows([one], draws=2, positions=2).rows[0]["norm"]
    assert Path("study/table.md").read_text().startswith("| images of | window |")
    assert "<svg" in Path("study/plot.svg").read_text()
    assert Path("study/plot.png").read_bytes()[1:4] == b"PNG"
    assert cli.run(["study", "windows", "run", *flags]) == 2
    assert "is there already" in capsys.readouterr().err
    more = ["--first", "--window", "1", "--total", "3", "--whole", "off"]
    assert cli.run(["study", "windows", "run", *more, *flags[:-1], "start"]) == 0
    again = json.loads(Path("start/rows.jsonl").read_text().splitlines()[0])
    assert (again["length"], again["cosine_to_whole"]) == (1, None)
    assert again["norm"] != rows[0]["norm"]


def test_rows_of_subsets():
    s = toy_set(toy_data(), ipc=4)
    seen = set()
    for seed in range(20):
        rows = random_rows(s, 2, seed)
        assert sorted(s.targets.classes[rows].tolist()) == [0, 0, 1, 1, 2, 2]
        assert rows.tolist() == sorted(set(rows.tolist()))
        seen.add(tuple(rows.tolist()))
    assert len(seen) > 15
    asked = []

    def last(tried):
        asked.append(tried)
        return len(tried) - 1

    chosen = greedy_rows(s, 3, 2, last)
    assert [len(rows) for rows in chosen] == [3, 6, 9]
    assert all(len(tried) == 2 for tried in asked)
    for small, large, tried in zip(chosen, chosen[1:], asked[1:], strict=False):
        assert set(small.tolist()) < set(large.tolist())
        assert torch.equal(large, tried[-1])
    assert s.taken(chosen[2]).ipc == (3,) * CLASSES


def test_correlation_equals_evaluations_one_by_one(tmp_path):
    data, store = toy_data(), Store(tmp_path / "store")
    blocks = tuple(Block(name=f"block{k}", start=6 * k, stop=6 * k + 6) for k in range(2))
    s, small = replace(toy_set(data, ipc=4), blocks=blocks), toy_set(data, ipc=1)
    small.save(tmp_path / "small")
    plain = partial(evaluate, store=store)
    found = correlation(s, ["small"], sizes=[3], seeds=2, candidates=2, evaluated=plain)
    assert [(row["ipc"], row["kind"]) for row in found.rows] == [
        (1, "directly distilled"),
        (1, "random subset"),
        (1, "greedy subset"),
        (2, "first blocks"),
        (2, "random subset"),
        (2, "greedy subset"),
        (3, "random subset"),
        (3, "greedy subset"),
        (4, "whole set"),
    ]
    own = {(row["ipc"], row["kind"]): tuple(row["accuracies"]) for row in found.rows}
    alone = partial(plain, seeds=2, baselines=False)
    assert own[1, "directly distilled"] == alone(small).rows[0].accuracies
    assert own[2, "first blocks"] == alone(s, prefix=1).rows[0].accuracies
    assert own[4, "whole set"] == alone(s).rows[0].accuracies
    each = [alone(s.taken(random_rows(s, 3, k))).rows[0].accuracies[k] for k in range(2)]
    assert own[3, "random subset"] == tuple(each)
    assert found.table[1][0] == "directly distilled (small)"
    for bad, message in ((4, "have 1 to 3, not 4"), (0, "have 1 to 3, not 0")):
        with pytest.raises(InputError, match=message):
            correlation(s, sizes=[bad], evaluated=plain)
    with pytest.raises(InputError, match="Name smaller sets"):
        correlation(replace(s, blocks=()), evaluated=plain)


def test_greedy_takes_what_is_best_on_validation(tmp_path, monkeypatch):
    s, tried = toy_set(toy_data(), ipc=3), []
    evaluated = partial(evaluate, store=Store(tmp_path / "store"))

    def noted(*args, **settings):
        result = evaluated(*args, **settings)
        tried.append(result)
        return result

    correlation(s, sizes=[1], seeds=1, candidates=3, evaluated=noted)
    trial, final = tried
    values = [row.validation for row in trial.rows]
    assert len(values) == 3
    assert final.row("greedy subset, 1 a class").validation == max(values)


def test_the_command_correlation(tmp_path, capsys):
    toy_set(toy_data(), ipc=3).save(tmp_path / "big")
    toy_set(toy_data(), ipc=1).save(tmp_path / "small")
    flags = ["--seeds", "2", "--candidates", "0", "--threads", "1", "--out", "study"]
    assert cli.run(["study", "correlation", "big", "small", *flags]) == 0
    out = capsys.readouterr().out
    assert "directly distilled (small)" in out
    assert "greedy" not in out
    assert len(Path("study/rows.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "known: correlation, variance, windows"),
        (["windows", "--out", "x"], "Name what to study"),
        (["windows", "nowhere", "--out", "x"], "neither the folder of a run nor a recipe"),
        (
            ["windows", "ratbptt_cifar10_ipc1", "--out", "x"],
            "The recipe ratbptt_cifar10_ipc1 needs CIFAR-10: name it with --data",
        ),
        (["windows", "ratbptt_cifar10_ipc2", "--out", "x"], "neither the folder of a run nor a"),
        (["correlation", "nowhere", "--out", "x"], "nowhere"),
    ],
)
def test_wrong_input_is_one_sentence(arguments, message, capsys):
    import re

    assert cli.run(["study", *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_methods_without_windows_are_refused():
    from potstill.methods import method_of

    ctx, _ = preflight(RUN, open_run_data(RUN))
    with pytest.raises(InputError, match="a run of mtt; windows are those of ratbptt"):
        studied("it", method_of("mtt"), ctx, None)


def test_plots_of_two_runs_and_of_one_network(tmp_path):
    found = windows([first(name="a"), first(replace(RUN, seed=1), "b")], draws=2, positions=2)
    keep(found, windows_plot(found.rows), tmp_path / "w")
    rows = [
        {"kind": kind, "ipc": ipc, "mean": 0.1 * ipc, "ci95": None}
        for kind, ipc in (("random subset", 1), ("random subset", 2), ("whole set", 3))
    ]
    correlation_plot(rows).savefig(tmp_path / "c.png")
    files = {"rows.jsonl", "table.md", "plot.svg", "plot.png"}
    assert {file.name for file in (tmp_path / "w").iterdir()} == files
    assert free(Path("new") / "one") == Path("new") / "one"
    for out, why in (
        ("w", "is there already"),
        ("w/table.md", "is a file"),
        ("w/table.md/x", "is a file"),
    ):
        with pytest.raises(InputError, match=why):
            free(Path(out))
    one = replace(METHOD, inner=Inner(augment=None))
    assert first(replace(RUN, method=one)).method == one
