"""The picture of a recovery: images on their way from the first step to the last."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

ROWS, COLUMNS, SIDE, GAP = 10, 20, 48, 2


def draw(file: Path, images: Tensor, snapshots: Tensor, labels: Tensor) -> None:
    """Write a picture: a row for one image each of up to 10 classes, a column for a snapshot.

    The last column is what became of them. Of more than 20 snapshots some are shown, as evenly as
    can be, the first and the last among them.

    Args:
        file: a file that ends in .png.
        images: uint8 [N, C, H, W].
        snapshots: uint8 [k, N, C, H, W], in order.
        labels: int64 [N].
    """
    from PIL import Image

    stages = torch.cat([snapshots, images[None]])
    stages = stages[torch.linspace(0, len(stages) - 1, min(len(stages), COLUMNS)).round().long()]
    rows = [int((labels == c).nonzero()[0]) for c in labels.unique()[:ROWS]]
    shown = stages[:, rows]
    shown = shown[:, :, :3] if shown.shape[2] >= 3 else shown[:, :, :1].expand(-1, -1, 3, -1, -1)
    scale = math.ceil(SIDE / min(shown.shape[3:]))
    large = shown.repeat_interleave(scale, 3).repeat_interleave(scale, 4)
    framed = torch.nn.functional.pad(large, (0, GAP, 0, GAP), value=255)
    sheet = framed.permute(1, 3, 0, 4, 2).flatten(2, 3).flatten(0, 1)  # rows, columns, colours
    Image.fromarray(sheet.contiguous().numpy()).save(file)
