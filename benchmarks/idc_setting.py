"""What `gradient_matching` times: IDC of a size by potstill, and the plain program set to equal it.

The plain program gets the choices of ours: `choices` draws them by the keys that ours has.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import common
import plain_idc
import torch
from checks import judged, plain_net, spec_of, translated
from plain_dsa import Batch as Operation
from torch import Tensor

from potstill.augment import IDC, CutMix, Params
from potstill.core.keys import generator
from potstill.core.store import Store, default_cache
from potstill.data import DataSet, MeanStd
from potstill.engine import Tasks, run_tasks
from potstill.experts import Draw, NetworkPath, NetworkSource
from potstill.methods.api import Context, Loop
from potstill.methods.by_class import real_rows
from potstill.methods.condensation import IDCMethod
from potstill.methods.moving import State
from potstill.methods.start import class_rows
from potstill.run import Run, preflight


@dataclass(frozen=True, kw_only=True)
class Size:
    """Width of ConvNet-3, images a class, real images that a network sees in an inner step."""

    width: int
    ipc: int
    n_data: int


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What all versions share: the method, its run, its first state, fresh weights."""

    method: IDCMethod
    ctx: Context
    state: State
    theta: Tensor


def method_of(size: Size, *, matches: int, networks: int = 1, **settings: Any) -> IDCMethod:
    """Return the published method with so many matchings of each network."""
    path = NetworkPath(images=size.n_data)
    return replace(IDCMethod(networks=networks, matches=matches, path=path), **settings)


def run_of(
    method: IDCMethod,
    data: DataSet,
    size: Size,
    *,
    threads: int = 1,
    compiling: Literal["auto", "on", "off"] = "off",
) -> Run:
    """Return a run of a method."""
    return Run(
        method=method,
        data=f"cached:{data.ref.identity}",
        ipc=size.ipc,
        net=spec_of(size.width),
        normaliser="cifar10@idc",
        limit=data.ref.limit,
        validation=data.ref.validation,
        device="cpu",
        threads=threads,
        compile=compiling,
    )


def problem(method: IDCMethod, data: DataSet, size: Size, *, threads: int = 1) -> Problem:
    """Return the start of a run with the first network."""
    ctx, _ = preflight(run_of(method, data, size, threads=threads), data)
    ctx = replace(ctx, nets=networks(method, ctx))
    return Problem(
        method=method, ctx=ctx, state=method.init(ctx), theta=ctx.nets.draw(ctx.seed, 0).theta
    )


def networks(method: IDCMethod, ctx: Context) -> NetworkSource:
    """Return where the networks of a method come from; a pool is walked first."""
    phase = method.phases(ctx, {})
    if isinstance(phase, Tasks):
        folders = run_tasks(phase, Store(default_cache()))
        phase = method.phases(ctx, {phase.kind: folders})
    assert isinstance(phase, Loop)
    assert phase.nets is not None
    return phase.nets


def plain_job(p: Problem) -> plain_idc.Job:
    """Return the network and the images of the plain program before the first step."""
    space, path, data, dtype = p.ctx.space, p.method.path, p.ctx.data, p.theta.dtype
    width = p.ctx.net_spec.width
    assert isinstance(space, MeanStd)
    assert width is not None
    net = plain_net(width, p.theta, side=data.size[0], classes=data.n_classes)
    pixels = space.inverse(p.state["images"][0]).clamp(0, 1).requires_grad_()
    mean, std = (torch.tensor(v, dtype=dtype)[:, None, None] for v in (space.mean, space.std))
    return plain_idc.Job(
        net=net,
        by_net=torch.optim.SGD(
            net.parameters(), lr=path.lr, momentum=path.momentum, weight_decay=path.weight_decay
        ),
        pixels=pixels,
        by_pixels=torch.optim.SGD([pixels], lr=p.method.rate(p.ctx), momentum=p.method.momentum),
        images=space.inverse(space.forward(data.train.pixels[:]).to(dtype)),
        labels=data.train.labels,
        mean=mean,
        std=std,
        factor=p.method.factor,
    )


