"""Filters of real images: each rule against a plain loop, and what users are told."""

import itertools
import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from potstill.core.compute import Compute
from potstill.core.errors import InputError
from potstill.core.spec import from_json, to_json
from potstill.core.store import Store
from potstill.coresets import RealFilter, filter_tasks, filters, score_tasks
from potstill.coresets.features import settle
from potstill.coresets.filters import banded
from potstill.data import Rows, from_arrays, make_space, reopen
from potstill.engine import run_tasks
from potstill.experts import ExpertPlan, write_trajectory
from potstill.experts.kept import kept, read_rows
from potstill.nets import NetSpec, flat

NET = NetSpec(name="convnet1", width=4)
NAMES = ("one", "two")
PLAN = ExpertPlan(count=2, epochs=6, lr=0.1, batch=32)
pytestmark = pytest.mark.usefixtures("alone")


def toy(n=160, classes=2):
    """Images of noise, as many of each class."""
    pixels = torch.randint(256, (n, 1, 8, 8), generator=torch.Generator().manual_seed(1)).byte()
    return from_arrays(pixels, torch.arange(n) % classes)


def weights(net, data, seed):
    return flat(net, channels=1, size=data.size, classes=data.n_classes, seed=seed).theta0


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def linked(store, data, net=NET):
    """File untrained networks as links, under NAMES."""
    for seed, name in enumerate(NAMES):
        folder = store.root / "links" / name
        folder.mkdir(parents=True, exist_ok=True)
        write_trajectory(folder, weights(net, data, seed)[None], {})


def filtered(rule, data, store, space=None, net=NET, *, stage=2, stages=3, sources=NAMES, seed=0):
    tasks = filter_tasks(
        rule,
        data,
        space or make_space("measured", data),
        net,
        stage=stage,
        stages=stages,
        sources=sources,
        seed=seed,
        compute=Compute(threads=1),
        store=store,
    )
    (folder,) = run_tasks(tasks, store)
    return folder


def plain_right(data, space, net, seeds=(0, 1)):
    """How many networks classify each image correctly, one image after the other."""
    right = [0] * len(data.train)
    for seed in seeds:
        own = flat(net, channels=1, size=data.size, classes=data.n_classes, seed=7)
        module = own.load(weights(net, data, seed))
        settle(module, data.train, space)
        module.eval()
        for i, label in enumerate(data.train.labels.tolist()):
            with torch.no_grad():
                said = module(space.forward(data.train.pixels[i : i + 1]))
            right[i] += int(said.argmax()) == label
    return right


@pytest.mark.parametrize("space", ["measured", "zca-mtt"])
@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize(("rule", "out"), [("correct", {2}), ("both", {0, 2})])
def test_what_networks_agree_on_is_left_out(store, monkeypatch, rule, out, norm, space):
    monkeypatch.setattr(filters, "_PART", 50)
    data, net = toy(), replace(NET, norm=norm)
    space = make_space(space, data)
    linked(store, data, net)
    right = plain_right(data, space, net)
    assert {0, 1, 2} == set(right)
    before = torch.get_rng_state()
    folder = filtered(RealFilter(rule=rule, keep=0), data, store, space, net)
    assert torch.equal(before, torch.get_rng_state())
    wanted = [i for i, times in enumerate(right) if times not in out]
    assert read_rows(folder).tolist() == wanted
    assert read_rows(folder).dtype == torch.int64
    assert read_rows(folder) is read_rows(folder)
    facts = json.loads((folder / "filter.json").read_text())
    assert (facts["kept"], facts["of"]) == (len(wanted), len(data.train))
    labels = [str(data.train.labels[i].item()) for i in wanted]
    assert facts["by_class"] == {name: labels.count(name) for name in "01"}


