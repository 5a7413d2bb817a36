"""Gradient matching through the runner and the command line."""

import pytest
import torch

from potstill.artefact import load
from potstill.cli import run as main
from potstill.experts import NetworkPath, NetworkPool, network_pool
from potstill.methods import condensation
from potstill.nets import NetSpec
from potstill.run import Run, distil

pytestmark = pytest.mark.usefixtures("alone")
NET = NetSpec(name="convnet2", width=8)


def idc(**changes):
    path = NetworkPath(images=32, batch=16)
    counts = {"networks": 2, "matches": 2, "batch_real": 6, "evaluation_epochs": 4, "path": path}
    return condensation.IDCMethod(**{**counts, **changes})


def run_of(method, **changes):
    return Run(**{"method": method, "data": "digits", "ipc": 1, "net": NET, "limit": 20, **changes})


def test_a_second_run_walks_no_network_again(tmp_path, monkeypatch):
    walks, keep = [], network_pool.write_trajectory

    def watched(folder, rows, facts):
        walks.append(len(rows))
        keep(folder, rows, facts)

    monkeypatch.setattr(network_pool, "write_trajectory", watched)
    first = distil(run_of(idc(pool=NetworkPool(size=2))), tmp_path / "a")
    assert walks == [2, 2]
    second = distil(run_of(idc(pool=NetworkPool(size=2), lr_img=1e-3)), tmp_path / "b")
    assert len(walks) == 2
    assert not torch.equal(first.images, second.images)


def test_sets_are_scored_beside_mosaics(tmp_path, capsys):
    distil(run_of(idc()), tmp_path / "a")
    assert len(load(tmp_path / "a").decoded()[0]) == 40
    assert main(["evaluate", str(tmp_path / "a"), "--seeds", "1"]) == 0
    said = capsys.readouterr().out
    for row in ("distilled", "random real", "k-means medoid", "random mosaics"):
        assert row in said


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--method idc --method.factor 9", "cannot be cut with the factor 9"),
        ("--method idc --method.batch-real 40", "fewer than batch_real, 40"),
        ("--method idc --method.decoder bound --ipc 130 --replacement", "The bound of 128"),
        ("--method idc --normaliser zca-mtt", "moves raw pixels"),
        ("--method dm --compile on", "The outer steps of dm cannot be compiled"),
        ("--method dsa --strategy graph", "is for methods with an unrolled gradient; dsa has none"),
        ("--method dc --method.pool.size 3", "not on both"),
    ],
)
def test_what_does_not_fit_is_one_sentence(flags, sentence, tmp_path, capsys):
    arguments = ["--data", "digits", "--limit", "30", "--net", "convnet2", *flags.split()]
    if "--ipc" not in flags:
        arguments += ["--ipc", "1"]
    if "batch-real" not in flags:
        arguments += ["--method.batch-real", "6"]
    assert main(["distill", *arguments, "--out", str(tmp_path / "x")]) == 2
    said = capsys.readouterr().err.strip()
    assert sentence in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "x").exists()


def test_plan_names_how_images_and_networks_are_computed(capsys):
    flags = "--method idc --method.pool.size 2 --data digits --ipc 1 --net convnet2 --scale smoke"
    assert main(["plan", *flags.split()]) == 0
    said = capsys.readouterr().out
    assert "image steps" in said
    assert "networks" in said
    assert "experts on disk" in said
