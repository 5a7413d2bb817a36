"""Boosting: blocks one after another, over any method that moves images."""

import re
from dataclasses import replace

import pytest
import torch

from potstill.artefact import Block, load
from potstill.cli.flags import run_from
from potstill.core.errors import InputError
from potstill.core.log import Quiet
from potstill.core.spec import from_json, to_json
from potstill.data import open_data
from potstill.experts import ExpertPlan
from potstill.methods import method_of
from potstill.methods.boost import Boost
from potstill.methods.coreset import Random
from potstill.methods.inner import Inner
from potstill.methods.mtt import MTT
from potstill.methods.ratbptt import RaTBPTT
from potstill.methods.real import RealImages
from potstill.methods.windows import Window
from potstill.nets import NetSpec
from potstill.run import Run, distil, preflight

BASE = RaTBPTT(
    iterations=3,
    window=Window(length=2, total=4),
    inner=Inner(lr=0.01),
    real=RealImages(batch=50),
    labels="raw",
    evaluation_steps=10,
)


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)


def ready(method, *, ipc=2):
    run = Run(
        method=method,
        data="digits",
        ipc=ipc,
        net=NetSpec(name="convnet2", width=4),
        limit=20,
        threads=1,
    )
    ctx, cost = preflight(run, open_data(run.data, limit=run.limit))
    phase = method.phases(ctx, {})
    assert phase.steps == cost.steps == method.blocks * method.base.iterations
    return replace(ctx, nets=phase.nets)


def states(method, ctx):
    state, found = method.init(ctx), []
    for it in range(method.blocks * method.base.iterations):
        state, numbers = method.step(ctx, state, it)
        found.append((state, numbers))
    return found


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_earlier_blocks_stay_or_move_little(beta):
    method = Boost(base=BASE, blocks=3, beta=beta)
    found = states(method, ready(method, ipc=3))
    assert [numbers["block"] for _, numbers in found] == [1] * 3 + [2] * 3 + [3] * 3
    ends = [found[last][0] for last in (2, 5, 8)]
    assert [len(end["images"]) for end in ends] == [1, 2, 3]
    for name in ("images", "labels"):
        (first,), *later = (end[name] for end in ends)
        for blocks in later:
            assert torch.equal(blocks[0], first) == (beta == 0)
        moved = (later[-1][0] - first).norm() / len(later)
        # from one-hot labels or noise, as far as the new block went at the full step size
        start = method.init(ready(method, ipc=3))[name][0]
        assert moved <= 0.35 * (first - start).norm()


@pytest.mark.parametrize("lr_lr", [0.0, 0.5])
def test_the_first_block_is_what_the_base_method_makes_alone(lr_lr):
    base = replace(BASE, lr_lr=lr_lr)
    boosted, ctx = Boost(base=base, blocks=2, beta=0.0), ready(Boost(base=base, blocks=2))
    alone, single = Boost(base=base, blocks=1), ready(Boost(base=base, blocks=1), ipc=1)
    whole = states(boosted, ctx)[-1][0]
    first = states(alone, single)[-1][0]
    assert torch.equal(whole["images"][0], first["images"][0])
    s, small = boosted.export(ctx, whole), base.export(single, first)
    prefix = s.prefix(1)
    assert torch.equal(prefix.images, small.images)
    assert torch.equal(prefix.targets.values, small.targets.values)
    whole_steps = replace(prefix.recipe, batch=10, balanced=1)  # of fewer images they take all
    assert whole_steps == small.recipe
    assert (s.recipe.lr != small.recipe.lr) == (lr_lr > 0)
    assert s.prefix(2).recipe == s.recipe
    assert s.ipc == (2,) * 10
    assert s.origin.method_spec["type"] == "Boost"


