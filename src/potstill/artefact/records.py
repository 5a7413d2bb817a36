"""The records that travel with a distilled set: its blocks, and where it comes from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from potstill.core.errors import InputError
from potstill.core.spec import later, record
from potstill.data.types import Reading
from potstill.functional.schedule import Segment


@record
@dataclass(frozen=True, kw_only=True)
class Block:
    """A named run of images, `start` to `stop` (excluded): a stage or a prefix of the set.

    `lr` is the step size of the recipe when the block was done, if later blocks learned another.
    `train` is how a network is trained on the union up to this block before the next one is added
    (see `DistilledSet.staged`), in parts of the block's step size.

    Raises:
        InputError: if a segment of `train` names blocks itself.
    """

    name: str
    start: int
    stop: int
    lr: float | None = None
    train: tuple[Segment, ...] = later(())

    def __post_init__(self) -> None:
        if any(segment.blocks for segment in self.train):
            raise InputError("The segments of a block's training name no blocks themselves.")


@record
@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a distilled set comes from.

    `method`, `cost` and `accuracy` are JSON objects as text (`core.spec.canonical`), so a set can
    be read where the code of its method is absent. `data` is the source as the user wrote it,
    `reading` how images were read from it, `identity` their hash, `iteration` the outer iteration
    taken, `selection` the rule that took it; the runner fills in what the method does not know.

    Raises:
        InputError: if one of the three is not the text of a JSON object.
    """

    method: str
    recipe: str | None = None
    data: str
    identity: str
    seed: int
    version: str
    iteration: int = 0
    cost: str = "{}"
    accuracy: str = "{}"
    parents: tuple[str, ...] = ()
    selection: str = "last"
    reading: Reading = Reading()
    rows: tuple[int, ...] = ()
    """For a set of real images: which of the training part (`DataSet.train`) they are."""

    def __post_init__(self) -> None:
        for name in ("method", "cost", "accuracy"):
            text = getattr(self, name)
            try:
                sound = isinstance(json.loads(text), dict)
            except (TypeError, ValueError):
                sound = False
            if not sound:
                raise InputError(f"{name} must be the text of a JSON object, not {text!r}.")

    @property
    def method_spec(self) -> dict[str, Any]:
        """Return the spec of the method as plain JSON data."""
        return json.loads(self.method)

    @property
    def costs(self) -> dict[str, Any]:
        """Return what making the set took, by name."""
        return json.loads(self.cost)

    @property
    def measured(self) -> dict[str, Any]:
        """Return the accuracy measured when the set was made; empty if none was."""
        return json.loads(self.accuracy)
