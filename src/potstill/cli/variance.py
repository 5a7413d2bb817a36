"""`potstill study variance`: how much trainings from one beginning differ."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from potstill.cli.flags import parse
from potstill.cli.options import Machine, Work
from potstill.core.errors import InputError

if TYPE_CHECKING:
    from potstill.studies import Study


@dataclass(frozen=True, kw_only=True)
class VarianceFlags(Work, Machine):
    """Flags of `study variance`."""

    out: Path
    """Folder of the rows, the tables and the plot."""
    data: str
    """Where the images come from, as in `potstill distill`."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto = float32, since noise is measured."""
    objectives: tuple[str, ...] = ("ce", "kd_mse", "bt", "simclr", "kd_mse+views", "ce+views")
    """What runs learn: classes, features, by themselves; controls (+views) with their views."""
    batches: tuple[int, ...] = (64, 256)
    """Images a step."""
    images: int = 64
    """Training images of each class."""
    net: str = "auto"
    """The network; auto = a ConvNet that ends at about 4x4."""
    width: int | None = None
    """Its width; by default a quarter of the published one."""
    runs: int = 4
    """Trainings from each theta_0, which differ in order and augmentation."""
    steps: int | None = None
    """Of each run; by default those on record for batches of 64 and 256."""
    gradients: int = 24
    """Batches whose gradients are taken at theta_0 and at the end of each run."""
    distance: float | None = None
    """Let runs end where they are so far from theta_0, as a part of its length, if their steps
    suffice: then objectives are compared at equal progress."""
    lr: tuple[str, ...] = ()
    """Other step sizes, as in bt=1e-3 simclr=0.05."""
    encoder: Path | None = None
    """Folder of an encoder, or of a set or run of features, whose features are learned; by default
    the outputs of a random network are."""
    seed: int = 0
    """The first theta_0."""
    seeds: int = 1
    """How many of them, n."""


def variance(arguments: list[str]) -> tuple[Study, Any, Path]:
    """Return the study that the flags describe, its plot, and the folder for both."""
    text = "How much trainings from one beginning differ: of classes, of features, of views."
    flags = parse(VarianceFlags, arguments, name="study variance", text=text)
    from potstill.core.log import Console
    from potstill.data import open_data
    from potstill.nets import NetSpec
    from potstill.report import variance_plot
    from potstill.run import stoppable
    from potstill.studies import Comparison, free, variance_study

    free(flags.out)
    names = {field.name for field in fields(Comparison)} - {"net", "lr"}
    asked = Comparison(
        net=NetSpec(name=flags.net, width=flags.width),
        lr=_step_sizes(flags.lr),
        **{name: getattr(flags, name) for name in names},
    )
    where, data = flags.where(), open_data(flags.data)
    again = "the same command; what is finished is kept"
    with stoppable(again), Console().phase("rows", 1) as advance:
        found = variance_study(
            data,
            asked,
            encoder=flags.encoder,
            store=where.open_store(),
            engine=where.engine,
            workers=where.workers,
            wish=flags.wish(),
            on_done=lambda done, total: advance(done, total=total),
        )
    return found, variance_plot(found.rows), flags.out


def _step_sizes(texts: tuple[str, ...]) -> dict[str, float]:
    """Return step sizes by objective, from OBJECTIVE=LR each."""
    found = dict[str, float]()
    for text in texts:
        name, _, value = text.partition("=")
        if name in found:
            raise InputError(f"The step size of {name} is given twice.")
        try:
            found[name] = float(value)
        except ValueError:
            raise InputError(f"A step size is written as bt=1e-3, not {text}.") from None
    return found
