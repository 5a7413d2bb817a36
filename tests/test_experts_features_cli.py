"""`potstill experts train` for experts of features and of views; what cannot go on from links."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import potstill.cli as cli
from mkdt_small import METHOD, NET, RUN, ready, walked
from potstill.core.compute import Compute
from potstill.core.errors import InputError
from potstill.core.spec import to_json
from potstill.core.store import Store
from potstill.coresets.scores import score_tasks
from potstill.data import open_data
from potstill.experts import After, Begin, ExpertPlan, Link, expert_tasks, pools
from potstill.functional import TrainSpec, mtt_segments
from potstill.methods.boost import Boost
from potstill.methods.mkdt import MKDT
from potstill.methods.mtt import MTT
from potstill.methods.progressive import Progressive
from potstill.report.pools import pool_cells
from potstill.run import preflight

COUNTS = ["--data", "digits", "--scale", "smoke", "--threads", "1", "--limit", "20", "--store", "s"]
SMALL = [*COUNTS, "--net.name", "convnet1", "--net.width", "4"]
TEACHER = ["net=convnet2", "training.augment=crop", "training.batch=50"]
VIEWS = MTT(experts=ExpertPlan(objective="bt"))


@pytest.fixture(autouse=True)
def _alone(alone, tmp_path, monkeypatch):
    monkeypatch.delenv("POTSTILL_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)


def flags(prefix, settings):
    return [word for each in settings for word in f"--{prefix}.{each}".split("=")]


def moments(store):
    """Return when each piece of work in a store was finished."""
    done = store.root.glob("*/*/done.json")
    return {file: file.stat().st_mtime_ns for file in done}


def test_experts_of_features_are_those_that_mkdt_finds(tmp_path, capsys):
    kd = ["--experts.objective", "kd_mse", "--experts.batch", "50"]
    assert cli.run(["experts", "train", *SMALL, *kd, *flags("teacher", TEACHER)]) == 0
    told, store = capsys.readouterr(), Store(tmp_path / "s")
    (pool,) = pools(store)
    assert f"2 experts are in the pool {pool.name}" in told.out
    assert "training loss 0." in told.out
    assert "validation accuracy" not in told.out
    before = moments(store)
    assert {file.parent.parent.name for file in before} == {"encoders", "targets", "experts"}
    (targets,) = store.root.glob("targets/*")
    digest = pool.spec.targets
    assert targets.name == digest
    assert cli.run(["experts", "list", "--store", "s"]) == 0
    assert "KD of convnet2" in " ".join(capsys.readouterr().out.split())
    run = [*SMALL, "--method", "mkdt", "--method.experts.batch", "50", "--size", "12"]
    run += flags("method.teacher", TEACHER)
    assert cli.run(["distill", *run, "--out", "run"]) == 0
    assert "experts: " not in capsys.readouterr().err
    after = moments(store)
    assert after == {**after, **before}
    assert {file.parent.parent.name for file in after.keys() - before.keys()} == {"losses"}
    targets.rename(tmp_path / "away")
    assert pool_cells(pool)[5].startswith("KD, 2 epochs")


def test_experts_of_views_are_those_that_mtt_finds(tmp_path, capsys):
    assert cli.run(["experts", "train", *SMALL, "--experts.objective=simclr"]) == 0
    assert "training loss " in capsys.readouterr().out
    before = moments(store := Store(tmp_path / "s"))
    assert cli.run(["experts", "list", "--store", "s"]) == 0
    assert "SimCLR, 2 epochs" in " ".join(capsys.readouterr().out.split())
    run = [*SMALL, "--method", "mtt", "--method.experts.objective", "simclr", "--ipc", "1"]
    assert cli.run(["distill", *run, "--out", "run"]) == 0
    told = capsys.readouterr().err
    assert "experts: " not in told
    assert "It is for pre-training" in told
    assert moments(store) == before
    given = ["--labels", "20%", "--seeds", "1", "--threads", "1", "--store", "s"]
    assert cli.run(["probe", "run", *given]) == 0
    assert "balanced random, views" in " ".join(capsys.readouterr().out.split())
    assert cli.run(["experts", "train", *COUNTS, "--method", "random"]) == 2
    assert "The method random trains no experts." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["boost:mkdt"], "not mkdt without labels"),
        (["boost:mtt", "--method.base.experts.objective", "bt"], "not mtt without labels"),
        (["progressive:mkdt"], "not mkdt"),
        (
            ["progressive:mtt", "--method.base.experts.objective", "simclr"],
            "those of mtt without labels learn none",
        ),
        (["mtt", "--method.experts.objective", "kd_mse"], "see mkdt"),
        (["mtt", "--method.outer", "rms"], "at most 1, not 100"),
        (["forgetting", "--method.training.objective", "bt"], "of objective 'ce', not 'bt'"),
        (["el2n", "--method.training.objective", "kd_mse"], "of objective 'ce', not 'kd_mse'"),
        (["herding", "--method.training.objective", "kd_mse"], "'kd_mse' needs targets"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_learns_no_classes_is_refused_before_anything_is_trained(arguments, said, capsys):
    line = ["distill", "--method", *arguments, *SMALL, "--ipc", "1", "--out", "run"]
    assert cli.run(line) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert not list(Path("s").glob("*/*"))


def test_schedules_and_links_refuse_it_in_python(tmp_path):
    for wrapper in (Boost, Progressive):
        with pytest.raises(InputError, match="mtt without labels"):
            wrapper(base=VIEWS)
    data = open_data("digits", limit=20)
    ctx, _ = preflight(replace(RUN, method=replace(VIEWS, batch_syn=None)), data)
    given = {"seed": 0, "compute": Compute(threads=1)}
    tasks = expert_tasks(ExpertPlan(count=1, objective="bt"), data, ctx.space, NET, **given)
    link = Link(
        after=Begin(seed=0, kind="expert", index=0),
        union="0",
        train=TrainSpec(lr=0.1, segments=mtt_segments(2)),
        net=NET,
        data=data.ref,
        space=ctx.space.record(),
        compute=Compute(threads=1),
    )
    after = After(links=(link,), folders=(), store=Store(tmp_path / "s"))
    with pytest.raises(InputError, match="cannot go on from them"):
        after.continued(tasks)
    plan = ExpertPlan(objective="simclr")
    with pytest.raises(InputError, match="'ce', not 'simclr'"):
        score_tasks("el2n", plan, data, ctx.space, NET, **given)


def test_steps_by_the_root_mean_square_do_not_mind_the_scale_of_the_loss(tmp_path):
    store = Store(tmp_path / "store")
    method = replace(METHOD, outer="rms", lr_img=0.1, lr_target=0.02, momentum=0.0)
    before = method.init(ctx := ready(store, method))
    after, _ = walked(method, ctx, 1)
    plain, _ = walked(replace(METHOD, lr_img=0.1, lr_target=0.02, momentum=0.0), ctx, 1)
    for k, size in enumerate((0.1, 0.02)):
        moved = after["images"][k] - before["images"][k]
        assert float(moved.square().mean().sqrt()) == pytest.approx(size, rel=1e-4)
        along = plain["images"][k] - before["images"][k]
        cosine = torch.cosine_similarity(moved.flatten(), along.flatten(), dim=0)
        assert float(cosine) == pytest.approx(1, abs=1e-3)
    still, _ = walked(replace(method, lr_target=0.0), ctx, 1)
    assert torch.equal(still["images"][1], before["images"][1])
    assert "outer" not in to_json(MKDT())
    with pytest.raises(InputError, match="at most 1, not 1000"):
        MKDT(outer="rms")
    with pytest.raises(InputError, match="outer"):
        MTT(outer="adam")
