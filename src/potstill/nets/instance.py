"""Instance norm, ReLU and 2x2 average pooling in one, with both derivatives written out.

With c = z - mean(z), r = (mean(c^2) + eps)^(-1/2), x = r c over the M points of one plane of one
image, u = w x + b, m = [u > 0], P the pooling, P' its transpose and s = m P'g:

    y  = P(m u)
    z' = w r (s - mean(s) - x mean(s x)),  w' = sum s x,  b' = sum s      (sums over images too)

and for the adjoints (Z, W, B) of (z', w', b'), with p = mean(s x), q = mean(Z x) and
k = mean(s Z) - mean(s) mean(Z) - p q:

    g" = P(m (w r (Z - mean(Z) - x q) + W x + B)),  w" = sum_images r M k,  b" = 0
    z" = r (c1 (s - mean(s)) + c2 (Z - mean(Z)) - x (W p - 2 w r p q + w r k))
    c1 = W - w r q,  c2 = -w r p

ReLU and pooling are piecewise linear, so they add masks and upsampling only.
torch takes the double backward of GroupNorm apart into hundreds of operators. Here maps are of the
order that they come in; in channels-last order sums over a plane run along channels and pooling is
vectorised.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_aten = torch.ops.aten
_PLANE = (2, 3)
PART = 2**18
"""Numbers of a map that go through at once on a CPU."""


def normed(
    z: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    shift: Tensor | None = None,
    eps: float = 1e-5,
    pool: bool = False,
) -> Tensor:
    """Return relu(weight x + bias) of maps z [B, C, H, W], with `pool` average-pooled 2x2.

    `shift` [C] stands for what might have been added to z: it has no effect, and gets a gradient of
    exactly zero. Differentiable twice; autograd raises RuntimeError for more.
    """
    return _Norm.apply(z, weight, bias, shift, eps, pool)[0]


def channels_last(x: Tensor) -> Tensor:
    """Return x [B, C, H, W] in channels-last order on a CPU, and as it is elsewhere."""
    if x.device.type != "cpu":
        return x
    if x.shape[1] == 1:  # both orders at once, and operators take it for the other one
        return x.clone(memory_format=torch.channels_last)
    return x.contiguous(memory_format=torch.channels_last)


def _row(x: Tensor) -> Tensor:
    return x.view(1, -1, 1, 1)


def _parts(z: Tensor) -> list[slice]:
    """Return which images to take at once, so that scratch maps stay in a CPU's caches.

    They are also reused for all parts: maps of a whole batch would be new pages from the system
    each time, which cost more than the arithmetic.
    """
    size = PART // max(1, z[0].numel()) if z.device.type == "cpu" else len(z)
    size = max(1, size)
    return [slice(k, k + size) for k in range(0, len(z), size)]


def _scratch(z: Tensor, part: slice, count: int) -> list[Tensor]:
    """Return maps of the size of one part of z, for results that are used at once."""
    return [torch.empty_like(z[part]) for _ in range(count)]


def _sum(x: Tensor) -> Tensor:
    return x.sum(_PLANE, keepdim=True)


def _masked(g: Tensor, u: Tensor, out: Tensor) -> Tensor:
    return _aten.threshold_backward.grad_input(g, u, 0, grad_input=out)


def _spread_masked(g: Tensor, u: Tensor, pool: bool, out: Tensor) -> Tensor:
    """Return m P'g, with m = [u > 0]."""
    n, channels, height, width = u.shape
    if pool and height % 2 == width % 2 == 0 and channels >= 64:
        blocks = (n, channels, height // 2, 2, width // 2, 2)
        g = (g / 4)[:, :, :, None, :, None].expand(blocks)
        _masked(g, u.view(blocks), out.view(blocks))
        return out
    if pool:
        half = ((2, 2), (2, 2), (0, 0), False, True, None)
        g = _aten.avg_pool2d_backward.grad_input(g, u, *half, grad_input=out)
    return _masked(g, u, out)


class _Norm(torch.autograd.Function):
    """y = P(relu(w x + b)), with mean and r of each plane. A shift of each plane has no effect."""

    @staticmethod
    def forward(
        z: Tensor, weight: Tensor, bias: Tensor, shift: Tensor | None, eps: float, pool: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        weight, bias, points = _row(weight), _row(bias), z[0, 0].numel()
        parts, ys, stats = _parts(z), [], []
        scratch = _scratch(z, parts[0], 2)
        for part in parts:
            zi = z[part]
            c, square = (each[: len(zi)] for each in scratch)
            mean = _sum(zi).div_(points)
            torch.sub(zi, mean, out=c)
            r = _sum(torch.mul(c, c, out=square)).div_(points).add_(eps).rsqrt_()
            y = torch.addcmul(bias, c, r * weight, out=c).relu_()
            ys.append(F.avg_pool2d(y, 2) if pool else y.clone())
            stats.append((mean, r))
        means, rs = zip(*stats, strict=True)
        return torch.cat(ys), torch.cat(means), torch.cat(rs)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        z, weight, bias, shift, _, ctx.pool = inputs
        ctx.shift_shape = None if shift is None else shift.shape
        ctx.save_for_backward(z, weight, bias, *output[1:])
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(  # pyrefly: ignore[bad-override]
        ctx: Any, g: Tensor | None, *_: None
    ) -> tuple[Tensor | None, ...]:
        if g is None:
            return (None,) * 6
        grads = _NormBackward.apply(g, *ctx.saved_tensors, ctx.pool)[:3]
        needs = ctx.needs_input_grad[3]
        return *grads, g.new_zeros(ctx.shift_shape) if needs else None, None, None


class _NormBackward(torch.autograd.Function):
    """(z', w', b') of g, with mean(s) and p of each plane."""

    @staticmethod
    def forward(
        g: Tensor, z: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, r: Tensor, pool: bool
    ) -> tuple[Tensor, ...]:
        g, weight, bias, points = channels_last(g), _row(weight), _row(bias), z[0, 0].numel()
        parts, z_bar, stats = _parts(z), torch.empty_like(z), []
        (scratch,) = _scratch(z, parts[0], 1)
        wr = r * weight
        start = bias - mean * wr
        for part in parts:
            zi, out = z[part], z_bar[part]
            u = torch.addcmul(start[part], zi, wr[part], out=scratch[: len(zi)])
            s = _spread_masked(g[part], u, pool, out)
            stats.append((_sum(s), _sum(torch.mul(s, zi, out=u))))
        s_mean, p = (torch.cat(each).div_(points) for each in zip(*stats, strict=True))
        p.sub_(mean * s_mean).mul_(r)
        slope = wr * r * p
        z_bar.mul_(wr).addcmul_(z, slope, value=-1).add_(mean * slope - wr * s_mean)
        images = (0, *_PLANE)
        return z_bar, p.sum(images) * points, s_mean.sum(images) * points, s_mean, p

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, ctx.pool = inputs
        ctx.save_for_backward(*tensors, *output[3:])
        ctx.mark_non_differentiable(*output[3:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(  # pyrefly: ignore[bad-override]
        ctx: Any, v: Tensor | None, v_weight: Tensor | None, v_bias: Tensor | None, *_: None
    ) -> tuple[Tensor | None, ...]:
        z, weight, bias = ctx.saved_tensors[1:4]
        v = torch.zeros_like(z) if v is None else v
        v_weight = torch.zeros_like(weight) if v_weight is None else v_weight
        v_bias = torch.zeros_like(bias) if v_bias is None else v_bias
        bars = _NormSecond.apply(v, v_weight, v_bias, *ctx.saved_tensors, ctx.pool)
        return *bars, None, None, None, None


class _NormSecond(torch.autograd.Function):
    """(g", z", w") of (Z, W, B); not differentiable.

    A function of all that it depends on, so that autograd comes here and refuses; what
    `once_differentiable` makes is passed over by `torch.autograd.grad`, without a word.
    """

    @staticmethod
    def forward(
        v: Tensor,
        v_weight: Tensor,
        v_bias: Tensor,
        g: Tensor,
        z: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        r: Tensor,
        s_mean: Tensor,
        p: Tensor,
        pool: bool,
    ) -> tuple[Tensor, ...]:
        g, v_weight, v_bias = channels_last(g), _row(v_weight), _row(v_bias)
        weight, bias, points = _row(weight), _row(bias), z[0, 0].numel()
        parts, z_bar, g_bars, sums = _parts(z), torch.empty_like(z), [], []
        scratch = _scratch(z, parts[0], 2)
        wr = r * weight
        start = bias - mean * wr
        for part in parts:
            zi, vi = z[part], v[part]
            u = torch.addcmul(start[part], zi, wr[part], out=scratch[0][: len(zi)])
            s = _spread_masked(g[part], u, pool, z_bar[part])
            by_z, by_s = _sum(torch.mul(vi, zi, out=u)), _sum(torch.mul(vi, s, out=u))
            sums.append((_sum(vi), by_z, by_s))
        v_mean, q, k = (torch.cat(each).div_(points) for each in zip(*sums, strict=True))
        q.sub_(mean * v_mean).mul_(r)
        k.sub_(s_mean * v_mean).sub_(p * q)
        c1, c2 = v_weight - wr * q, -wr * p
        by_s, by_v, slope = r * c1, r * c2, r * r * (v_weight * p - 2 * wr * p * q + wr * k)
        shift = mean * slope - by_s * s_mean - by_v * v_mean
        z_bar.mul_(by_s).addcmul_(v, by_v).addcmul_(z, slope, value=-1).add_(shift)
        shift = v_bias - wr * v_mean - by_s * mean
        for part in parts:
            zi = z[part]
            u, a = (each[: len(zi)] for each in scratch)
            torch.addcmul(start[part], zi, wr[part], out=u)
            torch.addcmul(shift[part], zi, by_s[part], out=a).addcmul_(v[part], wr[part])
            a = _masked(a, u, a)
            g_bars.append(F.avg_pool2d(a, 2) if pool else a.clone())
        w_bar = (r * k).sum(0).flatten() * points
        return torch.cat(g_bars), z_bar, w_bar

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[None, ...]:
        raise RuntimeError(
            "An instance norm with derivatives written out has no third derivative; "
            "set potstill.nets.fused.LEAST to math.inf to use torch's layers."
        )