def test_a_part_stays_by_a_keyed_lottery(store, tmp_path):
    data = toy(4000)
    linked(store, data)
    rule = RealFilter(rule="both", keep=0.3)
    nothing = set(read_rows(filtered(replace(rule, keep=0), data, store)).tolist())
    drawn = {}
    for stage, seed in ((2, 0), (3, 0), (2, 1)):
        folder = filtered(rule, data, store, stage=stage, seed=seed)
        rows = read_rows(folder).tolist()
        assert rows == sorted(set(rows))
        assert nothing < set(rows)
        drawn[stage, seed] = set(rows) - nothing
        n = len(data.train) - len(nothing)  # of these each stays with chance 0.3
        assert abs(len(rows) - len(nothing) - 0.3 * n) < 5 * math.sqrt(0.3 * 0.7 * n)
    assert len({frozenset(rows) for rows in drawn.values()}) == 3
    again = Store(tmp_path / "again")
    linked(again, data)
    files = [
        (filtered(rule, data, place) / "rows.safetensors").read_bytes() for place in (store, again)
    ]
    assert files[0] == files[1]


def test_bands_of_forgetting_by_hand():
    scores = torch.tensor([0.0, 9.5, 10.0, 19.99, 20.0, 200.0], dtype=torch.float64)
    found = [banded(scores, interval=10, stage=k, stages=3).tolist() for k in (1, 2, 3)]
    assert found == [
        [True, True, False, False, False, False],
        [False, False, True, True, False, False],
        [False, False, False, False, True, True],
    ]


def test_stages_by_forgetting_see_every_image_once(store):
    data = toy()
    space, compute = make_space("measured", data), Compute(threads=1)
    tasks = score_tasks("forgetting", PLAN, data, space, NET, seed=0, compute=compute)
    folders = run_tasks(tasks, store)
    rule = RealFilter(rule="forgetting", interval=1, training=PLAN)
    names = [folder.name for folder in folders]
    found = [
        read_rows(filtered(rule, data, store, stage=k, sources=names)).tolist() for k in (1, 2, 3)
    ]
    assert sorted(itertools.chain(*found)) == list(range(len(data.train)))
    counts = [load_file(f / "scores.safetensors")["scores"] for f in folders]
    for i, (a, b) in enumerate(zip(*counts, strict=True)):
        assert i in found[min(int((a + b) / 2), 2)]
    assert len(set(map(len, found))) > 1


def test_a_class_that_a_filter_leaves_empty_is_named(store):
    data = toy()
    linked(store, data)
    theta = torch.zeros_like(weights(NET, data, 0))
    theta[-1] = 1.0  # the last bias: these networks say class 1 to everything
    for name in NAMES:
        write_trajectory(store.root / "links" / name, theta[None], {})
    said = r"Stage 2 has no real image of class '1' after --filter.rule correct: raise filter.keep"
    with pytest.raises(InputError, match=said):
        filtered(RealFilter(rule="correct", keep=0), data, store)
    folder = filtered(RealFilter(rule="correct", keep=0.5), data, store)
    labels = data.train.labels[read_rows(folder)]
    assert 0 < int((labels == 1).sum()) < int((labels == 0).sum()) == len(data.train) / 2


def test_an_interval_that_leaves_a_class_empty_is_named(store):
    data = toy()
    space, compute = make_space("measured", data), Compute(threads=1)
    tasks = score_tasks("forgetting", PLAN, data, space, NET, seed=0, compute=compute)
    names = [folder.name for folder in run_tasks(tasks, store)]
    rule = RealFilter(rule="forgetting", interval=50, training=PLAN)
    with pytest.raises(InputError, match=r"class '0' .*choose another filter.interval than 50"):
        filtered(rule, data, store, sources=names)


