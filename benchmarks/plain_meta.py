"""The plain program of an outer step of RaT-BPTT: all that is differentiated lies in one graph.

Stock PyTorch, float32, whole batches, as the published program is described: torch.optim.Adam
before the window; inside it Adam tensor by tensor, with eps where the package it uses puts it
(under the root's uncorrected moment) and no derivative where the second moment is 0. Nothing of
potstill. What the published program wastes is left out: gradients of the images before the window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from plain_dsa import Batch
from torch import Tensor, nn
from torch.func import functional_call

BETAS, EPS = (0.9, 0.999), 1e-8


def augmented(x: Tensor, batch: Batch) -> Tensor:
    """Return images [n, C, H, W] mirrored or rotated, each by its own number."""
    if batch.op == "flip":
        return torch.where(batch.numbers["flip"].bool().view(-1, 1, 1, 1), x.flip(3), x)
    turns = [(math.cos(a), math.sin(a)) for a in batch.numbers["angle"].deg2rad().tolist()]
    matrices = torch.tensor([[[c, -s, 0], [s, c, 0]] for c, s in turns], dtype=x.dtype)
    grid = F.affine_grid(matrices, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def meta_gradient(
    net: nn.Module,
    theta: Tensor,
    images: Tensor,
    labels: Tensor,
    batches: Sequence[Batch],
    real: tuple[Tensor, Tensor, Batch],
    *,
    start: int,
    lr: float,
) -> Tensor:
    """Return the gradient in the images of the loss on real ones after all batches.

    The network is trained in place from theta [P] by `start` plain steps of Adam; the other
    batches are differentiated.
    """
    nn.utils.vector_to_parameters(theta.clone(), net.parameters())
    adam = torch.optim.Adam(net.parameters(), lr=lr, betas=BETAS, eps=EPS)
    for batch in batches[:start]:
        adam.zero_grad()
        F.cross_entropy(net(augmented(images[batch.index], batch)), labels[batch.index]).backward()
        adam.step()
    images = images.clone().requires_grad_()
    weights = {name: w.detach().clone().requires_grad_() for name, w in net.named_parameters()}
    moments = [
        [adam.state[w][name] if start else torch.zeros_like(w) for w in net.parameters()]
        for name in ("exp_avg", "exp_avg_sq")
    ]
    for step, batch in enumerate(batches[start:], start + 1):
        logits = functional_call(net, weights, (augmented(images[batch.index], batch),))
        loss = F.cross_entropy(logits, labels[batch.index])
        grads = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        moved, moments = adam_step(list(weights.values()), grads, moments, step, lr)
        weights = dict(zip(weights, moved, strict=True))
    x, y, choices = real
    F.cross_entropy(functional_call(net, weights, (augmented(x, choices),)), y).backward()
    assert images.grad is not None
    return images.grad


def adam_step(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    moments: Sequence[Sequence[Tensor]],
    step: int,
    lr: float,
) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Return weights and moments after step number `step` (from 1) of Adam, with their graph."""
    (b1, b2), found = BETAS, ([], [], [])
    size = lr * math.sqrt(1 - b2**step) / (1 - b1**step)
    for w, g, m, v in zip(weights, grads, *moments, strict=True):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        root = v.sqrt()
        if root.requires_grad:
            root.register_hook(lambda bar, v=v: bar.masked_fill(v == 0, 0))
        for values, value in zip(found, (w - size * m / (root + EPS), m, v), strict=True):
            values.append(value)
    return found[0], [found[1], found[2]]
