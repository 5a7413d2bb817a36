"""Distilled sets in a whitened space: they carry it, and need nothing else to be used."""

import dataclasses
import json
import os
import pickle
import shutil
import subprocess
import sys

import pytest
import torch

from potstill import data
from potstill.artefact import Deployed, DistilledSet, Hard, Provenance, load, remember
from potstill.artefact.files import _checksum
from potstill.core.errors import InputError
from potstill.core.files import file_hash, write_json
from potstill.core.spec import canonical, from_json
from potstill.core.state import load_tree, save_tree
from potstill.data import ZcaRef, make_space, open_space
from potstill.evaluation import evaluate
from potstill.experts import ExpertPlan
from potstill.functional import SGD, Segment, TrainSpec
from potstill.methods.mtt import MTT
from potstill.nets import NetSpec, build
from potstill.run import Run, distil

NET = NetSpec(name="convnet1", width=8)
RECIPE = TrainSpec(
    lr=0.02, segments=(Segment(epochs=15),), batch=8, optimizer=SGD(momentum=0.9), augment=None
)
NAMES = ("zca-mtt", "zca-kip", "zca-mtt:20", "zca-kip:120")


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)
    return tmp_path / "cache"


def images(n, seed):
    """Return uint8 [n, 3, 8, 8]: the class k of 4 is where the bright quarter lies."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 4
    x = torch.randint(0, 120, (n, 3, 8, 8), generator=draw, dtype=torch.uint8)
    for i, k in enumerate(labels.tolist()):
        x[i, :, 4 * (k // 2) : 4 * (k // 2) + 4, 4 * (k % 2) : 4 * (k % 2) + 4] += 90
    return x, labels


def dataset():
    x, y = images(200, 0)
    test_x, test_y = images(60, 1)
    return data.from_arrays(x, y, test_images=test_x, test_labels=test_y)


def make(name="zca-mtt:20", **changes):
    opened = dataset()
    space = make_space(name, opened)
    order = opened.train.labels.argsort(stable=True)
    rows = torch.cat([order[opened.train.labels[order] == k][:3] for k in range(4)])
    fields = {
        "images": space.forward(opened.train.pixels[rows]),
        "targets": Hard(opened.train.labels[rows]),
        "space": space,
        "recipe": RECIPE,
        "net": NET,
        "classes": opened.classes,
        "ref": opened.ref,
        "origin": Provenance(
            method=canonical({"type": "Toy"}),
            data="toy",
            identity=opened.ref.identity,
            seed=0,
            version="0",
        ),
    }
    return DistilledSet(**(fields | changes))


def resigned(folder, change):
    """Change the facts of a saved set as another program would."""
    facts = json.loads((folder / "set.json").read_text())
    facts["sha256"] = file_hash(folder / "set.safetensors")
    change(facts)
    facts["checksum"] = _checksum(facts)
    write_json(folder / "set.json", facts)


@pytest.mark.parametrize("name", NAMES)
def test_round_trip_without_the_cache(tmp_path, cache_folder, name):
    made = make(name)
    made.save(tmp_path / "set")
    shutil.rmtree(cache_folder)
    found = load(tmp_path / "set")
    assert found.space == made.space
    for key, tensor in made.space.tensors().items():
        assert torch.equal(found.space.tensors()[key], tensor)
    assert torch.equal(found.view(), made.view())
    if "mtt" in name:
        pictures = dataset().train
        chosen = torch.cat([(pictures.labels == k).nonzero()[:3, 0] for k in range(4)])
        torch.testing.assert_close(
            found.view(), pictures.pixels[chosen].float() / 255, rtol=0, atol=1e-5
        )
    assert found.nbytes() == {
        "images": 12 * 192 * 4,
        "targets": 12 * 8,
        "normaliser": made.space.nbytes(),
    }
    size = (tmp_path / "set" / "set.safetensors").stat().st_size
    assert 0 < size - sum(found.nbytes().values()) < 2500  # each tensor is there once
    assert f"| normaliser | {made.space.describe()} |" in (tmp_path / "set/README.md").read_text()
    assert (tmp_path / "set" / "preview.png").stat().st_size > 500
    remember(tmp_path / "set", {"mean": 0.5})
    assert load(tmp_path / "set").space == made.space
    shutil.copytree(tmp_path / "set", tmp_path / "again")
    made.save(tmp_path / "again")
    assert file_hash(tmp_path / "again" / "set.safetensors") == file_hash(
        tmp_path / "set" / "set.safetensors"
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_trained_model_takes_pictures(name):
    made = make(name)
    model = made.train(seed=1)
    assert isinstance(model, Deployed)
    x, y = images(40, 7)
    assert float((model(x).argmax(1) == y).float().mean()) > 0.5  # chance is 0.25
    torch.testing.assert_close(model(x), model.net(made.space.forward(x)))
    torch.testing.assert_close(model(x.float() / 255), model(x))
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))
    blank = build(NET, channels=3, size=(8, 8), classes=4, seed=5)
    empty = Deployed(blank, make(name).space, (3, 8, 8)).eval()
    before = made.space.forward(x)
    changed = {key: value * 2 for key, value in empty.state_dict().items()}
    empty.load_state_dict(changed)  # must not reach into the space of the set
    assert torch.equal(made.space.forward(x), before)
    empty.load_state_dict(model.state_dict())
    assert torch.equal(empty(x), model(x))
    wide = model.double()
    assert wide(x).dtype == torch.float64
    torch.testing.assert_close(wide(x).float(), made.train(seed=1)(x), rtol=1e-4, atol=1e-4)
    compiled = torch.export.export(model.float(), (x.float() / 255,)).module()
    torch.testing.assert_close(compiled(x.float() / 255), model(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match=r"Pictures must be \[N, 3, 8, 8\]"):
        model(x[:, :1])


def test_a_record_that_does_not_match_the_tensors_is_refused(tmp_path):
    made, folder = make(), tmp_path / "set"
    made.save(folder)
    assert from_json(json.loads((folder / "set.json").read_text())["space"]) == made.space.ref
    tree = load_tree(folder / "set.safetensors")

    def put(space):
        save_tree(folder / "set.safetensors", {**tree, "space": space})
        resigned(folder, lambda facts: None)

    unsound = "is unsound: The tensors of the normaliser zca-mtt are not those of its record"
    put({**tree["space"], "basis": tree["space"]["basis"] * 1.001})
    with pytest.raises(InputError, match=unsound):
        load(folder)
    with pytest.raises(InputError, match=unsound):
        evaluate(folder, seeds=1)
    put({key: value for key, value in tree["space"].items() if key != "mean"})
    with pytest.raises(InputError, match="is unsound: The normaliser zca-mtt lacks its mean"):
        load(folder)
    save_tree(folder / "set.safetensors", {k: v for k, v in tree.items() if k != "space"})
    resigned(folder, lambda facts: None)
    with pytest.raises(InputError, match="lacks its basis, mean, values"):
        load(folder)
    put(tree["space"])
    assert load(folder).space == made.space
    resigned(folder, lambda facts: facts["space"].update(rest=3.0))
    with pytest.raises(InputError, match=unsound):
        load(folder)
    other = make_space("zca-mtt:21", dataset())
    resigned(folder, lambda facts: facts.update(space=json.loads(canonical(other.record()))))
    with pytest.raises(InputError, match=unsound):
        load(folder)


def test_images_must_fit_the_space():
    with pytest.raises(InputError, match="The normaliser has 3 channels, the images have 1"):
        make(images=torch.zeros(12, 1, 8, 8))
    with pytest.raises(InputError, match=r"fitted on images of 3 x 8 x 8.*\(12, 3, 9, 8\)"):
        make(images=torch.zeros(12, 3, 9, 8))


@pytest.mark.parametrize("engine", ["inline", "processes"])
def test_evaluation_brings_the_space_to_its_tasks(tmp_path, cache_folder, engine):
    make().save(tmp_path / "set")
    for file in (cache_folder / "spaces").rglob("*.*"):
        file.unlink()
    found = load(tmp_path / "set")
    result = evaluate(found, data=dataset(), seeds=1, engine=engine, workers=1)
    assert result.rows[0].mean > 0.7
    assert result.nbytes["normaliser"] == found.space.nbytes()
    assert open_space(found.space.record()) == found.space


def test_mtt_in_a_whitened_space_from_run_to_fresh_process(tmp_path, cache_folder):
    method = MTT(
        iterations=4,
        steps=2,
        expert_epochs=1,
        max_start_epoch=1,
        batch_syn=6,
        lr_img=10.0,
        lr_lr=1e-4,
        lr_init=0.05,
        evaluation_epochs=40,
        experts=ExpertPlan(count=2, epochs=2, lr=0.05, batch=64),
    )
    run = Run(
        method=method,
        data="digits",
        ipc=1,
        net=NetSpec(name="convnet2", width=8),
        normaliser="zca-mtt:40",
        threads=1,
        select_every=2,
        select_nets=1,
    )
    made = distil(run, tmp_path / "run")
    assert isinstance(made.space.record(), ZcaRef)
    assert made.space.ref.rank == 40
    start = made.space.inverse(made.images)
    assert -0.5 < float(start.min()) < float(start.max()) < 1.5
    shutil.rmtree(cache_folder)
    test = data.open_data("digits").test
    torch.save((test.pixels, test.labels), tmp_path / "test.pt")
    code = (
        "import sys, torch, potstill; torch.set_num_threads(1);"
        "model = potstill.load(sys.argv[1]).train(); x, y = torch.load(sys.argv[2]);"
        "print(float((model(x).argmax(1) == y).float().mean()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run"), str(tmp_path / "test.pt")],
        env={**os.environ, "POTSTILL_CACHE": str(tmp_path / "empty")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) > 0.4
    assert not (tmp_path / "empty").exists()
    again = dataclasses.replace(run, normaliser="zca-mtt:41")
    with pytest.raises(InputError, match="another configuration"):
        distil(again, tmp_path / "run")
