"""`potstill probe`: table, rows, plot; mistakes are one plain sentence."""

import json

import pytest
import torch
from PIL import Image

import potstill.cli as cli
from potstill.data import open_data
from probing import data_set, images

FAST = ["--labels", "50%", "--seeds", "1", "--threads", "1", "--store"]


@pytest.fixture
def home(toy, tmp_path, monkeypatch):
    """A folder with a set, and a store that has the targets of its encoder."""
    monkeypatch.delenv("POTSTILL_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)
    store, data, _, s = toy
    s.save(tmp_path / "set")
    s.hardened().save(tmp_path / "hard")
    return str(store.root), data, s


def folder_of(path, *, side=12, classes=2):
    """Write pictures as class folders."""
    for part, count in (("train", 10), ("test", 4)):
        pixels, labels = images(count, classes, 3, side)
        for k, (image, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
            file = path / part / f"class{label}" / f"{k}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0].numpy()).save(file)
    return f"folder:{path}"


def test_a_set_is_probed_here_and_elsewhere(home, tmp_path, capsys):
    store, _, s = home
    away = folder_of(tmp_path / "away")
    arguments = ["probe", "set", "--transfer", away, *FAST, store, "--out", "found"]
    assert cli.run(arguments) == 0
    told = capsys.readouterr()
    for text in ("distilled", "no pre-training", "random, targets", "recommended"):
        assert text in told.out
    rows = [json.loads(line) for line in (tmp_path / "found/rows.jsonl").read_text().splitlines()]
    assert {(row["target"], row["labels"]) for row in rows} == {("toy", "50%"), (away, "50%")}
    assert {row["identity"] for row in rows} == {s.ref.identity}
    assert "| distilled |" in (tmp_path / "found/table.md").read_text()
    png = (tmp_path / "found/plot.png").read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert cli.run(arguments) == 2  # what was found is not overwritten
    assert "is there already" in capsys.readouterr().err
    assert open_data(away, resize=8, fit="squash").size == s.shape[1:]


def test_views_and_shots_by_flags(home, capsys):
    store, *_ = home
    flags = ["--shots", "2", "--seeds", "1", "--threads", "1", "--store", store]
    flags += ["--direct", "simclr", "--direct-epochs", "2", "--protocol", "mkdt-parity"]
    assert cli.run(["probe", "set", *flags]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "random, SimCLR" in told
    assert "2 shots = 6 of toy" in told


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["probe"], "missing is the set_or_run"),
        (["probe", "nowhere"], "There is no distilled set at nowhere"),
        (["probe", "hard"], "has labels of classes, not features of an encoder"),
        (["evaluate", "set"], "`potstill probe` scores it"),
        (["probe", "set", "--labels", "1%"], "1 % of 96 labels leaves 3 of 3 classes without"),
        (["probe", "set", "--labels", "some"], "percentage above 0 and up to 100%, not 'some'"),
        (["probe", "set", "--protocol", "strict"], "probe protocol"),
        (["probe", "set", "--beside", "hard", "--labels", "50%"], "has labels of classes"),
        (["probe", "set", "--transfer", "nothing"], "nothing"),
        (["probe", "set", "--direct", "moco"], "--direct"),
        (["probe", "set", "--direct-epochs", "0"], "--direct-epochs must be at least 1"),
        (["probe", "set", "--direct-epochs", "9"], "goes with --direct, not 9"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_2(home, capsys, arguments, said):
    store, *_ = home
    given = [*arguments, "--store", store] if len(arguments) > 1 else arguments
    assert cli.run(given) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert "Traceback" not in told


def test_protocols_of_probes_are_listed(capsys):
    assert cli.run(["protocols"]) == 0
    told = capsys.readouterr().out
    assert "mkdt-parity" in told
    assert "recommended" in told


def test_colour_sets_do_not_take_grey_transfer(home, tmp_path, capsys, monkeypatch):
    store, *_ = home
    colour = torch.stack([data_set().train.pixels[:, 0]] * 3, 1)
    for k, image in enumerate(colour[:24]):
        for part in ("train", "test"):
            file = tmp_path / "colour" / part / f"class{k % 2}" / f"{k}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = image.clone()
            pixels[0] = 255 - pixels[0]
            Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(file)
    arguments = ["probe", "set", "--transfer", f"folder:{tmp_path / 'colour'}", *FAST, store]
    assert cli.run(arguments) == 2
    assert "(3, 8, 8) (channels, height, width)" in capsys.readouterr().err
