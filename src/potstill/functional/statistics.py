"""How far the statistics of a batch are from those that a network was trained with.

Source: Yin et al., "Dreaming to Distill" (DeepInversion), CVPR 2020 (arXiv 1912.08795), eq. 4; in
the form of SRe2L (NeurIPS 2023, arXiv 2306.13092), whose first layer counts ten times.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from potstill.nets.taps import Norm

NormOf = Literal["l2", "relative"]


def statistics_loss(
    inputs: Sequence[Tensor],
    norms: Sequence[Norm],
    *,
    first: float = 10.0,
    norm: NormOf = "l2",
    groups: int = 1,
) -> Tensor:
    """Return how far batch statistics are from running ones: float32 [groups], one a group.

    Layer l: r_l = |running_var - v|_2 + |running_mean - mu|_2, not squared, with mean mu and biased
    variance v over the images of a group and over positions, in float32 also of bfloat16 inputs.

    l2: first r_1 + r_2 + r_3 + ..., as published: about 1e2 for a ResNet-18 and 1e4 for a
    ResNet-50. relative: both parts of r_l are divided by the norm of the running variance and
    deviation, and the sum by the sum of weights: about 1 for any network, and the same if a layer's
    input is given in other units, so that one weight of this loss suits several teachers.

    Args:
        inputs: what each batch norm was given, [B, C] or [B, C, ...] (see `nets.taps`); group g is
            images g B / groups to (g + 1) B / groups.
        norms: the batch norms.
        first: weight of the first layer.
        norm: "l2" or "relative".
        groups: batches that are computed side by side, each with statistics of its own.

    Differs: `relative` is ours.
    """
    total = torch.zeros((), dtype=torch.float32)
    weights = [first] + [1.0] * (len(norms) - 1)
    for x, layer, weight in zip(inputs, norms, weights, strict=True):
        var, mean = moments(x, groups)
        assert layer.running_var is not None
        assert layer.running_mean is not None
        wanted_var, wanted_mean = layer.running_var.float(), layer.running_mean.float()
        far_var = torch.linalg.vector_norm(wanted_var - var, dim=1)
        far_mean = torch.linalg.vector_norm(wanted_mean - mean, dim=1)
        if norm == "relative":
            far_var = far_var / torch.linalg.vector_norm(wanted_var)
            far_mean = far_mean / wanted_var.sum().sqrt()
        total = total.to(x.device) + weight * (far_var + far_mean)
    return total / sum(weights) if norm == "relative" else total


def moments(x: Tensor, groups: int = 1) -> tuple[Tensor, Tensor]:
    """Return biased variance and mean of each channel, float32 [groups, C], of x [B, C, ...].

    For first derivatives only: the variance is a mean of squared distances from a mean that is held
    fixed, whose own part of the gradient is 0. On a CPU that is twice as fast as torch.var_mean.
    """
    parts = x.float().unflatten(0, (groups, -1))
    over = [d for d in range(1, parts.dim()) if d != 2]
    mean = parts.mean(over, keepdim=True)
    return (parts - mean.detach()).square().mean(over), mean.flatten(1)
