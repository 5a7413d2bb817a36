"""Using a distilled set: batches for one's own loop, and a network trained by its recipe."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from potstill.core.errors import InputError
from potstill.core.keys import generator
from potstill.data.space import Space
from potstill.functional.advance import Prepare, Replay
from potstill.functional.schedule import TrainSpec
from potstill.functional.train import View, fit
from potstill.nets.projector import VIEWS_HEAD, projected, without_head
from potstill.nets.spec import NetSpec, flat


class Loader:
    """Batches of resident tensors; pass e is ordered by the key (seed, "loader", e).

    It owns one number, `epoch`: the passes begun so far (set it to repeat or to resume).
    """

    def __init__(
        self, images: Tensor, targets: Tensor, *, batch_size: int, shuffle: bool, seed: int
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, not {batch_size}.")
        self.images, self.targets = images, targets
        self.batch_size, self.shuffle, self.seed, self.epoch = batch_size, shuffle, seed, 0

    def __len__(self) -> int:
        return math.ceil(len(self.images) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.arange(len(self.images))
        if self.shuffle:
            key = generator(self.seed, "loader", self.epoch)
            order = torch.randperm(len(self.images), generator=key)
        self.epoch += 1
        batches = order.to(self.images.device).split(self.batch_size)
        return ((self.images[rows], self.targets[rows]) for rows in batches)


class Deployed(nn.Module):
    """A trained network with its normaliser in front: pictures in, logits or features out.

    Pictures are uint8, or floating in [0, 1], [N, C, H, W].

    Raises:
        InputError: for pictures that cannot be in that range (normalised ones, floats to 255).
    """

    def __init__(self, net: nn.Module, space: Space, shape: tuple[int, ...]) -> None:
        super().__init__()
        space.check(shape)
        first = next(net.parameters())
        parts = space.parts(first.dtype, first.device)
        self.shape, self.normalise, self.parts = tuple(shape), space.apply, tuple(parts)
        for name, value in parts.items():
            self.register_buffer(name, value.clone())
        self.net = net

    def forward(self, pictures: Tensor) -> Tensor:
        """Return what the network gives: logits [N, K], features [N, F] of an encoder."""
        if tuple(pictures.shape[1:]) != self.shape:
            raise InputError(
                f"Pictures must be [N, {', '.join(map(str, self.shape))}], "
                f"not {list(pictures.shape)}."
            )
        parts = {name: self.get_buffer(name) for name in self.parts}
        dtype = parts[self.parts[0]].dtype
        if pictures.dtype == torch.uint8:
            x = pictures.to(dtype) / 255
        elif pictures.is_floating_point():
            _check_range(pictures)
            x = pictures.to(dtype)
        else:
            raise InputError(f"Pictures must be uint8 or float in [0, 1], not {pictures.dtype}.")
        return self.net(self.normalise(x, parts))


def _check_range(pictures: Tensor) -> None:
    """Refuse what is far outside [0, 1]; resizing may overshoot a little."""
    if torch.compiler.is_compiling() or not pictures.numel():
        return
    low, high = (float(value) for value in pictures.detach().aminmax())
    if low < -0.5 or high > 1.5:
        raise InputError(
            f"Float pictures must lie in [0, 1], not {low:.3g} to {high:.3g}; "
            "give them as they are, the model normalises them itself."
        )


def trained(
    net: NetSpec,
    recipe: TrainSpec,
    space: Space,
    images: Tensor,
    targets: Tensor,
    *,
    places: Tensor | None = None,
    prepare: Prepare | None = None,
    view: View | None = None,
    replay: Replay | None = None,
    classes: int,
    seed: int,
) -> Deployed:
    """Build a network and fit it to images by the recipe; return it for pictures.

    `places`, `prepare`, `view` and `replay` are as in `fit`.
    """
    channels, height, width = images.shape[1:]
    fresh = flat(
        net, channels=channels, size=(height, width), classes=classes, seed=seed, key=("train",)
    )
    theta = fit(
        fresh,
        fresh.theta0.to(images.device),
        images,
        targets,
        recipe,
        seed=seed,
        key=("train",),
        places=places,
        prepare=prepare,
        view=view,
        replay=replay,
    )
    return Deployed(fresh.load(theta), space, images.shape[1:]).eval()


def pretrained(
    net: NetSpec,
    recipe: TrainSpec,
    space: Space,
    images: Tensor,
    targets: Tensor,
    *,
    places: Tensor | None = None,
    prepare: Prepare | None = None,
    seed: int,
) -> Deployed:
    """Fit a network to features [N, D] of images; return it without its last layer, for pictures.

    By a recipe of pairs it learns from views of the images, with `VIEWS_HEAD` in place of the last
    layer. `places` and `prepare` are as in `fit`.

    Raises:
        InputError: if the network does not end in a linear layer.
    """
    channels, height, width = images.shape[1:]
    given: dict[str, Any] = {"channels": channels, "size": (height, width)}
    given |= {"seed": seed, "key": ("pretrain",)}
    if recipe.pairs is None:
        fresh = flat(net, classes=targets.shape[1], **given)
        targets = targets.to(fresh.theta0)
    else:
        fresh = projected(net, VIEWS_HEAD, **given)
    without_head(fresh.load(fresh.theta0), name=net.name)  # refuses before the work
    theta = fresh.theta0.to(images.device)
    lesson = (images, targets.to(images.device), recipe)
    key = given["key"]
    theta = fit(fresh, theta, *lesson, seed=seed, key=key, places=places, prepare=prepare)
    return Deployed(without_head(fresh.load(theta), name=net.name), space, images.shape[1:]).eval()
