"""Evaluate a distilled set beside as many real images trained on in the same way."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from potstill.artefact import DistilledSet, set_digest
from potstill.core.compute import Wish
from potstill.core.files import read_json
from potstill.core.store import Store
from potstill.coresets import Features
from potstill.data import DataSet
from potstill.engine import Tasks, run_tasks
from potstill.evaluation.asked import Asked, asked_for, rules_of
from potstill.evaluation.continual import check_steps, in_steps, with_means
from potstill.evaluation.groups import Labelling, groups_of
from potstill.evaluation.images import Beside, Images, images_of
from potstill.evaluation.online import easiest, experts_of, labellers
from potstill.evaluation.relabelled import relabelled
from potstill.evaluation.result import Result, Row
from potstill.evaluation.rows import Group, row_of, shown
from potstill.evaluation.specs import EvalSpec, Patched
from potstill.evaluation.tasks import evaluate_one
from potstill.experts import ExpertSpec, ImportedExpert, train_expert
from potstill.functional import TrainSpec
from potstill.nets import NetSpec

KIND = "evaluations"
"""Where finished trainings lie in the store."""


def evaluate(
    s: DistilledSet | str | Path,
    *,
    data: DataSet | None = None,
    nets: Sequence[str | NetSpec] | None = None,
    protocol: str = "strict",
    seeds: int | None = None,
    regimes: Sequence[str] = (),
    prefix: int | None = None,
    continual: int | None = None,
    beside: Sequence[str | Path | Beside] = (),
    baselines: bool = True,
    whole: TrainSpec | None = None,
    features: Features | None = None,
    teacher: ExpertSpec | ImportedExpert | None = None,
    store: Store | None = None,
    engine: str = "inline",
    workers: int = 1,
    wish: Wish | None = None,
    on_done: Callable[[int, int], None] | None = None,
) -> Result:
    """Train fresh networks on a distilled set and on matched real images, and compare them.

    Args:
        s: the set, or the folder of a set or a run.
        data: the real data; by default the set's own, from the cache.
        nets: networks to train, by default the set's own, whose options other names take over
            (`nets.variant`); the names of `NET_POOLS` are pools of them.
        protocol, seeds: see `PROTOCOLS`; networks a row, if not as many as there.
        regimes: labels of all images, side by side: "hard", "soft", "online", "stored" (see
            `regimes`); by default the set's own, and "online" with a protocol for it.
        prefix: take the first so many blocks of the set only; all by default.
        continual: let the classes come in so many steps, each with fresh networks (see
            `continual`); baselines have the set's own step size then.
        beside: folders of other sets, cut to their first so many images of each class as the set
            has; each is trained on by its own recipe.
        baselines: also train on matched real images (see `images_of`).
        whole: how to train on all real training images, to show that row too.
        features: where k-means looks; the normalised pixels by default.
        teacher: behind soft labels, and online where the store lacks the set's own teachers; by
            default the set's own network, trained on the real images.
        store: where finished trainings are kept and looked up; the user's cache by default.
        engine, workers: see `run_tasks`.
        wish: how networks are computed, chosen for all trainings of one together; by default on one
            thread, the rest as it pays. Trainings computed otherwise are not reused.
        on_done: called as (finished, all) after each training.

    Raises:
        InputError: for wrong names, numbers or data, or classes with too few images.
    """
    rules, wish = rules_of(protocol, seeds, baselines), wish or Wish(threads=1)
    asked = asked_for(s, data, nets, rules, regimes, prefix, beside, store, wish)
    if continual is not None:
        check_steps(asked, continual)
        asked = replace(asked, rules=replace(rules, lr_grid=()))
    work = partial(run_tasks, store=asked.store, engine=engine, workers=workers)
    images, labelling, folders = _prepared(asked, whole, features, teacher, work)
    groups = groups_of(asked, images, labelling)
    if continual is not None:
        groups = list(in_steps(asked, groups, continual))
    found = _trained(asked, groups, folders, work, on_done)
    rows = [row_of(group, found, asked.rules) for group in groups]
    rows = shown(rows) if continual is None else list(with_means(rows, continual, asked.rules))
    return _result(asked, rows, found, prefix)


def _prepared(
    asked: Asked,
    whole: TrainSpec | None,
    features: Features | None,
    teacher: ExpertSpec | ImportedExpert | None,
    work: Callable[[Tasks], list[Path]],
) -> tuple[list[Images], Labelling, dict[str, str]]:
    """Return images, whose labels they take, and folders of teachers; make what these need."""
    s, data, rules = asked.s, asked.data, asked.rules
    beside, there = rules.baselines, {"store": asked.store, "wish": asked.wish}
    taught, own = labellers(s, data, asked.regimes, teacher, beside=beside, **there)
    crops = easiest(s, data, own, asked.plain) if beside else None
    note = asked.note
    if own and beside and crops is None:
        note = "; ".join(filter(None, [note, "RDED has no images like these"]))
    patched = None if crops is None else Patched(specs=tuple(crops.specs))
    images = images_of(s, data, rules, whole, features, note, asked.beside, patched)
    if crops is not None:
        work(crops)
    stored = relabelled(asked, images, own, asked.plain, work)
    folders = {each.digest: str(folder) for each, folder in own.items()}
    return images, Labelling(taught=taught, stored=stored), folders


def _trained(
    asked: Asked,
    groups: Sequence[Group],
    teachers: dict[str, str],
    work: Callable[..., list[Path]],
    on_done: Callable[[int, int], None] | None,
) -> dict[EvalSpec, dict[str, Any]]:
    """Return what every network of the groups found, after training those that are not there."""
    specs = tuple(dict.fromkeys(spec for group in groups for spec in group.specs))
    store = asked.store
    with _folders(asked) as folders:
        if experts := experts_of(specs):
            work(_lessons(experts, asked.s.origin.data))
        work(_tasks(specs, {**folders, **teachers}, store), on_done=on_done)
    return {spec: read_json(store.verify(KIND, spec) / "result.json") for spec in specs}


def _result(
    asked: Asked,
    rows: Sequence[Row],
    found: dict[EvalSpec, dict[str, Any]],
    prefix: int | None,
) -> Result:
    s = asked.s
    return Result(
        rows=tuple(rows),
        protocol=asked.rules.name,
        data=s.origin.data,
        identity=s.ref.identity,
        prefix=prefix,
        nbytes=s.nbytes(),
        seconds=sum(result["seconds"] for result in found.values()),
        cpu_seconds=sum(result["cpu_seconds"] for result in found.values()),
        peak_bytes=max(result["peak_bytes"] for result in found.values()),
    )


def _tasks(specs: tuple[EvalSpec, ...], folders: dict[str, str], store: Store) -> Tasks:
    context = {**folders, "store": str(store.root)}
    return Tasks(kind=KIND, fn=evaluate_one, specs=specs, context=context, label="evaluation")


def _lessons(specs: tuple[ExpertSpec | ImportedExpert, ...], source: str) -> Tasks:
    """Return the training of the teachers."""
    context = {"source": source}
    return Tasks(kind="experts", fn=train_expert, specs=specs, context=context, label="teacher")


@contextmanager
def _folders(asked: Asked) -> Iterator[dict[str, str]]:
    """Yield folders from which tasks can load the sets, by their digests."""
    s, path = asked.s, asked.path
    with tempfile.TemporaryDirectory() as folder:
        found = {} if path is None else {set_digest(s): str(path.expanduser().resolve())}
        for each in (s, *(one for item in asked.beside for one in item.sets)):
            if (digest := set_digest(each)) not in found:
                found[digest] = str(Path(folder) / digest)
                each.save(found[digest])
        yield found
