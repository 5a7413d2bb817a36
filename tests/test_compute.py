"""How a training is computed: what `choose` and preflight make of wishes, work and machine."""

import json
from dataclasses import replace
from functools import lru_cache

import pytest
import torch

import potstill.core.compute as machine
import potstill.run.plan as plan_module
from potstill.core.compute import (
    CUDA_STEPS,
    FIRST_ORDER_FLOPS,
    SECOND_ORDER_FLOPS,
    Compute,
    Wish,
    choose,
    no_compiler,
)
from potstill.core.errors import InputError
from potstill.core.spec import from_json, to_json
from potstill.core.usage import bytes_in
from potstill.data import open_data
from potstill.demo import demo_run
from potstill.experts import ExpertPlan
from potstill.functional import GSAM
from potstill.methods.coreset import Herding, Random
from potstill.methods.mtt import MTT
from potstill.methods.work import expert_work
from potstill.nets import NetSpec, build, flops
from potstill.recipes import from_recipe
from potstill.run import Run, distil, plan_lines, preflight, recorded_plan, resume

MTT_SMALL = MTT(
    iterations=4,
    steps=3,
    expert_epochs=1,
    max_start_epoch=1,
    evaluation_epochs=2,
    experts=ExpertPlan(count=2, epochs=1, batch=64),
)
RUN = Run(
    method=MTT_SMALL,
    data="digits",
    ipc=1,
    net=NetSpec(name="convnet1", width=4),
    limit=20,
    threads=1,
    device="cpu",
)


@pytest.fixture(autouse=True)
def cpu(monkeypatch, tmp_path):
    """A CPU with a compiler and fast bfloat16, and no GPU, whatever this machine is."""
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    able(monkeypatch)


@lru_cache
def digits():
    return open_data("digits", limit=20)


def able(monkeypatch, *, bfloat16=True, obstacle="", gpu=False):
    monkeypatch.setattr(machine, "fast_bfloat16", lambda device: bfloat16)
    monkeypatch.setattr(machine, "no_compiler", lambda device: obstacle)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)


