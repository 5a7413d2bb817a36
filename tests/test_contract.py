"""What every registered method promises; a new method only adds its small settings here."""

from dataclasses import replace

import pytest
import torch

from potstill.artefact import load
from potstill.core.errors import InputError
from potstill.core.spec import differences, from_json, spec_hash, to_json
from potstill.core.state import load_tree, save_tree
from potstill.core.store import Store
from potstill.data import open_data
from potstill.engine import Tasks, run_tasks
from potstill.experts import ExpertPlan, NetworkPath
from potstill.functional import accuracy
from potstill.methods import METHODS
from potstill.methods.boost import Boost
from potstill.methods.chosen import Use
from potstill.methods.condensation import DCMethod, DMMethod, DSAMethod, IDCMethod
from potstill.methods.coreset import Herding, KCenter, KMedoids, Random
from potstill.methods.inner import Inner
from potstill.methods.mtt import MTT
from potstill.methods.progressive import Progressive
from potstill.methods.ratbptt import RaTBPTT
from potstill.methods.rded import RDED
from potstill.methods.real import RealImages
from potstill.methods.recovering import CDA, SRe2L
from potstill.methods.scored import EL2N, Forgetting
from potstill.methods.tutors import Patches
from potstill.methods.windows import Window
from potstill.nets import NetSpec
from potstill.recover import CDA_TINY, SRE2L_TINY
from potstill.run import Run, preflight
from potstill.teachers import Squeeze, TeacherPlan

