"""The small vision transformer of DC-BENCH.

Source: Dosovitskiy et al., ICLR 2021 (arXiv:2010.11929), with the sizes of Cui et al., DC-BENCH
(arXiv:2207.09639): patch 4, dimension 512, depth 6, 8 heads, hidden layers of 512, dropout 0.1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from potstill.core.errors import InputError
from potstill.nets.spec import NETS, NetSpec, Network, Size

PATCH, DEPTH, HEADS, DROPOUT = 4, 6, 8, 0.1


class Attention(nn.Module):
    """Self-attention, written out: torch's fused form has no second derivative on the CPU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.drop = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens [B, T, width]."""
        b, t, width = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) * (width // HEADS) ** -0.5).softmax(-1)
        return self.drop(self.out((self.drop(weights) @ v).transpose(1, 2).flatten(2)))


class Block(nn.Module):
    """x + attention(norm x), then x + hidden layer(norm x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width)
        self.norm2 = nn.LayerNorm(width)
        self.hidden = nn.Sequential(
            nn.Linear(width, width),
            nn.GELU(),
            nn.Dropout(DROPOUT),
            nn.Linear(width, width),
            nn.Dropout(DROPOUT),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens [B, T, width]."""
        x = x + self.attention(self.norm1(x))
        return x + self.hidden(self.norm2(x))


class ViT(nn.Module):
    """Patches, a class token, learned positions, blocks, norm and a linear map of that token."""

    def __init__(self, width: int, channels: int, size: Size, classes: int) -> None:
        super().__init__()
        tokens = 1 + (size[0] // PATCH) * (size[1] // PATCH)
        self.patches = nn.Conv2d(channels, width, PATCH, PATCH)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        self.drop = nn.Dropout(DROPOUT)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [B, classes] of images [B, C, H, W]."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(self.drop(x)))[:, 0])


def vit(spec: NetSpec, channels: int, size: Size, classes: int) -> nn.Module:
    """Make the transformer; `width` is the dimension of tokens and of hidden layers.

    Not on record and chosen here: pre-norm, a class token, positions and token from N(0, 0.02).

    Raises:
        InputError: for sides that patches of 4 pixels do not divide.
    """
    assert spec.width is not None
    if size[0] % PATCH or size[1] % PATCH:
        near = [max(1, round(side / PATCH)) * PATCH for side in size]
        raise InputError(
            f"{spec.name} cuts images into patches of {PATCH}x{PATCH} pixels, which do not divide "
            f"{size[0]}x{size[1]}; {near[0]}x{near[1]} would do."
        )
    return ViT(spec.width, channels, size, classes)


NETS.add("vit")(
    Network(
        make=vit,
        help="small vision transformer: patch 4, 6 blocks of 8 heads, dropout 0.1 (DC-BENCH)",
        own={"width": 512},
        least=PATCH,
        step=HEADS,
    )
)
