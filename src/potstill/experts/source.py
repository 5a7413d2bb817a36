"""Network sources: where the network of an outer step comes from."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from potstill.core.errors import InputError
from potstill.core.keys import generator
from potstill.experts.store import Trajectory
from potstill.nets import FlatNet, NetSpec, flat


@dataclass(frozen=True, kw_only=True)
class Draw:
    """A network to start from and, for trajectory matching, the parameters to arrive at."""

    theta: Tensor
    target: Tensor | None
    expert: int
    epoch: int


class NetworkSource(Protocol):
    """Where a method draws its networks; a pure function of seed and iteration."""

    def draw(self, seed: int, it: int) -> Draw:
        """Return the network of outer step `it`."""
        ...


class Ahead:
    """Draw from stored networks, the next outer step's in the background meanwhile.

    It owns one thread and one draw that is under way; what it returns is the source's own, in
    memory from which a GPU copies without waiting.
    """

    def __init__(self, source: NetworkSource) -> None:
        self.source, self._thread = source, ThreadPoolExecutor(max_workers=1)
        self._next: tuple[tuple[int, int], Future[Draw]] | None = None

    @property
    def walked(self) -> bool:
        """Return whether there is a network for every image step, not for every path."""
        return getattr(self.source, "walked", False)

    def draw(self, seed: int, it: int) -> Draw:
        """Return the draw of outer step `it`, and begin that of the next."""
        under_way, key = self._next, (seed, it)
        ready = under_way is not None and under_way[0] == key
        draw = under_way[1].result() if under_way and ready else self._pinned(*key)
        self._next = (seed, it + 1), self._thread.submit(self._pinned, seed, it + 1)
        return draw

    def _pinned(self, seed: int, it: int) -> Draw:
        draw = self.source.draw(seed, it)
        target = None if draw.target is None else _pin(draw.target)
        return replace(draw, theta=_pin(draw.theta), target=target)


def _pin(tensor: Tensor) -> Tensor:
    return tensor.pin_memory() if torch.cuda.is_available() else tensor


@dataclass(frozen=True)
class Trajectories:
    """Draw an expert and a start epoch s ~ U{0..T-1}; the target lies M epochs later.

    Every expert is used once in each round of as many steps as there are experts.

    Differs: the original shuffles files of ten experts and the experts within a file; here one
    permutation of all experts is drawn a round (the same distribution of each step's expert).
    """

    experts: tuple[Trajectory, ...]
    start_epochs: int
    span: int

    @classmethod
    def open(cls, folders: Sequence[Path], *, start_epochs: int, span: int) -> Trajectories:
        """Open finished experts.

        Raises:
            InputError: if the window start_epochs - 1 + span reads past the last snapshot.
        """
        experts = tuple(Trajectory(folder) for folder in folders)
        last = min(expert.shape[0] for expert in experts) - 1
        check_window(start_epochs=start_epochs, span=span, epochs=last)
        return cls(experts, start_epochs, span)

    def draw(self, seed: int, it: int) -> Draw:
        """Return start and target parameters of outer step `it`."""
        rounds, place = divmod(it, len(self.experts))
        order = torch.randperm(len(self.experts), generator=generator(seed, "experts", rounds))
        expert = int(order[place])
        chance = generator(seed, "start", it)
        epoch = int(torch.randint(self.start_epochs, (), generator=chance))
        rows = self.experts[expert]
        return Draw(
            theta=rows.row(epoch), target=rows.row(epoch + self.span), expert=expert, epoch=epoch
        )


@dataclass(frozen=True)
class Fresh:
    """Draw networks with their initial weights, another one each outer step."""

    spec: NetSpec
    channels: int
    size: tuple[int, int]
    classes: int

    def draw(self, seed: int, it: int) -> Draw:
        """Return the weights of network `it`."""
        return Draw(theta=self.net(seed, it).theta0, target=None, expert=0, epoch=0)

    def net(self, seed: int, it: int) -> FlatNet:
        """Return network `it` itself."""
        return flat(
            self.spec,
            channels=self.channels,
            size=self.size,
            classes=self.classes,
            seed=seed,
            key=("fresh", it),
        )


def check_window(*, start_epochs: int, span: int, epochs: int) -> None:
    """Refuse a window of start epochs that needs more epochs than experts have."""
    if start_epochs < 1 or span < 1:
        raise InputError(
            f"max_start_epoch and expert_epochs must be at least 1, not {start_epochs} and {span}."
        )
    if start_epochs - 1 + span > epochs:
        raise InputError(
            f"Start epochs up to {start_epochs - 1} with targets {span} epochs later need experts "
            f"of {start_epochs - 1 + span} epochs; these have {epochs}."
        )
