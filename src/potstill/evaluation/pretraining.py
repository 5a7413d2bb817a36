"""Pre-train networks on a set whose targets are features, and on real images; probe them all.

One pre-training of a network and seed serves the probes of all data sets and label budgets.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from potstill.artefact import DistilledSet, set_digest
from potstill.core.compute import Wish
from potstill.core.files import read_json
from potstill.core.store import Store, default_cache
from potstill.data import DataSet, reopen
from potstill.engine import Tasks, run_tasks
from potstill.evaluation.finetuning import FINETUNED, finetune_one
from potstill.evaluation.images import Beside
from potstill.evaluation.pretraining_asked import ProbesAsked, asked_for, rules_of
from potstill.evaluation.pretraining_entrants import (
    LEFT_OUT,
    beside_of,
    entrants_of,
    found_targets,
    opened_set,
)
from potstill.evaluation.pretraining_result import ProbeResult
from potstill.evaluation.pretraining_rows import Found, Shown, rows_of
from potstill.evaluation.pretraining_specs import PretrainSpec, ProbeSpec
from potstill.evaluation.pretraining_tasks import (
    PRETRAINED,
    PROBED,
    RESULT,
    pretrain_one,
    probe_one,
)
from potstill.functional import TrainSpec
from potstill.nets import NetSpec
from potstill.teachers.targets import TargetsSpec

LABELS = {PRETRAINED: "pre-training", PROBED: "probe", FINETUNED: "fine-tuning"}


def evaluate_pretraining(
    s: DistilledSet | str | Path,
    *,
    data: DataSet | None = None,
    transfer: Sequence[DataSet] = (),
    nets: Sequence[str | NetSpec] | None = None,
    labels: Sequence[str] | None = None,
    shots: Sequence[int] = (),
    seeds: int | None = None,
    protocol: str = "recommended",
    stratified: bool = False,
    finetune: bool = False,
    beside: Sequence[str | Path | Beside] = (),
    baselines: bool = True,
    targets: TargetsSpec | None = None,
    direct: TrainSpec | None = None,
    store: Store | None = None,
    engine: str = "inline",
    workers: int = 1,
    wish: Wish | None = None,
    on_done: Callable[[int, int], None] | None = None,
) -> ProbeResult:
    """Pre-train fresh networks on a set and on real images beside it; probe what they learned.

    Args:
        s: the set, or the folder of a set or a run; its targets are features, or networks learn
            from views of it (a recipe with `pairs`).
        data: its real images; by default those it was made of, from the cache.
        transfer: other data sets to probe on, normalised by their own mean and std, of images of
            the same size (open them with resize=N, fit="squash").
        nets: networks, by default the set's own, as in `evaluate`.
        labels, shots: parts of the labels that probes are given, such as "1%" (by default those of
            the protocol, or none where there are shots), and labels of each class.
        protocol, seeds: see `PROBES`; networks a row, if not as many as there.
        stratified: draw parts of the labels class by class, as the rows then say.
        finetune: also train whole networks on all labels of each set, if the protocol says how.
        beside: other sets, or folders of them, whole, by their own recipes: subsets, for example.
        baselines: also no pre-training, and as many random real images, of all classes together and
            balanced: with `targets`, or on views by the set's own recipe, if it has `pairs`; and on
            views by `direct` (`direct_recipe`), if that is given.
        targets: those of all training images; by default looked up in the store.
        store, engine, workers, wish: as in `evaluate`.
        on_done: called as (finished, all) after each pre-training and each data set probed.

    Raises:
        InputError: for sets, data or targets that do not belong together, labels that leave a class
            without one, wrong names or numbers.
    """
    store, s = store or Store(default_cache()), opened_set(s)
    rules = rules_of(protocol, seeds, stratified=stratified, finetune=finetune)
    targets = targets or (found_targets(s, store) if baselines else None)
    data = reopen(s.ref) if data is None else data
    others = [beside_of(item) for item in beside]
    entrants = entrants_of(
        s, data, rules, beside=others, baselines=baselines, targets=targets, direct=direct
    )
    asked = asked_for(s, (data, *transfer), entrants, rules, nets, labels, shots, wish)
    found, shown = _carried_out(asked, store, engine, workers, on_done)
    left_out = baselines and targets is None and s.recipe.pairs is None
    return _result(s, asked, found, shown, notes=(LEFT_OUT,) if left_out else ())


def _result(
    s: DistilledSet, asked: ProbesAsked, found: Found, shown: Shown, *, notes: tuple[str, ...]
) -> ProbeResult:
    first = [result for spec, result in found.items() if isinstance(spec, PretrainSpec)]
    return ProbeResult(
        rows=tuple(rows_of(asked, found, shown)),
        protocol=asked.rules.name,
        data=s.origin.data,
        identity=s.ref.identity,
        nbytes=s.nbytes(),
        pretrainings=len(first),
        probes=sum(isinstance(spec, ProbeSpec) for spec in found) * len(asked.budgets),
        seconds=sum(result["seconds"] for result in found.values()),
        cpu_seconds=sum(result["cpu_seconds"] for result in found.values()),
        peak_bytes=max(result["peak_bytes"] for result in found.values()),
        notes=notes,
    )


def _carried_out(
    asked: ProbesAsked,
    store: Store,
    engine: str,
    workers: int,
    on_done: Callable[[int, int], None] | None,
) -> tuple[Found, Shown]:
    """Pre-train all networks, probe them, and return what was found and which are shown.

    Of an entrant with several step sizes only the best one is probed on the other data sets.
    """
    groups, found, done = asked.pretrainings(), Found(), 0
    specs = tuple(dict.fromkeys(spec for group in groups.values() for spec in group))
    rows = len({(place, net) for place, net, _ in groups}) * asked.rules.seeds
    tuned = len(asked.data) if asked.rules.finetune is not None else 0
    total = 2 * len(specs) + rows * (len(asked.data[1:]) + tuned)

    def work(kind: str, fn: Any, specs: tuple[Any, ...], folders: dict[str, str]) -> None:
        nonlocal done
        before = done

        def tick(finished: int, _: int) -> None:
            if on_done is not None:
                on_done(before + finished, total)

        context = {**folders, "store": str(store.root)}
        tasks = Tasks(kind=kind, fn=fn, specs=specs, context=context, label=LABELS[kind])
        run_tasks(tasks, store, engine=engine, workers=workers, on_done=tick)
        found.update({spec: read_json(store.verify(kind, spec) / RESULT) for spec in specs})
        done += len(specs)

    with _folders(asked) as folders:
        work(PRETRAINED, pretrain_one, specs, folders)
    work(PROBED, probe_one, tuple(asked.probe(spec, 0) for spec in specs), {})
    shown = _best(asked, groups, found)
    others = (
        asked.probe(spec, at)
        for at in range(1, len(asked.data))
        for group in shown.values()
        for spec in group
    )
    if others := tuple(dict.fromkeys(others)):
        work(PROBED, probe_one, others, {})
    all_shown = (spec for group in shown.values() for spec in group)
    last = (asked.finetuning(spec, at) for spec in all_shown for at in range(tuned))
    if last := tuple(dict.fromkeys(last)):
        work(FINETUNED, finetune_one, last, {})
    return found, shown


def _best(asked: ProbesAsked, groups: dict[Any, tuple[PretrainSpec, ...]], found: Found) -> Shown:
    """Return the networks of each entrant and network at the step best on validation.

    The first step counts as best unless another is better.
    """

    def validation(group: tuple[PretrainSpec, ...]) -> float:
        lines = (line for spec in group for line in found[asked.probe(spec, 0)]["budgets"])
        return statistics.fmean(line.get("val", 0.0) for line in lines)

    shown: Shown = {}
    for place, net, _ in groups:
        own = [group for key, group in groups.items() if key[:2] == (place, net)]
        shown[place, net] = max(own, key=validation)
    return shown


@contextmanager
def _folders(asked: ProbesAsked) -> Iterator[dict[str, str]]:
    """Yield folders from which tasks can load the sets, by their digests."""
    with tempfile.TemporaryDirectory() as folder:
        found = dict[str, str]()
        for each in (one for item in asked.entrants for one in item.of):
            if (digest := set_digest(each)) not in found:
                found[digest] = str(Path(folder) / digest)
                each.save(found[digest])
        yield found
