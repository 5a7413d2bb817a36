"""MKDT's recipes: every constant beside its table, the numbers on record, what is said of a run."""

import json

import pytest
import torch

from potstill.cli import run
from potstill.data import named_stats
from potstill.methods.mkdt import EXPERTS, MKDT
from potstill.nets import NetSpec, filled
from potstill.recipes import RECIPES
from potstill.teachers import SAS_CIFAR, SAS_TINY, SOLOLEARN_CIFAR

TABLE = {  # model, iterations, expert_epochs, max_start_epoch, steps, lr_img, batch
    "cifar10 2%": ("convnet3", 5000, 2, 2, 40, 1e3, 256),
    "cifar10 5%": ("convnet3", 5000, 2, 5, 40, 1e4, 256),
    "cifar100 2%": ("convnet3", 5000, 2, 2, 40, 1e3, 256),
    "cifar100 5%": ("convnet3", 5000, 2, 5, 40, 1e4, 256),
    "tiny 2%": ("convnet4", 10000, 2, 2, 10, 1e5, 256),
    "tiny 5%": ("convnet4", 10000, 2, 2, 10, 1e5, 256),
}
NUMBERS = {"cifar10": (53.89, 1.20), "cifar100": (24.13, 0.38), "tiny": (13.47, 0.35)}
FIRST_STD = {"cifar10": 0.2023, "cifar100": 0.2023, "tiny": 0.229}


@pytest.mark.parametrize("kind", ["bt", "simclr"])
@pytest.mark.parametrize(("key", "row"), TABLE.items())
def test_every_constant_is_the_published_one(key, row, kind):
    (data, size), (net, iterations, span, start, steps, lr_img, batch) = key.split(), row
    name = f"mkdt{'-simclr' * (kind == 'simclr')}_{data}_{size.replace('%', 'pc')}"
    recipe = RECIPES.get(name)
    made = recipe.make("parquet:somewhere")
    taught = made.method.teacher
    assert made.method == MKDT(
        iterations=iterations,
        steps=steps,
        expert_epochs=span,
        max_start_epoch=start,
        batch_syn=batch,
        lr_img=lr_img,
        lr_target=1.0,
        lr_lr=1e-4,
        lr_init=0.1,
        momentum=0.5,
        image_init="high-loss",
        targets="raw",
        evaluation_epochs=20,
        teacher=taught,
        experts=EXPERTS,
    )
    assert (EXPERTS.count, EXPERTS.epochs, EXPERTS.lr, EXPERTS.batch) == (100, 20, 0.1, 256)
    assert (EXPERTS.momentum, EXPERTS.weight_decay, EXPERTS.augment) == (0.9, 1e-4, None)
    assert (made.size, made.ipc, made.recipe) == (size, None, name)
    assert made.net == filled(NetSpec(name=net))
    assert made.net.width == 128
    assert named_stats(made.normaliser).std[0] == pytest.approx(FIRST_STD[data], abs=1e-4)
    if kind == "bt":
        wanted = ("resnet18-sololearn", SOLOLEARN_CIFAR, f"{data}@sololearn")
    else:
        wanted = ("resnet18-bn", SAS_TINY if data == "tiny" else SAS_CIFAR, None)
    assert (taught.net, taught.training, taught.space) == wanted
    assert taught.of(made.net).width == 64
    assert recipe.settings == ("published" if kind == "bt" else "inferred")
    if kind == "bt" and size == "2%":
        number = recipe.published
        assert ((number.accuracy, number.std), number.verified) == (NUMBERS[data], False)
        assert number.protocol == "mkdt-parity"
    else:
        assert recipe.published is None


def test_there_are_no_others():
    assert sum(name.startswith("mkdt") for name in RECIPES.names()) == 2 * len(TABLE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mkdt_cifar10_2pc", "mkdt-simclr_cifar10_2pc"])
def test_reproduce_at_smoke_ends_with_the_probe_that_compares(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    assert run(["reproduce", name, "--scale", "smoke", "--threads", "1"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    (rows,) = (tmp_path / "runs").glob("*/eval.jsonl")
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    own = [row for row in found if row["name"] == "distilled"]
    assert {row["labels"] for row in own} == {"1 shot", "5 shots"}  # 5 % of so few are none
    row = max(own, key=lambda row: row["count"])
    here = f"here {100 * row['mean']:.2f} ± {100 * row['std']:.2f} % with 5 shots a class (n = "
    if "simclr" in name:
        assert {row["protocol"] for row in found} == {"recommended"}
        assert f"no published number is known, {here}5)" in said
    else:
        assert {row["protocol"] for row in found} == {"mkdt-parity"}
        assert "53.89 ± 1.2" in said
        assert "41.42 ± 0.42 % with 1 %" in said
        assert f"{here}3): not comparable (scale smoke" in said
        assert "probes were given 5 shots a class, not 5% of all labels" in said
        assert "the published number is not verified" in said
