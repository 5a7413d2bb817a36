"""The tasks of an evaluation by probes: pre-train one encoder; probe one on one data set."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill.artefact import load, set_digest
from potstill.core.errors import InputError, WorkError
from potstill.core.files import write_json
from potstill.core.state import load_tree, save_tree
from potstill.core.store import Store
from potstill.core.usage import peak_memory
from potstill.data import DataSet, Pixels, moved, open_space, prepared, reopen
from potstill.evaluation.pretraining_rules import given_rows
from potstill.evaluation.pretraining_specs import (
    DistilledViews,
    PretrainSpec,
    ProbeSpec,
    RealTargets,
    RealViews,
)
from potstill.evaluation.probe import knn_accuracy, linear_probe
from potstill.evaluation.specs import Distilled
from potstill.experts import TARGETS, read_targets
from potstill.functional import fit, predict
from potstill.functional.advance import Prepare
from potstill.nets import FlatNet, filled, flat, projected, without_head
from potstill.teachers.encoders import blank
from potstill.teachers.files import load_weights

PRETRAINED, PROBED = "pretrained", "probes"
"""Where finished encoders and probes lie in the store."""
ENCODER, RESULT = "encoder.safetensors", "result.json"
KEY, NEAREST = ("pretrain",), 20


@dataclass(frozen=True, kw_only=True)
class _Lesson:
    """What `fit` trains on, on the device of the task."""

    images: Pixels
    targets: Tensor
    places: Tensor | None = None
    prepare: Prepare | None = None


def pretrain_one(spec: PretrainSpec, context: dict[str, str], folder: Path) -> None:
    """Pre-train one network, last epoch; write its encoder and `result.json`.

    The latter holds `loss` (mean of the last epoch; None without training), `steps`, `seconds`,
    `cpu_seconds` and `peak_bytes`. context[digest] is the folder of the distilled set of that
    digest, context["store"] the store with targets.

    Raises:
        InputError: if the set in its folder is not the one of the spec, or targets are not there.
    """
    net, losses = _network(spec), list[float]()
    theta, steps = net.theta0, 0
    clock, cpu = time.perf_counter(), time.process_time()
    if spec.train is not None:
        lesson = _lesson(spec, context)
        theta = fit(
            net,
            theta.to(torch.device(spec.compute.device)),
            lesson.images,
            lesson.targets,
            spec.train,
            seed=spec.seed,
            key=KEY,
            places=lesson.places,
            prepare=lesson.prepare,
            on_epoch=lambda _, __, loss: losses.append(loss),
            compute=spec.compute,
        )
        steps = spec.train.steps(len(lesson.images))
    encoder = without_head(net.load(theta.cpu()), name=spec.net.name)
    save_tree(folder / ENCODER, dict(encoder.state_dict()))
    last = torch.tensor(losses[-1:])
    result = {
        "loss": float(last) if len(last) and bool(last.isfinite().all()) else None,
        "steps": steps,
        "seconds": time.perf_counter() - clock,
        "cpu_seconds": time.process_time() - cpu,
        "peak_bytes": peak_memory(),
    }
    write_json(folder / RESULT, result)


def _network(spec: PretrainSpec) -> FlatNet:
    """Return the network that learns; its encoder's weights do not depend on what is learned."""
    data = reopen(spec.data)
    make = partial(flat, classes=spec.outputs)
    if isinstance(spec.what, RealViews | DistilledViews):
        make = partial(projected, head=spec.what.head)
    return make(spec.net, channels=data.channels, size=data.size, seed=spec.seed, key=KEY)


def _lesson(spec: PretrainSpec, context: dict[str, str]) -> _Lesson:
    """Return what the network of a spec is trained on."""
    device, what = torch.device(spec.compute.device), spec.what
    if isinstance(what, Distilled | DistilledViews):
        s = load(context[what.digest])
        if set_digest(s) != what.digest or not s.pretrains:
            raise InputError(f"The set in {context[what.digest]} changed in the meantime.")
        images, targets, prepare = s.prepared()
        given = {"places": s.places(), "prepare": prepare}
        return _Lesson(images=moved(images, device), targets=targets.to(device), **given)
    assert isinstance(what, RealTargets | RealViews)
    part, rows = reopen(spec.data).train, torch.tensor(what.indices)
    targets = part.labels[rows]
    if isinstance(what, RealTargets):
        folder = Store(Path(context["store"])).verify(TARGETS, what.targets)
        targets = read_targets(folder, data=spec.data, width=spec.outputs)[rows]
    images, prepare = prepared(open_space(spec.space), part.pixels[rows])
    return _Lesson(images=moved(images, device), targets=targets.to(device), prepare=prepare)


