"""Protocols as data, each by its name."""

from __future__ import annotations

from dataclasses import replace

from potstill.augment import DSA, RAT, CutMix, Policy, Views
from potstill.core.registry import Registry
from potstill.evaluation.rules import Protocol
from potstill.functional import (
    SGD,
    Adam,
    Segment,
    TrainSpec,
    idc_recipe,
    idc_segments,
    mtt_segments,
)

PROTOCOLS: Registry[Protocol] = Registry("protocol")

STRICT = PROTOCOLS.add("strict")(
    Protocol(
        name="strict",
        help="the set's own recipe, last epoch, t-interval; baselines may choose their step",
        lr_grid=(0.001, 0.01, 0.1),
    )
)
"""The set's own recipe, last epoch, t-interval; baselines also choose their step size."""

MTT = PROTOCOLS.add("mtt")(
    Protocol(
        name="mtt",
        help="MTT's 1,001 epochs with one step-size drop and reset, std of the population",
        mix="none",
        segments=mtt_segments(),
        optimizer=SGD(momentum=0.9, weight_decay=5e-4),
        batch=256,
        hard_only=True,
        ddof=0,
    )
)
"""1,001 epochs; after epoch index 501 a tenth of the step size and a new optimizer (MTT's
evaluation, arXiv 2203.11932). Differs: the original reports the best test accuracy over outer
iterations; here a set is measured once."""


def _published(
    name: str, about: str, *, epochs: int, augment: Policy | None, seeds: int, ddof: int
) -> Protocol:
    """Add a protocol of the DC family: SGD .01, momentum .9, decay 5e-4, batch 256, last epoch.

    epochs + 1 epochs; after epoch index epochs // 2 + 1 a tenth of the step size and a new
    optimizer.
    """
    drop = f"{epochs + 1:,} epochs at step size .01 with one drop and reset"
    protocol = Protocol(
        name=name,
        help=f"{about}: {drop}, {'DSA' if augment else 'no augmentation'}, {seeds} networks",
        lr=0.01,
        augment=augment or "none",
        mix="none",
        segments=mtt_segments(epochs),
        optimizer=SGD(momentum=0.9, weight_decay=5e-4),
        batch=256,
        hard_only=True,
        seeds=seeds,
        ddof=ddof,
    )
    return PROTOCOLS.add(name)(protocol)


# Zhao, Mopuri, Bilen, ICLR 2021 (arXiv 2006.05929), and Zhao, Bilen, ICML 2021 (arXiv 2102.08259).
# Differs: the originals augment digits (MNIST) and batch-norm networks in a way of their own, and
# average over 5 distilled sets.
_published("dc", "DC's evaluation", epochs=300, augment=None, seeds=20, ddof=0)
_published("dsa", "DSA's evaluation", epochs=1000, augment=DSA(), seeds=20, ddof=0)
# Cui, Wang, Si, Hsieh, NeurIPS 2022 (arXiv 2207.09639), with its augmentations `dsa` and `none`.
_published("dc-bench", "DC-BENCH", epochs=1000, augment=DSA(), seeds=5, ddof=1)
_published(
    "dc-bench-plain", "DC-BENCH without augmentation", epochs=300, augment=None, seeds=5, ddof=1
)

RATBPTT = PROTOCOLS.add("ratbptt")(
    Protocol(
        name="ratbptt",
        help="RaT-BPTT's: Adam (the set's own step size, or .001 if it was made with another "
        "optimizer) on class-balanced batches of at most 10 x 10 images (or the set's own), "
        "mirrored or rotated; best of 300, 600, 1,000, 3,000 steps on validation",
        lr=0.001,
        own_lr=True,
        augment=RAT(),
        mix="none",
        segments=(Segment(epochs=3000),),
        marks=(300, 600, 1000, 3000),
        optimizer=Adam(),
        sampler=(10, 10),
        seeds=10,
    )
)
"""3,000 steps at one step size (Feng et al., ICLR 2024, arXiv 2311.07025, by its released code).
Differs: the mark is chosen on the validation part, not on the test part, and a set is measured
once, not at its best outer step."""


# Kim et al., IDC, ICML 2022 (arXiv 2205.14959). Differs: the last epoch counts, where the original
# reports the best of four accuracies on the test part; DenseNet takes no fewer epochs.
_IDC = idc_recipe()
IDC_RULES = PROTOCOLS.add("idc")(
    Protocol(
        name="idc",
        help="IDC's: SGD .01, batch 64, 1,000 epochs with drops to a fifth at 2/3 and 5/6, the "
        "set's own policy idc and CutMix, or colour, crop or scale or rotate, flip and CutMix .5",
        lr=_IDC.lr,
        augment=_IDC.augment,
        mix=_IDC.mix,
        keeps=True,
        segments=_IDC.segments,
        optimizer=_IDC.optimizer,
        batch=_IDC.batch,
        hard_only=True,
    )
)
"""Sets of digits, and IDC-I's one image a class of SVHN, bring a policy idc of their own."""

IDC_IMAGENET = PROTOCOLS.add("idc-imagenet")(
    replace(
        IDC_RULES,
        name="idc-imagenet",
        help="IDC's for large images: 300 to 3,000 epochs by the images a class, random views "
        "(resized crop, flip, jitter, lighting), CutMix always; else as idc",
        augment=Views(),
        mix=CutMix(prob=1.0),
        keeps=False,
        segments=None,
        epochs=((0, 3000), (1, 2000), (10, 1500), (50, 1000), (200, 500), (500, 300)),
    )
)
"""Differs: images a class are those that the set's decoder gives, which its bound caps."""


# Chen et al., PDD, ICLR 2024 (arXiv 2310.06982), by its released evaluation, over MTT and over IDC.
# Differs: each network has initial weights of its own, where the one over MTT starts all of them
# from those of one expert; the last epoch counts, where the one over IDC reports the best of 50
# accuracies on the test part.
_STAGED = "on the union so far, momentum carried; beside it the matched budget and the union"
PROTOCOLS.add("staged")(
    replace(
        MTT,
        name="staged",
        help="PDD's over MTT: stages of 501 epochs with one drop, each at its own step size, "
        f"{_STAGED}",
        stage=mtt_segments(500),
    )
)
PROTOCOLS.add("staged-idc")(
    replace(
        IDC_RULES,
        name="staged-idc",
        help="PDD's over IDC: stages of 500 epochs with drops to a fifth at 2/3 and 5/6, half the "
        f"step size from the 6th on, {_STAGED}; else as idc",
        stage=idc_segments(500),
        half_from=6,
    )
)


def whole_recipe() -> TrainSpec:
    """Return how networks are trained on the whole real set, as a ceiling or as teachers."""
    segments = (Segment(epochs=30), Segment(epochs=10, lr_scale=0.1, optimizer="carried"))
    return TrainSpec(lr=0.01, segments=segments, batch=64)
