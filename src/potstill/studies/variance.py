"""How much trainings from one beginning differ: supervised, of features, self-supervised.

For each objective and batch some runs from one theta_0, which differ in the order of the images and
in augmentation; of the encoder's weights only, without the head, with D = theta_end - theta_0:

    spread  mean over pairs |D_a - D_b|^2 / (2 mean |D|^2)
    cosine  mean over pairs cos(D_a, D_b)
    noise   E|g - E g|^2 / |E g|^2 of the gradients g of batches, without bias

Spread and cosine are the quantities to look at. They depend on how far the runs go, so |D| and the
fall of the loss stand beside them, and `distance` ends all runs equally far; a part of the spread
is due to augmentation alone, which the controls show. The second table is theorem 4.1 of the paper
by Monte Carlo; the first ratio is the one to look at, the second depends on the weights' scale.

Source: Joshi, Ni and Mirzasoleiman (MKDT), ICLR 2025 (arXiv 2410.02116), section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from potstill.core.compute import Wish
from potstill.core.files import read_json
from potstill.core.store import Store, default_cache
from potstill.data import DataSet
from potstill.engine import Tasks, run_tasks
from potstill.functional.spread import theorem_check
from potstill.nets import describe
from potstill.studies.kept import Study, mean_text
from potstill.studies.variance_asked import Comparison, images_of, row_specs, taught_by
from potstill.studies.variance_tasks import KIND, OBJECTIVES, RESULT, VarianceSpec, measure

HEAD = ("learns", "batch", "step size", "steps", "n", "spread", "cosine", "noise / signal, start")
HEAD += ("end", "|D| / |theta_0|", "loss falls by %")
THEOREM = ((0.3, 0.1, 0.1), (1.0, 0.1, 0.0), (1.0, 0.1, 0.3), (1.0, 0.3, 0.3), (2.0, 0.1, 0.1))
"""Scale of the weights, noise of features, noise of views."""
THEOREM_HEAD = ("scale of weights", "noise of features", "noise of views")
THEOREM_HEAD += ("noise / signal, contrastive over supervised", "variance, the same")


def variance_study(
    data: DataSet,
    asked: Comparison | None = None,
    *,
    encoder: str | Path | None = None,
    store: Store | None = None,
    engine: str = "inline",
    workers: int = 1,
    wish: Wish | None = None,
    on_done: Callable[[float, int], None] = lambda done, total: None,
) -> Study:
    """Return how much trainings from one theta_0 differ, and theorem 4.1 by Monte Carlo.

    Args:
        data: what images are taken of, normalised by their own mean and std.
        asked: what is looked at; by default all, at the settings on record.
        encoder: folder of an encoder, or of a set or run whose targets are features, whose features
            (mean 0, std 1) are learned; by default the outputs of a random network.
        store, engine, workers, wish: as in `evaluate`; in float32 unless the wish says otherwise.
        on_done: called as (finished, all) after each row, inline also within one.

    Raises:
        InputError: for classes with too few images, images whose colours cannot be augmented, an
            encoder of other images, a network that does not fit.
        WorkError: if a run diverges.
    """
    asked, store, wish = asked or Comparison(), store or Store(default_cache()), wish or Wish()
    data = images_of(data, asked)
    wish = replace(wish, precision="float32" if wish.precision == "auto" else wish.precision)
    how: dict[str, Any] = {"engine": engine, "workers": workers}
    taught = None if encoder is None else taught_by(Path(encoder), asked, data, store, wish)
    targets = None if taught is None else taught.specs[0]
    specs = row_specs(asked, data, targets, wish.among(workers))
    if taught is not None:
        run_tasks(taught, store, **how)
    context = {"store": str(store.root)}
    tasks = Tasks(kind=KIND, fn=measure, specs=specs, context=context, label="row")
    run_tasks(tasks, store, **how, on_done=on_done, on_part=lambda d, _: on_done(d, len(specs)))
    found = [read_json(store.verify(KIND, spec) / RESULT) for spec in specs]
    rows = [_row(*each) for each in zip(asked.lines, specs, found, strict=True)]
    lines, theorem = dict.fromkeys(map(_line, rows)), theorem_rows(asked.seed)
    return Study(
        rows=(*rows, *theorem),
        table=(HEAD, *(_cells([r for r in rows if _line(r) == own]) for own in lines)),
        more=((THEOREM_HEAD, *map(_theorem_cells, theorem)),),
    )


def theorem_rows(seed: int = 0) -> list[dict[str, Any]]:
    """Return theorem 4.1 of MKDT by Monte Carlo, a row a setting of `THEOREM`."""
    return [
        {"kind": "theorem", "scale": scale, "feature_noise": noise, "view_noise": views, **ratios}
        for scale, noise, views in THEOREM
        for ratios in [asdict(theorem_check(scale, noise, views, seed=seed))]
    ]


def _row(
    line: tuple[str, int, int], spec: VarianceSpec, found: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what was measured, with what it was measured of."""
    name, batch, seed = line
    return {
        "kind": "runs",
        "objective": name,
        "batch": batch,
        "seed": seed,
        "title": OBJECTIVES[name].title,
        "control": OBJECTIVES[name].control,
        "lr": spec.train.lr,
        "net": describe(spec.net),
        "images": spec.data.limit,
        "identity": spec.data.identity,
        "encoder": None if spec.targets is None else spec.targets.encoder.digest,
        "distance": spec.trials.distance,
        "compute": spec.compute.describe(),
        **found,
        "fallen": _fallen(found["loss_start"], found["loss_end"]),
    }


def _fallen(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None or not start else 1 - end / start


def _line(row: Mapping[str, Any]) -> tuple[str, int]:
    return row["objective"], row["batch"]


def _cells(rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the line of an objective and a batch: mean and standard deviation over theta_0."""
    first = rows[0]

    def mean(name: str, digits: int = 3, scale: float = 1) -> str:
        values = [row[name] for row in rows]
        return mean_text([None if v is None else scale * v for v in values], digits)

    return (
        f"{first['title']} ({first['objective']})",
        str(first["batch"]),
        f"{first['lr']:g}",
        _steps_text(rows),
        str(len(rows)),
        mean("spread"),
        mean("cosine"),
        mean("noise_start"),
        mean("noise_end"),
        mean("moved"),
        mean("fallen", scale=100),
    )


def _steps_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the steps of runs, and whether they were too few for the distance asked for."""
    counts = sorted(count for row in rows for count in row["steps"])
    text = str(counts[0]) if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"
    few = any(row["moved"] < (row["distance"] or 0) for row in rows)
    return f"{text} (too few)" if few else text


def _theorem_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    given = (row["scale"], row["feature_noise"], row["view_noise"])
    return (*(f"{v:g}" for v in given), f"{row['normalised']:.3g}", f"{row['absolute']:.3g}")
