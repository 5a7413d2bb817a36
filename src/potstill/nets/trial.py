"""What a network does with images, found by trying it on two empty ones in training mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from potstill.core.keys import forked

SIDES = (32, 64, 96, 128, 224, 256, 384)
"""Sides that are tried when a network refuses an image, to name some that it takes."""
Size = tuple[int, int]


def complaint(module: nn.Module, channels: int, size: Size, classes: int) -> str:
    """Return why a network does not give logits [B, classes]; empty if it does."""
    if next(module.parameters(), None) is None:
        return "it has no parameters"
    frozen = next((n for n, p in module.named_parameters() if not p.requires_grad), None)
    if frozen is not None:
        return f"its parameter {frozen} is frozen, but all would be trained; make it a buffer"
    try:
        with torch.no_grad():
            out = _run(module, channels, size)
    except Exception as error:  # whatever the network's author lets happen
        return first_line(error)
    if not isinstance(out, Tensor):
        return f"it returns a {type(out).__name__}, not one tensor of logits"
    wanted = [2, classes]
    if list(out.shape) != wanted:
        return f"for 2 images it returns {list(out.shape)}, not {wanted}"
    return ""


def sides_that_fit(
    make: Callable[[Size], nn.Module], channels: int, classes: int
) -> tuple[int, ...]:
    """Return which of `SIDES` a network takes, without computing: on torch's device `meta`."""

    def fits(side: int) -> bool:
        try:
            with torch.device("meta"):
                module = make((side, side))
        except Exception:  # then this side does not fit either
            return False
        return not complaint(module, channels, (side, side), classes)

    return tuple(side for side in SIDES if fits(side))


def first_line(error: Exception) -> str:
    """Return the type and the first line of an error in at most 200 characters."""
    text = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {text}"[:200].rstrip(": .")


def kept_bytes(module: nn.Module, channels: int, size: Size) -> int:
    """Return the bytes of activations an image that autograd keeps of one forward pass.

    Storages count once; parameters do not count.
    """
    parts = [part.untyped_storage().data_ptr() for part in module.parameters()]
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parts:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with forked(0, "trial"), torch.enable_grad(), hooks:
        out = _run(module, channels, size)
    del out
    return sum(kept.values()) // 2


def flops(module: nn.Module, channels: int, size: Size) -> int:
    """Return the floating-point operations of one image's forward pass.

    A product and its sum are 2; convolutions and products of matrices count, nothing else.
    """
    counter = _Flops()
    with forked(0, "trial"), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        _run(module, channels, size)
    return counter.total // 2


class _Flops(TorchDispatchMode):
    """Add up what torch's FlopCounterMode does, which takes seconds to import the compiler."""

    total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if (count := flop_registry.get(func._overloadpacket)) is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def hindrance(module: nn.Module, channels: int, size: Size) -> str:
    """Return why training steps of a network cannot be differentiated; empty if they can.

    Its random numbers (dropout) would differ when a step is repeated, or one of its operators has
    no second derivative.
    """
    with forked(0, "trial"), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        before = torch.random.get_rng_state()
        loss = torch.as_tensor(_run(module, channels, size)).logsumexp(1).sum()
        if not torch.equal(before, torch.random.get_rng_state()):
            return "it draws random numbers in training (dropout)"
        weights = [p for p in module.parameters() if p.requires_grad]
        try:
            first = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
            size_of = sum(g.square().sum() for g in first if g is not None)
            torch.autograd.grad(torch.as_tensor(size_of), weights, allow_unused=True)
        except RuntimeError as error:
            return first_line(error)
    return ""


def _run(module: nn.Module, channels: int, size: Size) -> object:
    """Return the output for two empty images; modes and running statistics stay as they are."""
    first = next(module.parameters())
    x = torch.zeros(2, channels, *size, dtype=first.dtype, device=first.device)
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    modes = [(part, part.training) for part in module.modules()]
    try:
        return functional_call(module.train(), buffers, (x,))
    finally:
        for part, training in modes:
            part.training = training
