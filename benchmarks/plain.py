"""The plain programs: expert training, distillation by an unrolled graph, evaluation.

Stock PyTorch (modules, torch.optim, autograd), float32, whole batches, as the published programs
are described in papers; nothing of potstill. They take their random choices from outside (`Batch`),
so that `checks` can hand them those of potstill and compare in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from plain_dsa import Batch, augmented, drawn
from torch import Tensor, nn
from torch.func import functional_call

TEST_BATCH = 256


def convnet(width: int, *, side: int, classes: int) -> nn.Sequential:
    """Return ConvNet-3 of stock modules, its parameters in the order of potstill's."""
    layers: list[nn.Module] = []
    for channels in (3, width, width):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.GroupNorm(width, width)]
        layers += [nn.ReLU(), nn.AvgPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * (side // 8) ** 2, classes))


def train(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    epochs: Iterable[Iterable[Batch]],
    *,
    lr: float,
    momentum: float = 0.0,
    decay: float = 0.0,
    drop_after: int | None = None,
    snapshots: bool = False,
) -> list[list[Tensor]]:
    """Train a network in place; return copies of its parameters before and after each epoch.

    After the epoch of index drop_after lr falls to a tenth and the optimizer begins anew.
    """

    def optimizer(lr: float) -> torch.optim.SGD:
        return torch.optim.SGD(net.parameters(), lr=lr, momentum=momentum, weight_decay=decay)

    net.train()
    sgd, kept = optimizer(lr), [copies(net)] if snapshots else []
    for epoch, batches in enumerate(epochs):
        total, hits = 0.0, 0
        for batch in batches:
            x, y = augmented(images[batch.index], batch), labels[batch.index]
            logits = net(x)
            loss = F.cross_entropy(logits, y)
            total += loss.item() * len(y)
            hits += int((logits.argmax(1) == y).sum())
            sgd.zero_grad()
            loss.backward()
            sgd.step()
        if epoch == drop_after:
            sgd = optimizer(lr / 10)
        if snapshots:
            kept.append(copies(net))
    return kept


def train_to_evaluate(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    epochs: Iterable[Iterable[Batch]],
    *,
    lr: float,
    nominal: int,
) -> None:
    """Train a network on a set by the published recipe; nominal + 1 epochs are to be given."""
    drop_after = nominal // 2 + 1
    train(net, images, labels, epochs, lr=lr, momentum=0.9, decay=5e-4, drop_after=drop_after)


def copies(net: nn.Module) -> list[Tensor]:
    """Return copies of the parameters."""
    return [p.detach().clone() for p in net.parameters()]


def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the fraction of right answers, in batches."""
    net.eval()
    with torch.no_grad():
        pairs = zip(images.split(TEST_BATCH), labels.split(TEST_BATCH), strict=True)
        return sum(int((net(x).argmax(1) == y).sum()) for x, y in pairs) / len(labels)


def unrolled(
    net: nn.Module,
    theta: Tensor,
    images: Tensor,
    labels: Tensor,
    lr: Tensor,
    batches: Iterable[Batch],
    *,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> Tensor:
    """Return theta after one step of SGD a batch, with the autograd graph of all steps."""
    named = dict(net.named_parameters())
    sizes = [w.numel() for w in named.values()]
    theta = theta.clone().requires_grad_()
    for batch in batches:
        pairs = zip(named.items(), theta.split(sizes), strict=True)
        weights = {name: part.view(w.shape) for (name, w), part in pairs}
        given = functional_call(net, weights, (augmented(images[batch.index], batch),))
        error = loss(given, labels[batch.index])
        (grad,) = torch.autograd.grad(error, theta, create_graph=True)
        theta = theta - lr * grad
    return theta


def distance(end: Tensor, start: Tensor, target: Tensor) -> Tensor:
    """Return |end - target|^2 / |start - target|^2."""
    return (end - target).square().sum() / (start - target).square().sum()


def distil(
    net: nn.Module,
    experts: Sequence[Sequence[Sequence[Tensor]]],
    images: Tensor,
    labels: Tensor,
    *,
    iterations: int,
    steps: int,
    start_epochs: int,
    span: int,
    lr: float,
    lr_img: float,
    lr_lr: float,
    momentum: float,
    chance: torch.Generator,
) -> tuple[Tensor, float]:
    """Return distilled images and their step size, from real ones; all are in every batch."""
    images = images.clone().requires_grad_()
    beta = torch.tensor(lr, requires_grad=True)
    by_images = torch.optim.SGD([images], lr=lr_img, momentum=momentum)
    by_beta = torch.optim.SGD([beta], lr=lr_lr, momentum=momentum)
    for _ in range(iterations):
        expert = experts[int(torch.randint(len(experts), (), generator=chance))]
        epoch = int(torch.randint(start_epochs, (), generator=chance))
        start, target = (torch.cat([w.flatten() for w in expert[e]]) for e in (epoch, epoch + span))
        batches = (next(drawn(len(images), images.shape[2], chance)) for _ in range(steps))
        end = unrolled(net, start, images, labels, beta, batches)
        by_images.zero_grad()
        by_beta.zero_grad()
        distance(end, start, target).backward()
        by_images.step()
        by_beta.step()
    return images.detach(), beta.item()
