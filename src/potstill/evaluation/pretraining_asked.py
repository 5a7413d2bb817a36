"""What an evaluation by probes is asked for, all looked up before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from potstill.artefact import DistilledSet
from potstill.core.compute import Compute, Wish
from potstill.core.errors import InputError
from potstill.data import DataSet, SpaceSpec, Zca, keep_space, measure_stats
from potstill.evaluation.asked import nets_of
from potstill.evaluation.computing import computed, work_of
from potstill.evaluation.pretraining_entrants import Entrant
from potstill.evaluation.pretraining_rules import (
    PROBES,
    LabelBudget,
    ProbeRules,
    budgets_of,
    given_rows,
)
from potstill.evaluation.pretraining_specs import FineTuneSpec, PretrainSpec, ProbeSpec
from potstill.nets import NetSpec, build, without_head


@dataclass(frozen=True, kw_only=True)
class ProbesAsked:
    """What is compared, and by which rules."""

    rules: ProbeRules
    budgets: tuple[LabelBudget, ...]
    data: tuple[DataSet, ...]
    """That of the set first, then those of the transfer."""
    names: tuple[str, ...]
    """What people call them."""
    spaces: tuple[SpaceSpec, ...]
    """How their images are normalised."""
    entrants: tuple[Entrant, ...]
    nets: dict[NetSpec, Compute]

    def pretrainings(self) -> dict[tuple[int, NetSpec, int], tuple[PretrainSpec, ...]]:
        """Return the networks, a seed each, by place of the entrant, network, place of the step."""

        def spec(item: Entrant, net: NetSpec, k: int, seed: int) -> PretrainSpec:
            return PretrainSpec(
                what=item.what[seed % len(item.what)],
                net=net,
                outputs=item.outputs,
                train=item.trains[k],
                seed=seed,
                data=self.data[0].ref,
                space=item.of[0].space.record() if item.of else self.spaces[0],
                compute=self.nets[net],
            )

        return {
            (place, net, k): tuple(spec(item, net, k, seed) for seed in range(self.rules.seeds))
            for net in self.nets
            for place, item in enumerate(self.entrants)
            for k in range(len(item.trains))
        }

    def probe(self, spec: PretrainSpec, at: int) -> ProbeSpec:
        """Return all probes of an encoder on one of the data sets."""
        return ProbeSpec(
            pretrained=spec,
            data=self.data[at].ref,
            space=self.spaces[at] if at else spec.space,
            budgets=self.budgets,
            l2=self.rules.l2,
            stratified=self.rules.stratified,
            whole=self.rules.whole,
            validated=not (at or self.rules.whole),
        )

    def finetuning(self, spec: PretrainSpec, at: int) -> FineTuneSpec:
        """Return the training of all of an encoder on one of the data sets."""
        assert self.rules.finetune is not None
        data = self.data[at]
        images = len(data.train) + len(data.val) * self.rules.whole
        return FineTuneSpec(
            pretrained=spec,
            data=data.ref,
            space=self.spaces[at] if at else spec.space,
            whole=self.rules.whole,
            train=self.rules.finetune.train_spec(images, data.size),
        )


def rules_of(
    protocol: str, seeds: int | None, *, stratified: bool = False, finetune: bool = False
) -> ProbeRules:
    """Return a protocol by its name, with so many networks a row; see `evaluate_pretraining`.

    Raises:
        InputError: for an unknown name, no network, or fine-tuning where there are no rules of it.
    """
    rules = PROBES.get(protocol)
    if seeds is not None and seeds < 1:
        raise InputError(f"seeds={seeds}: at least 1 network is needed.")
    if finetune and rules.finetune is None:
        able = ", ".join(name for name in PROBES.names() if PROBES.get(name).finetune is not None)
        raise InputError(f"The protocol {protocol!r} does not fine-tune networks; {able} does.")
    if not finetune:
        rules = replace(rules, finetune=None)
    if stratified and not rules.stratified:
        rules = replace(rules, name=f"{rules.name}, stratified", stratified=True)
    return rules if seeds is None else replace(rules, seeds=seeds)


def whole_labels(data: DataSet, protocol: str) -> dict[str, Any]:
    """Return options of `evaluate_pretraining` by which a protocol leaves no class without a label.

    None where its parts of the labels do so; else `stratified`, or else 1 and 5 `shots`.
    """
    for stratified in (False, True):
        rules = rules_of(protocol, None, stratified=stratified)
        try:
            _check_labels(data, data.source, budgets_of(rules.labels, ()), rules)
        except InputError:
            continue
        return {"stratified": True} if stratified else {}
    return {"shots": (1, 5)}


def asked_for(
    s: DistilledSet,
    data: tuple[DataSet, ...],
    entrants: Sequence[Entrant],
    rules: ProbeRules,
    nets: Sequence[str | NetSpec] | None,
    labels: Sequence[str] | None,
    shots: Sequence[int],
    wish: Wish | None,
) -> ProbesAsked:
    """Return what is asked for.

    Raises:
        InputError: for data sets that do not fit or come twice, no labels or too few of them,
            networks that do not fit or do not end in a linear layer.
    """
    if labels is None:
        labels = () if shots else rules.labels
    budgets = budgets_of(tuple(labels), tuple(shots))
    names = (s.origin.data, *(each.source for each in data[1:]))
    _check_data(data, names)
    if not budgets:
        raise InputError("Probes need labels: a part of them such as 1%, or shots of each class.")
    for each, name in zip(data, names, strict=True):
        _check_labels(each, name, budgets, rules)
    for each in (s, *(one for item in entrants for one in item.of)):
        keep_space(each.space)
    zca = isinstance(s.space, Zca)
    others = (s.space.record() if zca else measure_stats(each.train) for each in data[1:])
    wish, named = wish or Wish(threads=1), nets_of(nets or (s.net,), s.net)
    return ProbesAsked(
        rules=rules,
        budgets=budgets,
        data=data,
        names=names,
        spaces=(s.space.record(), *others),
        entrants=tuple(entrants),
        nets={net: _compute(net, entrants, data, rules, wish) for net in named},
    )


def _check_data(data: tuple[DataSet, ...], names: tuple[str, ...]) -> None:
    """Refuse data sets of other images than the first, and any that comes twice."""
    shape = (data[0].channels, *data[0].size)
    for each, name in zip(data, names, strict=True):
        if (own := (each.channels, *each.size)) != shape:
            side = f'; open it with resize={shape[1]}, fit="squash"' if own[0] == shape[0] else ""
            raise InputError(
                f"The images of {name} are {own} (channels, height, width), those that networks "
                f"are pre-trained on {shape}{side}."
            )
    for known in ([each.ref.identity for each in data], names):
        if len(set(known)) < len(known):
            twice = next(k for k, one in enumerate(known) if one in known[:k])
            raise InputError(f"{names[twice]} is named twice among the data to probe on.")


def _check_labels(
    data: DataSet, name: str, budgets: tuple[LabelBudget, ...], rules: ProbeRules
) -> None:
    """Refuse budgets that leave a class without a label for any seed."""
    labels = torch.cat(rules.pool(data))
    for budget in budgets:
        for seed in range(rules.seeds):
            try:
                given_rows(labels, data.n_classes, budget, stratified=rules.stratified, seed=seed)
            except InputError as error:
                raise InputError(f"{name}: {error}") from error


def _compute(
    net: NetSpec,
    entrants: Sequence[Entrant],
    data: tuple[DataSet, ...],
    rules: ProbeRules,
    wish: Wish,
) -> Compute:
    """Return how all trainings of one network are computed; refuse one that does not fit."""
    given: dict[str, Any] = {"channels": data[0].channels, "size": data[0].size}
    module = build(net, **given, classes=max(item.outputs for item in entrants), seed=0)
    without_head(module, name=net.name)
    trainings = [
        (steps, seen * (1 if train.pairs is None else 2))
        for item in entrants
        for train in item.trains
        if train is not None
        for steps, seen in [work_of(train, item.count)] * rules.seeds
    ]
    tested = sum(len(each.test) + len(each.val) for each in data)
    return computed(wish, module, trainings, data[0], predicted=tested)
