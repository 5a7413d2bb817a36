"""Whole pre-trained networks learn the classes of a data set: transfer by fine-tuning.

Source: Lee et al., Self-Supervised Dataset Distillation for Transfer Learning (KRR-ST), ICLR 2024
(arXiv 2310.06511).
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import nn

from potstill.core.files import write_json
from potstill.core.keys import forked
from potstill.core.store import Store
from potstill.core.usage import peak_memory
from potstill.data import DataSet, open_space, prepared, reopen
from potstill.evaluation.pretraining_specs import FineTuneSpec
from potstill.evaluation.pretraining_tasks import PRETRAINED, RESULT, open_pretrained
from potstill.functional import accuracy, fit
from potstill.nets import FlatNet
from potstill.nets.hidden import Projected

FINETUNED = "finetuned"
"""Where finished ones lie in the store."""
KEY = ("finetune",)


def finetune_one(spec: FineTuneSpec, context: dict[str, str], folder: Path) -> None:
    """Train an encoder with a new last layer on all labels and write `result.json`.

    It holds what `probe_one` writes, of one budget: the number of `labels` and the accuracy on
    `test` (0 where the training `diverged`) after the last epoch. context["store"] is the store
    with the encoder.
    """
    clock, cpu = time.perf_counter(), time.process_time()
    data, first = reopen(spec.data), spec.pretrained
    net = _network(spec, data, Store(Path(context["store"])).verify(PRETRAINED, first))
    parts = (data.train, data.val)[: 1 + spec.whole]
    pixels = torch.cat([part.pixels[torch.arange(len(part))] for part in parts])
    labels = torch.cat([part.labels for part in parts])
    space = open_space(spec.space)
    x, prepare = prepared(space, pixels)
    device = torch.device(first.compute.device)
    theta = fit(
        net,
        net.theta0.to(device),
        x,
        labels.to(device),
        spec.train,
        seed=first.seed,
        key=KEY,
        prepare=prepare,
        compute=first.compute,
    )
    sound, found = bool(theta.isfinite().all()), 0.0
    if sound:
        test, prepare = prepared(space, data.test.pixels)
        given = {"prepare": prepare, "compute": first.compute}
        found = accuracy(net, theta, test, data.test.labels, **given)
    result = {
        "budgets": [{"labels": len(labels), "test": found}],
        "diverged": not sound,
        "steps": spec.train.steps(len(labels)),
        "seconds": time.perf_counter() - clock,
        "cpu_seconds": time.process_time() - cpu,
        "peak_bytes": peak_memory(),
    }
    write_json(folder / RESULT, result)


def _network(spec: FineTuneSpec, data: DataSet, folder: Path) -> FlatNet:
    """Return the encoder in a folder with a last layer for the classes of the data."""
    first = spec.pretrained
    encoder = open_pretrained(first, folder)
    shape = (1, data.channels, *data.size)
    with torch.no_grad():
        width = encoder(encoder.theta0, torch.zeros(shape)).shape[1]
    with forked(first.seed, *KEY, "head"):
        head = nn.Linear(width, data.n_classes)
    module = encoder.load(encoder.theta0)
    assert isinstance(module, Projected)
    recipe = None if encoder.recipe is None else (KEY, encoder.recipe, data.n_classes)
    return FlatNet(Projected(module.encoder, head), recipe=recipe)