EXPERTS = ExpertPlan(count=2, epochs=2, lr=0.05, batch=64)
ONE, USE = replace(EXPERTS, count=1), Use(lr=0.05, epochs=60)
MATCHING = {"networks": 2, "matches": 3, "batch_real": 10, "evaluation_epochs": 100}
TEACHER = TeacherPlan(
    norm="batch", training=Squeeze(lr=0.1, epochs=6, warmup=1, batch=20, augment=None)
)
SMALL = {
    "mtt": MTT(
        iterations=6,
        steps=3,
        expert_epochs=1,
        max_start_epoch=2,
        batch_syn=12,
        lr_img=10.0,
        lr_lr=1e-5,
        lr_init=0.05,
        evaluation_epochs=20,
        experts=EXPERTS,
    ),
    "ratbptt": RaTBPTT(
        iterations=6,
        window=Window(length=2, total=5),
        tasks=2,
        inner=Inner(lr=0.01),
        real=RealImages(batch=100),
        labels="simplex",
        image_init="real",
        lr_lr=0.01,
        evaluation_steps=60,
    ),
    "boost": Boost(
        base=RaTBPTT(
            iterations=3,
            window=Window(length=2, total=4),
            inner=Inner(lr=0.01),
            real=RealImages(batch=100),
            labels="raw",
            image_init="real",
            evaluation_steps=60,
        ),
    ),
    "progressive": Progressive(
        base=MTT(
            iterations=3,
            steps=3,
            expert_epochs=1,
            max_start_epoch=2,
            lr_img=10.0,
            lr_init=0.05,
            evaluation_epochs=60,
            experts=EXPERTS,
        ),
        stages=2,
        stage_epochs=40,
        conditioning_epochs=4,
    ),
    "dc": DCMethod(**MATCHING, inner_epochs=3, lr_img=0.01, image_init="real"),
    "dsa": DSAMethod(**MATCHING, inner_epochs=3, lr_img=0.01),
    "dm": DMMethod(**MATCHING),
    "idc": IDCMethod(**MATCHING, path=NetworkPath(images=64, batch=32)),
    "random": Random(use=USE),
    "herding": Herding(training=ONE, use=USE),
    "k-center": KCenter(training=ONE, use=USE),
    "k-medoids": KMedoids(training=ONE, use=USE),
    "forgetting": Forgetting(training=ONE, use=USE, keep="easiest"),
    "el2n": EL2N(training=EXPERTS, use=USE, keep="easiest"),
    "sre2l": SRe2L(
        teacher=TEACHER, recovery=replace(SRE2L_TINY, iterations=5, start="real"), use=USE
    ),
    "cda": CDA(
        teacher=TEACHER,
        recovery=replace(CDA_TINY, iterations=5, start="patches"),
        patches=Patches(images=20),
        temperature=4.0,
        use=USE,
    ),
    "rded": RDED(teacher=TEACHER, patches=Patches(images=20), use=USE),
}
WRONG = {
    "mtt": [
        *({name: 0} for name in ("iterations", "steps", "expert_epochs", "max_start_epoch")),
        *({name: 0} for name in ("batch_syn", "evaluation_epochs", "lr_img", "lr_init")),
        *({name: -1} for name in ("iterations", "batch_syn", "lr_lr", "momentum")),
        *({name: float("nan")} for name in ("lr_img", "lr_lr", "lr_init", "momentum")),
        {"momentum": 1.0},
        {"image_init": "fancy"},
    ],
    "ratbptt": [
        *({name: 0} for name in ("iterations", "tasks", "evaluation_steps", "lr_img", "lr_label")),
        *({name: float("nan")} for name in ("lr_img", "lr_label", "lr_lr")),
        {"lr_lr": -1},
        {"labels": "fancy"},
        {"image_init": "fancy"},
    ],
    "boost": [
        {"blocks": 0},
        {"beta": -0.1},
        {"beta": 1.5},
        {"beta": float("nan")},
    ],
    "progressive": [
        *({name: 0} for name in ("stages", "pool", "conditioning_epochs", "stage_epochs")),
        {"union": "fancy"},
    ],
    **{
        name: [
            *({field: 0} for field in ("networks", "matches", "batch_real", "batch_syn", "factor")),
            *({field: 0} for field in ("inner_batch", "evaluation_epochs", "lr_img", "inner_lr")),
            *({field: -1} for field in ("inner_epochs", "settle", "momentum")),
            *({field: float("nan")} for field in ("lr_img", "inner_lr", "momentum")),
            *({field: "fancy"} for field in ("turns", "pixels", "image_init", "decoder")),
        ]
        for name in ("dc", "dsa", "dm", "idc")
    },
    **{name: [{"keep": "middle"}] for name in ("forgetting", "el2n")},
    **{
        name: [
            *({field: 0} for field in ("batch", "together", "temperature")),
            {"order": "fancy"},
            {"temperature": float("nan")},
        ]
        for name in ("sre2l", "cda")
    },
    "rded": [{"temperature": 0}, {"temperature": -1.0}],
}
EVERY = pytest.mark.parametrize("name", METHODS.names())


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)


def ready(name, tmp_path, *, seed=0):
    """Do the phases of a method up to its loop; return the method and the loop's context."""
    method = SMALL[name]
    run = Run(
        method=method,
        data="digits",
        ipc=2,
        net=NetSpec(name="convnet2", width=8),
        seed=seed,
        limit=40,
        threads=1,
    )
    data = open_data(run.data, limit=run.limit)
    ctx, cost = preflight(run, data)
    ctx, done, steps = replace(ctx, store=Store(tmp_path / "store")), {}, 0
    while isinstance(phase := method.phases(ctx, done), Tasks) or phase.stage:
        if isinstance(phase, Tasks):
            done[phase.phase] = run_tasks(phase, ctx.store)
            continue
        looped = replace(ctx, nets=phase.nets, done=dict(done))
        assert phase.first == steps
        steps += phase.steps
        state, _ = walked(method, looped, method.init(looped), phase.first, steps)
        method.export(looped, state).save(tmp_path / phase.stage)
        done[phase.stage] = [tmp_path / phase.stage]
    assert phase.first == steps
    assert steps + phase.steps == cost.steps
    assert method.phases(ctx, {**done, "loop": []}) is None
    return method, replace(ctx, nets=phase.nets, done=done)


