"""Protocols, matched baselines and scores."""

from potstill.evaluate.coreset import Features, medoid_real, net_features, random_real
from potstill.evaluate.matched import evaluate
from potstill.evaluate.protocol import PROTOCOLS, Protocol
from potstill.evaluate.result import Result, Row, spread
from potstill.evaluate.scores import AugmentRobust, LabelRobust, augment_robust, label_robust
from potstill.evaluate.tasks import EvalSpec, evaluate_one

__all__ = [
    "PROTOCOLS",
    "AugmentRobust",
    "EvalSpec",
    "Features",
    "LabelRobust",
    "Protocol",
    "Result",
    "Row",
    "augment_robust",
    "evaluate",
    "evaluate_one",
    "label_robust",
    "medoid_real",
    "net_features",
    "random_real",
    "spread",
]