def chosen(order=1, *, share=1.0, wish=None, **changes):
    """Choose for work at a share of the CPU's threshold, without threads in the way."""
    least = {1: FIRST_ORDER_FLOPS // 3, 2: SECOND_ORDER_FLOPS // 12}[order]
    images = round(share * (least // 1000 + 1))
    facts = {"order": order, "flops": 1000, "images": images, "steps": 1, **changes}
    return choose(wish or Wish(threads=1), **facts)


# ---- choose -----------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2])
def test_compiling_begins_at_the_threshold(order):
    assert chosen(order, share=1.0).compiled
    assert not chosen(order, share=0.999).compiled
    assert not chosen(order, compiles=False).compiled


def test_compiling_on_a_gpu_begins_at_a_number_of_steps(monkeypatch):
    able(monkeypatch, gpu=True)
    assert chosen(share=0.0, steps=CUDA_STEPS) == Compute(
        threads=1, device="cuda", precision="bfloat16", compiled=True
    )
    eager = chosen(share=9.0, steps=CUDA_STEPS - 1)
    assert (eager.compiled, eager.precision) == (False, "bfloat16")
    assert chosen(wish=Wish(device="cpu")).device == "cpu"


def test_bfloat16_is_for_compiled_first_order_on_fast_machines(monkeypatch):
    assert chosen().precision == "bfloat16"
    assert chosen(share=0.5).precision == "float32"
    assert chosen(2).precision == "float32"
    able(monkeypatch, bfloat16=False)
    assert chosen().precision == "float32"


def test_a_wish_wins(monkeypatch):
    for order in (1, 2):
        for share in (0.001, 1000.0):
            assert chosen(order, share=share, wish=Wish(compile="on")).compiled
            assert not chosen(order, share=share, wish=Wish(compile="off")).compiled
        for precision in ("float32", "bfloat16"):
            for when in ("on", "off"):  # bfloat16 without compilation is slow; it can be asked for
                wish = Wish(precision=precision, compile=when)
                assert chosen(order, wish=wish).precision == precision
    able(monkeypatch, bfloat16=False)
    assert chosen(wish=Wish(precision="bfloat16")).precision == "bfloat16"
    assert chosen(wish=Wish(threads=3)).threads == 3


def test_a_wish_that_cannot_be_granted_is_one_sentence(monkeypatch):
    with pytest.raises(InputError, match=r"device 'cuda' is not possible here: there is no GPU"):
        chosen(wish=Wish(device="cuda"))
    with pytest.raises(InputError, match=r"this network cannot be compiled"):
        chosen(wish=Wish(compile="on"), compiles=False)
    able(monkeypatch, obstacle="there is no hammer")
    assert not chosen(share=9.0).compiled
    with pytest.raises(InputError, match=r"compile 'on' is not possible here: there is no hammer"):
        chosen(wish=Wish(compile="on"))


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        *(("device", "tpu"), ("precision", "float16"), ("compile", "yes")),
        *(("threads", 0), ("threads", 1025), ("threads", 10**20)),
    ],
)
def test_wrong_wishes_are_refused(field, wrong):
    for kind in (Wish, lambda **change: replace(RUN, **change)):
        with pytest.raises(InputError, match=rf"{field}.*{wrong}"):
            kind(**{field: wrong})


def test_threads_are_torchs_shared_by_the_workers(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    for workers, threads in ((1, 6), (2, 3), (4, 1), (99, 1)):
        assert Wish().among(workers).threads == threads
        assert Wish(threads=5).among(workers).threads == 5
    assert chosen(wish=Wish()).threads == 6
    data = digits()
    plan = preflight(replace(RUN, threads=None), data, workers=3)[0].plan
    assert (plan.tasks.threads, plan.window.threads) == (
        2,
        6,
    )  # outer steps have no one beside them
    plan = preflight(replace(RUN, threads=5), data, workers=3)[0].plan
    assert (plan.tasks.threads, plan.window.threads) == (5, 5)


def test_a_wish_takes_from_another_what_it_leaves_open():
    other = Wish(device="cpu", threads=2, precision="bfloat16", compile="off")
    assert Wish().filled(other) == other
    own = Wish(device="cuda", threads=1, precision="float32", compile="on")
    assert own.filled(other) == own


def test_what_torch_compile_needs(monkeypatch, tmp_path):
    # the real function, not the fixture's
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert no_compiler("cpu") == "there is no C++ compiler (no-such-compiler)"
    monkeypatch.setattr(machine.shutil, "which", lambda name: name)
    monkeypatch.setattr(machine.sysconfig, "get_path", lambda name: str(tmp_path))
    assert no_compiler("cpu") == f"Python's header files are missing ({tmp_path / 'Python.h'})"
    (tmp_path / "Python.h").touch()
    assert no_compiler("cpu") == ""
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: None)
    assert no_compiler("cuda") == "the package triton is missing"


def test_a_compute_in_words():
    assert Compute(threads=1).describe() == "1 thread, eager float32"
    fast = Compute(threads=2, precision="bfloat16", compiled=True)
    assert fast.describe() == "2 threads, compiled bfloat16"
    assert replace(fast, device="cuda").describe() == "cuda, compiled bfloat16"
    assert from_json(to_json(fast)) == fast


# ---- sizes and work ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "gib"),
    [("8GiB", 8), ("512MiB", 0.5), ("2.5", 2.5), ("3", 3), (2, 2), (0.5, 0.5), ("1 TiB", 1024)],
)
def test_memory_is_a_size(text, gib):
    run = replace(RUN, memory=text)
    assert run.memory == gib
    assert run.budget == gib * 2**30
    assert from_json(json.loads(json.dumps(to_json(run)))) == run


@pytest.mark.parametrize(
    "wrong", ["much", "", "-1", "8GB8", "i", "0", "0MiB", "9" * 400 + "GiB", 0, -2.0, float("nan")]
)
def test_memory_refuses_rubbish(wrong):
    with pytest.raises(InputError, match=r"memory must be a size above 0 such as 8GiB.*not "):
        replace(RUN, memory=wrong)


def test_memory_not_given_is_4_gib_or_half_of_the_gpus(monkeypatch):
    assert RUN.memory is None
    assert from_json(json.loads(json.dumps(to_json(RUN)))) == RUN
    free = replace(RUN, device="auto")
    assert RUN.budget == free.budget == replace(RUN, device="cuda").budget == 4 * 2**30
    able(monkeypatch, gpu=True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1, 80 * 2**30))
    assert free.budget == replace(RUN, device="cuda").budget == 40 * 2**30
    assert RUN.budget == 4 * 2**30
    assert replace(free, memory=3).budget == 3 * 2**30


def test_sizes_in_bytes():
    assert [bytes_in(text) for text in ("0", "7", "7b", "2k", "2KiB", "1.5 mb", "x", "5i")] == [
        *(0, 7, 7, 2000, 2048, 1_500_000),
        None,
        None,
    ]
    assert [bytes_in(text, unit=100) for text in ("7", "7b", "2k")] == [700, 7, 2000]


def test_flops_of_a_convnet_by_hand():
    module = build(NetSpec(name="convnet2", width=4), channels=3, size=(8, 8), classes=10, seed=0)
    convolutions = 2 * 9 * (3 * 4 * 64 + 4 * 4 * 16)
    assert flops(module, 3, (8, 8)) == convolutions + 2 * 4 * 4 * 10


