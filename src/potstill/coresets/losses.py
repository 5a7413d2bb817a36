"""How badly experts fit each training image, one task an expert.

Source: Joshi, Ni and Mirzasoleiman, Dataset Distillation via Knowledge Distillation: Towards
Efficient Self-Supervised Pre-Training of Deep Networks (MKDT), ICLR 2025 (arXiv 2410.02116).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from potstill.core.compute import Compute
from potstill.core.errors import InputError
from potstill.core.spec import record, spec_hash
from potstill.core.state import load_tree, save_tree
from potstill.coresets.features import settle
from potstill.data import moved, open_space, prepared, reopen
from potstill.engine import Tasks
from potstill.experts import ExpertSpec, Trajectory, expert_net, read_targets
from potstill.functional import predict
from potstill.nets import FlatNet

LOSSES = "losses"
"""Under what the store files them."""
_FILE = "losses.safetensors"
_PART = 4096  # images whose features are in memory at a time


@record
@dataclass(frozen=True, kw_only=True)
class LossSpec:
    """The losses of one expert: everything that they depend on."""

    expert: ExpertSpec
    """An expert of objective kd_mse."""
    epoch: int = 1
    """After which epoch it is asked."""
    revision: int = 1
    """Raised when the code changes what the losses become, so that old ones are not reused."""

    @property
    def compute(self) -> Compute:
        """Return how the task is computed."""
        return self.expert.compute


def loss_tasks(experts: Tasks, folders: list[Path], *, epoch: int = 1) -> Tasks:
    """Return one task an expert, of those that `experts` trained into these folders."""
    specs = tuple(LossSpec(expert=spec, epoch=epoch) for spec in experts.specs)
    where = {spec_hash(s): str(f) for s, f in zip(experts.specs, folders, strict=True)}
    context = {**experts.context, **where}
    return Tasks(kind=LOSSES, fn=image_losses, specs=specs, context=context, label="losses")


def image_losses(spec: LossSpec, context: dict[str, str], folder: Path) -> None:
    """Write an expert's loss of each training image, float64 [N], not augmented, into the folder.

    l_i = |g(theta; x_i) - r_i|^2 / D, where r_i [D] is the target of image i. Running statistics
    (batch norm), which a trajectory does not hold, are measured anew.

    Raises:
        InputError: if the expert or its targets are gone, or other ones.
    """
    expert, device = spec.expert, torch.device(spec.compute.device)
    assert expert.targets is not None
    data = reopen(expert.data)
    taught = read_targets(Path(context[expert.targets]), data=expert.data, width=expert.outputs)
    net = expert_net(expert, data)
    space = open_space(expert.space)
    module = net.load(Trajectory(Path(context[spec_hash(expert)])).row(spec.epoch))
    settle(module, data.train, space)
    net = FlatNet(module, recipe=net.recipe)
    theta = net.theta0.to(device)
    pixels, prepare = prepared(space, data.train.pixels)
    found = []
    for x, y in zip(moved(pixels, device).split(_PART), taught.split(_PART), strict=True):
        given = predict(net, theta, x, prepare=prepare, compute=spec.compute).cpu()
        found.append((given.double() - y).square().mean(1))
    save_tree(folder / _FILE, {"losses": torch.cat(found)})


@lru_cache(maxsize=1)
def expert_losses(folders: tuple[Path, ...]) -> Tensor:
    """Return the losses by each expert in these folders, float64 [K, N].

    Raises:
        InputError: if a file is missing or truncated.
    """
    try:
        return torch.stack([load_tree(folder / _FILE)["losses"] for folder in folders])
    except (KeyError, RuntimeError) as error:
        raise InputError(f"{folders[0].parent} holds losses that cannot be read.") from error
