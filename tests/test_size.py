"""`--size` from the command line and from Python, and what happens after such a run."""

import json
from pathlib import Path

import pytest
import torch

import potstill
from potstill.cli import run
from potstill.core.errors import InputError

MKDT = ["--method", "mkdt", "--data", "digits", "--scale", "smoke", "--net", "convnet2"]
FLAGS = ["--method.teacher.training.augment", "crop", "--threads", "1"]


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)


def said(capsys):
    found = capsys.readouterr()
    return " ".join((found.out + found.err).split())


def test_a_plan_says_the_size(capsys):
    assert run(["plan", *MKDT, *FLAGS, "--size", "5%"]) == 0
    text = said(capsys)
    assert "size 5%;" in text
    assert "ipc" not in text
    assert "experts' 2 epochs 2 are read" in text


def test_help_asks_for_ipc_or_takes_a_size(capsys):
    assert run(["plan", *MKDT, "--help"]) == 0
    assert "--ipc INT Distilled images per class. (required)" in said(capsys)
    assert run(["plan", *MKDT, "--size", "5%", "--help"]) == 0
    assert "(default: 5%)" in said(capsys)


def test_a_run_by_size_says_how_it_is_scored(capsys):
    assert run(["distill", *MKDT, *FLAGS, "--size", "20"]) == 0
    text = said(capsys)
    (folder,) = Path("runs").iterdir()
    assert folder.name == "mkdt_size20-smoke-seed0"
    assert "classes are absent, the largest has" in text
    assert f"`potstill probe {folder}` scores it" in text
    assert len(potstill.load(folder)) == 20
    config = json.loads((folder / "config.json").read_text())["run"]
    assert (config["ipc"], config["size"]) == (None, "20")
    assert run(["resume", str(folder)]) == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([*MKDT, "--size", "2 %x"], "a percentage such as 2% or a whole number"),
        ([*MKDT, "--size", "0"], "must be 1 to all of the"),
        ([*MKDT, "--size", "101%"], "must be 1 to all of the"),
        ([*MKDT, "--size", "5%", "--ipc", "1"], "and not both"),
        (["--method", "mtt", "--data", "digits", "--size", "5%"], "mtt distils class by class"),
        (["mtt_cifar10_ipc1", "--data", "digits", "--size", "5%"], "and not both"),
        (MKDT, "--ipc N"),
    ],
    ids=str,
)
def test_a_size_that_cannot_be_is_one_sentence(arguments, sentence, capsys):
    assert run(["plan", *arguments]) == 2
    text = said(capsys)
    assert sentence in text
    assert "Traceback" not in text


def test_from_python(tmp_path):
    with pytest.raises(InputError, match="ipc"):
        potstill.distill("digits", method="mkdt", out=tmp_path / "run")
    with pytest.raises(InputError, match=r"size '5%' is for methods without classes"):
        potstill.distill("digits", size="5%", out=tmp_path / "run")
