"""A small KRR-ST on digits, its work up to the loop, and a plain transcription of its steps."""

from dataclasses import dataclass

import torch
from torch import nn

import mkdt_small
from mkdt_small import SELF
from potstill.core.keys import generator
from potstill.methods.krr_real import real_rows
from potstill.methods.krr_st import KRRST
from potstill.nets import NetSpec, build
from potstill.run import Run
from potstill.teachers import EncoderPlan, open_encoder, read_encoder

NET = NetSpec(name="convnet3-krrst", width=4)
METHOD = KRRST(
    iterations=6,
    batch_real=32,
    lr=0.01,
    models=3,
    life=4,
    inner_lr=0.05,
    teacher=EncoderPlan(net="convnet2", width=8, training=SELF, space="mnist@dc"),
)
RUN = Run(method=METHOD, data="digits", size="15", net=NET, limit=30, threads=1)


def ready(store, method=METHOD, run=RUN):
    """Return the context of the loop of a run, whose tasks are done once for all tests."""
    return mkdt_small.ready(store, method, run)


def first_steps(method, ctx):
    """Return the steps of the pool before the first outer step."""
    return method.cost(ctx).steps - method.iterations


def cast(tree):
    """Return a state in float64."""
    if isinstance(tree, dict):
        return {k: cast(v) for k, v in tree.items()}
    if isinstance(tree, tuple):
        return tuple(map(cast, tree))
    return tree.double() if isinstance(tree, torch.Tensor) and tree.is_floating_point() else tree


class Plain(nn.Module):
    """The ConvNet of KRR-ST on digits, written down: three blocks and a linear layer."""

    def __init__(self, width, features):
        super().__init__()
        layers, channels = [], 1
        for wide in (width, 2 * width, 4 * width):
            layers += [nn.Conv2d(channels, wide, 3, padding=1), nn.BatchNorm2d(wide)]
            layers += [nn.ReLU(), nn.AvgPool2d(2)]
            channels = wide
        self.blocks, self.head = nn.Sequential(*layers), nn.Linear(channels, features)

    def phi(self, x):
        return self.blocks(x).flatten(1)

    def forward(self, x):
        return self.head(self.phi(x))


@dataclass
class Learner:
    """A network of the pool with its optimizer and age."""

    net: nn.Module
    sgd: torch.optim.Optimizer
    age: int = 0


def learner(ctx, method, slot, key, features):
    """Return a new network of a slot, in float64."""
    net = Plain(ctx.net_spec.width, features)
    given = {"channels": 1, "size": (8, 8), "classes": features, "seed": ctx.seed}
    made = build(ctx.net_spec, **given, key=("pool", slot, key))
    weights = nn.utils.parameters_to_vector(made.parameters())
    nn.utils.vector_to_parameters(weights, net.parameters())
    options = {"momentum": method.momentum, "weight_decay": method.weight_decay}
    net = net.double()
    return Learner(net, torch.optim.SGD(net.parameters(), method.inner_lr, **options))


def transcribed(method, ctx, state, slots):
    """Take the steps of section 11.1 from a first state; return X_s, Y_s, learners and losses.

    `slots` are the networks of all steps; the first ones are those on the first images.
    """
    x, y = (each.double().clone().requires_grad_() for each in state["images"])
    pool = [learner(ctx, method, m, "first", y.shape[1]) for m in range(method.models)]
    outer = torch.optim.AdamW([x, y], method.lr, weight_decay=0)
    falls = torch.optim.lr_scheduler.LinearLR(outer, 1.0, 1e-3, method.iterations)
    teacher = read_encoder(folder := ctx.done["encoders"][0])
    encoder, losses = open_encoder(teacher, folder), []
    first = len(slots) - method.iterations
    for it, slot in enumerate(slots):
        one, turn = pool[slot], it - first
        if turn >= 0:
            rows = real_rows(len(ctx.data.train), method.batch_real, seed=ctx.seed, turn=turn)
            real = ctx.data.train.pixels[rows].float() / 255
            chance = generator(ctx.seed, "augment", turn)
            real = method.augment.apply(real, method.augment.sample(len(real), (1, 8, 8), chance))
            mean, std = teacher.space.mean[0], teacher.space.std[0]
            with torch.no_grad():
                wanted = encoder((real - mean) / std).double()
                real = (real - ctx.space.mean[0]) / ctx.space.std[0]
                f_r = one.net.eval().phi(real.double())
            f_s = one.net.eval().phi(x)
            f_s, f_r = (torch.cat([f, torch.ones(len(f), 1).double()], 1) for f in (f_s, f_r))
            kernel = f_s @ f_s.T
            ridge = method.lam * kernel.detach().trace() * torch.eye(len(x)).double()
            fit = f_r @ f_s.T @ torch.linalg.solve(kernel + ridge, y)
            loss = ((fit - wanted) ** 2).mean()
            losses.append(loss.item())
            outer.zero_grad()
            loss.backward()
            if method.clip is not None:
                nn.utils.clip_grad_norm_([x, y], method.clip)
            outer.step()
            falls.step()
        one.sgd.zero_grad()
        nn.functional.mse_loss(one.net.train()(x.detach()), y.detach()).backward()
        one.sgd.step()
        one.age += 1
        if one.age >= method.life:
            pool[slot] = learner(ctx, method, slot, it, y.shape[1])
            pool[slot].age = one.age if method.legacy else 0
    return x, y, outer, pool, losses