def test_kept_data_see_these_rows_only_and_copy_them_once(monkeypatch):
    rows, whole = torch.tensor([1, 2, 5, 40]), toy()
    monkeypatch.setenv("POTSTILL_RESIDENT", "0")
    mapped = reopen(whole.ref)
    for data in (whole, mapped):
        part = kept(data, rows)
        assert torch.equal(part.train.pixels[:], whole.train.pixels[rows])
        assert torch.equal(part.train.labels, whole.train.labels[rows])
        assert (part.ref, part.classes) == (data.ref, data.classes)
        assert part.val is data.val
        assert part.test is data.test
        assert kept(data, rows) is part
    assert isinstance(part.train.pixels, Rows)
    assert part.train.pixels._array is mapped.train.pixels._array


def test_mapped_images_are_filtered_as_resident_ones(store, tmp_path, monkeypatch):
    rule, data = RealFilter(rule="correct"), toy()
    linked(store, data)
    resident = read_rows(filtered(rule, data, store))
    monkeypatch.setenv("POTSTILL_RESIDENT", "0")
    other = Store(tmp_path / "other")
    linked(other, data)
    assert isinstance(reopen(data.ref).train.pixels, Rows)
    assert torch.equal(read_rows(filtered(rule, data, other)), resident)
    assert len(resident) < len(data.train)


def test_a_filter_that_cannot_be_read_is_told(tmp_path):
    with pytest.raises(InputError, match=r"rows.safetensors is missing, truncated or no filter"):
        read_rows(tmp_path)
    (tmp_path / "rows.safetensors").write_bytes(b"\x08")
    with pytest.raises(InputError, match=r"rows.safetensors is missing, truncated or no filter"):
        read_rows(tmp_path)


def test_without_a_rule_there_is_no_task(store):
    data = toy()
    space, compute = make_space("measured", data), Compute(threads=1)
    tasks = filter_tasks(
        RealFilter(),
        data,
        space,
        NET,
        stage=2,
        stages=3,
        sources=(),
        seed=0,
        compute=compute,
        store=store,
    )
    assert tasks.specs == ()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rule": "corect"}, "Unknown filter.rule 'corect': did you mean 'correct'"),
        ({"keep": 0.5}, "filter.keep has no effect with --filter.rule none; it is for correct and"),
        ({"interval": 5}, "filter.interval has no effect with --filter.rule none; it is for forg"),
        ({"training": PLAN}, "filter.training has no effect with --filter.rule none"),
        ({"rule": "forgetting", "keep": 0.5}, "filter.keep has no effect .* forgetting; it is for"),
        ({"rule": "correct", "interval": 5}, "filter.interval has no effect .* correct; it is for"),
        ({"rule": "both", "training": PLAN}, "filter.training has no effect .*both; it is for for"),
        ({"rule": "correct", "keep": 1}, "filter.keep must be at least 0 and less than 1, not 1;"),
        (
            {"rule": "both", "keep": -0.1},
            "filter.keep must be at least 0 .*not -0.1;",
        ),
        ({"rule": "both", "keep": math.nan}, "filter.keep must be at least 0 .*not nan"),
        ({"rule": "forgetting", "interval": 0}, "filter.interval must be at least 1, not 0"),
        (
            {"rule": "forgetting", "training": replace(PLAN, epochs=1)},
            "filter.training.epochs must be at least 2 to forget, not 1",
        ),
        (
            {"rule": "forgetting", "training": replace(PLAN, imported="old")},
            "filter.training.imported cannot be 'old'",
        ),
    ],
)
def test_settings_that_mean_nothing_are_refused_in_a_sentence(settings, said):
    with pytest.raises(InputError, match=said) as caught:
        RealFilter(**settings).refuse_idle(stages=2)
    text = str(caught.value)
    assert "\n" not in text
    assert text[0].isupper() or text.startswith("filter.")
    assert text.endswith((".", "?"))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"rule": "correct", "keep": 0},
        {"rule": "both", "keep": 0.5},
        {"rule": "forgetting", "interval": 3, "training": PLAN},
    ],
)
def test_a_filter_travels_as_json(settings):
    own = RealFilter(**settings)
    assert from_json(json.loads(json.dumps(to_json(own)))) == own
