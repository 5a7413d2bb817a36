"""From recovered images to whole levels of 8 bits."""

from __future__ import annotations

from io import BytesIO

import torch
from torch import Tensor

from potstill.core.errors import InputError
from potstill.data import MeanStd
from potstill.recover.settings import Codec


def levels(x: Tensor, space: MeanStd) -> Tensor:
    """Return images in the space of a teacher as levels from 0 to 255, not rounded."""
    return space.inverse(x).clamp(0, 1) * 255


def stored(values: Tensor, codec: Codec) -> Tensor:
    """Return images of levels 0 to 255 [N, C, H, W] as uint8: rounded, or as JPEG would have them.

    jpeg75, as the originals save: cut to whole levels, JPEG of quality 75 with 4:2:0 colours.

    Raises:
        InputError: for jpeg75 of images that have neither 1 nor 3 channels.
    """
    if codec == "exact":
        return values.round().to(torch.uint8)
    import numpy as np
    from PIL import Image

    if values.shape[1] not in (1, 3):
        raise InputError(f"The codec jpeg75 takes 1 or 3 channels, not {values.shape[1]}.")
    found = []
    for image in values.to(torch.uint8).movedim(1, 3).numpy():
        buffer = BytesIO()
        Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(
            buffer, "JPEG", quality=75, subsampling="4:2:0"
        )
        array = np.asarray(Image.open(buffer)).copy()
        found.append(torch.from_numpy(array.reshape(image.shape)).movedim(2, 0))
    return torch.stack(found)
