"""What the batch norms of a trained network are given, without hooks."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from potstill.core.errors import InputError

Norm = nn.modules.batchnorm._BatchNorm


class _Tap(nn.Module):
    """A batch norm that keeps what it is given until it is asked for."""

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.norm = norm
        self.given: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """Return what the norm makes of x."""
        self.given.append(x)
        return self.norm(x)


class Tapped(nn.Module):
    """A frozen copy of a network in evaluation mode that also returns its batch norms' inputs.

    Every batch norm with running statistics is wrapped, in the order of `modules()`; so any
    network of torch modules works, also one whose norms do more (timm), and nothing is left behind
    in the network given.

    Raises:
        InputError: if the network has no batch norm with running statistics.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        norms = [(name, part) for name, part in self.module.named_modules() if _kept(part)]
        if not norms:
            raise InputError(
                "The teacher has no batch norm with running statistics, which its images are "
                "recovered from; take one that has, such as resnet18-tiny or a ConvNet with the "
                "norm 'batch'."
            )
        self._taps = []
        for name, norm in norms:
            assert isinstance(norm, Norm)
            self._taps.append(tap := _Tap(norm))
            parent, _, leaf = name.rpartition(".")
            if name:
                setattr(self.module.get_submodule(parent), leaf, tap)
            else:
                self.module = tap
        self.eval()

    @property
    def norms(self) -> list[Norm]:
        """Return the batch norms, in order."""
        return [tap.norm for tap in self._taps]

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the logits and the inputs of the batch norms [B, C, ...], in their order.

        Of a norm that was used several times, the input of the last use.
        """
        logits = self.module(x)
        inputs = [tap.given[-1] for tap in self._taps]
        for tap in self._taps:
            tap.given.clear()
        return logits, inputs


def _kept(part: nn.Module) -> bool:
    return isinstance(part, Norm) and part.running_mean is not None
