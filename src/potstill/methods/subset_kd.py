"""Subset + KD: real images as they are, with what an encoder says of them as targets.

The baselines of MKDT (Joshi, Ni, Mirzasoleiman, ICLR 2025, arXiv 2410.02116): random images, those
that its experts fit worst, and SAS (Joshi and Mirzasoleiman, ICML 2023, arXiv 2302.09195).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal, TypedDict, get_args

import torch
from torch import Tensor

from potstill.artefact import DistilledSet
from potstill.core.errors import InputError
from potstill.core.ranges import above_zero, at_least, one_of
from potstill.core.spec import record
from potstill.coresets import GROUPED, Subset
from potstill.experts import ExpertPlan
from potstill.methods.api import METHODS, Context, Cost, Done, Loop, Metrics, Phase
from potstill.methods.encoded import (
    EXPERTS,
    balance_text,
    check_encoder_phase,
    chosen_rows,
    embedding_of,
    preparation,
    preparation_cost,
    pretraining,
)
from potstill.methods.export import distilled
from potstill.teachers import EncoderPlan

ASKED = dataclasses.replace(EXPERTS, epochs=3)
"""MKDT's experts, trained as far as MKDT reads them by default, so that one store serves both."""


class Chosen(TypedDict):
    """The rows of the whole subset, their targets, and the places in it of the classes so far."""

    rows: Tensor
    targets: Tensor
    places: Tensor


