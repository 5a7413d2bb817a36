"""Features: what the last linear layer of a network is given."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from potstill.core.errors import InputError


class Projected(nn.Module):
    """An encoder, which gives features, and a head on them.

    The encoder's parameters come first; they are those of the network without its last layer.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, x: Tensor) -> Tensor:
        """Return the embeddings [B, D] of images [B, C, H, W]."""
        return self.head(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        """Return the features [B, F] of images [B, C, H, W]."""
        return self.encoder(x).flatten(1)


def head_of(module: nn.Module, *, name: str) -> nn.Linear:
    """Return the last linear layer of a module, which is called `name` in sentences.

    Raises:
        InputError: if there is none (some networks end in a convolution).
    """
    layers = [part for part in module.modules() if isinstance(part, nn.Linear)]
    if not layers:
        raise _headless(name)
    return layers[-1]


def features(module: nn.Module, run: Callable[[Tensor], Tensor], x: Tensor, *, name: str) -> Tensor:
    """Return the features [B, D] of x: the input of the last linear layer when `run(x)` runs.

    Of a `Projected` those of its encoder.

    Raises:
        InputError: if that layer does not give the output.
    """
    head = module.head if isinstance(module, Projected) else head_of(module, name=name)
    kept = list[Tensor]()
    hook = head.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    try:
        out = run(x)
    finally:
        hook.remove()
    if not kept or (isinstance(head, nn.Linear) and out.shape[1:] != (head.out_features,)):
        raise _headless(name)
    return kept[-1].flatten(1)


def _headless(name: str) -> InputError:
    return InputError(f"{name} does not end in a linear layer, so there are no features to take.")
