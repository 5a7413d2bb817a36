"""Protocols, matched baselines and scores."""

from potstill.evaluation import taught as _taught  # noqa: F401 - registers its protocols
from potstill.evaluation.images import Beside
from potstill.evaluation.matched import evaluate
from potstill.evaluation.pretraining import evaluate_pretraining
from potstill.evaluation.pretraining_asked import whole_labels
from potstill.evaluation.pretraining_result import ProbeResult, ProbeRow
from potstill.evaluation.pretraining_rules import PROBES, ProbeRules, direct_recipe
from potstill.evaluation.protocol import PROTOCOLS
from potstill.evaluation.result import Result, Row, spread
from potstill.evaluation.rules import Protocol
from potstill.evaluation.scores import AugmentRobust, LabelRobust, augment_robust, label_robust
from potstill.evaluation.specs import Distilled, EvalSpec
from potstill.evaluation.tasks import evaluate_one

__all__ = [
    "PROBES",
    "PROTOCOLS",
    "AugmentRobust",
    "Beside",
    "Distilled",
    "EvalSpec",
    "LabelRobust",
    "ProbeResult",
    "ProbeRow",
    "ProbeRules",
    "Protocol",
    "Result",
    "Row",
    "augment_robust",
    "direct_recipe",
    "evaluate",
    "evaluate_one",
    "evaluate_pretraining",
    "label_robust",
    "spread",
    "whole_labels",
]