def bytes_of(state, folder):
    save_tree(folder / "tree", state)
    return (folder / "tree").read_bytes()


def walked(method, ctx, state, start, stop):
    seen = []
    for it in range(start, stop):
        state, numbers = method.step(ctx, state, it)
        seen.append(numbers)
    return state, seen


@EVERY
def test_small_settings_travel_as_json(name):
    method = SMALL[name]
    assert type(method) is METHODS.get(name)
    assert from_json(to_json(method)) == method
    assert spec_hash(from_json(to_json(method))) == spec_hash(method)
    assert from_json(to_json(METHODS.get(name)())) == METHODS.get(name)()


@EVERY
def test_the_state_continues_bit_for_bit_from_a_file(name, tmp_path):
    method, ctx = ready(name, tmp_path)
    whole, numbers = walked(method, ctx, method.init(ctx), 0, 6)
    half, first = walked(method, ctx, method.init(ctx), 0, 3)
    text = bytes_of(half, tmp_path)
    again = load_tree(tmp_path / "tree")
    assert bytes_of(again, tmp_path) == text
    method, fresh = ready(name, tmp_path)
    end, second = walked(method, fresh, again, 3, 6)
    assert bytes_of(end, tmp_path) == bytes_of(whole, tmp_path) != text
    assert first + second == numbers
    for row in numbers:
        assert all(torch.isfinite(torch.tensor(float(value))) for value in row.values())


@EVERY
def test_the_same_seed_gives_the_same_bytes(name, tmp_path):
    ends = []
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(len(ends))
        global_state = torch.random.get_rng_state()
        method, ctx = ready(name, tmp_path / folder, seed=seed)
        ends.append(bytes_of(walked(method, ctx, method.init(ctx), 0, 2)[0], tmp_path))
        assert torch.equal(torch.random.get_rng_state(), global_state)
    assert ends[0] == ends[1] != ends[2]


@EVERY
def test_a_step_does_not_change_its_input(name, tmp_path):
    method, ctx = ready(name, tmp_path)
    state, _ = walked(method, ctx, method.init(ctx), 0, 1)
    before = bytes_of(state, tmp_path)
    method.step(ctx, state, 1)
    assert bytes_of(state, tmp_path) == before


@EVERY
def test_the_export_saves_loads_and_trains_a_network(name, tmp_path):
    method, ctx = ready(name, tmp_path)
    state, _ = walked(method, ctx, method.init(ctx), 0, method.cost(ctx).steps)
    made = method.export(ctx, state)
    made.save(tmp_path / "set")
    back = load(tmp_path / "set")
    assert torch.equal(back.images, made.images)
    assert from_json(back.origin.method_spec) == method
    assert back.ipc == (2,) * 10
    model = back.train("convnet2", seed=0)
    test = ctx.data.test
    with torch.no_grad():
        hits = model(test.pixels).argmax(1) == test.labels
    untrained = accuracy(
        ctx.net, ctx.net.theta0, test.pixels, test.labels, prepare=ctx.space.forward
    )
    assert float(hits.float().mean()) > max(0.3, untrained + 0.1)


@EVERY
def test_scaled_methods_still_fit(name):
    for scale in ("smoke", "cpu"):
        for method in (METHODS.get(name)(), SMALL[name]):
            small = method.scaled(scale)
            assert type(small) is type(method)
            assert small.scaled(scale) == small
            for line in differences(to_json(method), to_json(small)):
                before, after = (int(n) for n in line.rpartition(": ")[2].split(" -> "))
                assert 0 < after < before


@pytest.mark.parametrize(
    ("name", "wrong"),
    [(name, wrong) for name in METHODS.names() for wrong in WRONG.get(name, [])],
    ids=str,
)
def test_wrong_settings_are_refused(name, wrong):
    ((field, value),) = wrong.items()
    with pytest.raises(InputError, match=rf"{field}.*{value}"):
        replace(SMALL[name], **wrong)
