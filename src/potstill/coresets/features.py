"""Features in which images are compared: pixels, or what the last layer of a network sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from potstill.core.keys import generator
from potstill.data import Space, Split, open_space, reopen
from potstill.experts import ExpertSpec, ImportedExpert, Trajectory, expert_net
from potstill.functional import fresh
from potstill.nets import FlatNet
from potstill.nets.hidden import features, head_of

_SETTLE, _BATCH = 2048, 256  # images from which running statistics are measured, and a batch


@dataclass(frozen=True)
class Features:
    """Features in which images are compared: a name for the record and pixels -> [n, F].

    `fn` takes uint8 images [n, C, H, W].
    """

    name: str
    fn: Callable[[Tensor], Tensor]


def pixel_features(space: Space) -> Features:
    """Return the normalised pixels themselves."""
    return Features("normalised pixels", lambda pixels: space.forward(pixels).flatten(1))


def net_features(net: FlatNet, theta: Tensor, space: Space, *, name: str) -> Features:
    """Return the input of the last linear layer of a trained network (an expert, a teacher).

    Raises:
        InputError: if the network does not end in a linear layer.
    """
    return module_features(net.load(theta), space, name=name)


def module_features(module: nn.Module, space: Space, *, name: str) -> Features:
    """Return the input of the last linear layer of a module, in evaluation mode; as `net_features`.

    Raises:
        InputError: if the network does not end in a linear layer (some end in a convolution).
    """
    whose = f"The network for features {name!r}"
    head_of(module.eval(), name=whose)

    def run(part: Tensor) -> Tensor:
        return module(space.forward(part))

    def found(pixels: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([features(module, run, part, name=whose) for part in pixels.split(64)])

    return Features(name, found)


@lru_cache(maxsize=1)
def expert_module(spec: ExpertSpec | ImportedExpert, folder: Path) -> nn.Module:
    """Return a finished expert after its last epoch, in evaluation mode; kept in the process.

    Running statistics (batch norm), which a trajectory does not hold, are measured anew.
    """
    data, trajectory = reopen(spec.data), Trajectory(folder)
    net = expert_net(spec, data) if isinstance(spec, ExpertSpec) else fresh(spec.net, data)
    module = net.load(trajectory.row(trajectory.shape[0] - 1))
    settle(module, data.train, open_space(spec.space))
    return module.eval()


def expert_features(spec: ExpertSpec | ImportedExpert, folder: Path) -> Features:
    """Return the features of a finished expert after its last epoch.

    Raises:
        InputError: if the network does not end in a linear layer.
    """
    name = f"the last hidden layer of {spec.net.name}"
    return module_features(expert_module(spec, folder), open_space(spec.space), name=name)


def settle(module: nn.Module, split: Split, space: Space) -> None:
    """Measure the running statistics of a module: their mean over batches of 2,048 keyed images."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in norms if norm.track_running_stats]
    if not norms:
        return
    module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over all batches
        norm.train()
    rows = torch.randperm(len(split), generator=generator(0, "settle"))[:_SETTLE]
    with torch.no_grad():
        for part in rows.chunk(-(-len(rows) // _BATCH)):
            module(space.forward(split.pixels[part]))
    module.eval()
