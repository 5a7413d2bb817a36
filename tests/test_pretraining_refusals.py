"""Bad input of pre-training through the command line: exit 2, one sentence, nothing lost."""

import json
from pathlib import Path

import pytest

import potstill.cli as cli
from potstill.core.files import file_hash, write_json
from potstill.evaluation import whole_labels
from probing import data_set, set_of, targets_of

GREY = ["--method.teacher.training.augment", "crop"]
SMALL = ["--data", "digits", "--limit", "20", "--ipc", "2", "--scale", "smoke", "--threads", "1"]
STORE = ["--store", "store"]


@pytest.fixture(autouse=True)
def home(alone, tmp_path, monkeypatch):
    monkeypatch.delenv("POTSTILL_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def distilled(out, *flags, method="subset-kd", choice=("--method.choice", "random")):
    return ["distill", "--method", method, *SMALL, *choice, *flags, *STORE, "--out", out]


def refused(capsys, arguments, *said):
    capsys.readouterr()
    assert cli.run(arguments) == 2
    told = capsys.readouterr().err
    lines = [line for line in told.splitlines() if line.startswith("potstill: ")]
    assert len(lines) == 1
    assert "Traceback" not in told
    for text in said:
        assert text in lines[0]


def files(folder):
    return {p: p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def altered(folder, change):
    """Change what is noted about the targets in a store, as if it had been filed so."""
    facts = json.loads((folder / "targets.json").read_text())
    change(facts)
    write_json(folder / "targets.json", facts)
    done = json.loads((folder / "done.json").read_text())
    done["files"]["targets.json"] = file_hash(folder / "targets.json")
    write_json(folder / "done.json", done)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda facts: facts["shape"].__setitem__(1, 7), "have 7 dimensions, not 128"),
        (lambda facts: facts["data"].update(identity="0" * 64), "belong to another data set"),
    ],
    ids=["another width", "another data set"],
)
def test_targets_that_are_not_the_teachers_are_refused(home, capsys, change, said):
    assert cli.run(distilled("first", *GREY)) == 0
    (targets,) = (home / "store" / "targets").glob("*/")
    altered(targets, change)
    before = files("store")
    for choice in ("sas", "high-loss"):
        refused(capsys, distilled(choice, *GREY, choice=["--method.choice", choice]), said)
        assert not (home / choice / "distilled").exists()
    assert files("store") == before  # no expert was trained on them


def test_a_set_is_not_probed_on_other_data_nor_beside_sets_of_others(toy, home, capsys):
    store, *_, s = toy
    s.save(home / "set")
    other = data_set("elsewhere", classes=4)
    set_of(other, targets_of(other, store, home / "again"), store).save(home / "other")
    flags = ["--labels", "50%", "--store", str(store.root)]
    before = files(store.root)
    said = "is not the data set of this distilled set"
    refused(capsys, ["probe", "set", "--data", "digits", *flags], said)
    refused(capsys, ["probe", "set", "--beside", "other", *flags], said)
    assert files(store.root) == before


def test_rows_of_one_name_and_training_that_is_left_out_are_refused(toy, home, capsys):
    store, *_, s = toy
    s.save(home / "set")
    s.save(home / "a" / "run")
    s.save(home / "b" / "run")
    flags = ["probe", "set", "--labels", "50%", "--store", str(store.root)]
    refused(capsys, [*flags, "--beside", "a/run", "b/run"], "Two rows would be called 'run'")
    refused(capsys, [*flags, "--direct", "bt", "--no-baselines"], "one of the baselines")
    assert not list(Path(store.root).glob("pretrained/*"))


def test_one_draw_that_leaves_a_class_out_is_refused_or_stratified(toy, home, capsys):
    store, *_, s = toy
    s.save(home / "set")
    flags = ["--labels", "5%", "--store", str(store.root), "--threads", "1", "--no-baselines"]
    parity = ["probe", "set", "--protocol", "mkdt-parity", *flags]
    refused(capsys, parity, "toy: 5 % of 120 labels leaves 1 of 3 classes", "(--stratified)")
    assert not list(Path(store.root).glob("pretrained/*"))
    assert cli.run([*parity, "--stratified"]) == 0
    assert "mkdt-parity, stratified" in " ".join(capsys.readouterr().out.split())


def test_labels_that_leave_no_class_out(alone):
    for count, parity, recommended in (
        (20, {"shots": (1, 5)}, {"shots": (1, 5)}),  # 1 % is less than one a class
        (150, {"stratified": True}, {}),
        (2000, {}, {}),
    ):
        data = data_set(f"of {count}", count=count, side=8)
        assert whole_labels(data, "mkdt-parity") == parity
        assert whole_labels(data, "recommended") == recommended


@pytest.mark.parametrize("method", ["mkdt", "subset-kd"])
def test_grey_images_into_augmented_colours_are_refused(home, capsys, method):
    said = "Images with 1 channel have no colours"
    refused(capsys, distilled("run", method=method, choice=[]), said)
    assert not (home / "run").exists()
    assert not (home / "store").exists()