@pytest.mark.parametrize("name", ["vit", "lenet"])
def test_flops_are_those_of_torchs_counter(name):
    from torch.utils.flop_counter import FlopCounterMode

    module = build(NetSpec(name=name), channels=3, size=(32, 32), classes=10, seed=0)
    state, before = torch.random.get_rng_state(), to_bytes(module)
    found = flops(module, 3, (32, 32))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert to_bytes(module) == before
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module.eval()(torch.zeros(3, 3, 32, 32))
    assert found == pytest.approx(counter.get_total_flops() / 3, rel=0.02)


def to_bytes(module):
    return [tensor.numpy().tobytes() for tensor in module.state_dict().values()]


def test_work_of_experts():
    plan = ExpertPlan(count=3, epochs=4, batch=30)
    assert expert_work(plan, 100) == (1200, 48)
    assert expert_work(replace(plan, gsam=GSAM(rho=0.1)), 100) == (2400, 48)
    assert expert_work(replace(plan, imported="pool"), 100) == (0, 0)
    ctx, cost = preflight(RUN, digits())
    images = len(ctx.data.train)
    assert (cost.window_images, cost.window_steps) == (4 * 3 * 10, 4 * 3)
    assert (cost.task_images, cost.task_steps) == (2 * images, 2 * -(-images // 64))
    batched = replace(RUN, method=replace(MTT_SMALL, batch_syn=6))
    assert preflight(batched, ctx.data)[1].window_images == 4 * 3 * 6
    herding = replace(RUN, method=Herding())
    cost = preflight(herding, ctx.data)[1]
    assert (cost.task_images, cost.window_images) == (30 * images, 0)


# ---- the plan of a run ------------------------------------------------------------------------


def planned(run, monkeypatch=None, *, work=None):
    """Return the plan of a run; with `work`, as if an image took so many operations."""
    if work is not None:
        monkeypatch.setattr(plan_module, "flops", lambda *_: work)
    return preflight(run, digits())[0].plan


def long_enough(run, *, share=1.0):
    """Return operations an image for which the outer steps reach a share of the threshold."""
    images = preflight(run, digits())[1].window_images
    return int(share * SECOND_ORDER_FLOPS / (12 * images)) + 1


def test_the_strategy_follows_the_budget():
    data = digits()
    cost = preflight(RUN, data)[1]
    need, other = cost.graph_bytes, cost.adjoint_bytes
    for budget, strategy in ((need - 1, "adjoint"), (need, "graph"), (need + 1, "graph")):
        plan = planned(replace(RUN, memory=f"{budget}B"))
        left = budget - (need if strategy == "graph" else other)
        assert (plan.strategy, plan.memory) == (strategy, max(left, budget // 8))
    for strategy in ("graph", "adjoint"):
        for budget in (need // 2, need * 2):
            run = replace(RUN, memory=f"{budget}B", strategy=strategy)
            assert planned(run).strategy == strategy


def test_long_outer_steps_are_compiled_with_the_adjoint(monkeypatch):
    monkeypatch.setattr(plan_module, "GRAPH_FLOPS", 10**30)
    for share, compiled in ((1.0, True), (0.99, False)):
        found = planned(RUN, monkeypatch, work=long_enough(RUN, share=share))
        assert (found.window.compiled, found.strategy) == (
            compiled,
            "adjoint" if compiled else "graph",
        )
        assert found.window.precision == "float32"


def test_a_graph_that_fits_is_faster_for_large_networks(monkeypatch):
    work = long_enough(RUN)
    assert work > plan_module.GRAPH_FLOPS
    found = planned(RUN, monkeypatch, work=work)
    assert (found.strategy, found.window.compiled) == ("graph", False)
    cramped = replace(RUN, memory="1B")
    for run in (cramped, replace(RUN, strategy="adjoint"), replace(RUN, compile="on")):
        found = planned(run, monkeypatch, work=work)
        assert (found.strategy, found.window.compiled) == ("adjoint", True)
    for change in ({"compile": "off"}, {"strategy": "graph"}):
        found = planned(replace(RUN, **change), monkeypatch, work=work)
        assert (found.strategy, found.window.compiled) == ("graph", False)


def test_wishes_of_a_run():
    found = planned(replace(RUN, compile="on", precision="bfloat16"))
    assert found.strategy == "adjoint"
    assert found.window == Compute(threads=1, compiled=True, precision="bfloat16")
    assert found.tasks == Compute(threads=1, compiled=True, precision="bfloat16")
    with pytest.raises(InputError, match="compile 'on' does not go with the strategy 'graph'"):
        replace(RUN, compile="on", strategy="graph")
    with pytest.raises(InputError, match="device 'cuda' is not possible here"):
        planned(replace(RUN, device="cuda"))


def test_networks_from_elsewhere_compile_only_if_asked(monkeypatch, tmp_path):
    (tmp_path / "elsewhere.py").write_text(
        "from torch import nn\n"
        "class Own(nn.Linear):\n"
        "    pass\n"
        "def net(*, channels, size, classes):\n"
        "    return nn.Sequential(nn.Flatten(), Own(channels * size[0] * size[1], classes))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(plan_module, "GRAPH_FLOPS", 10**30)
    for name, when, compiled in (
        ("module:elsewhere.net", "auto", False),
        ("module:elsewhere.net", "on", True),
        ("convnet1", "auto", True),
    ):
        run = replace(RUN, net=NetSpec(name=name), compile=when)
        found = planned(run, monkeypatch, work=10**12)
        assert (found.window.compiled, found.tasks.compiled) == (compiled, compiled)


def test_choosing_images_compiles_no_outer_steps(monkeypatch):
    run = replace(RUN, method=Random(), compile="on", precision="bfloat16")
    assert planned(run).window == Compute(threads=1)
    run = replace(RUN, method=Herding())
    assert planned(run, monkeypatch, work=10**12).tasks.compiled


def test_demo_and_smoke_do_not_compile():
    for run in (demo_run(), from_recipe("mtt_cifar10_ipc50", data=None, scale="smoke")):
        data = open_data(run.data, validation=run.validation, limit=run.limit)
        plan = preflight(run, data)[0].plan
        assert not plan.window.compiled
        assert (plan.tasks.compiled, plan.tasks.precision) == (False, "float32")


def test_the_plan_is_said_in_one_line(monkeypatch):
    data = digits()
    line, needs, *_ = plan_lines(replace(RUN, compile="on", memory="512MiB"), data)
    assert "gradient adjoint (" in line
    assert "MiB), 1 thread, compiled float32; experts and checks 1 thread, compiled" in line
    assert "; budget 512 MiB; " in needs
    line, *_ = plan_lines(replace(RUN, method=Random()), data)
    assert not any(word in line for word in ("gradient", "experts", "checks", "eager"))
    line, *_ = plan_lines(replace(RUN, method=Herding()), data)
    assert "experts and checks 1 thread, eager float32; experts on disk " in line
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    line, *_ = plan_lines(replace(RUN, threads=None), data, workers=2)
    assert "4 threads, eager float32; experts and checks 2 threads, eager float32" in line


# ---- resuming ---------------------------------------------------------------------------------


def begun(out, run=RUN, **changes):
    """Make the folder of a run that began with another plan."""
    from potstill.run.config import resolved
    from potstill.run.folder import config_of

    data = open_data(run.data, limit=run.limit)
    run = resolved(run, data)
    ctx, _ = preflight(run, data)
    config = config_of(run, replace(ctx, plan=replace(ctx.plan, **changes)), data)
    out.mkdir(parents=True)
    (out / "config.json").write_text(json.dumps(config))
    return replace(ctx.plan, **changes)


def test_a_run_goes_on_as_it_began(tmp_path, monkeypatch):
    out, seen = tmp_path / "run", []
    plan = begun(out, strategy="adjoint", window=Compute(threads=2))
    assert recorded_plan(out) == plan != planned(RUN)
    step = MTT.step
    monkeypatch.setattr(
        MTT,
        "step",
        lambda self, ctx, *rest: (
            seen.append((ctx.plan, torch.get_num_threads())),
            step(self, ctx, *rest),
        )[1],
    )
    resume(out)
    assert seen == [(plan, 2)] * 4
    assert recorded_plan(out) == plan


def test_a_machine_that_cannot_go_on_says_so(tmp_path, monkeypatch):
    begun(tmp_path / "a", window=Compute(threads=1, compiled=True), strategy="adjoint")
    begun(tmp_path / "b", tasks=Compute(threads=1, device="cuda"))
    with pytest.raises(InputError, match=r"cuda, eager float32, which is not .* no GPU"):
        resume(tmp_path / "b")
    able(monkeypatch, obstacle="there is no hammer")
    with pytest.raises(InputError, match=r"1 thread, compiled float32, .* there is no hammer"):
        resume(tmp_path / "a")


def test_a_run_of_an_earlier_version_is_refused(tmp_path):
    out = tmp_path / "run"
    begun(out)
    config = json.loads((out / "config.json").read_text())
    config["plan"] = {"strategy": "graph", "threads": 1}
    for name in ("device", "precision", "compile"):
        del config["run"][name]
    (out / "config.json").write_text(json.dumps(config))
    for work in (lambda: resume(out), lambda: distil(RUN, out)):
        with pytest.raises(InputError, match=r"earlier version \(0.1.0\).*choose another folder"):
            work()
