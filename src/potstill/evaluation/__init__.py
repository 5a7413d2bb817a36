"""Protocols, matched baselines and scores."""

from potstill.evaluation import taught as _taught  # noqa: F401 - registers its protocols
from potstill.evaluation.images import Beside
from potstill.evaluation.matched import evaluate
from potstill.evaluation.protocol import PROTOCOLS
from potstill.evaluation.result import Result, Row, spread
from potstill.evaluation.rules import Protocol
from potstill.evaluation.scores import AugmentRobust, LabelRobust, augment_robust, label_robust
from potstill.evaluation.specs import Distilled, EvalSpec
from potstill.evaluation.tasks import evaluate_one

__all__ = [
    "PROTOCOLS",
    "AugmentRobust",
    "Beside",
    "Distilled",
    "EvalSpec",
    "LabelRobust",
    "Protocol",
    "Result",
    "Row",
    "augment_robust",
    "evaluate",
    "evaluate_one",
    "label_robust",
    "spread",
]
