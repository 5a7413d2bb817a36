"""A small RaT-BPTT on digits, and its meta-gradient by a plain double loop."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from potstill.core.compute import Compute
from potstill.core.keys import generator
from potstill.core.state import save_tree
from potstill.data import measure_stats, open_data
from potstill.experts import Draw, Fresh
from potstill.methods import Context, Plan, SynthBlock
from potstill.methods.inner import Inner
from potstill.methods.ratbptt import RaTBPTT
from potstill.methods.real import RealImages
from potstill.methods.start import labels_of
from potstill.methods.windows import Turn, Window
from potstill.nets import FlatNet, NetSpec, build

NET = NetSpec(name="convnet2", width=8)
METHOD = RaTBPTT(
    iterations=20,
    window=Window(length=3, total=7, place="fixed"),
    inner=Inner(lr=0.01),
    real=RealImages(batch=90),
    image_init="real",
    lr_img=0.01,
    evaluation_steps=40,
)


@dataclass(frozen=True)
class Cast:
    """Another source in another type; the networks of `broken` outer steps are infinite."""

    source: Fresh
    dtype: torch.dtype = torch.float32
    broken: frozenset = field(default_factory=frozenset)

    def draw(self, seed, it):
        theta = self.source.draw(seed, it).theta.to(self.dtype)
        theta = theta + float("inf") if it in self.broken else theta
        return Draw(theta=theta, target=None, expert=0, epoch=0)


def context(*, ipc=1, strategy="graph", synth=None, dtype=torch.float32, broken=(), memory=2**32):
    data = open_data("digits", limit=40)
    module = build(NET, channels=1, size=data.size, classes=10, seed=0, key=("student",))
    one = Compute(threads=1)
    return Context(
        data=data,
        space=measure_stats(data.train),
        net=FlatNet(module),
        net_spec=NET,
        ipc=ipc,
        seed=0,
        plan=Plan(strategy=strategy, window=one, tasks=one, memory=memory),
        synth=synth or (SynthBlock(ipc=ipc),),
        nets=Cast(Fresh(NET, 1, (8, 8), 10), dtype, frozenset(broken)),
    )


def cast(tree, dtype):
    if isinstance(tree, dict):
        return {name: cast(value, dtype) for name, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple(cast(value, dtype) for value in tree)
    real = isinstance(tree, torch.Tensor) and tree.is_floating_point()
    return tree.to(dtype) if real else tree


def placed(state, start, length):
    return {**state, "turn": Turn(number=0, start=start, length=length, seen=(0.0, 0), memory={})}


def walked(method, ctx, state, start, stop):
    rows = []
    for it in range(start, stop):
        state, numbers = method.step(ctx, state, it)
        rows.append(numbers)
    return state, rows


def text(state, folder):
    save_tree(folder / "tree", state)
    return (folder / "tree").read_bytes()


def logits(theta, x):
    """A ConvNet-D2 of width 8 written out for a vector of parameters."""
    shapes = [(8, 1, 3, 3), (8,), (8,), (8,), (8, 8, 3, 3), (8,), (8,), (8,), (10, 32), (10,)]
    sizes = [torch.Size(shape).numel() for shape in shapes]
    parts = [p.view(shape) for p, shape in zip(theta.split(sizes), shapes, strict=True)]
    w1, b1, g1, h1, w2, b2, g2, h2, w, b = parts
    x = F.avg_pool2d(F.relu(F.group_norm(F.conv2d(x, w1, b1, padding=1), 8, g1, h1)), 2)
    x = F.avg_pool2d(F.relu(F.group_norm(F.conv2d(x, w2, b2, padding=1), 8, g2, h2)), 2)
    return x.flatten(1) @ w.t() + b


def adam_step(theta, grad, state, lr, s, *, inside):
    """Step s (from 1): torch's Adam, inside the window that of `higher` 0.2.1; no dead unit."""
    m, v = state
    m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad * grad
    c1, c2 = 1 - 0.9**s, 1 - 0.999**s
    root = torch.where(v > 0, v, 1).sqrt() * (v > 0)
    if inside:
        return theta - lr * c2**0.5 / c1 * m / (root + 1e-8), (m, v)
    return theta - lr / c1 * m / (root / c2**0.5 + 1e-8), (m, v)


def sgd_step(theta, grad, state, lr, s, *, inside):
    b = grad + 0.01 * theta
    b = b if s == 1 else 0.9 * state[0] + b
    return theta - lr * b, (b,)


def transcribed(method, ctx, state, it, k, step):
    """Return L, dL/dU, dL/dy, dL/dlr by one graph through the window, for hard labels dL/dy 0."""
    start, length = state["turn"]["start"], state["turn"]["length"]
    u = torch.cat(state["images"]).clone().requires_grad_()
    hard = labels_of(ctx)
    y = torch.cat(state["labels"]) if state["labels"] else F.one_hot(hard, 10).to(u)
    y = y.clone().requires_grad_()
    lr = state["lr"].clone().requires_grad_()
    theta = ctx.nets.draw(ctx.seed, it * method.tasks + k).theta
    chance = generator(ctx.seed, "student", it, k)
    batches = method.inner.batches(ctx, start + length, chance)
    moments = (torch.zeros_like(theta), torch.zeros_like(theta))
    for t, batch in enumerate(batches):
        inside = t >= start
        x, labels, rate = (each if inside else each.detach() for each in (u, y, lr))
        if t == start:
            theta = theta.detach()
            moments = tuple(m.detach() for m in moments)
        theta = theta if inside and t > start else theta.requires_grad_()
        x = x[batch.index]
        if method.inner.augment is not None:
            x = method.inner.augment.apply(x, batch.extra)
        loss = -(labels[batch.index] * F.log_softmax(logits(theta, x), 1)).sum(1).mean()
        (grad,) = torch.autograd.grad(loss, theta, create_graph=inside)
        theta, moments = step(theta, grad, moments, rate, t + 1, inside=inside)
        if not inside:
            theta = theta.detach()
    x, labels = method.real.drawn(ctx, state["missed"], it, k, like=theta)
    outer = F.cross_entropy(logits(theta, x), labels)
    return outer.detach(), *torch.autograd.grad(outer, [u, y, lr], allow_unused=True)


def near(a, b, limit):
    assert (a - b).norm() <= limit * b.norm(), float((a - b).norm() / b.norm())
