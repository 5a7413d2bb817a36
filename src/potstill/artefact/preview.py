"""The contact sheet: a distilled set as one picture, a row for each class."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from potstill.artefact.targets import Embedding

if TYPE_CHECKING:
    from PIL.Image import Image

    from potstill.artefact.types import DistilledSet

ROWS, COLUMNS = 20, 10
SIDE, GAP, LABEL = 48, 2, 96  # least image side, gap and width of the class names, in pixels


def plain(name: str) -> str:
    """Return a class name as one line of printable text."""
    text = "".join(c if c.isprintable() else " " for c in name)
    return text.encode("utf-8", "replace").decode().strip() or "?"


def sheet(distilled: DistilledSet) -> Image:
    """Draw the stored images in view space, class by class, for at most 20 classes by 10 images.

    Each pixel is enlarged to a square so that an image is at least 48 pixels wide and high.
    Classes without images have no row; of many channels the first three (of two: the first) show.
    """
    from PIL import Image, ImageDraw, ImageFont

    owner, targets = distilled.targets.classes.cpu(), distilled.targets
    known = not isinstance(targets, Embedding) or targets.own is not None
    shown = [k for k, n in enumerate(distilled.ipc) if n][:ROWS]
    rows = [(owner == k).nonzero().flatten()[:COLUMNS] for k in shown]
    _, height, width = distilled.shape
    scale = math.ceil(SIDE / min(height, width))
    tall, wide = height * scale + GAP, width * scale + GAP
    columns = max(len(row) for row in rows)
    picture = Image.new("RGB", (LABEL + columns * wide, GAP + len(rows) * tall), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default()
    for r, (k, row) in enumerate(zip(shown, rows, strict=True)):
        top = GAP + r * tall
        name = distilled.classes[k] if known else "images"
        text = _fitted(_ascii(name, k), lambda t: draw.textlength(t, font=font))
        draw.text((4, top + tall // 2), text, fill="black", font=font, anchor="lm")
        for c, pixels in enumerate(_rgb(distilled.view(row.to(distilled.images.device)))):
            image = Image.fromarray(pixels.numpy())
            size = (width * scale, height * scale)
            picture.paste(image.resize(size, Image.Resampling.NEAREST), (LABEL + c * wide, top))
    return picture


def _rgb(view: Tensor) -> Tensor:
    channels = view[:, :3] if view.shape[1] >= 3 else view[:, :1].expand(-1, 3, -1, -1)
    return (channels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()


def _ascii(name: str, k: int) -> str:
    """Return what PIL's own font can write of a name; the number of the class if nothing."""
    text = unicodedata.normalize("NFKD", plain(name)).encode("ascii", "ignore").decode()
    return text.strip() or f"class {k}"


def _fitted(text: str, measure: Callable[[str], float]) -> str:
    if measure(text) <= LABEL - 8:
        return text
    while text and measure(text + "...") > LABEL - 8:
        text = text[:-1]
    return text + "..."
