"""A convolution whose derivatives of every order are convolutions of the usual cost.

It is the bilinear map of a trilinear form <g, conv(x, w)>; the derivatives of each of the three
maps `_Conv`, `_Input` and `_Weight` are the other two. torch computes two of the four terms of its
double backward by convolutions with kernels as large as the image, in 2.3 times the time (measured
at width 128 on one core).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_aten = torch.ops.aten
Pair = tuple[int, int]
Form = tuple[Pair, Pair, Pair, int]
"""Stride, padding, dilation, groups of a convolution."""


def convolve(x: Tensor, weight: Tensor, form: Form, *, split: bool) -> Tensor:
    """Return conv(x, weight) by `form`; differentiable to any order.

    `split`: its two gradients are apart, so that autograd can leave out the one in x. It leaves out
    whole nodes only, and keeps one whose inputs include a weight that it wants; so the node of the
    gradient in x gets the weight in a list, where autograd does not see it.
    """
    if not (split and x.requires_grad and weight.requires_grad):
        return _Conv.apply(x, weight, form)
    value = _ByWeight.apply(x, weight, form)
    return _Join.apply(value, _ByInput.apply(x, [weight], form, value.shape))


def _by_input(g: Tensor, like: Tensor, weight: Tensor, form: Form) -> Tensor:
    """Return the gradient of <g, conv(x, w)> in x; of a few channels on a CPU by one product."""
    stride, padding, dilation, groups = form
    if g.device.type != "cpu" or groups > 1 or like.shape[1] > 4:
        return _raw(g, like, weight, form, [True, False, False])[0]
    rows = weight.flatten(1).t().expand(len(g), -1, -1)
    image, kernel = like.shape[2:], weight.shape[2:]
    return F.fold(torch.bmm(rows, g.flatten(2)), image, kernel, dilation, padding, stride)


def _by_weight(g: Tensor, x: Tensor, like: Tensor, form: Form) -> Tensor:
    """Return the gradient of <g, conv(x, w)> in w. Of `like` the shape counts, and the order."""
    if g.device.type == "cpu":  # else its numbers are copied
        like = torch.empty_like(like, memory_format=torch.channels_last)
    return _raw(g, x, like, form, [False, True, False])[1]


def _raw(g: Tensor, x: Tensor, weight: Tensor, form: Form, mask: list[bool]) -> list[Tensor]:
    stride, padding, dilation, groups = form
    return _aten.convolution_backward(
        g, x, weight, None, stride, padding, dilation, False, (0, 0), groups, mask
    )


def _wanted(ctx: Any, place: int) -> bool:
    """Return whether this pass of autograd goes on to an input of a node.

    Not where gradients by weights were matched and those by images are asked for: a weight's own
    gradient is then a fifth of the work, for nothing. Autograd does not say so of leaves (weights
    should be views), nor on purpose: where it does not, the input is wanted.
    """
    node = ctx.next_functions[place][0]
    if not ctx.needs_input_grad[place] or node is None:
        return ctx.needs_input_grad[place]
    try:
        return torch._C._will_engine_execute_node(node)
    except (AttributeError, RuntimeError):
        return True


class _Conv(torch.autograd.Function):
    """z = conv(x, w)."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, form: Form) -> Tensor:
        stride, padding, dilation, groups = form
        return F.conv2d(x, weight, None, stride, padding, dilation, groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *saved, ctx.form = inputs
        ctx.save_for_backward(*saved)

    @staticmethod
    def backward(  # pyrefly: ignore[bad-override]
        ctx: Any, g: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        by_x = _Input.apply(g, weight, x.detach(), ctx.form) if ctx.needs_input_grad[0] else None
        if not _wanted(ctx, 1):
            return by_x, None, None
        return by_x, _Weight.apply(g, x, weight.detach(), ctx.form), None


class _Input(torch.autograd.Function):
    """The gradient of <g, conv(x, w)> in x, of the shape of `like`."""

    @staticmethod
    def forward(g: Tensor, weight: Tensor, like: Tensor, form: Form) -> Tensor:
        return _by_input(g, like, weight, form)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        g, weight, _, ctx.form = inputs
        ctx.save_for_backward(g, weight)

    @staticmethod
    def backward(  # pyrefly: ignore[bad-override]
        ctx: Any, v: Tensor
    ) -> tuple[Tensor | None, ...]:
        g, weight = ctx.saved_tensors
        by_g = _Conv.apply(v, weight, ctx.form) if ctx.needs_input_grad[0] else None
        if not _wanted(ctx, 1):
            return by_g, None, None, None
        return by_g, _Weight.apply(g, v, weight.detach(), ctx.form), None, None


class _Weight(torch.autograd.Function):
    """The gradient of <g, conv(x, w)> in w, of the shape of `like`."""

    @staticmethod
    def forward(g: Tensor, x: Tensor, like: Tensor, form: Form) -> Tensor:
        return _by_weight(g, x, like, form)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        g, x, _, ctx.form = inputs
        ctx.save_for_backward(g, x)

    @staticmethod
    def backward(  # pyrefly: ignore[bad-override]
        ctx: Any, v: Tensor
    ) -> tuple[Tensor | None, ...]:
        g, x = ctx.saved_tensors
        by_g = _Conv.apply(x, v, ctx.form) if ctx.needs_input_grad[0] else None
        by_x = _Input.apply(g, v, x.detach(), ctx.form) if ctx.needs_input_grad[1] else None
        return by_g, by_x, None, None


class _ByWeight(torch.autograd.Function):
    """conv(x, w) as a function of w alone."""

    forward = _Conv.forward
    setup_context = _Conv.setup_context

    @staticmethod
    def backward(  # pyrefly: ignore[bad-override]
        ctx: Any, g: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        return None, _Weight.apply(g, x, weight.detach(), ctx.form), None


class _ByInput(torch.autograd.Function):
    """conv(x, w) as a function of x alone, without its value: zeros that take no memory."""

    @staticmethod
    def forward(x: Tensor, weights: list[Tensor], form: Form, shape: torch.Size) -> Tensor:
        return x.new_zeros(()).expand(shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, ctx.weights, ctx.form, _ = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(  # pyrefly: ignore[bad-override]
        ctx: Any, g: Tensor
    ) -> tuple[Tensor | None, ...]:
        (x,), (weight,) = ctx.saved_tensors, ctx.weights
        return _Input.apply(g, weight, x.detach(), ctx.form), None, None, None


class _Join(torch.autograd.Function):
    """The first tensor, with the gradient handed to both."""

    @staticmethod
    def forward(value: Tensor, other: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(  # pyrefly: ignore[bad-override]
        ctx: Any, g: Tensor
    ) -> tuple[Tensor, Tensor]:
        return g, g
