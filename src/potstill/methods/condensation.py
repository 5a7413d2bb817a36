"""The presets of gradient matching: DC, DSA, DM and IDC.

Sources: see `gradient_matching`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from potstill.augment import DSA, IDC, Policy
from potstill.core.spec import record
from potstill.experts import NetworkPath
from potstill.functional import IDC_AUGMENT, SGD, TrainSpec, idc_recipe, mtt_segments
from potstill.methods.api import METHODS, Context
from potstill.methods.gradient_matching import GradientMatching
from potstill.methods.match_settings import Match

STILL = NetworkPath(images=0, augment=None, cutmix=0.0)
"""Networks that see no real images."""
SCHEDULE = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
"""DC's image steps a network, and epochs of the set between two of them, by images a class."""


def _trained(epochs: int, augment: Policy | None) -> TrainSpec:
    """Return how DC and its kin train on a set: one drop of the step size, after half."""
    return TrainSpec(
        lr=0.01,
        segments=mtt_segments(epochs),
        optimizer=SGD(momentum=0.9, weight_decay=5e-4),
        augment=augment,
    )


@METHODS.add("dc")
@record
@dataclass(frozen=True, kw_only=True)
class DCMethod(GradientMatching):
    """Match gradients of networks trained on the distilled set (Zhao et al., ICLR 2021)."""

    networks: int = 1000
    matches: int = 10
    match: Match = Match(layers="weights", distance="cos")
    batch_real: int = 256
    lr_img: float = 0.1
    image_init: Literal["real", "noise"] = "noise"
    augment: Policy | None = None
    path: NetworkPath = STILL
    inner_epochs: int = 50
    settle: int = 16
    evaluation_epochs: int = 300

    def notes(self, ctx: Context) -> tuple[str, ...]:
        """Say also which settings were published for this many images a class."""
        ipc = sum(block.ipc for block in ctx.synth if block.lr_scale)
        known, others = SCHEDULE.get(ipc), super().notes(ctx)
        if known is None or known == (self.matches, self.inner_epochs):
            return others
        matches, epochs = known
        return (
            *others,
            f"Note: published for {ipc} images a class: --method.matches {matches} "
            f"--method.inner-epochs {epochs}.",
        )

    def recipe(self) -> TrainSpec:
        """Return DC's training on a set."""
        return _trained(self.evaluation_epochs, self.augment)


@METHODS.add("dsa")
@record
@dataclass(frozen=True, kw_only=True)
class DSAMethod(DCMethod):
    """DC with one augmentation of both kinds of images (Zhao and Bilen, ICML 2021)."""

    image_init: Literal["real", "noise"] = "real"
    augment: Policy | None = DSA()
    inner_augment: Policy | None = DSA()
    evaluation_epochs: int = 1000


@METHODS.add("dm")
@record
@dataclass(frozen=True, kw_only=True)
class DMMethod(GradientMatching):
    """Match mean features of random networks (Zhao and Bilen, WACV 2023)."""

    networks: int = 20_000
    matches: int = 1
    match: Match = Match(of="features")
    batch_real: int = 256
    lr_img: float = 1.0
    augment: Policy | None = DSA()
    path: NetworkPath = STILL

    def recipe(self) -> TrainSpec:
        """Return DSA's training on a set."""
        return _trained(self.evaluation_epochs, self.augment)


@METHODS.add("idc")
@record
@dataclass(frozen=True, kw_only=True)
class IDCMethod(GradientMatching):
    """Match gradients of networks on real images, many images in one (Kim et al., ICML 2022)."""

    networks: int = 2000
    matches: int = 100
    match: Match = Match(layers="conv", distance="mse")
    batch_real: int = 64
    batch_syn: int | None = 128
    lr_img: float = 5e-3
    """Step size of the raw pixels of 10 images a class of 32 x 32; it grows with the images a class
    and with the area (published rule)."""
    turns: Literal["joint", "sequential"] = "sequential"
    pixels: Literal["model", "raw"] = "raw"
    factor: int = 2
    augment: Policy | None = IDC()
    path: NetworkPath = NetworkPath()
    evaluation_augment: Policy | None = IDC_AUGMENT
    """Augmentation of training on the set."""
    evaluation_cutmix: float = 0.5
    """Part of these steps whose images are mixed by CutMix."""

    def rate(self, ctx: Context) -> float:
        """Return the step size for this many images a class of this size."""
        ipc = max(block.ipc for block in ctx.synth if block.lr_scale)
        height, width = ctx.data.size
        return self.lr_img * ipc / 10 * height * width / 32**2

    def recipe(self) -> TrainSpec:
        """Return IDC's training on a set: a fifth of the step size at 2/3 and 5/6 of it."""
        return idc_recipe(
            epochs=self.evaluation_epochs,
            augment=self.evaluation_augment,
            cutmix=self.evaluation_cutmix,
        )
