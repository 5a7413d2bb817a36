"""What versions of targets and experts share, and whether ours are the plain ones, in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import common
import plain
import torch
import torch.nn.functional as F
from checks import judged, plain_net, spec_of
from recover_setting import compute_of
from torch import Tensor, nn

from potstill.core.keys import generator
from potstill.core.vision import import_torchvision
from potstill.data import DataSet, named_stats
from potstill.experts import ExpertPlan, ExpertSpec, Trajectory, read_targets, write_targets
from potstill.experts.train import train_expert
from potstill.functional import fit
from potstill.nets import FlatNet, NetSpec, build, filled
from potstill.teachers import (
    Encoder,
    TargetsSpec,
    encode,
    keep_encoder,
    open_encoder,
)

NET, SPACE = NetSpec(name="resnet18-sololearn"), named_stats("cifar10@sololearn")
PLAN = ExpertPlan(count=1, epochs=1, lr=0.1, momentum=0.9, weight_decay=1e-4, batch=256,
                  augment=None, objective="kd_mse")  # fmt: skip
OUTPUTS = 512


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all versions share."""

    data: DataSet
    encoder: Encoder
    folder: Path
    """Where the encoder and the targets of experts lie."""
    width: int
    threads: int

    @property
    def normalised(self) -> Tensor:
        """Return the training images as networks take them."""
        return SPACE.forward(self.data.train.pixels[:])


def plain_encoder(encoder: nn.Module) -> nn.Module:
    """Return torchvision's ResNet-18 without its last layer, with the weights of ours."""
    net = import_torchvision().models.resnet18(weights=None)
    net.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=2, bias=False)
    net.maxpool, net.fc = nn.Identity(), nn.Identity()
    state = {n.removeprefix("encoder."): t for n, t in encoder.state_dict().items()}
    net.load_state_dict(state)
    return net.eval().to(next(encoder.parameters()).dtype)


def setting(folder: Path, *, count: int, width: int, threads: int) -> Setting:
    """Return noise, an encoder with statistics of it, and targets to learn, filed in a folder."""
    data = common.images(None, train=count, test=common.CLASSES)
    module = build(NET, channels=3, size=(common.SIDE,) * 2, classes=10, seed=0).train()
    with torch.no_grad():
        module(SPACE.forward(data.train.pixels[:32]))
    shape = (3, common.SIDE, common.SIDE)
    encoder = keep_encoder(module, folder, net=NET, space=SPACE, shape=shape)
    values = torch.randn(len(data.train), OUTPUTS, generator=generator(0, "targets"))
    moments = {"mean": values.mean(0), "std": values.std(0)}
    write_targets(folder, values, data=data.ref, facts={}, **moments)
    return Setting(data=data, encoder=encoder, folder=folder, width=width, threads=threads)


def plain_targets(net: nn.Module, x: Tensor, batch: int) -> Tensor:
    """Return the features of images by the plain program."""
    with torch.no_grad():
        return torch.cat([net(part) for part in x.split(batch)])


def our_targets(s: Setting, version: str) -> Tensor:
    """Return the features of the training images by potstill, files included."""
    compute = compute_of(version, threads=s.threads)
    spec = TargetsSpec(data=s.data.ref, encoder=s.encoder, compute=compute)
    with TemporaryDirectory() as folder:
        encode(spec, {s.encoder.digest: str(s.folder)}, Path(folder))
        return read_targets(Path(folder), data=s.data.ref)


def expert_spec(s: Setting, version: str, seed: int) -> ExpertSpec:
    """Return the spec of an expert of ours."""
    return ExpertSpec(
        data=s.data.ref,
        space=SPACE,
        net=filled(spec_of(s.width)),
        train=PLAN.train,
        seed=seed,
        index=0,
        compute=compute_of(version, threads=s.threads),
        targets="targets",
        outputs=OUTPUTS,
    )


def our_expert(s: Setting, version: str, seed: int) -> Tensor:
    """Train an expert by potstill, files included, and return its last weights [P]."""
    with TemporaryDirectory() as folder:
        train_expert(expert_spec(s, version, seed), {"targets": str(s.folder)}, Path(folder))
        return Trajectory(Path(folder)).row(PLAN.epochs)


def plain_expert(
    net: nn.Module, x: Tensor, y: Tensor, epochs: Sequence[Sequence[Tensor]]
) -> list[list[Tensor]]:
    """Train an expert by the plain program on rows; return its parameters after each epoch."""
    sgd = torch.optim.SGD(
        net.parameters(), lr=PLAN.lr, momentum=PLAN.momentum, weight_decay=PLAN.weight_decay
    )
    kept = [plain.copies(net)]
    for batches in epochs:
        for chosen in batches:
            loss = F.mse_loss(net(x[chosen]), y[chosen])
            sgd.zero_grad()
            loss.backward()
            sgd.step()
        kept.append(plain.copies(net))
    return kept


def start(width: int, seed: int) -> FlatNet:
    """Return the network of an expert."""
    side, key = (common.SIDE,) * 2, ("expert", 0)
    made = build(spec_of(width), channels=3, size=side, classes=OUTPUTS, seed=seed, key=key)
    return FlatNet(made)


def orders(count: int, batch: int, seed: int, epochs: int) -> list[Sequence[Tensor]]:
    """Return the rows of each batch of each epoch, those of ours."""
    keys = (generator(seed, "expert", 0, "epoch", epoch) for epoch in range(epochs))
    return [torch.randperm(count, generator=key).split(batch) for key in keys]


def check_targets(s: Setting) -> float:
    """Return how far features of ours in batches are from plain ones, one by one, in float64."""
    ours = open_encoder(s.encoder, s.folder).double()
    x = s.normalised[:6].double()
    theirs = plain_targets(plain_encoder(ours), x, 1)
    return judged(plain_targets(ours, x, 4), theirs, theirs, "encoding")


def check_experts(s: Setting) -> float:
    """Return how far 4 steps of ours lead from where the plain ones do, in float64."""
    x, y = s.normalised[:60].double(), read_targets(s.folder, data=s.data.ref)[:60].double()
    net = start(s.width, 0)
    theta, spec = net.theta0.double(), replace(PLAN, batch=32, epochs=2).train
    theirs = plain_net(s.width, theta, side=common.SIDE, classes=OUTPUTS)
    plain_expert(theirs, x, y, orders(60, 32, 0, 2))
    end = fit(net, theta, x, y, spec, seed=0, key=("expert", 0))
    other = nn.utils.parameters_to_vector(theirs.parameters()).detach()
    return judged(end, other, other - theta, "training")


def work(s: Setting, task: str) -> Callable[[str, int], object]:
    """Return what encodes, or trains an expert, by a version."""
    x, net = s.normalised, plain_encoder(open_encoder(s.encoder, s.folder))
    y = read_targets(s.folder, data=s.data.ref)

    def encoded(name: str, _: int) -> object:
        if name in ("plain", "batched"):
            return plain_targets(net, x, 1 if name == "plain" else 64)
        return our_targets(s, name)

    def expert(name: str, seed: int) -> object:
        if name != "plain":
            return our_expert(s, name, seed)
        own = plain_net(s.width, start(s.width, seed).theta0, side=common.SIDE, classes=OUTPUTS)
        return plain_expert(own, x, y, orders(len(x), PLAN.batch, seed, PLAN.epochs))

    return encoded if task == "targets" else expert
