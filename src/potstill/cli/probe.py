"""`potstill probe`: what networks learn from a set whose targets are features of an encoder."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from potstill.cli.flags import one, parse
from potstill.cli.options import Machine, Score, Work
from potstill.core.errors import InputError

if TYPE_CHECKING:
    from potstill.data import DataSet
    from potstill.evaluation import ProbeResult
    from potstill.run import Opened, Where


@dataclass(frozen=True, kw_only=True)
class ProbeFlags(Work, Machine):
    """Flags of `probe`."""

    data: str | None = None
    """The real images; by default those the set was made of, from the cache."""
    transfer: tuple[str, ...] = ()
    """Other data sets to probe on; their images are brought to the size of the set's."""
    labels: tuple[str, ...] | None = None
    """Parts of the labels that probes are given: those of the protocol (1% 5%) by default, unless
    there are shots."""
    shots: tuple[int, ...] = ()
    """Instead or beside: labels of each class."""
    nets: tuple[str, ...] = ()
    """Networks to pre-train, or pools of them; by default the set's own."""
    seeds: int | None = None
    """Networks a row; the protocol's number (5) by default."""
    protocol: str = "recommended"
    """Rules: recommended, mkdt-parity or krr-st."""
    stratified: bool = False
    """Draw parts of the labels class by class in mkdt-parity, too, so that no class is left out."""
    finetune: bool = False
    """Also train the whole networks on all labels of each data set; krr-st says how."""
    beside: tuple[Path, ...] = ()
    """Other such sets or runs, whole, by their own recipes."""
    baselines: bool = True
    """Also no pre-training, and random real images: under the same targets, or on views."""
    direct: Literal["bt", "simclr"] | None = None
    """Also train on views of random real images, without targets: Barlow Twins or SimCLR."""
    direct_epochs: int | None = None
    """Epochs of that training; 800 by default."""
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
    from potstill.run import stoppable
    from potstill.studies import free

    if flags.out is not None:
        free(flags.out)
    with stoppable("the same command; what is finished is kept"):
        found = _probed(Path(path), flags)
    _show(found)
    if flags.out is not None:
        _write(found, flags.out)
        print(f"rows, table and plot are in {flags.out}")
    return 0


def probe_run(path: Path, score: Score, where: Where) -> None:
    """Probe a run by the protocol of a score; if that is none of probes, only say how to.

    Where parts of the labels would leave a class out they are drawn class by class, or else 1 and 5
    of each class are.
    """
    from potstill.core.log import Console
    from potstill.evaluation import PROBES, whole_labels
    from potstill.run import opened

    if (protocol := score.protocol) not in PROBES.names():
        Console().say(f"It is for pre-training: `potstill probe {path}` scores it.")
        return
    data = opened(path).data
    assert data is not None
    work = {"engine": where.engine, "workers": where.workers, "store": where.store}
    flags = ProbeFlags(**work, protocol=protocol, **whole_labels(data, protocol))  # pyrefly: ignore
    _show(_probed(path, flags))


def _show(found: ProbeResult) -> None:
    from rich.console import Console

    from potstill.report import rich_probes

    Console(width=None if sys.stdout.isatty() else 160).print(rich_probes(found))


def _probed(path: Path, flags: ProbeFlags) -> ProbeResult:
    """Evaluate a set or run; beside a run, keep the rows."""
    from potstill.core.log import Console
    from potstill.evaluation import direct_recipe, evaluate_pretraining
    from potstill.job import eval_rows, keep_rows
    from potstill.run import opened

    epochs = flags.direct_epochs
    if epochs is not None and (epochs < 1 or flags.direct is None):
        raise InputError(
            f"--direct-epochs must be at least 1 and goes with --direct, not {epochs}."
        )
    where, known = flags.where(), opened(path, flags.data, flags.wish())
    if known.run is not None:
        eval_rows(known.path)  # refuses damaged ones before anything is trained
    direct = flags.direct and direct_recipe(flags.direct, epochs=epochs or 800)
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
            stratified=flags.stratified,
            finetune=flags.finetune,
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
    """Write rows, table and plot into a folder; see `written`."""
    from potstill.report import probe_markdown, probe_plot
    from potstill.studies.kept import written

    written(found.lines(), probe_markdown(found) + "\n", probe_plot(found), out)