@METHODS.add("subset-kd")
@record
@dataclass(frozen=True, kw_only=True)
class SubsetKD:
    """Choose real images for pre-training, with the features of an encoder as their targets.

    Differs: sas looks at those features within classes or clusters, and takes as many images as are
    asked for; the original looks at what a ResNet-10 trained by SimCLR gives behind its projector,
    within classes that a language-image model can guess, too, and rounds each class down.
    """

    unlabelled: ClassVar[bool] = True
    choice: Subset = "high-loss"
    """high-loss: those that experts fit worst after an epoch, which leaves classes out; random;
    high-loss-balanced, random-balanced: as many of each group; sas: of each group those whose
    features are most like the rest of it and least like each other."""
    groups: Literal["labels", "clusters"] = "labels"
    """Of the balanced ones and sas: classes, which uses all labels, or clusters (k-means) of the
    features, which uses none. random and high-loss use no labels."""
    clusters: int = 0
    """How many; 0: as many as there are classes."""
    normalise: bool = False
    """Divide the losses of high-loss by the mean square of the targets, for images with large
    targets have large losses."""
    legacy: bool = False
    """sas by the released code, which looks only at how like an image is to the rest."""
    targets: Literal["raw", "standardised"] = "raw"
    """Features as the encoder gives them, or with mean 0 and standard deviation 1."""
    lr: float = 0.1
    """Step size of pre-training on the set."""
    evaluation_epochs: int = 20
    """Epochs of it."""
    teacher: EncoderPlan = EncoderPlan()
    """The encoder whose features are learned."""
    experts: ExpertPlan = ASKED
    """Of high-loss: the experts that are asked after their first epoch. The epochs are those that
    mkdt trains by default, so both use the same ones; 1 is enough here."""

    def __post_init__(self) -> None:
        one_of(get_args(Subset), self, "choice")
        one_of(("labels", "clusters"), self, "groups")
        one_of(("raw", "standardised"), self, "targets")
        at_least(0, self, "clusters")
        at_least(1, self, "evaluation_epochs")
        above_zero(self, "lr")
        grouped, free = self.choice in GROUPED, self.groups == "clusters"
        for fits, text in (
            (grouped or not free, f"groups {self.groups!r} are for {', '.join(GROUPED)}"),
            (free or not self.clusters, f"{self.clusters} clusters are for groups 'clusters'"),
            (self.by_loss or not self.normalise, "normalise is for high-loss"),
            (self.choice == "sas" or not self.legacy, "legacy is for sas"),
            (self.by_loss or self.experts in _STATED, "settings of experts are for high-loss"),
        ):
            if not fits:
                raise InputError(
                    f"subset-kd's {text}, not for choice {self.choice!r} of {self.groups}."
                )
        if self.experts.objective != "kd_mse":
            raise InputError(
                f"subset-kd's experts learn features, objective 'kd_mse', not "
                f"{self.experts.objective!r}."
            )

    @property
    def by_loss(self) -> bool:
        """Return whether images are chosen by the experts."""
        return self.choice.startswith("high-loss")

    @property
    def asked(self) -> ExpertPlan | None:
        """Return the experts, if they are asked."""
        return self.experts if self.by_loss else None

    def check(self, ctx: Context) -> None:
        """Refuse encoders that cannot be had, networks without a head, too many clusters."""
        check_encoder_phase(self, ctx)
        if self.clusters > (have := len(ctx.data.train)):
            raise InputError(f"{have} training images make at most {have} clusters.")

    def cost(self, ctx: Context) -> Cost:
        """Return the bytes of encoder, targets and experts, and their work."""
        return preparation_cost(self, ctx, steps=ctx.data.n_classes)

    def phases(self, ctx: Context, done: Done) -> Phase | None:
        """Make the encoder, encode all images, train experts and see what they fit; choose."""
        if (phase := preparation(self, ctx, done)) is not None or "loop" in done:
            return phase
        return Loop(steps=ctx.data.n_classes, opening=self._opening)

    def init(self, ctx: Context) -> Chosen:
        """Return the subset, none of whose images are taken yet."""
        clusters = self.clusters or ctx.data.n_classes
        rows, targets = chosen_rows(
            self,
            ctx,
            self.choice,
            clusters=clusters if self.groups == "clusters" else None,
            normalise=self.normalise,
            objective="released" if self.legacy else "graph_cut",
        )
        return Chosen(rows=rows, targets=targets, places=torch.empty(0, dtype=torch.int64))

    def step(self, ctx: Context, state: Chosen, it: int) -> tuple[Chosen, Metrics]:
        """Take those images of the subset that are of class `it`; how many is the metric."""
        found = torch.nonzero(ctx.data.train.labels[state["rows"]] == it)[:, 0]
        places = torch.cat([state["places"], found])
        new = Chosen(rows=state["rows"], targets=state["targets"], places=places)
        return new, {"class": float(it), "images": float(len(found))}

    def export(self, ctx: Context, state: Chosen) -> DistilledSet:
        """Return the chosen images, class by class; `origin.rows` are their rows.

        Raises:
            InputError: before the last class is taken.
        """
        places = state["places"]
        if len(places) < len(state["rows"]):
            raise InputError("A set of chosen images is whole after its last class.")
        rows = state["rows"][places]
        return distilled(
            ctx,
            self,
            images=ctx.space.forward(ctx.data.train.pixels[rows]),
            targets=embedding_of(ctx, state["targets"][places], rows, self.targets),
            recipe=pretraining(self.lr, self.evaluation_epochs),
            rows=tuple(rows.tolist()),
        )

    def scaled(self, scale: Literal["smoke", "cpu"]) -> SubsetKD:
        """Return the method with at most the counts of the scale; nothing else changes."""
        smoke = scale == "smoke"
        return dataclasses.replace(
            self,
            teacher=self.teacher.scaled(scale),
            experts=_scales(self.experts)[1 if smoke else 2],
            evaluation_epochs=min(self.evaluation_epochs, 10 if smoke else 20),
        )

    def _opening(self, ctx: Context, state: Chosen) -> str:
        return f"Chosen images ({self.choice}): {balance_text(ctx, state['rows'])}."


def _scales(plan: ExpertPlan) -> tuple[ExpertPlan, ...]:
    """Return a plan as it is, at scale smoke and at scale cpu: counts as those of mkdt."""
    most = ((plan.count, plan.epochs), (2, 2), (3, 8))
    return tuple(
        dataclasses.replace(plan, count=min(plan.count, n), epochs=min(plan.epochs, epochs))
        for n, epochs in most
    )


_STATED = _scales(ASKED)
