"""Fit a ZCA to training images, and cut it to a rank."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from potstill.core.errors import InputError
from potstill.core.threads import using_threads
from potstill.data.rows import Pixels
from potstill.data.zca import FLAT, Zca, ZcaRef, scale_of

LARGEST = 4096
"""Values an image may have (channels x height x width) unless the whole matrix is asked for."""


def fit_zca(kind: str, pixels: Pixels, *, data: str = "") -> Zca:
    """Fit a whole ZCA to uint8 images [N, C, H, W]; float64 throughout, not sealed yet.

    It takes about 48 D^2 bytes. Up to D = 4096 one thread computes it, so that the same images
    give the same bytes; beyond that all do.

    Raises:
        InputError: for fewer than 2 images.
    """
    if len(pixels) < 2:
        raise InputError(f"{kind} needs at least 2 training images, not {len(pixels)}.")
    channels, height, width = (int(side) for side in pixels.shape[1:])
    wide = channels * height * width
    with using_threads(1 if wide <= LARGEST else torch.get_num_threads()):
        fit = _moments_mtt if kind == "zca-mtt" else _moments_kip
        sigma, mean, brightness, contrast = fit(pixels, wide)
        values, basis = torch.linalg.eigh(sigma)
    values, basis = values.flip(0).clamp_min(0), basis.flip(1).contiguous()
    regulariser = 0.1 if kind == "zca-mtt" else 0.1 * float(values.mean())
    ref = ZcaRef(
        kind=kind,
        shape=(channels, height, width),
        rank=wide,
        regulariser=regulariser,
        rest=float(scale_of(values, regulariser).median()),
        brightness=brightness,
        contrast=contrast,
        data=data,
    )
    return Zca(ref=ref, basis=basis, values=values, mean=mean)


def cut(full: Zca, rank: int) -> Zca:
    """Return the form of that rank, 1 to D - 1, of a whole ZCA, with its errors; not sealed yet."""
    wide = full.ref.rank
    scale, energy = scale_of(full.values, full.ref.regulariser), full.values.double()
    spread = scale[wide - rank - 1 :] - scale[: rank + 1]  # of each run of D - rank neighbours
    start = int(spread.argmin())
    stop = start + wide - rank
    rest = float(scale[start] + scale[stop - 1]) / 2
    lost = energy[start:stop] * (scale[start:stop] - rest).square()
    ref = replace(
        full.ref,
        rank=rank,
        rest=rest,
        error=float((lost.sum() / (energy * scale.square()).sum()).sqrt()),
        worst=float(spread[start] / 2 / scale.max()),
        digest="",
    )
    kept = torch.cat([torch.arange(start), torch.arange(stop, wide)])
    return replace(full, ref=ref, basis=full.basis[:, kept], values=full.values[kept])


def _moments_mtt(pixels: Pixels, wide: int) -> tuple[Tensor, Tensor, float, float]:
    """Return covariance (divisor n - 1) and mean; sums of products of uint8 are exact here."""
    n, total = len(pixels), torch.zeros(wide, dtype=torch.float64)
    products = torch.zeros(wide, wide, dtype=torch.float64)
    for rows in _rows(pixels, wide):
        products.addmm_(rows.T, rows)
        total += rows.sum(0)
    sigma = products.addr_(total, total, beta=n, alpha=-1).div_(n * (n - 1) * 255.0**2)
    return sigma, total / (255 * n), 0.0, 1.0


def _moments_kip(pixels: Pixels, wide: int) -> tuple[Tensor, None, float, float]:
    """Return covariance (divisor n, images centred and of norm 1), brightness and contrast."""
    n, brightness, contrast = len(pixels), 0.0, 0.0
    sigma = torch.zeros(wide, wide, dtype=torch.float64)
    for raw in _rows(pixels, wide):
        rows = raw / 255
        means = rows.mean(1, keepdim=True)
        norms = torch.linalg.vector_norm(rows - means, dim=1, keepdim=True)
        rows = (rows - means) / norms.clamp_min(FLAT)
        sigma.addmm_(rows.T, rows)
        brightness, contrast = brightness + float(means.sum()), contrast + float(norms.sum())
    return sigma.div_(n), None, brightness / n, contrast / n


def _rows(pixels: Pixels, wide: int) -> Iterator[Tensor]:
    for part in pixels.split(max(1, 2**23 // wide)):
        yield part.flatten(1).to(torch.float64)
