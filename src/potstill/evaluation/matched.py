"""Evaluate a distilled set beside as many real images trained on in the same way."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from potstill.artefact import DistilledSet, load, set_digest
from potstill.core.compute import Compute, Wish, choose
from potstill.core.errors import InputError
from potstill.core.files import read_json
from potstill.core.store import Store, default_cache
from potstill.coresets import Features
from potstill.data import DataSet, keep_space, reopen
from potstill.engine import Tasks, run_tasks
from potstill.evaluation.computing import computed, trainings
from potstill.evaluation.images import Beside, Images, check_data, cut_to, images_of
from potstill.evaluation.online import easiest, experts_of, labellers
from potstill.evaluation.protocol import PROTOCOLS
from potstill.evaluation.regimes import labels_of, regimes_of
from potstill.evaluation.result import Result
from potstill.evaluation.rows import Group, row_of, shown
from potstill.evaluation.rules import Protocol
from potstill.evaluation.specs import EvalSpec, Online, Patched, Taught
from potstill.evaluation.tasks import evaluate_one
from potstill.experts import ExpertSpec, ImportedExpert, train_expert
from potstill.functional import Softened, TrainSpec
from potstill.nets import NET_POOLS, NetSpec, build, filled, variant

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
        nets: networks to train, by default the set's own; the names of `NET_POOLS` are pools of
            them. A network named by text takes its options from the set's own (`nets.variant`).
        protocol: see `PROTOCOLS`.
        seeds: networks a row; the protocol's number by default.
        regimes: labels of all images, side by side: "hard", "soft", "online"; by default the
            set's own labels and hard ones for real images, or "online" with a protocol for it.
            Under "soft", images without soft labels of their own take those of the teacher; under
            "online" networks learn what it says of every augmented batch.
        prefix: take the first so many blocks of the set only; all by default.
        beside: folders of other sets, cut to their first so many images of each class as the set
            has; each is trained on by its own recipe.
        baselines: also train on random and k-means-medoid real images, as many a class, beside
            a set of mosaics on random mosaics, and under "online" on RDED's images by the set's
            own teacher; at the set's own step size and at that of own
            and grid which is best on validation.
        whole: how to train on all real training images, to show that row too.
        features: where k-means looks; the normalised pixels by default.
        teacher: the network behind soft labels, and behind those online of a set whose own
            teachers are not in the store; by default one of the set's own kind is trained on the
            real training images.
        store: where finished trainings are kept and looked up; the user's cache by default.
        engine: "inline" or "processes", with `workers` processes.
        wish: device, threads, precision and compilation of each training, chosen for all trainings
            of a network together; by default one thread, the rest as it pays. Finished trainings
            that were computed otherwise are not reused.
        on_done: called as (finished, all) after each training.

    Raises:
        InputError: if the data are not those of the set, a class has too few images, or a name
            or number is wrong.
    """
    wish = wish or Wish(threads=1)
    plain = choose(wish, order=1, flops=0, images=0, steps=0)  # refuses what is not to be had
    rules = _rules(protocol, seeds, baselines)
    path, s = (None, s) if isinstance(s, DistilledSet) else (s, load(s))
    note = ""
    if prefix is not None:
        note = f"first {prefix} of {len(s.blocks)} blocks"
        path, s = None, s.prefix(prefix)
    data = reopen(s.ref) if data is None else data
    others = [
        each if isinstance(each, Beside) else cut_to(each, len(s) // len(s.classes))
        for each in beside
    ]
    for other in (s, *(one for each in others for one in each.sets)):
        check_data(other, data)
        regimes_of(other, regimes, rules)
    regimes = regimes_of(s, regimes, rules)
    chosen = _nets(nets or (s.net,), s.net)
    modules = {  # refuses what does not fit before anything is trained
        net: build(net, channels=data.channels, size=data.size, classes=data.n_classes, seed=0)
        for net in chosen
    }
    for space in (s.space, *(each.sets[0].space for each in others)):
        keep_space(space)
    store = store or Store(default_cache())
    taught, own = labellers(s, data, regimes, teacher, store=store, wish=wish)
    crops = easiest(s, data, own, plain) if rules.baselines else None
    patched = None if crops is None else Patched(specs=tuple(crops.specs))
    images = images_of(s, data, rules, whole, features, note, others, patched)
    work = trainings(images, data, rules, len(regimes))
    tested = (len(data.val) + len(data.test)) * (1 + len(rules.marks))
    groups = [
        group
        for net in chosen
        for how in [computed(wish, modules[net], work, data, predicted=tested)]
        for group in _groups(s, net, images, regimes, taught, rules, how)
    ]
    specs = tuple(dict.fromkeys(spec for group in groups for spec in group.specs))
    work_on = partial(run_tasks, store=store, engine=engine, workers=workers)
    with _folders(s, path, others) as folders:
        if experts := experts_of(specs):
            work_on(_lessons(experts, s.origin.data))
        if crops is not None:
            work_on(crops)
        folders |= {each.digest: str(folder) for each, folder in own.items()}
        work_on(_tasks(specs, folders, store), on_done=on_done)
    found = {spec: read_json(store.verify(KIND, spec) / "result.json") for spec in specs}
    return Result(
        rows=tuple(shown([row_of(group, found, rules) for group in groups])),
        protocol=rules.name,
        data=s.origin.data,
        identity=s.ref.identity,
        prefix=prefix,
        nbytes=s.nbytes(),
        seconds=sum(result["seconds"] for result in found.values()),
        cpu_seconds=sum(result["cpu_seconds"] for result in found.values()),
        peak_bytes=max(result["peak_bytes"] for result in found.values()),
    )


def _rules(protocol: str, seeds: int | None, baselines: bool) -> Protocol:
    rules = PROTOCOLS.get(protocol)
    seeds = rules.seeds if seeds is None else seeds
    if seeds < 1:
        raise InputError(f"seeds={seeds}: at least 1 network is needed.")
    return replace(rules, seeds=seeds, baselines=rules.baselines and baselines)


def _nets(nets: Sequence[str | NetSpec], own: NetSpec) -> list[NetSpec]:
    """Return the networks, pools spread out, none twice."""
    found: list[NetSpec] = []
    for net in [nets] if isinstance(nets, str) else nets:
        if isinstance(net, str):
            found += [variant(name, own) for name in NET_POOLS.get(net, (net,))]
        else:
            found.append(filled(net))
    return list(dict.fromkeys(found))


def _tasks(specs: tuple[EvalSpec, ...], folders: dict[str, str], store: Store) -> Tasks:
    context = {**folders, "store": str(store.root)}
    return Tasks(kind=KIND, fn=evaluate_one, specs=specs, context=context, label="evaluation")


def _lessons(specs: tuple[ExpertSpec | ImportedExpert, ...], source: str) -> Tasks:
    """Return the training of the teachers."""
    context = {"source": source}
    return Tasks(kind="experts", fn=train_expert, specs=specs, context=context, label="teacher")


@contextmanager
def _folders(
    s: DistilledSet, path: str | Path | None, beside: Sequence[Beside]
) -> Iterator[dict[str, str]]:
    """Yield folders from which tasks can load the sets, by their digests."""
    with tempfile.TemporaryDirectory() as folder:
        found = {} if path is None else {set_digest(s): str(Path(path).expanduser().resolve())}
        for each in (s, *(one for item in beside for one in item.sets)):
            if (digest := set_digest(each)) not in found:
                found[digest] = str(Path(folder) / digest)
                each.save(found[digest])
        yield found


def _groups(
    s: DistilledSet,
    net: NetSpec,
    images: Sequence[Images],
    regimes: Sequence[str],
    taught: Mapping[str, Taught | Online],
    rules: Protocol,
    compute: Compute,
) -> list[Group]:
    """Return all trainings of one network, those of one possible row together."""

    def spec(item: Images, train: TrainSpec, regime: str, seed: int) -> EvalSpec:
        labels, loss = labels_of(item.of, regime, taught)
        lesson = rules.lesson or train.lesson or Softened() if regime == "online" else None
        return EvalSpec(
            what=item.what[seed % len(item.what)],
            labels=labels,
            net=net,
            train=replace(train, loss=loss, lesson=lesson),
            seed=seed,
            data=s.ref,
            space=(item.of or s).space.record(),
            compute=compute,
            marks=rules.marks if train.segments == rules.segments else (),
        )

    return [
        Group(
            images=item,
            regime=regime,
            specs=tuple(spec(item, train, regime, d) for d in range(rules.seeds)),
        )
        for regime in regimes
        for item in images
        if regime not in taught or item.name != "whole set"
        for train in item.trains
    ]