def choices(p: Problem, it: int) -> plain_idc.Choices:
    """Return the choices of ours in inner step `it` of the first network."""
    method, data, seed = p.method, p.ctx.data, p.ctx.seed
    shape, path = (data.channels, *data.size), p.method.path
    assert isinstance(method.augment, IDC)
    assert isinstance(path.augment, IDC)
    classes, count = [], p.ctx.ipc * method.factor**2
    for label, members in enumerate(class_rows(data)):
        real = real_rows(members, method.batch_real, it, (seed, "real", label))
        chance, kept = generator(seed, "match", it, label), None
        if method.batch_syn is not None and count > method.batch_syn:
            kept = torch.randperm(count, generator=chance)[: method.batch_syn]
        params = method.augment.sample(1, shape, chance)
        classes.append(plain_idc.Matching(real, kept, _operations(params)))
    batches, chance = [], generator(seed, "path", 0, it + 1)
    for index in _walked(len(data.train), path, it, seed):
        params = path.augment.sample(len(index), shape, chance)
        mixing = CutMix(prob=path.cutmix).sample(len(index), shape, chance)
        mix = mixing and plain_idc.Mix(mixing.rows, mixing.columns, mixing.partner, mixing.ratio)
        batches.append(plain_idc.TrainBatch(index, _operations(params), mix))
    return plain_idc.Choices(classes, batches)


def _operations(params: Params) -> list[Operation]:
    return [translated(torch.arange(0), replace(params, ops=(op,))) for op in params.ops]


def _walked(count: int, path: NetworkPath, it: int, seed: int) -> list[Tensor]:
    """Return the rows of each step of the first network after matching `it`."""
    first, last = path.steps(it, count), path.steps(it + 1, count)
    found: list[Tensor] = []
    while len(found) < last:
        chance = generator(seed, "path", 0, "epoch", len(found) // -(-count // path.batch))
        found += torch.randperm(count, generator=chance).split(path.batch)
    return found[first:last]


@dataclass(frozen=True)
class Exact:
    """Networks in float64."""

    nets: NetworkSource

    def draw(self, seed: int, it: int) -> Draw:
        """Return the weights of network `it`."""
        drawn = self.nets.draw(seed, it)
        return replace(drawn, theta=drawn.theta.double())


def check_equal(*, width: int, compiled: bool = False) -> float:
    """Return how far two steps of ours lead from where the plain ones lead, in parts of their way.

    Images and weights, in float64, on few images: a part of the decoded ones is drawn, an epoch
    ends with a smaller batch, some first pixels are cut. Ours has std and step size in float32, so
    these are powers of 2. `compiled`: what is differentiated twice.

    Raises:
        SystemExit: if it is above 1e-9.
    """
    size, data = Size(width=width, ipc=2, n_data=90), common.images(None, train=100, test=10)
    method = method_of(size, matches=3, batch_real=6, batch_syn=6, image_init="noise", lr_img=2.5)
    method = replace(method, path=replace(method.path, batch=40))
    p = problem(method, data, size)
    assert p.ctx.nets is not None
    space = MeanStd(mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 0.125))
    plan = replace(p.ctx.plan, window=replace(p.ctx.plan.window, compiled=compiled))
    ctx = replace(p.ctx, space=space, plan=plan, nets=Exact(p.ctx.nets))
    images = (p.state["images"][0].double(),)
    state: State = {**p.state, "images": images, "velocity": (torch.zeros_like(images[0]),)}
    p = replace(p, ctx=ctx, state=state, theta=p.theta.double())
    job = plain_job(p)
    start = job.pixels.detach().clone()
    for it in range(2):
        state, _ = method.step(ctx, state, it)
        plain_idc.inner_step(job, choices(p, it))
    theta, pixels = state["theta"], space.inverse(state["images"][0])
    assert theta is not None
    other, plain = job.weights(), job.pixels.detach()
    return max(
        judged(pixels, plain, plain - start, "distilled image"),
        judged(theta, other, other - p.theta, "network"),
    )
