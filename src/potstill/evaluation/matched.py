"""Evaluate a distilled set beside as many real images trained on in the same way."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from potstill.artefact import DistilledSet, load
from potstill.core.errors import InputError
from potstill.core.files import read_json
from potstill.core.store import Store, default_cache
from potstill.coresets import Features, counts_of, medoid_real, pixel_features, random_real
from potstill.data import DataSet, reopen
from potstill.engine import Tasks, run_tasks
from potstill.evaluation.protocol import PROTOCOLS, Protocol
from potstill.evaluation.result import Result, Row, spread
from potstill.evaluation.tasks import Distilled, EvalSpec, Real, evaluate_one, set_digest
from potstill.functional import TrainSpec
from potstill.nets import NetSpec, variant

BASELINES = ("random real", "k-means medoid")


@dataclass(frozen=True, kw_only=True)
class _Images:
    """Images to train on: one choice for all seeds, or one a seed; at each of some step sizes."""

    name: str
    what: tuple[Distilled | Real, ...]
    trains: tuple[TrainSpec, ...]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class _Group:
    """The networks of one possible row: images at one step size."""

    name: str
    specs: tuple[EvalSpec, ...]
    note: str


def evaluate(
    s: DistilledSet | str | Path,
    *,
    data: DataSet | None = None,
    nets: Sequence[str | NetSpec] | None = None,
    protocol: str = "strict",
    seeds: int | None = None,
    baselines: bool = True,
    whole: TrainSpec | None = None,
    features: Features | None = None,
    store: Store | None = None,
    engine: str = "inline",
    workers: int = 1,
    threads: int = 1,
    on_done: Callable[[int, int], None] | None = None,
) -> Result:
    """Train fresh networks on a distilled set and on matched real images, and compare them.

    Args:
        s: the set, or the folder of a set or a run.
        data: the real data; by default the set's own, from the cache.
        nets: networks to train, by default the set's own; a ConvNet named by text takes its
            width and so on from the set's own network.
        protocol: see `PROTOCOLS`.
        seeds: networks a row; the protocol's number by default.
        baselines: also train on random and k-means-medoid real images, as many a class, at the
            set's own step size and at that of own and grid which is best on validation.
        whole: how to train on all real training images, to show that row too.
        features: where k-means looks; the normalised pixels by default.
        store: where finished trainings are kept and looked up; the user's cache by default.
        engine: "inline" or "processes", with `workers` processes.
        threads: torch threads of each training.
        on_done: called as (finished, all) after each training.

    Raises:
        InputError: if the data are not those of the set, a class has too few images, or a name
            or number is wrong.
    """
    rules = _rules(protocol, seeds, baselines)
    path, s = (None, s) if isinstance(s, DistilledSet) else (s, load(s))
    data = reopen(s.ref) if data is None else data
    _check_data(s, data)
    chosen = [variant(net, s.net) if isinstance(net, str) else net for net in nets or (s.net,)]
    images = _images(s, data, rules, whole, features)
    groups = [_groups(s, net, images, rules.seeds, threads) for net in chosen]
    specs = tuple(spec for of_net in groups for group in of_net for spec in group.specs)
    store = store or Store(default_cache())
    with _folder(s, path) as folder:
        tasks = _tasks(specs, folder)
        run_tasks(tasks, store, engine=engine, workers=workers, on_done=on_done)
    found = {spec: read_json(store.verify(tasks.kind, spec) / "result.json") for spec in specs}
    rows = [_shown([_row(group, found, rules) for group in of_net]) for of_net in groups]
    return Result(
        rows=tuple(row for of_net in rows for row in of_net),
        protocol=rules.name,
        data=s.origin.data,
        identity=s.ref.identity,
        nbytes=s.nbytes(),
        cpu_seconds=sum(result["cpu_seconds"] for result in found.values()),
    )


def _rules(protocol: str, seeds: int | None, baselines: bool) -> Protocol:
    rules = PROTOCOLS.get(protocol)
    seeds = rules.seeds if seeds is None else seeds
    if seeds < 1:
        raise InputError(f"seeds={seeds}: at least 1 network is needed.")
    return replace(rules, seeds=seeds, baselines=rules.baselines and baselines)


def _tasks(specs: tuple[EvalSpec, ...], folder: Path) -> Tasks:
    context = {"set": str(folder)}
    return Tasks(
        kind="evaluations", fn=evaluate_one, specs=specs, context=context, label="evaluation"
    )


@contextmanager
def _folder(s: DistilledSet, path: str | Path | None) -> Iterator[Path]:
    """Yield a folder from which tasks can load the set."""
    if path is not None:
        yield Path(path).expanduser().resolve()
        return
    with tempfile.TemporaryDirectory() as folder:
        s.save(Path(folder) / "set")
        yield Path(folder) / "set"


def _check_data(s: DistilledSet, data: DataSet) -> None:
    if data.ref.identity != s.ref.identity:
        raise InputError(
            f"{data.source!r} (identity {data.ref.identity[:12]}) is not the data set of this "
            f"distilled set ({s.origin.data!r}, identity {s.ref.identity[:12]})."
        )
    if data.ref != s.ref:
        raise InputError(
            f"The set was distilled with a validation part of {s.ref.validation:g} of the training "
            f"images, not {data.ref.validation:g}; open the data with the same."
        )
    shape, own = (data.channels, *data.size), tuple(s.decode(s.images).shape[1:])
    if data.n_classes != len(s.classes) or own != shape:
        raise InputError(
            f"The distilled set has {len(s.classes)} classes of images {own}, "
            f"the data set {data.n_classes} of {shape}."
        )


def _images(
    s: DistilledSet,
    data: DataSet,
    rules: Protocol,
    whole: TrainSpec | None,
    features: Features | None,
) -> list[_Images]:
    """Return what is trained on, in the order of the rows; real images have hard labels."""
    recipe, seeds = rules.train_spec(s.recipe), range(rules.seeds)
    found = [_Images(name="distilled", what=(Distilled(digest=set_digest(s)),), trains=(recipe,))]
    if rules.baselines:
        counts, points = counts_of(s), features or pixel_features(s.space)
        steps = dict.fromkeys((recipe.lr, *rules.lr_grid))
        trains = tuple(replace(recipe, loss="ce", lr=lr) for lr in steps)
        draws = tuple(Real(indices=random_real(data.train, counts, seed=d)) for d in seeds)
        medoid = (Real(indices=medoid_real(data.train, counts, points)),)
        note = f"k-means on {points.name}"
        found.append(_Images(name=BASELINES[0], what=draws, trains=trains))
        found.append(_Images(name=BASELINES[1], what=medoid, trains=trains, note=note))
    if whole is not None:
        found.append(_Images(name="whole set", what=(Real(indices=None),), trains=(whole,)))
    return found


def _groups(
    s: DistilledSet, net: NetSpec, images: Sequence[_Images], seeds: int, threads: int
) -> list[_Group]:
    """Return all trainings of one network, those of one possible row together."""

    def spec(what: Distilled | Real, train: TrainSpec, seed: int) -> EvalSpec:
        return EvalSpec(
            what=what,
            net=net,
            train=train,
            seed=seed,
            data=s.ref,
            space=s.space,
            threads=threads,
        )

    return [
        _Group(
            name=item.name,
            specs=tuple(spec(item.what[d % len(item.what)], train, d) for d in range(seeds)),
            note=item.note,
        )
        for item in images
        for train in item.trains
    ]


def _row(group: _Group, found: dict[EvalSpec, dict], rules: Protocol) -> Row:
    results = [found[spec] for spec in group.specs]
    accuracies = tuple(result["test"] for result in results)
    mean, std, ci95 = spread(accuracies, ddof=rules.ddof)
    return Row(
        name=group.name,
        net=group.specs[0].net.name,
        accuracies=accuracies,
        validation=statistics.fmean(result["val"] for result in results),
        mean=mean,
        std=std,
        ci95=ci95,
        n=len(accuracies),
        lr=group.specs[0].train.lr,
        protocol=rules.name,
        note=group.note,
    )


def _shown(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of one network to show: of rows that differ in step only, own and best.

    The own one comes first and counts as best unless another is better on the validation part.
    """
    shown: list[Row] = []
    for name in dict.fromkeys(row.name for row in rows):
        same = [row for row in rows if row.name == name]
        if name not in BASELINES:
            shown += same
            continue
        own, best = same[0], max(same, key=lambda row: row.validation)
        shown.append(replace(own, name=f"{name}, own step"))
        if best is not own:
            shown.append(replace(best, name=f"{name}, best step"))
    return shown
