"""Differentiable optimizers, unrolled training, first-order training."""

from potstill.functional.fresh import fresh
from potstill.functional.losses import Softened, ce, mse, soft_ce
from potstill.functional.optim import SGD, Adam
from potstill.functional.schedule import (
    IDC_AUGMENT,
    Segment,
    TrainSpec,
    idc_recipe,
    idc_segments,
    mtt_segments,
    within,
)
from potstill.functional.selfsup import BarlowTwins, PairLoss, SimCLR
from potstill.functional.sharpness import GSAM
from potstill.functional.steps import Twice, augmented, training_loss, views_loss
from potstill.functional.strategy import choose_strategy, graph_bytes
from potstill.functional.train import accuracy, fit, predict, take_steps
from potstill.functional.unroll import Batch, run_prefix, unroll

__all__ = [
    "GSAM",
    "IDC_AUGMENT",
    "SGD",
    "Adam",
    "BarlowTwins",
    "Batch",
    "PairLoss",
    "Segment",
    "SimCLR",
    "Softened",
    "TrainSpec",
    "Twice",
    "accuracy",
    "augmented",
    "ce",
    "choose_strategy",
    "fit",
    "fresh",
    "graph_bytes",
    "idc_recipe",
    "idc_segments",
    "mse",
    "mtt_segments",
    "predict",
    "run_prefix",
    "soft_ce",
    "take_steps",
    "training_loss",
    "unroll",
    "views_loss",
    "within",
]
