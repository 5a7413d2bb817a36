"""The plain programs of recovery, relabelling and training on stored labels.

Stock PyTorch (modules, hooks, torch.optim, torch.save), as the published programs are described in
papers; nothing of potstill. They take their random choices from outside, so that `recover.py` and
`relabel.py` can hand them those of potstill and compare.

Sources: SRe2L (Yin, Xing and Shen, NeurIPS 2023, arXiv 2306.13092); CDA (Yin and Shen, TMLR 2024,
arXiv 2311.18838); FKD (Shen and Xing, ECCV 2022, arXiv 2112.01528).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RATIO = (3 / 4, 4 / 3)
TRIES = 10
Box = tuple[int, int, int, int]
"""Top, left, height, width."""
Part = tuple[int, int, int, int]
"""First and last row, first and last column; the last excluded."""


@dataclass(frozen=True)
class Choice:
    """What is done to images: crop, flip, circular shift down and right."""

    box: Box
    flip: bool
    shift: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Labelling:
    """A batch to be labelled: rows, a choice for each image, whose part each image takes."""

    rows: Tensor
    choices: Sequence[Choice]
    partner: Tensor
    part: Part | None


class Statistics:
    """How far the input of a batch norm is from its running statistics, by a hook."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        self.far = torch.zeros(())
        norm.register_forward_hook(self.see)

    def see(self, norm: Any, given: tuple[Tensor, ...], _: Tensor) -> None:
        """Keep the distance of mean and biased variance."""
        (x,) = given
        mean = x.mean([0, 2, 3])
        var = x.permute(1, 0, 2, 3).contiguous().view(x.shape[1], -1).var(1, unbiased=False)
        self.far = torch.norm(norm.running_var - var) + torch.norm(norm.running_mean - mean)


def uniform(low: float, high: float, chance: torch.Generator) -> float:
    """Draw a number."""
    return float(torch.empty(()).uniform_(low, high, generator=chance))


def random_box(side: int, least: float, chance: torch.Generator) -> Box:
    """Draw the box of a random resized crop; the whole image if none of ten tries fits."""
    for _ in range(TRIES):
        area = side * side * uniform(least, 1.0, chance)
        aspect = math.exp(uniform(math.log(RATIO[0]), math.log(RATIO[1]), chance))
        width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < width <= side and 0 < height <= side:
            top = int(torch.randint(side - height + 1, (), generator=chance))
            left = int(torch.randint(side - width + 1, (), generator=chance))
            return top, left, height, width
    return 0, 0, side, side


def random_choice(side: int, least: float, reach: int, chance: torch.Generator) -> Choice:
    """Draw crop, flip, and shifts of 0 to `reach` pixels."""
    box, flip = random_box(side, least, chance), uniform(0, 1, chance) < 0.5
    down, right = torch.randint(reach + 1, (2,), generator=chance).tolist()
    return Choice(box, flip, (down, right))


def curriculum(steps: int, side: int, reach: int, chance: torch.Generator) -> Iterator[Choice]:
    """Yield the choice of each step, its least crop falling from 1 to .08 on a cosine."""
    for t in range(steps):
        least = 0.08 + 0.92 * (1 + math.cos(math.pi * t / steps)) / 2
        yield random_choice(side, least, reach, chance)


def seen(x: Tensor, choice: Choice) -> Tensor:
    """Return images [N, C, S, S] cropped, flipped and shifted."""
    top, left, height, width = choice.box
    x_crop = x[:, :, top : top + height, left : left + width]
    z = F.interpolate(x_crop, size=x.shape[2:], mode="bilinear", align_corners=False)
    z = z.flip(3) if choice.flip else z
    return torch.roll(z, choice.shift, (2, 3)) if any(choice.shift) else z


def recover(
    net: nn.Module,
    taps: Sequence[Statistics],
    x: Tensor,
    labels: Tensor,
    choices: Iterable[Choice],
    *,
    steps: int,
    lr: float,
    bn: float,
    black: Sequence[float],
    white: Sequence[float],
    first: float = 10.0,
    eps: float = 1e-8,
) -> tuple[Tensor, list[tuple[float, float]]]:
    """Return what becomes of images, and the cross-entropy and statistics loss of each step.

    `taps` are those of the batch norms of the frozen network, which is in evaluation mode.
    """
    x = x.clone().requires_grad_()
    adam, losses = torch.optim.Adam([x], lr=lr, betas=(0.5, 0.9), eps=eps), []
    for t, choice in zip(range(steps), choices, strict=True):
        adam.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * t / steps)) / 2
        adam.zero_grad()
        entropy = F.cross_entropy(net(seen(x, choice)), labels)
        far = first * taps[0].far + sum(tap.far for tap in taps[1:])
        (entropy + bn * far).backward()
        adam.step()
        for c, ends in enumerate(zip(black, white, strict=True)):
            x.data[:, c].clamp_(*ends)
        losses.append((entropy.detach(), far.detach()))
    return x.detach(), [(float(entropy), float(far)) for entropy, far in losses]


