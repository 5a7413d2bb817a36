"""Boosting: blocks one after another, over any method that moves images."""

from dataclasses import replace

import pytest
import torch

from potstill.cli.flags import run_from
from potstill.core.errors import InputError
from potstill.core.spec import from_json, to_json
from potstill.data import open_data
from potstill.methods import method_of
from potstill.methods.boost import Boost
from potstill.methods.coreset import Random
from potstill.methods.inner import Inner
from potstill.methods.mtt import MTT
from potstill.methods.ratbptt import RaTBPTT
from potstill.methods.real import RealImages
from potstill.methods.windows import Window
from potstill.nets import NetSpec
from potstill.run import Run, preflight

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


def test_the_first_block_is_what_the_base_method_makes_alone():
    boosted, ctx = Boost(base=BASE, blocks=2, beta=0.0), ready(Boost(base=BASE, blocks=2))
    alone, single = Boost(base=BASE, blocks=1), ready(Boost(base=BASE, blocks=1), ipc=1)
    whole = states(boosted, ctx)[-1][0]
    first = states(alone, single)[-1][0]
    assert torch.equal(whole["images"][0], first["images"][0])
    s, small = boosted.export(ctx, whole), BASE.export(single, first)
    prefix = s.prefix(1)
    assert torch.equal(prefix.images, small.images)
    assert torch.equal(prefix.targets.values, small.targets.values)
    whole_steps = replace(prefix.recipe, batch=10, balanced=1)  # of fewer images they take all
    assert whole_steps == small.recipe
    assert s.ipc == (2,) * 10
    assert s.origin.method_spec["type"] == "Boost"


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
