"""Progressive runs: frozen blocks, chains of networks, filters, resume in any stage."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from potstill.artefact import load, set_digest
from potstill.cli.flags import run_from
from potstill.core.errors import InputError
from potstill.core.files import read_json
from potstill.core.spec import from_json, spec_hash, to_json
from potstill.core.state import tensor_digest
from potstill.core.store import Store
from potstill.coresets import RealFilter
from potstill.data import open_data
from potstill.experts import Continued, ExpertPlan, NetworkPath, NetworkPool, PathSpec, Trajectory
from potstill.functional import fit
from potstill.methods import SynthBlock, method_of
from potstill.methods.boost import Boost
from potstill.methods.by_class import distances
from potstill.methods.condensation import DSAMethod, IDCMethod
from potstill.methods.coreset import Random
from potstill.methods.inner import Inner
from potstill.methods.learning import Learning
from potstill.methods.mtt import MTT
from potstill.methods.progressive import Progressive
from potstill.methods.ratbptt import RaTBPTT
from potstill.methods.real import RealImages
from potstill.methods.start import beginnings
from potstill.methods.windows import Window
from potstill.nets import NetSpec, flat
from potstill.run import Run, Where, distil, preflight

MATCHING = {"networks": 2, "matches": 2, "batch_real": 5, "evaluation_epochs": 6}
BASES = {
    "mtt": MTT(
        iterations=3,
        steps=2,
        expert_epochs=1,
        max_start_epoch=2,
        lr_img=10.0,
        lr_lr=1e-3,
        lr_init=0.05,
        evaluation_epochs=6,
        experts=ExpertPlan(count=2, epochs=3, lr=0.05, batch=64),
    ),
    "idc": IDCMethod(**MATCHING, path=NetworkPath(images=32, batch=16)),
    "dsa": DSAMethod(**MATCHING, inner_epochs=2),
    "ratbptt": RaTBPTT(
        iterations=3,
        window=Window(length=2, total=4),
        inner=Inner(lr=0.01),
        real=RealImages(batch=50),
        labels="raw",
        evaluation_steps=6,
    ),
}
EVERY = pytest.mark.parametrize("name", BASES)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)
    return Store(tmp_path / "cache")


def of(method, *, ipc=None, **changes) -> Run:
    run = Run(
        method=method,
        data="digits",
        ipc=ipc or method.stages,
        net=NetSpec(name="convnet2", width=4),
        limit=20,
        threads=1,
        compile="off",
    )
    return replace(run, **changes)


def found(store, kind):
    """Return the finished work of a kind: specs and folders."""
    return [(from_json(entry.spec), entry.folder) for entry in store.entries(kind)]


@EVERY
def test_earlier_blocks_stay_bit_for_bit_and_each_stage_makes_new_images(name, tmp_path):
    s = distil(of(Progressive(base=BASES[name], stages=3, pool=2)), tmp_path / "run")
    assert [block.name for block in s.blocks] == ["stage1", "stage2", "stage3"]
    assert s.ipc == (3,) * 10
    for stage in (1, 2):
        union = load(tmp_path / "run" / "stages" / f"stage{stage}")
        assert len(union) == 10 * stage
        assert torch.equal(union.images, s.images[: 10 * stage])
        assert torch.equal(union.targets.values, s.targets.values[: 10 * stage])
        assert union.blocks == s.blocks[:stage]
        assert s.prefix(stage).recipe.lr == union.recipe.lr == s.blocks[stage - 1].lr
    first, second, third = s.images.split(10)
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    run = of(BASES[name], ipc=1)
    half, _ = BASES[name].training(preflight(run, open_data(run.data, limit=run.limit))[0], 3)
    assert all(block.train == half.segments for block in s.blocks)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    numbers = [json.loads(line) for line in lines]
    each = BASES[name].iterations
    assert [row["it"] for row in numbers] == list(range(3 * each))
    assert [row["stage"] for row in numbers] == [1] * each + [2] * each + [3] * each


@EVERY
def test_the_first_stage_is_what_the_base_method_makes_alone(name, tmp_path):
    base = BASES[name]
    distil(of(Progressive(base=base, stages=2, pool=2)), tmp_path / "run")
    first = load(tmp_path / "run" / "stages" / "stage1")
    alone = distil(of(base, ipc=1), tmp_path / "alone")
    assert torch.equal(first.images, alone.images)
    assert first.recipe == alone.recipe


def test_networks_go_on_through_the_unions_and_then_on_real_images(tmp_path, cache):
    base = BASES["mtt"]
    run = of(Progressive(base=base, stages=3, conditioning_epochs=4))
    distil(run, tmp_path / "run")
    unions = [load(tmp_path / "run" / "stages" / f"stage{k}") for k in (1, 2)]
    links = dict(found(cache, "links"))
    continued = found(cache, "continued")
    assert sorted(link.depth for link in links) == [1, 1, 2, 2]
    data = open_data(run.data, limit=run.limit)
    ctx, _ = preflight(run, data)
    for link, folder in links.items():
        facts, ended = read_json(folder / "expert.json"), Trajectory(folder).row(0)
        union = unions[link.depth - 1]
        assert link.union == set_digest(union)
        assert link.train == replace(union.recipe, segments=base.training(ctx, 4)[0].segments)
        assert facts["steps"] == link.train.epochs == 5  # of one batch: 4 nominal epochs make 5
        assert facts["ended"] == tensor_digest({"theta": ended})
        begin, net = link.begin, ctx.net_spec
        size = {"channels": 1, "size": (8, 8), "classes": 10, "seed": 0}
        own = flat(net, **size, key=("expert", begin.index))
        before = Trajectory(links[link.after]).row(0) if link.depth > 1 else own.theta0
        assert facts["began"] == tensor_digest({"theta": before})
        key = ("link", link.depth, begin.index)
        plain = fit(own, before, *union.decoded(), link.train, seed=0, key=key)
        assert torch.equal(plain, ended)
    assert len(continued) == 4
    for spec, folder in continued:
        rows = Trajectory(folder)
        assert torch.equal(rows.row(0), Trajectory(links[spec.start]).row(0))
        epochs = base.max_start_epoch - 1 + base.expert_epochs  # those that are ever read
        assert rows.shape[0] == epochs + 1
        assert spec.of.train.epochs == epochs
        own = flat(ctx.net_spec, **size)
        theta = fit(
            own,
            rows.row(0),
            ctx.space.forward(data.train.pixels),
            data.train.labels,
            spec.of.train,
            seed=spec.of.seed,
            key=("expert", spec.of.index),
        )
        assert torch.allclose(theta, rows.row(epochs), atol=1e-6)
    assert len({spec.of.seed for spec, _ in continued}) == 2  # other orders in every stage


def test_networks_without_experts_begin_where_links_ended(tmp_path, cache):
    run = of(Progressive(base=BASES["idc"], stages=2, pool=3))
    distil(run, tmp_path / "run")
    links = found(cache, "links")
    assert sorted(link.begin.index for link, _ in links) == [0, 1, 2]
    assert not found(cache, "continued")
    ctx, _ = preflight(run, open_data(run.data, limit=run.limit))
    folders = [folder for _, folder in links]
    done = {"stage1": [tmp_path / "run" / "stages" / "stage1"], "links2": folders}
    nets = run.method.phases(ctx, done).nets
    ends = [Trajectory(folder).row(0) for folder in folders]
    drawn = [nets.draw(0, it) for it in range(20)]
    assert {draw.expert for draw in drawn} == {0, 1, 2}
    assert all(torch.equal(draw.theta, ends[draw.expert]) for draw in drawn)


def test_paths_of_a_pool_go_on_too(tmp_path, cache):
    base = replace(BASES["idc"], pool=NetworkPool(size=2, seed=5))
    distil(of(Progressive(base=base, stages=2)), tmp_path / "run")
    links = dict(found(cache, "links"))
    assert [(link.begin.seed, link.begin.kind) for link in links] == [(5, "fresh")] * 2
    walked = dict(found(cache, "experts"))
    for spec, folder in found(cache, "continued"):
        assert isinstance(spec, Continued)
        assert isinstance(spec.of, PathSpec)
        assert torch.equal(Trajectory(folder).row(0), Trajectory(links[spec.start]).row(0))
        fresh = next(own for path, own in walked.items() if path.index == spec.of.index)
        began = read_json(links[spec.start] / "expert.json")["began"]
        assert began == tensor_digest({"theta": Trajectory(fresh).row(0)})


def test_the_plan_counts_the_steps_between_stages(tmp_path, cache):
    base = replace(BASES["idc"], evaluation_epochs=3, lr_img=1e-3)  # 4 images in one, 64 a step
    run = of(Progressive(base=base, stages=3, pool=2), ipc=6)
    cost = preflight(run, open_data(run.data, limit=run.limit))[1]
    distil(run, tmp_path / "run")
    steps = [read_json(folder / "expert.json")["steps"] for _, folder in found(cache, "links")]
    assert sorted(steps) == [6, 6, 9, 9]
    assert any(
        f"2 networks are trained on the images so far, in {sum(steps)} steps" in note
        for note in cost.notes
    )


def test_experts_are_computed_as_in_runs_of_the_base():
    data = open_data("digits", limit=20)
    for name, base in BASES.items():
        alone = preflight(of(base, ipc=1, compile="auto"), data)
        staged = preflight(of(Progressive(base=base, stages=3), compile="auto"), data)
        assert staged[1].task_images == alone[1].task_images, name
        assert staged[0].plan.tasks == alone[0].plan.tasks, name


def test_conditioning_grows_with_the_stages_and_no_faster(tmp_path, cache):
    base = replace(BASES["dsa"], networks=1, matches=1)
    for stages in (5, 10):
        store = tmp_path / f"store{stages}"
        run = of(Progressive(base=base, stages=stages, pool=2, conditioning_epochs=3))
        s = distil(run, tmp_path / f"run{stages}", where=Where(store=store))
        assert len(s.blocks) == stages
        links = found(Store(store), "links")
        assert len(links) == 2 * (stages - 1)
        steps = [read_json(folder / "expert.json")["steps"] for _, folder in links]
        assert steps == [4] * len(links)  # one batch holds every union
        cost = preflight(run, open_data(run.data, limit=run.limit))[1]
        assert cost.steps == stages


@pytest.mark.parametrize("name", ["dsa", "idc"])
def test_new_images_have_their_part_of_the_gradient_beside_equal_ones(name):
    base = BASES[name]
    run = of(base, ipc=1)
    ctx, _ = preflight(run, open_data(run.data, limit=run.limit))
    theta, found = beginnings(ctx).draw(0, 0).theta, {}
    (x,) = base.init(ctx)["images"]
    for earlier in (0, 3):
        still = (SynthBlock(ipc=1, lr_scale=0, images=x),) * earlier
        at = replace(ctx, synth=(*still, SynthBlock(ipc=1)))
        found[earlier] = distances(base, at, theta, [x] * (earlier + 1), 0).images[-1]
    assert torch.allclose(found[3], found[0] / 4, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("union", ["dilute", "rebalance"])
def test_rebalanced_images_take_steps_that_grow_with_the_stage(union):
    base = BASES["dsa"]
    method = Progressive(base=base, stages=3, pool=1, union=union)
    run = of(method)
    ctx, _ = preflight(run, open_data(run.data, limit=run.limit))
    for stage in (1, 2, 3):
        at = method._sized(ctx, stage)
        assert [block.lr_scale for block in at.synth[:-1]] == [0] * (stage - 1)
        factor = stage if union == "rebalance" else 1
        assert base._steps(at)[-1].lr == base.lr_img * factor


def test_a_student_step_takes_as_many_images_as_a_stage_has_from_the_whole_union(tmp_path):
    base = BASES["mtt"]
    run = of(Progressive(base=base, stages=3), ipc=6)
    ctx, _ = preflight(run, open_data(run.data, limit=run.limit))
    for stage in (1, 2, 3):
        assert Learning(base, run.method._sized(ctx, stage)).batch == 20
    assert Learning(base, ctx).batch == 60  # the method alone takes all


class Killed(Exception):
    pass


@EVERY
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_run_that_ended_within_a_stage_goes_on_to_the_same_bytes(
    name, stage, tmp_path, monkeypatch
):
    method = Progressive(base=BASES[name], stages=3, pool=2)
    run, step = of(method, select_every=2, select_nets=1), Progressive.step
    distil(run, tmp_path / "whole")
    last = (stage - 1) * method.base.iterations + 1

    def deadly(self, ctx, state, it):
        if it == last:
            raise Killed
        return step(self, ctx, state, it)

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Progressive, "step", deadly)
        with pytest.raises(Killed):
            distil(run, out, where=Where(checkpoint_seconds=0))
    assert not (out / "distilled").exists()
    assert len(list((out / "stages").glob("*"))) == stage - 1
    distil(run, out)
    for file in ("distilled/set.safetensors", "stages/stage2/set.safetensors", "metrics.jsonl"):
        assert (out / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_a_filter_decides_what_later_stages_see(tmp_path, cache):
    base = replace(BASES["mtt"], lr_img=1e-6)  # images stay what they begin as
    which = RealFilter(rule="correct", keep=0.5)
    run = of(Progressive(base=base, stages=2, filter=which, conditioning_epochs=200))
    s = distil(run, tmp_path / "run")
    data = open_data(run.data, limit=run.limit)
    ((spec, folder),) = found(cache, "filters")
    from safetensors.torch import load_file

    rows = load_file(str(folder / "rows.safetensors"))["rows"]
    assert 0 < len(rows) < len(data.train)
    links = sorted(spec_hash(link) for link, _ in found(cache, "links"))
    assert sorted(spec.sources) == links
    seen = s.space.forward(data.train.pixels[rows]).flatten(1)
    new = s.images[10:].flatten(1)
    assert float(torch.cdist(new, seen).min(1).values.max()) < 1e-2
    ctx, _ = preflight(run, data)
    for each, trajectory in found(cache, "continued"):
        assert each.rows == folder.name
        theta = fit(
            flat(ctx.net_spec, channels=1, size=(8, 8), classes=10, seed=0),
            Trajectory(trajectory).row(0),
            ctx.space.forward(data.train.pixels[rows]),
            data.train.labels[rows],
            each.of.train,
            seed=each.of.seed,
            key=("expert", each.of.index),
        )
        assert torch.allclose(theta, Trajectory(trajectory).row(2), atol=1e-6)


def test_forgetting_filters_the_first_stage_too(tmp_path, cache):
    training = ExpertPlan(count=1, epochs=12, lr=0.05, batch=20, momentum=0.9)
    which = RealFilter(rule="forgetting", interval=1, training=training)
    run = of(Progressive(base=BASES["mtt"], stages=2, filter=which), limit=60)
    distil(run, tmp_path / "run")
    specs = sorted(found(cache, "filters"), key=lambda found: found[0].stage)
    assert [spec.stage for spec, _ in specs] == [1, 2]
    starts = {each.rows: each.start for each, _ in found(cache, "continued")}
    assert starts[specs[0][1].name] is None
    assert starts[specs[1][1].name] is not None


def test_what_cannot_be_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(InputError, match="stages must be at least 1, not 0"):
        Progressive(stages=0)
    for wrong in (Random(), Boost(base=MTT()), Progressive()):
        with pytest.raises(InputError, match=r"can begin where others ended .*mtt"):
            Progressive(base=wrong)
    with pytest.raises(InputError, match="union 'rebalance' says nothing"):
        Progressive(base=RaTBPTT(), union="rebalance")
    data = open_data("digits", limit=20)
    with pytest.raises(InputError, match="5 images a class cannot be made in 2 equal stages"):
        preflight(of(Progressive(base=BASES["mtt"], stages=2), ipc=5), data)
    which = RealFilter(rule="forgetting", training=ExpertPlan(count=1, epochs=5))
    with pytest.raises(InputError, match=r"lower filter\.interval"):
        preflight(of(Progressive(base=BASES["mtt"], stages=2, filter=which)), data)


def test_a_filter_that_leaves_a_class_empty_ends_the_run_in_a_sentence(tmp_path):
    base = replace(BASES["mtt"], experts=ExpertPlan(count=1, epochs=40, lr=0.2, batch=10))
    which = RealFilter(rule="correct", keep=0)
    run = of(Progressive(base=base, stages=2, filter=which, conditioning_epochs=300), limit=2)
    with pytest.raises(
        InputError, match=r"Stage 2 has no real image of class .* raise filter.keep"
    ):
        distil(run, tmp_path / "run")
    assert load(tmp_path / "run" / "stages" / "stage1").ipc == (1,) * 10


@pytest.mark.parametrize("name", ["dsa", "idc"])
def test_a_filter_that_leaves_too_few_for_a_batch_says_so(name, tmp_path):
    which = RealFilter(rule="both", keep=0.3)  # of what all, or none, classify correctly
    base = replace(BASES[name], batch_real=18, evaluation_epochs=40)
    run = of(Progressive(base=base, stages=2, pool=1, filter=which))
    said = r"fewer than batch_real, 18\. So few are left in stage 2 .* raise filter\.keep"
    with pytest.raises(InputError, match=said):
        distil(run, tmp_path / "run")


def test_settings_that_say_nothing_are_refused():
    data = open_data("digits", limit=20)

    def refused(said, **settings):
        with pytest.raises(InputError, match=said):
            preflight(of(Progressive(**settings), ipc=settings.get("stages", 5)), data)

    mtt, idc = BASES["mtt"], replace(BASES["idc"], pool=NetworkPool(size=2))
    refused(r"pool \(77\) says nothing", base=mtt, pool=77)
    refused(r"pool \(3\) says nothing", base=idc, pool=3)
    refused("conditioning_epochs says nothing", base=mtt, stages=1, conditioning_epochs=7)
    refused("union says nothing", base=mtt, stages=1, union="rebalance")
    one = RealFilter(rule="correct")
    refused(r"filter\.rule says nothing", base=mtt, stages=1, filter=one)
    refused(r"filter\.keep has no effect", base=mtt, filter=RealFilter(keep=0.5))
    for scale in ("smoke", "cpu"):
        small = Progressive(base=mtt).scaled(scale)
        assert preflight(of(small), data)


@pytest.mark.parametrize("stages", [2, 6])
def test_forgetting_works_at_smoke_through_both_doors(stages, tmp_path):
    which = RealFilter(rule="forgetting")
    python = Progressive(base=BASES["dsa"], stages=stages, filter=which).scaled("smoke")
    preflight(of(python), open_data("digits", limit=20))
    assert python.filter.training.epochs == 2 * (stages - 1) + 1
    flags = ["--method", "progressive:dsa", "--data", "digits", "--ipc", str(stages), "--scale"]
    more = ["smoke", "--method.stages", str(stages), "--method.filter.rule", "forgetting"]
    run, _ = run_from([*flags, *more], "distill")
    assert run.method.filter == replace(which.scaled("smoke", 5), rule="forgetting")
    if stages <= 5:
        preflight(run, open_data("digits", limit=20))


def test_stages_on_disk_must_belong_together(tmp_path):
    run = of(Progressive(base=BASES["mtt"], stages=3))
    distil(run, tmp_path / "run")
    for name in ("distilled", "state"):
        shutil.rmtree(tmp_path / "run" / name)
    first = tmp_path / "run" / "stages" / "stage1"
    s = load(first)
    replace(s, images=s.images + 0.5).save(first)
    with pytest.raises(InputError, match="stage2 does not begin with the stage before it"):
        distil(run, tmp_path / "run")


def test_advice_names_flags_that_there_are():
    run = of(Progressive(base=BASES["mtt"], stages=2))
    cost = preflight(run, open_data(run.data, limit=run.limit))[1]
    assert any("--method.base.experts.batch" in note for note in cost.notes)


def test_the_command_line_sets_both():
    flags = ["--method", "progressive:idc", "--data", "digits", "--ipc", "4"]
    more = ["--method.stages", "4", "--method.base.networks", "7", "--method.filter.rule", "both"]
    run, _ = run_from([*flags, *more], "distill")
    base = replace(IDCMethod(), networks=7)
    assert run.method == Progressive(base=base, stages=4, filter=RealFilter(rule="both"))
    assert from_json(to_json(run)) == run
    assert method_of("progressive") == Progressive(base=MTT())
