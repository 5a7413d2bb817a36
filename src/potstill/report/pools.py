"""The table of `potstill experts list`."""

from __future__ import annotations

import math
import statistics
import time
from typing import TYPE_CHECKING, Any

from potstill.core.errors import InputError
from potstill.data import SpaceSpec, ZcaRef
from potstill.experts import TARGETS, Pool, targets_facts
from potstill.nets import NetSpec, describe

if TYPE_CHECKING:
    from rich.table import Table

HEAD = (
    *("pool", "experts", "data", "network", "normaliser", "training", "seed"),
    *("validation %", "size", "age"),
)


def pool_table(pools: list[Pool]) -> Table:
    """Return one line a pool for a rich console."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD)
    for head in HEAD:
        table.add_column(head, overflow="fold")
    for pool in pools:
        table.add_row(*map(Text, pool_cells(pool)))
    return table


def pool_cells(pool: Pool) -> tuple[str, ...]:
    """Return what is known of a pool, in the order of `HEAD`."""
    age = _age(time.time() - max(entry.seconds for entry in pool.entries))
    end = (size_text(pool.nbytes), age)
    number = _ranges(pool.indices) or str(len(pool.entries))
    if pool.spec is None:
        return (pool.name[:12], number, *("-",) * 3, pool.problem, *("-",) * 2, *end)
    facts = pool.facts()
    source = next((f["source"] for f in facts if isinstance(f.get("source"), str)), "")
    training = _training(pool, facts[0] if facts else {})
    return (
        pool.name[:12],
        number,
        f"{pool.spec.data.identity[:8]} {source}".strip(),
        _net(pool.spec.net),
        _normaliser(pool.spec.space),
        training + (f" ({pool.problem})" if pool.problem else ""),
        str(getattr(pool.spec, "seed", "-")),
        accuracy_text(facts),
        *end,
    )


def _net(spec: NetSpec) -> str:
    try:
        return describe(spec)
    except InputError:  # a network of a package that is not here
        return spec.name


def _normaliser(spec: SpaceSpec) -> str:
    """Return the kind of whitening, or mean / std of each channel."""
    if isinstance(spec, ZcaRef):
        whole = spec.rank == math.prod(spec.shape)
        return spec.kind if whole else f"{spec.kind}:{spec.rank}"
    return " / ".join(" ".join(f"{v:.3g}" for v in values) for values in (spec.mean, spec.std))


def _training(pool: Pool, facts: dict[str, Any]) -> str:
    """Return how the experts of a pool were trained, in a few words."""
    train = getattr(pool.spec, "train", None)
    if train is None:
        lr = f", lr {facts['lr']:g}" if isinstance(facts.get("lr"), float) else ""
        return f"imported, {_epochs(pool)} epochs{lr}"
    own, gsam = train.optimizer, train.sharpness
    taught = type(train.pairs).__name__ if train.pairs else ""
    if train.loss == "mse":
        taught = _encoder(pool)
    parts = [
        *([taught] if taught else []),
        f"{train.epochs} epochs",
        f"{type(own).__name__} lr {train.lr:g}",
    ]
    parts += [f"momentum {own.momentum:g}"] if getattr(own, "momentum", 0) else []
    parts += [f"decay {own.weight_decay:g}"] if own.weight_decay else []
    parts += [f"GSAM {gsam.rho:g} / {gsam.alpha:g}"] if gsam is not None else []
    parts += [f"batch {train.batch}", *([] if train.augment else ["not augmented"])]
    parts += [f"CutMix {train.mix.prob:g}"] if train.mix is not None else []
    compute = getattr(pool.spec, "compute", None)
    parts += [] if compute is None else [compute.describe()]
    return ", ".join(parts)


def _encoder(pool: Pool) -> str:
    """Return whose features the experts of a pool learn, as far as its store still has them."""
    folder = pool.entries[0].folder.parents[1] / TARGETS / pool.spec.targets
    try:
        facts = targets_facts(folder)
        scale = "" if facts["scale"] == "raw" else f" {facts['scale']}"
        return f"KD of {facts['net']} {facts['encoder'][:8]}{scale}"
    except (InputError, KeyError):
        return "KD"


def _epochs(pool: Pool) -> str:
    try:
        return str(pool.last_epoch())
    except InputError:
        return "?"


def accuracy_text(facts: list[dict[str, Any]]) -> str:
    """Return mean ± standard deviation of the validation accuracies in percent, or "-"."""
    found = [fact.get("validation_accuracy") for fact in facts]
    values = [100 * value for value in found if isinstance(value, float)]
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}" if values else "-"


def outcome_text(facts: list[dict[str, Any]]) -> str:
    """Return what came out: the accuracy of experts of classes, the last loss of others."""
    if (found := accuracy_text(facts)) != "-":
        return f"validation accuracy {found} %"
    return f"training loss {statistics.mean(fact['train_loss'][-1] for fact in facts):.4g}"


def _ranges(numbers: list[int]) -> str:
    """Return numbers as ranges: 0-3, 7."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ", ".join("-".join(map(str, part)) for part in parts)


def counted(count: int, what: str) -> str:
    """Return a number of things in words: "1 pool", "2 pools"."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def size_text(count: int) -> str:
    """Return bytes in MiB or GiB."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.2f} MiB"


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