def random_part(side: int, chance: torch.Generator) -> Part:
    """Draw the part of CutMix with l from Beta(1, 1): half the sides rounded down, clipped."""
    half = int(side * math.sqrt(1 - uniform(0, 1, chance))) // 2
    y, x = torch.randint(side, (2,), generator=chance).tolist()
    return max(y - half, 0), min(y + half, side), max(x - half, 0), min(x + half, side)


def labellings(count: int, side: int, batch: int, chance: torch.Generator) -> Iterator[Labelling]:
    """Yield the batches of an epoch."""
    for rows in torch.randperm(count, generator=chance).split(batch):
        choices = [random_choice(side, 0.08, 0, chance) for _ in rows]
        partner = torch.randperm(len(rows), generator=chance)
        yield Labelling(rows, choices, partner, random_part(side, chance))


def view(images: Tensor, batch: Labelling, mean: Tensor, std: Tensor) -> Tensor:
    """Return the mixed views of a batch of uint8 images, made one by one."""
    made = [
        seen((images[row : row + 1].to(mean) / 255 - mean) / std, choice)
        for row, choice in zip(batch.rows.tolist(), batch.choices, strict=True)
    ]
    x = torch.cat(made)
    if batch.part is not None:
        top, bottom, left, right = batch.part
        x[:, :, top:bottom, left:right] = x[batch.partner, :, top:bottom, left:right]
    return x


def relabel(
    net: nn.Module,
    images: Tensor,
    batches: Iterable[Labelling],
    folder: Path,
    *,
    mean: Tensor,
    std: Tensor,
) -> list[Path]:
    """Write one file a batch: what was done to its images, and the network's logits in float16."""
    files = []
    for k, batch in enumerate(batches):
        with torch.no_grad():
            logits = net(view(images, batch, mean, std))
        files.append(folder / f"batch_{k}.pt")
        torch.save(
            {
                "rows": batch.rows,
                "boxes": torch.tensor([choice.box for choice in batch.choices]),
                "flips": torch.tensor([choice.flip for choice in batch.choices]),
                "partner": batch.partner,
                "part": batch.part,
                "logits": logits.half(),
            },
            files[-1],
        )
    return files


def stored(file: Path) -> tuple[Labelling, Tensor]:
    """Return a batch that `relabel` wrote, and its logits."""
    told = torch.load(file)
    pairs = zip(told["boxes"].tolist(), told["flips"].tolist(), strict=True)
    choices = [Choice((b[0], b[1], b[2], b[3]), flip) for b, flip in pairs]
    return Labelling(told["rows"], choices, told["partner"], told["part"]), told["logits"].float()


def train(
    net: nn.Module,
    images: Tensor,
    epochs: Sequence[Sequence[Path]],
    *,
    mean: Tensor,
    std: Tensor,
    temperature: float = 20.0,
    lr: float = 1e-3,
    decay: float = 0.01,
) -> list[float]:
    """Train a network in place on stored labels, by AdamW and a cosine; return all losses.

    Only weights of two or more dimensions decay; the loss is not multiplied by T^2.
    """
    net.train()
    groups = [
        {"params": [p for p in net.parameters() if p.dim() > 1], "weight_decay": decay},
        {"params": [p for p in net.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    adam, losses = torch.optim.AdamW(groups, lr=lr), []
    for epoch, files in enumerate(epochs):
        for group in adam.param_groups:
            group["lr"] = lr * (1 + math.cos(math.pi * epoch / len(epochs))) / 2
        for file in files:
            batch, logits = stored(file)
            found = net(view(images, batch, mean, std))
            p, q = (F.log_softmax(z / temperature, dim=1) for z in (logits.to(found), found))
            loss = F.kl_div(q, p, reduction="batchmean", log_target=True)
            adam.zero_grad()
            loss.backward()
            adam.step()
            losses.append(loss.item())
    return losses
