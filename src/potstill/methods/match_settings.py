"""Settings of gradient matching, and what is wrong with some of them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from operator import attrgetter
from typing import Any, Literal, Self

from potstill.artefact import Identity, MultiFormation
from potstill.augment import Policy
from potstill.core.errors import InputError, unknown
from potstill.core.ranges import above_zero, at_least, below_one, one_of
from potstill.core.spec import record
from potstill.data import Space
from potstill.experts import NetworkPath, NetworkPool
from potstill.functional.matched import DISTANCES, LAYERS


@record
@dataclass(frozen=True, kw_only=True)
class Match:
    """What is matched, and how far apart two of it are."""

    of: Literal["gradients", "features"] = "gradients"
    """gradients of the mean loss, or the mean input of the classifier (features)."""
    layers: Literal["conv", "weights", "all"] = "conv"
    """Weights whose gradients count: convolutions, these and linear layers (weights), all."""
    distance: Literal["mse", "l1", "l1_mean", "cos", "cos_all"] = "mse"
    """Summed squares (mse), sum of absolute differences (l1), these as means over what feeds an
    output (l1_mean), 1 - cosine for each output (cos) or for all weights as one vector."""

    def __post_init__(self) -> None:
        for name, allowed in (
            ("of", ("gradients", "features")),
            ("layers", tuple(LAYERS)),
            ("distance", tuple(DISTANCES)),
        ):
            if getattr(self, name) not in allowed:
                raise unknown(f"match.{name}", getattr(self, name), allowed)
        if self.of == "features" and (self.layers, self.distance) != ("conv", "mse"):
            raise InputError("Features are matched by mse; match.layers has no effect on them.")


@record
@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the presets of gradient matching have in common."""

    networks: int
    """Networks, one after another (the published outer iterations)."""
    matches: int
    """Image steps with each network."""
    match: Match
    """What is matched."""
    batch_real: int
    """Real images of a class in one matching."""
    batch_syn: int | None = None
    """Most distilled (decoded) images of a class in one, drawn at random; none: all."""
    lr_img: float
    """Step size of the images."""
    momentum: float = 0.5
    """Momentum of the images."""
    turns: Literal["joint", "sequential"] = "joint"
    """One image step for all classes, or one after each class (with their momentum in common)."""
    pixels: Literal["model", "raw"] = "model"
    """What moves: normalised values as the model sees them, or raw pixels, cut to [0, 1] whenever a
    new network begins."""
    image_init: Literal["real", "noise"] = "real"
    """First images: real ones (mosaics of them if there is a factor), or noise."""
    factor: int = 1
    """Images cut out of each stored image, a side: 2 = 4 images."""
    decoder: Literal["single", "multi", "bound"] = "single"
    """Cut at this factor, at all up to it, or so that a class has at most 128 images (bound)."""
    axes: Literal["both", "width"] = "both"
    """What is cut: height and width, or (spectrograms) the width alone."""
    augment: Policy | None
    """Augmentation of real and distilled images, one draw for both."""
    path: NetworkPath
    """How networks move on, on real images."""
    pool: NetworkPool = NetworkPool()
    """Networks kept in the store instead of new ones."""
    inner_epochs: int = 0
    """Epochs of the distilled set that a network is trained on after each image step but its last.
    """
    inner_batch: int = 256
    """Distilled images a step of these."""
    inner_lr: float = 0.01
    """Step size of these."""
    inner_augment: Policy | None = None
    """Augmentation of these."""
    settle: int = 0
    """Real images of each class that set the statistics of batch norms, which then stay during a
    matching; 0 = each batch has its own."""
    evaluation_epochs: int = 1000
    """Nominal epochs of training on the set."""

    def __post_init__(self) -> None:
        at_least(1, self, "networks", "matches", "batch_real", "batch_syn", "factor", "inner_batch")
        at_least(1, self, "evaluation_epochs")
        at_least(0, self, "inner_epochs", "settle")
        above_zero(self, "lr_img", "inner_lr")
        below_one(self, "momentum")
        one_of(("joint", "sequential"), self, "turns")
        one_of(("model", "raw"), self, "pixels")
        one_of(("real", "noise"), self, "image_init")
        one_of(("single", "multi", "bound"), self, "decoder")
        one_of(("both", "width"), self, "axes")
        if self.factor == 1 and (self.decoder, self.axes) != ("single", "both"):
            raise InputError(
                f"The decoder {self.decoder!r} and axes {self.axes!r} need a factor of at least 2."
            )
        if self.inner_epochs and (self.path.images or self.path.early or self.pool.size):
            raise InputError(
                "Networks are trained on the distilled set (inner_epochs) or on real images (path, "
                "pool), not on both."
            )

    def refuse_idle(self, *, statistics: bool) -> None:
        """Refuse settings that say nothing beside others, unless they are at their defaults.

        `statistics`: whether the network has batch norms.

        Raises:
            InputError: naming the first one.
        """
        kind: Any = type(self)
        default = kind()
        still = not (self.path.images or self.path.early or self.pool.size)
        deaf = {
            "networks that see no distilled images (inner_epochs 0)": (
                () if self.inner_epochs else ("inner_batch", "inner_lr", "inner_augment")
            ),
            "networks without batch norm": () if statistics else ("settle",),
            "networks that see no real images (path.images 0)": (
                tuple(f"path.{f.name}" for f in fields(self.path)) if still else ()
            ),
        }
        for why, names in deaf.items():
            for name in sorted(set(names) - {"path.images", "path.early"}):
                value, usual = attrgetter(name)(self), attrgetter(name)(default)
                if value > usual if name == "settle" else value != usual:
                    raise InputError(f"{name} ({value}) says nothing to {why}: leave it out.")

    def cut(self, space: Space) -> MultiFormation | Identity:
        """Return how stored images of that space are cut; what is missing is grey."""
        if self.factor == 1:
            return Identity()
        return MultiFormation(factor=self.factor, kind=self.decoder, axes=self.axes).normalised(
            space
        )

    @property
    def iterations(self) -> int:
        """Return the image steps of a whole run."""
        return self.networks * self.matches

    def scaled(self, scale: Literal["smoke", "cpu"]) -> Self:
        """Return the method with at most the counts of the scale; nothing else changes."""
        smoke = scale == "smoke"
        matches = min(self.matches, 3 if smoke else 20)
        steps = 6 if smoke else 400 if self.match.of == "gradients" else 1000
        path, pool = self.path, self.pool
        return replace(
            self,
            networks=min(self.networks, steps // matches),
            matches=matches,
            batch_real=min(self.batch_real, 10 if smoke else 64),
            path=replace(
                path, images=min(path.images, 64 if smoke else 512), early=min(path.early, 1)
            ),
            batch_syn=None if self.batch_syn is None else min(self.batch_syn, 8 if smoke else 128),
            pool=replace(pool, size=min(pool.size, 2 if smoke else 10), first=min(pool.first, 1)),
            inner_epochs=min(self.inner_epochs, 2 if smoke else 10),
            settle=min(self.settle, 4 if smoke else 16),
            evaluation_epochs=min(self.evaluation_epochs, 20 if smoke else 1000),
        )