def test_the_first_block_has_the_step_size_that_mtt_learned_with_it(tmp_path):
    experts = ExpertPlan(count=1, epochs=2, batch=50)
    base = MTT(iterations=3, steps=2, expert_epochs=1, max_start_epoch=1, experts=experts)
    base = replace(base, lr_lr=1e-3, evaluation_epochs=2)
    run = Run(method=base, data="digits", ipc=1, net=NetSpec(name="convnet2", width=4))
    run = replace(run, limit=20, threads=1, compile="off")
    small = distil(run, tmp_path / "small")
    boosted = replace(run, method=Boost(base=base, blocks=2, beta=0.0), ipc=2)
    distil(boosted, tmp_path / "boosted")
    s = load(tmp_path / "boosted")
    assert torch.equal(s.prefix(1).images, small.images)
    assert s.prefix(1).recipe == small.recipe
    assert s.recipe.lr not in (small.recipe.lr, base.lr_init)


def test_states_of_earlier_versions_go_on():
    method, found = Boost(base=BASE, blocks=3), []
    ctx = ready(method, ipc=3)
    state = method.init(ctx)
    for it in range(9):
        if it in (3, 4):  # without the step sizes of blocks
            state = {name: value for name, value in state.items() if name != "lrs"}
        state, _ = method.step(ctx, state, it)
        found.append(method.export(ctx, state))
    own = pytest.approx(0.01)
    assert [block.lr for block in found[3].blocks] == [own, None]
    assert [block.lr for block in found[8].blocks] == [None, own, None]


def test_a_set_before_blocks_had_step_sizes_still_loads():
    old = {"type": "Block", "name": "block0", "start": 0, "stop": 10}
    assert from_json(old) == Block(name="block0", start=0, stop=10, lr=None)


def test_checks_along_the_way_are_refused_with_their_reason():
    run = Run(method=Boost(base=BASE), data="digits", ipc=2, select_every=1, limit=20)
    with pytest.raises(InputError, match="choose among sets of different sizes"):
        preflight(run, open_data("digits", limit=20))


def test_a_window_in_bfloat16_is_told_with_its_cosine(tmp_path):
    said = []

    class Ear(Quiet):
        def say(self, text):
            said.append(text)

    base = replace(BASE, iterations=1)
    run = Run(method=Boost(base=base), data="digits", ipc=2, limit=20, threads=1)
    run = replace(run, net=NetSpec(name="convnet2", width=4), compile="off")
    for precision in ("float32", "bfloat16"):
        distil(replace(run, precision=precision), tmp_path / precision, report=Ear())
    lines = [line for line in said if line.startswith("Differentiated steps in")]
    assert len(lines) == 1
    cosine = float(re.fullmatch(r".* in bfloat16: cosine (\S+) to float32 at first.", *lines)[1])
    method = Boost(base=base)
    ctx, _ = preflight(run, open_data("digits", limit=20))
    ctx = replace(ctx, nets=method.phases(ctx, {}).nets)
    gradients = []
    for precision in ("float32", "bfloat16"):
        one = replace(ctx.plan.window, precision=precision)
        at = method._at(ctx, 0, (), ())
        at = replace(at, plan=replace(at.plan, window=one, prefix="bfloat16"))
        made = base._made_ready(at, base.init(at), 0)
        gradients.append(base.task(at, made, 0, 0).images[0].flatten())
    assert cosine == pytest.approx(float(torch.cosine_similarity(*gradients, dim=0)), abs=1e-4)
    assert cosine < 1


def test_it_wraps_what_moves_images_and_nothing_else():
    assert method_of("boost:mtt") == Boost(base=MTT())
    assert method_of("boost") == Boost(base=RaTBPTT())
    for wrong in (Random(), Boost(base=MTT())):
        with pytest.raises(InputError, match="step by step"):
            Boost(base=wrong)
    with pytest.raises(InputError, match="wraps no other"):
        method_of("mtt:ratbptt")
    with pytest.raises(InputError, match="ratbptt"):
        method_of("boost:ratbpt")
    with pytest.raises(InputError, match=r"3 images a class .* 2 equal blocks"):
        ready(Boost(base=BASE), ipc=3)


def test_the_command_line_sets_both():
    flags = ["--method", "boost:mtt", "--data", "digits", "--ipc", "4", "--method.blocks", "4"]
    run, _ = run_from([*flags, "--method.beta", "0", "--method.base.iterations", "7"], "distill")
    assert run.method == Boost(base=MTT(iterations=7), blocks=4, beta=0.0)
    assert type(run.method) is Boost
    assert from_json(to_json(run)) == run
