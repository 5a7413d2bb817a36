"""A network as a pure function of one flat parameter vector."""

from __future__ import annotations

import copy
import math
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.func import functional_call

from potstill.core.errors import InputError
from potstill.nets.hidden import features

_KNOWN = ("potstill.nets.", "torch.nn.modules.")


class FlatNet:
    """A network f(theta, x) whose parameters are views of one vector theta [P].

    The order is that of `net.parameters()`. The module given is copied and never changed. Running
    statistics (batch norm) belong to the FlatNet: a call in train mode updates them in place, and
    they follow theta to its device and type. Any derivative with respect to theta and x is
    torch's own, so double backward works.
    """

    numel: int
    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    theta0: Tensor
    recipe: Hashable
    """What the module was built from: networks of one recipe differ in theta0 only; else None."""
    known: bool
    """Whether all parts are potstill's and torch's own."""

    def __init__(self, module: nn.Module, *, recipe: Hashable = None) -> None:
        self.recipe = recipe
        self._module = copy.deepcopy(module)
        named = dict(self._module.named_parameters())
        self.names = tuple(named)
        self.shapes = tuple(p.shape for p in named.values())
        self._sizes = [math.prod(shape) for shape in self.shapes]
        self.numel = sum(self._sizes)
        self.theta0 = torch.cat([p.detach().flatten() for p in named.values()])
        self._buffers = dict(self._module.named_buffers())
        parts = list(self._module.modules())
        self._norms = [part for part in parts if _minds_the_batch(part)]
        self.known = all(type(part).__module__.startswith(_KNOWN) for part in parts)

    def __call__(self, theta: Tensor, x: Tensor) -> Tensor:
        """Return the output of the network with parameters theta [P] for images x [B, C, H, W].

        Raises:
            InputError: if theta is not a vector of P numbers.
        """
        return self.run(theta, self.statistics(theta), x)

    def run(self, theta: Tensor, statistics: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Return the output with these running statistics, which train mode updates in place."""
        return self.applied(self.views(theta), statistics, x)

    def applied(
        self, weights: Mapping[str, Tensor], statistics: Mapping[str, Tensor], x: Tensor
    ) -> Tensor:
        """Return the output with these weights, named as in `views`; else as `run`."""
        return functional_call(self._module, {**weights, **statistics}, (x,))

    def features(self, theta: Tensor, x: Tensor) -> Tensor:
        """Return the input [B, D] of the last linear layer for images x [B, C, H, W].

        Raises:
            InputError: if there is no linear layer.
        """
        return features(self._module, lambda images: self(theta, images), x, name="The network")

    def statistics(self, theta: Tensor) -> dict[str, Tensor]:
        """Return the running statistics themselves, on theta's device and in its type."""
        self._buffers = {name: like(b, theta) for name, b in self._buffers.items()}
        return self._buffers

    def views(self, theta: Tensor) -> dict[str, Tensor]:
        """Return the named parameters as views of theta [P].

        Raises:
            InputError: if theta is not a vector of P numbers.
        """
        if theta.shape != (self.numel,):
            raise InputError(
                f"This network has {self.numel} parameters; "
                f"a vector of shape {list(theta.shape)} does not fit."
            )
        parts = zip(self.names, theta.split(self._sizes), self.shapes, strict=True)
        return {name: part.view(shape) for name, part, shape in parts}

    def train(self, mode: bool = True) -> None:
        """Switch to training mode, or to evaluation mode with `mode=False`."""
        self._module.train(mode)

    def eval(self) -> None:
        """Switch to evaluation mode."""
        self._module.eval()

    @property
    def training(self) -> bool:
        """Whether it is in training mode."""
        return self._module.training

    @property
    def separable(self) -> bool:
        """Whether each image's output surely follows from that image alone, in this mode.

        True if all parts are known, and none takes or keeps statistics of a batch.
        """
        taking = (norm.training or norm.running_mean is None for norm in self._norms)
        return self.known and not any(taking)

    def measure(self, theta: Tensor, x: Tensor) -> None:
        """Set the running statistics to those of images x [B, C, H, W]."""
        training, momenta = self.training, [norm.momentum for norm in self._norms]
        for name, buffer in self.statistics(theta).items():
            if name.endswith("num_batches_tracked"):
                buffer.zero_()
        try:
            for norm in self._norms:
                norm.momentum = None  # a mean over all batches, of which this is the first
            self.train()
            with torch.no_grad():
                self(theta, x)
        finally:
            for norm, momentum in zip(self._norms, momenta, strict=True):
                norm.momentum = momentum
            self.train(training)

    @contextmanager
    def keeping_statistics(self) -> Iterator[None]:
        """Leave the running statistics after the block as they were before it."""
        before = {name: buffer.clone() for name, buffer in self._buffers.items()}
        try:
            yield
        finally:
            self._buffers = before

    @contextmanager
    def using(self, statistics: Mapping[str, Tensor]) -> Iterator[None]:
        """Have these running statistics inside the block, which train mode updates in place."""
        before = self._buffers
        self._buffers = dict(statistics)
        try:
            yield
        finally:
            self._buffers = before

    def load(self, theta: Tensor) -> nn.Module:
        """Return a plain module with parameters theta [P], the running statistics and the mode.

        Raises:
            InputError: if theta is not a vector of P numbers.
        """
        views = self.views(theta.detach())
        module = copy.deepcopy(self._module).to(theta.device, theta.dtype)
        with torch.no_grad():
            for parameter, view in zip(module.parameters(), views.values(), strict=True):
                parameter.copy_(view)
            for buffer, value in zip(module.buffers(), self._buffers.values(), strict=True):
                buffer.copy_(value)
        return module


def _minds_the_batch(part: nn.Module) -> TypeGuard[nn.modules.batchnorm._NormBase]:
    """Return whether a part takes statistics of a batch or, an instance norm, keeps them."""
    norms = nn.modules.batchnorm
    kept = isinstance(part, norms._NormBase) and part.running_mean is not None
    return kept or isinstance(part, norms._BatchNorm)


def like(buffer: Tensor, theta: Tensor) -> Tensor:
    """Move a buffer to theta's device and, if it holds real numbers, to theta's type."""
    return buffer.to(theta.device, theta.dtype if buffer.is_floating_point() else buffer.dtype)
