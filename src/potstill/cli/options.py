"""The flags of the commands, beside those of a run itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from potstill.core.errors import InputError

if TYPE_CHECKING:
    from potstill.core.compute import Wish
    from potstill.run import Where


@dataclass(frozen=True, kw_only=True)
class Work:
    """Who does the work and where it is kept."""

    engine: str = "inline"
    """inline; processes or ray for several experts, units, evaluations side by side."""
    workers: int = 1
    """Tasks side by side, at most."""
    ray_address: str | None = None
    """With --engine ray: a cluster to join, HOST:PORT or auto; by default one is started here."""
    store: Path | None = None
    """Folder of finished experts and evaluations; in the user's cache by default."""

    def where(self) -> Where:
        """Return what the runner wants to know."""
        from potstill.run import Where

        engine = self.engine
        if self.ray_address is not None:
            if engine != "ray":
                raise InputError(f"--ray-address is for --engine ray, not for {engine!r}.")
            engine += f"@{self.ray_address}"
        return Where(engine=engine, workers=self.workers, store=self.store)


@dataclass(frozen=True, kw_only=True)
class ResumeFlags(Work):
    """Flags of `resume`."""

    evaluate: bool = True
    """Score the set when it is made, as `potstill evaluate` does."""
    units: str | None = None
    """Of sre2l and cda: recover only these units, such as 0:50 (units 0 to 49), and end."""

    def where(self) -> Where:
        """Return what the runner wants to know."""
        from potstill.run import units_from

        units = None if self.units is None else units_from(self.units)
        return replace(super().where(), units=units)


@dataclass(frozen=True, kw_only=True)
class RunFlags(Work):
    """Flags of commands that make a run."""

    out: Path | None = None
    """Folder of the run; runs/NAME-SCALE-seedN by default."""


@dataclass(frozen=True, kw_only=True)
class DistilFlags(RunFlags, ResumeFlags):
    """Flags of `distill`."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """How a distilled set is scored."""

    data: str | None = None
    """The real images; by default those the set was made of, from the cache."""
    nets: tuple[str, ...] = ()
    """Networks to train, or pools of them: mtt, dc, dc-bench, idc; by default the set's own."""
    seeds: int | None = None
    """Networks a row; the protocol's number (5) by default."""
    protocol: str = "strict"
    """Rules of the evaluation (see `potstill protocols`)."""
    regimes: tuple[Literal["hard", "soft", "online", "stored"], ...] = ()
    """Labels of all images, side by side: hard, soft (a teacher's of each image), online (its own
    of every augmented batch); by default those of the set or protocol."""
    prefix: int | None = None
    """Score the first so many blocks of the set; all by default."""
    continual: int | None = None
    """Let the classes come in so many steps: fresh networks on the images of the classes so far,
    tested on these classes."""
    beside: tuple[Path, ...] = ()
    """Other sets or runs, cut to as many images a class (the first of each), by their recipes."""
    baselines: bool = True
    """Also train on random and k-means-medoid real images, as many a class, or mosaics of them."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """How networks are trained: as the run computes, unless these say more."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks are computed; auto = as the run, else a GPU if there is one."""
    threads: int | None = None
    """Threads of torch on a CPU; as the run, else those that torch finds, shared by the workers."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto = as the run, else bfloat16 where the machine is fast at it."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile training steps; auto = as the run, else where the work is long enough."""

    def wish(self) -> Wish:
        """Return what is asked of the machine."""
        from potstill.core.compute import Wish

        return Wish(
            device=self.device,
            threads=self.threads,
            precision=self.precision,
            compile=self.compile,
        )


@dataclass(frozen=True, kw_only=True)
class EvaluateFlags(Score, Work, Machine):
    """Flags of `evaluate`."""
