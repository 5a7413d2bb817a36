"""The main job from Python: distil and score."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from potstill.artefact import DistilledSet, remember
from potstill.core.compute import Wish
from potstill.core.errors import InputError
from potstill.core.files import write_text
from potstill.core.log import Quiet, Reporter
from potstill.coresets import Features, expert_features
from potstill.data import DataSet
from potstill.engine import Tasks
from potstill.evaluation import ProbeResult, Result, evaluate
from potstill.evaluation.protocol import STRICT, whole_recipe
from potstill.evaluation.regimes import own_regime
from potstill.experts import ExpertSpec, ImportedExpert
from potstill.methods import Plan, method_of
from potstill.nets import NetSpec, describe
from potstill.recipes import scaled
from potstill.run import Run, Where, distil, opened, preflight


def distill(
    data: str | DataSet,
    *,
    ipc: int | None = None,
    size: str | None = None,
    method: object = "mtt",
    out: str | Path,
    net: NetSpec | None = None,
    normaliser: str = "measured",
    replacement: bool = False,
    seed: int = 0,
    scale: str = "full",
    wish: Wish | None = None,
    where: Where | None = None,
    report: Reporter | None = None,
) -> DistilledSet:
    """Distil images and return the set; a run already in `out` is continued.

    Args:
        data: a source such as "folder:DIR", or what `potstill.from_arrays` returned.
        ipc: distilled images per class.
        size: in place of it, for methods without classes: "2%" of the training images, or "500".
        method: a method's name, or its dataclass with settings, e.g. `MTT(iterations=300)`.
        out: folder of the run.
        net: network to distil with; a ConvNet of fitting depth by default.
        normaliser: "measured", named statistics, "zca-mtt" or "zca-kip".
        replacement: let classes with fewer images than ipc give images twice.
        seed: seed of everything random.
        scale: counts of the method: "full", "cpu" or "smoke".
        wish: device, threads, precision, compilation; left to preflight by default.
        where: engine, workers, store.
        report: where progress goes; nowhere by default.

    Raises:
        InputError: for bad settings or data.
        WorkError: if the work failed.
    """
    spec = method_of(method) if isinstance(method, str) else method
    source = data if isinstance(data, str) else f"cached:{data.ref.identity}"
    validation = 0.1 if isinstance(data, str) else data.ref.validation
    limit = None if isinstance(data, str) else data.ref.limit
    wish = wish or Wish()
    run = Run(
        method=spec,
        data=source,
        ipc=ipc,
        size=size,
        net=net or NetSpec(name="auto"),
        normaliser=normaliser,
        replacement=replacement,
        seed=seed,
        validation=validation,
        limit=limit,
        device=wish.device,
        threads=wish.threads,
        precision=wish.precision,
        compile=wish.compile,
    )
    return distil(scaled(run, scale), Path(out), where=where, report=report)


def score(
    path: str | Path,
    *,
    data: str | None = None,
    nets: Sequence[str] = (),
    seeds: int | None = None,
    protocol: str = "strict",
    regimes: Sequence[str] = (),
    prefix: int | None = None,
    continual: int | None = None,
    beside: Sequence[str | Path] = (),
    baselines: bool = True,
    whole: bool = False,
    wish: Wish | None = None,
    where: Where | None = None,
    report: Reporter | None = None,
) -> Result:
    """Evaluate a set or run; beside a run, keep the rows (eval.jsonl) and remember the number.

    k-means looks at the features of the run's first expert where it has any, else at pixels; the
    same expert, at its last epoch, is the teacher of the regime `soft`. What `wish` leaves open is
    as the run was asked for; threads are those of its experts. `prefix` scores the first so many
    blocks; `continual` lets the classes come in so many steps; `beside` are folders of other sets,
    cut to as many images a class.

    Raises:
        InputError: for a folder that is neither, or data that are not those of the set.
    """
    where, report, known = where or Where(), report or Quiet(), opened(path, data, wish)
    path, s, run, real = known.path, known.s, known.run, known.data
    features = teacher = None
    if run is not None and real is not None:
        eval_rows(path)  # refuses damaged ones before anything is trained
        if known.plan is not None:
            teacher, features = _first_expert(run, real, known.plan, where)
    with report.phase("evaluating", 1) as advance:
        result = evaluate(
            path / "distilled" if run is not None else path,
            data=real,
            nets=nets or None,
            protocol=protocol,
            seeds=seeds,
            regimes=regimes,
            prefix=prefix,
            continual=continual,
            beside=beside,
            baselines=baselines,
            whole=whole_recipe() if whole else None,
            features=features,
            teacher=teacher,
            store=where.open_store(),
            engine=where.engine,
            workers=where.workers,
            wish=known.wish.among(where.workers),
            on_done=lambda done, total: advance(done, total=total),
        )
    if run is not None:
        keep_rows(path, result)
        row = None if prefix else result.row("distilled", describe(s.net), own_regime(s))
        if row is not None and row.protocol == "strict" and row.n >= STRICT.seeds:
            kept = {"mean": row.mean, "std": row.std, "n": row.n, "net": row.net}
            remember(path / "distilled", {**kept, "protocol": row.protocol})
    return result


def keep_rows(path: Path, result: Result | ProbeResult) -> None:
    """Add rows to eval.jsonl; a row takes the place of one of the same kind, no other is lost."""

    def kind(line: dict[str, Any]) -> tuple[Any, ...]:
        keys = ("protocol", "net", "regime", "name", "n", "prefix", "target", "labels")
        return tuple(line.get(key) for key in keys)

    new = [json.loads(line) for line in result.lines()]
    old = [line for line in eval_rows(path) if kind(line) not in {kind(n) for n in new}]
    write_text(path / "eval.jsonl", "".join(json.dumps(line) + "\n" for line in [*old, *new]))


def eval_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows that evaluations of a run have found so far.

    Raises:
        InputError: if eval.jsonl is damaged.
    """
    file = path / "eval.jsonl"
    if not file.is_file():
        return []
    try:
        return [dict(json.loads(line)) for line in file.read_text().splitlines()]
    except (ValueError, TypeError, OSError) as error:
        raise InputError(f"{file} is damaged; mend or remove it.") from error


def _first_expert(
    run: Run, real: DataSet, plan: Plan, where: Where
) -> tuple[ExpertSpec | ImportedExpert | None, Features | None]:
    """Return the first expert of a run, trained to its last epoch, and its features.

    A part is None where the run has none: no experts, experts that are no longer in the store, a
    network that does not end in a linear layer.
    """
    store = where.open_store()
    try:
        ctx, _ = preflight(run, real, plan, store=store)
        phase = run.method.phases(ctx, {})
    except InputError:  # an imported pool, or a network from outside, that is gone
        return None, None
    if not isinstance(phase, Tasks) or phase.kind != "experts":
        return None, None
    spec = phase.specs[0]
    if not store.has(phase.kind, spec):
        return None, None
    folder = store.verify(phase.kind, spec)
    try:
        features = expert_features(spec, folder)
        features.fn(real.train.pixels[:1])
    except InputError:
        return spec, None
    return spec, features
