"""One inner step of IDC as a plain program has it: class by class, then the network by real images.

Stock PyTorch (modules, torch.optim, autograd), float32, nothing of potstill. It takes its random
choices from outside (`Choices`), so that `gradient_matching` can hand it those of potstill.

Source: Kim et al., "Dataset Condensation via Efficient Synthetic-Data Parameterization", ICML 2022
(arXiv 2205.14959), and a description of its authors' code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from plain_dsa import Batch as Operation
from plain_dsa import augmented
from torch import Tensor, nn


@dataclass(frozen=True)
class Matching:
    """Of one class: its real images, some of its decoded ones (None: all), their augmentation."""

    real: Tensor
    kept: Tensor | None
    operations: Sequence[Operation]


@dataclass(frozen=True)
class Mix:
    """A box, whose box an image takes instead of its own, and the area that it keeps."""

    rows: slice
    columns: slice
    partner: Tensor
    ratio: float


@dataclass(frozen=True)
class TrainBatch:
    """One step of the network: which real images, their augmentation and mixing."""

    index: Tensor
    operations: Sequence[Operation]
    mix: Mix | None


@dataclass(frozen=True)
class Choices:
    """All random choices of an inner step."""

    classes: Sequence[Matching]
    batches: Sequence[TrainBatch]


@dataclass(frozen=True)
class Job:
    """What stays: a network, raw pixels [C * ipc, 3, H, W], their optimizers, raw real images."""

    net: nn.Module
    by_net: torch.optim.Optimizer
    pixels: Tensor
    by_pixels: torch.optim.Optimizer
    images: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor
    factor: int

    def normalised(self, x: Tensor) -> Tensor:
        """Return images as the network takes them."""
        return (x - self.mean) / self.std

    def weights(self) -> Tensor:
        """Return the weights of the network as one vector."""
        return nn.utils.parameters_to_vector(self.net.parameters()).detach()


def inner_step(job: Job, choices: Choices) -> float:
    """Match every class and step the images after each; train the network; return the mean loss."""
    total, ipc = 0.0, len(job.pixels) // len(choices.classes)
    for label, own in enumerate(choices.classes):
        real, stored = job.images[own.real], job.pixels[label * ipc : (label + 1) * ipc]
        syn = decoded(stored, job.factor)
        if own.kept is not None:
            syn = syn[own.kept]
        both = job.normalised(torch.cat([real, syn]))
        for operation in own.operations:
            both = augmented(both, operation)
        loss = distance(job.net, both[: len(real)], both[len(real) :], label)
        job.by_pixels.zero_grad()
        loss.backward()
        job.by_pixels.step()
        total += loss.item()
    train(job, choices.batches)
    return total / len(choices.classes)


def decoded(images: Tensor, factor: int) -> Tensor:
    """Return the cells of all images, cell by cell, each enlarged to a whole image."""
    side, missing = images.shape[2], -images.shape[2] % factor
    images = F.pad(images, (0, missing, 0, missing), value=0.5)
    cell = images.shape[2] // factor
    starts = range(0, cell * factor, cell)
    cells = [images[:, :, y : y + cell, x : x + cell] for y in starts for x in starts]
    return F.interpolate(torch.cat(cells), (side, side), mode="bilinear", align_corners=False)


def distance(net: nn.Module, real: Tensor, syn: Tensor, label: int) -> Tensor:
    """Return the summed squared difference of the gradients by all convolution kernels."""

    def gradients(x: Tensor, graph: bool) -> tuple[Tensor, ...]:
        loss = F.cross_entropy(net(x), torch.full((len(x),), label))
        return torch.autograd.grad(loss, list(net.parameters()), create_graph=graph)

    wanted = [each.detach() for each in gradients(real, graph=False)]
    pairs = zip(gradients(syn, graph=True), wanted, strict=True)
    return torch.stack([(a - b).square().sum() for a, b in pairs if a.dim() == 4]).sum()


def train(job: Job, batches: Sequence[TrainBatch]) -> None:
    """Train the network on real images, augmented one by one and mixed batch by batch."""
    total, hits = 0.0, 0
    for batch in batches:
        x, y = job.normalised(job.images[batch.index]), job.labels[batch.index]
        for operation in batch.operations:
            x = augmented(x, operation)
        if batch.mix is None:
            logits = job.net(x)
            loss = F.cross_entropy(logits, y)
        else:
            box = (slice(None), slice(None), batch.mix.rows, batch.mix.columns)
            partner, ratio = batch.mix.partner, batch.mix.ratio
            mixed = x.clone()
            mixed[box] = x[partner][box]
            logits = job.net(mixed)
            other = F.cross_entropy(logits, y[partner])
            loss = ratio * F.cross_entropy(logits, y) + (1 - ratio) * other
        job.by_net.zero_grad()
        loss.backward()
        job.by_net.step()
        total += loss.item() * len(y)
        hits += int((logits.argmax(1) == y).sum())
