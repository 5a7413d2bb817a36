"""What a method is: a frozen dataclass with small pure functions over an explicit state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeVar

from torch import Tensor

from potstill.artefact import DistilledSet
from potstill.core.compute import Compute
from potstill.core.errors import InputError
from potstill.core.registry import Registry
from potstill.core.spec import later, record
from potstill.core.store import Store
from potstill.data import DataSet, Space
from potstill.engine import Ranks, Tasks
from potstill.experts import After, Begin, ImportedExpert, NetworkSource
from potstill.functional import TrainSpec
from potstill.nets import FlatNet, NetSpec

S = TypeVar("S")
Metrics = dict[str, float]
Done = Mapping[str, list[Path]]
"""Folders of finished phases, by name: that of a loop's stage, or the kind of its tasks."""


@dataclass(frozen=True, kw_only=True)
class SynthBlock:
    """One block of distilled images: `ipc` a class, moved at `lr_scale` times the step size.

    A block with lr_scale 0 is frozen: it stays outside the optimizer and must bring its images
    (model-input space, class-major). `labels` [C * ipc, C] are learned ones that it brings.
    """

    ipc: int
    lr_scale: float = 1.0
    images: Tensor | None = None
    labels: Tensor | None = None

    def __post_init__(self) -> None:
        if self.ipc < 1 or not self.lr_scale >= 0:
            raise InputError(
                f"A block needs an ipc of at least 1 and an lr_scale of at least 0, not {self.ipc} "
                f"and {self.lr_scale}."
            )
        if self.lr_scale == 0 and self.images is None:
            raise InputError("A frozen block (lr_scale 0) must bring its images.")


@record
@dataclass(frozen=True, kw_only=True)
class Plan:
    """What decides rounding, resolved once before a run and reused by resume."""

    strategy: Literal["graph", "adjoint"]
    """How the unrolled gradient is computed: graph | adjoint."""
    window: Compute
    """How the outer steps, with their differentiated student steps, are computed."""
    tasks: Compute
    """How experts and validation checks are trained."""
    memory: int = 4 * 2**30
    """Bytes that one pass of images through the network may keep."""
    prefix: Literal["float32", "bfloat16"] | None = None
    """Precision of plain student steps before differentiated ones; None: that of `window`."""
    ranks: int = later(1)
    """Processes of torchrun that share each batch of a teacher's training."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a method sees of a run."""

    data: DataSet
    space: Space
    net: FlatNet
    net_spec: NetSpec
    ipc: int
    seed: int
    plan: Plan
    synth: tuple[SynthBlock, ...]
    count: int = 0
    """Images of the set that is asked for, of all classes together."""
    replacement: bool = False
    """Whether a class with fewer real images than ipc gives images twice."""
    recorded: bool = False
    """Whether the run began before: its settings stand, even those that say nothing."""
    nets: NetworkSource | None = None
    done: Done = field(default_factory=dict)
    """Folders of the phases that were finished before the loop."""
    store: Store | None = None
    """Where finished work lies; in the user's cache by default."""
    ranks: Ranks = Ranks()
    """Which process this is, of those that share the outer steps."""
    after: After | None = None
    """Where networks begin that were trained on earlier blocks; None: fresh networks."""


@dataclass(frozen=True, kw_only=True)
class Loop:
    """A phase of outer steps of the method itself; `nets` is the source that it draws from.

    `opening` returns a line for people from the context and the state before the first step. The
    steps of a run's loops are numbered in one row: `first` are those of earlier loops. `stage` is
    the name of a loop that others follow: its set lies in the run's folder stages/STAGE, which
    `done[STAGE]` then names.
    """

    steps: int
    nets: NetworkSource | None = None
    opening: Callable[[Context, Any], str] | None = None
    first: int = 0
    stage: str = ""


Phase = Tasks | Loop


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a run will need, from formulas."""

    graph_bytes: int
    adjoint_bytes: int
    disk_bytes: int
    steps: int
    """Outer steps."""
    shares: int = 1
    """Tasks of an outer step that processes can share."""
    batch: int = 0
    """Where they share a teacher's training instead: the images of one of its steps."""
    window_images: int = 0
    """Images, with repetition, in all differentiated student steps together."""
    window_steps: int = 0
    """Those steps."""
    compiles: bool = True
    """Whether they can be compiled."""
    prefix: bool = False
    """Whether students make plain steps before those."""
    task_images: int = 0
    """Images, with repetition, that all experts together are trained on."""
    task_steps: int = 0
    """Steps of all experts together."""
    set_bytes: int = 0
    """Of the disk's bytes those that lie in the set too: links, or copies on another disk."""
    nets: tuple[NetSpec, ...] = ()
    """Networks of the tasks, where these are not the run's."""
    notes: tuple[str, ...] = ()
    """Advice about settings that will work badly on these data."""


class Method(Protocol[S]):
    """The seam between a method and the runner; see docs/architecture.md."""

    def check(self, ctx: Context) -> None:
        """Refuse settings that cannot work on this data before anything starts."""
        ...

    def cost(self, ctx: Context) -> Cost:
        """Return predicted memory and disk."""
        ...

    def phases(self, ctx: Context, done: Done) -> Phase | None:
        """Return the next phase, or None when only the export is left."""
        ...

    def init(self, ctx: Context) -> S:
        """Return the state before the first outer step."""
        ...

    def step(self, ctx: Context, state: S, it: int) -> tuple[S, Metrics]:
        """Return the state after outer step `it` and its numbers.

        "undone" among them says that the step was not finite and had no effect.
        """
        ...

    def export(self, ctx: Context, state: S) -> DistilledSet:
        """Return the distilled set of a state."""
        ...

    def scaled(self, scale: Literal["smoke", "cpu"]) -> Any:
        """Return the method with at most the counts of a scale; nothing but counts changes."""
        ...


class Conditional(Protocol):
    """What a method has besides, if its networks can begin where others ended (`Context.after`)."""

    diluted: ClassVar[bool]
    """Whether images move the less the more of them a student sees (not with Adam)."""

    def firsts(self, ctx: Context) -> tuple[Begin | ImportedExpert, ...]:
        """Return the method's own networks, which go from stage to stage; none: fresh ones do."""
        ...

    def training(self, ctx: Context, epochs: int) -> tuple[TrainSpec, int]:
        """Return how a network is trained on all blocks, and how many training images these are.

        For so many nominal epochs, at the first step size if one is learned.
        """
        ...

    @property
    def nominal(self) -> int:
        """Return the nominal epochs of training on the set."""
        ...


METHODS: Registry[type] = Registry("method")


def within_base(notes: tuple[str, ...]) -> tuple[str, ...]:
    """Return advice of a method in the words of one that wraps it: its flags are of the base."""
    return tuple(note.replace("--method.", "--method.base.") for note in notes)


def method_of(name: str) -> Any:
    """Return a method with its defaults; "boost:mtt" is a schedule over another method.

    More than one schedule can be named, but none takes another.

    Raises:
        InputError: for an unknown method, or one that wraps none.
    """
    outer, _, base = name.partition(":")
    cls = METHODS.get(outer)
    if not base:
        return cls()
    if "base" not in {f.name for f in fields(cls)}:
        raise InputError(f"The method {outer} wraps no other, so {name!r} says nothing.")
    return cls(base=method_of(base))


def name_of(method: Any) -> str:
    """Return the name by which `method_of` gives a method of this kind; "?" if none does."""
    own = next((name for name in METHODS.names() if METHODS.get(name) is type(method)), "?")
    base = getattr(method, "base", None)
    return own if base is None else f"{own}:{name_of(base)}"
