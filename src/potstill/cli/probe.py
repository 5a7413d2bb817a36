"""`potstill probe`: what networks learn from a set whose targets are features of an encoder."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from potstill.cli.flags import one, parse
from potstill.cli.options import Machine, Work
from potstill.core.errors import InputError

if TYPE_CHECKING:
    from potstill.data import DataSet
    from potstill.evaluation import ProbeResult
    from potstill.run import Opened


@dataclass(frozen=True, kw_only=True)
class ProbeFlags(Work, Machine):
    """Flags of `probe`."""

    data: str | None = None
    """The real images; by default those the set was made of, from the cache."""
    transfer: tuple[str, ...] = ()
    """Other data sets to probe on; their images are brought to the size of the set's."""
    labels: tuple[str, ...] | None = None
    """Parts of the labels that probes are given: 1% 5% by default, unless there are shots."""
    shots: tuple[int, ...] = ()
    """Instead or beside: labels of each class."""
    nets: tuple[str, ...] = ()
    """Networks to pre-train, or pools of them; by default the set's own."""
    seeds: int | None = None
    """Networks a row; the protocol's number (5) by default."""
    protocol: str = "recommended"
    """Rules: recommended or mkdt-parity."""
    beside: tuple[Path, ...] = ()
    """Other such sets or runs, whole, by their own recipes."""
    baselines: bool = True
    """Also no pre-training, and random real images with targets of the same encoder."""
    direct: Literal["bt", "simclr"] | None = None
    """Also train on views of random real images, without targets: Barlow Twins or SimCLR."""
    direct_epochs: int = 800
    """Epochs of that training."""
    out: Path | None = None
    """A folder for the rows, the table and a plot."""


def probe(arguments: list[str]) -> int:
    """Pre-train on a set of features, probe with few labels: potstill probe SET_OR_RUN."""
    path, rest = one(arguments, "probe", "set_or_run")
    text = (
        "Pre-train fresh networks on a set whose targets are features of an encoder, and on real "
        "images beside it; probe what they learned by linear classifiers of few labels."
    )
    flags = parse(ProbeFlags, rest, name="probe SET_OR_RUN", text=text)
    from rich.console import Console

    from potstill.report import rich_probes
    from potstill.run import stoppable
    from potstill.studies import free

    if flags.out is not None:
        free(flags.out)
    with stoppable("the same command; what is finished is kept"):
        found = _probed(Path(path), flags)
    Console(width=None if sys.stdout.isatty() else 160).print(rich_probes(found))
    if flags.out is not None:
        _write(found, flags.out)
        print(f"rows, table and plot are in {flags.out}")
    return 0


def _probed(path: Path, flags: ProbeFlags) -> ProbeResult:
    """Evaluate a set or run; beside a run, keep the rows."""
    from potstill.core.log import Console
    from potstill.evaluation import direct_recipe, evaluate_pretraining
    from potstill.job import eval_rows, keep_rows
    from potstill.run import opened

    if flags.direct_epochs < 1:
        raise InputError(f"--direct-epochs must be at least 1, not {flags.direct_epochs}.")
    where, known = flags.where(), opened(path, flags.data, flags.wish())
    if known.run is not None:
        eval_rows(known.path)  # refuses damaged ones before anything is trained
    direct = flags.direct and direct_recipe(flags.direct, epochs=flags.direct_epochs)
    with Console().phase("probing", 1) as advance:
        found = evaluate_pretraining(
            known.path,
            data=known.data,
            transfer=[_opened(name, known) for name in flags.transfer],
            nets=flags.nets or None,
            labels=flags.labels,
            shots=flags.shots,
            seeds=flags.seeds,
            protocol=flags.protocol,
            beside=flags.beside,
            baselines=flags.baselines,
            direct=direct or None,
            store=where.open_store(),
            engine=where.engine,
            workers=where.workers,
            wish=known.wish.among(where.workers),
            on_done=lambda done, total: advance(done, total=total),
        )
    if known.run is not None:
        keep_rows(known.path, found)
    return found


def _opened(name: str, known: Opened) -> DataSet:
    """Return a data set of images of the size of a set's, whole images squashed into it."""
    from potstill.data import open_data

    _, height, width = known.s.shape
    if height != width:
        raise InputError(
            f"The images of the set are {height}x{width} pixels; others can be brought to squares "
            "only, so there is no --transfer."
        )
    return open_data(name, resize=height, fit="squash")


def _write(found: ProbeResult, out: Path) -> None:
    """Write rows (JSONL), table (Markdown) and plot (SVG and PNG) into a folder."""
    from potstill.core.files import write_text
    from potstill.report import probe_markdown, probe_plot
    from potstill.studies.kept import FILES

    out.mkdir(parents=True, exist_ok=True)
    write_text(out / FILES[0], "".join(f"{line}\n" for line in found.lines()))
    write_text(out / FILES[1], probe_markdown(found) + "\n")
    figure = probe_plot(found)
    figure.savefig(out / FILES[2], metadata={"Date": None})
    figure.savefig(out / FILES[3], dpi=150)