def open_pretrained(spec: PretrainSpec, folder: Path) -> FlatNet:
    """Return the encoder in a folder, in evaluation mode: features [B, F] of theta and images."""
    data = reopen(spec.data)
    shape = (data.channels, *data.size)
    module = blank(spec.net, shape)
    load_weights(module, load_tree(folder / ENCODER), name=str(folder))
    outside = spec.net.name.startswith("module:")
    net = FlatNet(module, recipe=None if outside else ("features", filled(spec.net), shape))
    net.eval()
    return net


def probe_one(spec: ProbeSpec, context: dict[str, str], folder: Path) -> None:
    """Encode one data set by one encoder, once, and write `result.json`.

    It holds for each of `budgets` the number of `labels` and accuracies (fractions): of the linear
    probe on `test` and, if it is `validated`, on `val`, and of the nearest neighbours on test
    (`knn`); `diverged` (accuracies are 0 where features are not finite, or so large that a probe
    does not reach its optimum), `width`, `seconds`, `cpu_seconds` and `peak_bytes`. Features are
    those of evaluation mode throughout.
    context["store"] is the store with the encoder.

    Raises:
        InputError: if a class would be left without a label.
    """
    clock, cpu = time.perf_counter(), time.process_time()
    data, first = reopen(spec.data), spec.pretrained
    net = open_pretrained(first, Store(Path(context["store"])).verify(PRETRAINED, first))
    theta, space = net.theta0.to(first.compute.device), open_space(spec.space)

    def encoded(pixels: Pixels) -> Tensor:
        x, prepare = prepared(space, pixels)
        return predict(net, theta, x, prepare=prepare, compute=first.compute)

    found = _probed(spec, data, encoded)
    times = {"seconds": time.perf_counter() - clock, "cpu_seconds": time.process_time() - cpu}
    write_json(folder / RESULT, {**found, **times, "peak_bytes": peak_memory()})


def _probed(spec: ProbeSpec, data: DataSet, encoded: Callable[[Pixels], Tensor]) -> dict[str, Any]:
    """Return what probes of features find; only images that are asked for are encoded."""
    pool = (data.train, data.val)[: 1 + spec.whole]
    labels, classes = torch.cat([part.labels for part in pool]), data.n_classes
    draw = partial(given_rows, stratified=spec.stratified, seed=spec.pretrained.seed)
    rows = [draw(labels, classes, budget) for budget in spec.budgets]
    every = torch.cat(rows).unique()
    inner = every < len(data.train)
    own = [data.train.pixels[every[inner]]]
    if not bool(inner.all()):
        own.append(data.val.pixels[every[~inner] - len(data.train)])
    known = torch.cat([encoded(part) for part in own if len(part)])
    parts = {"test": data.test, "val": data.val} if spec.validated else {"test": data.test}
    x = {name: encoded(part.pixels) for name, part in parts.items()}
    y = {name: part.labels.to(known.device) for name, part in parts.items()}

    def line(some: Tensor) -> dict[str, float]:
        given = known[torch.searchsorted(every, some).to(known.device)]
        told = labels[some].to(known.device)
        probe = linear_probe(given, told, classes, spec.l2)
        near = knn_accuracy(given, told, x["test"], y["test"], min(NEAREST, len(some)))
        return {name: probe.accuracy(x[name], y[name]) for name in parts} | {"knn": near}

    sound = all(bool(each.isfinite().all()) for each in (known, *x.values()))
    lines = [dict.fromkeys((*parts, "knn"), 0.0)] * len(rows)
    if sound:
        try:
            lines = [line(some) for some in rows]
        except WorkError:  # of one of several step sizes, say; the others are worth their probes
            sound = False
    found = [{"labels": len(some), **each} for some, each in zip(rows, lines, strict=True)]
    return {"budgets": found, "diverged": not sound, "width": known.shape[1]}
