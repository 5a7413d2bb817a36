"""What an evaluation is asked for: sets, data, networks and rules that fit each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from potstill.artefact import DistilledSet, load
from potstill.core.compute import Compute, Wish, choose
from potstill.core.errors import InputError
from potstill.core.store import Store, default_cache
from potstill.data import DataSet, keep_space, reopen
from potstill.evaluation.images import Beside, check_data, cut_to
from potstill.evaluation.protocol import PROTOCOLS
from potstill.evaluation.regimes import regimes_of
from potstill.evaluation.rules import Protocol
from potstill.nets import NET_POOLS, NetSpec, build, filled, variant


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is evaluated, and by which rules."""

    s: DistilledSet
    path: Path | None
    """Folder of the set, if it lies in one as it is."""
    note: str
    """Which part of a set it is; "" for a whole one."""
    data: DataSet
    beside: tuple[Beside, ...]
    rules: Protocol
    regimes: tuple[str, ...]
    modules: dict[NetSpec, nn.Module]
    """The networks to train, with any weights."""
    store: Store
    wish: Wish
    plain: Compute
    """How small work is computed."""


def asked_for(
    s: DistilledSet | str | Path,
    data: DataSet | None,
    nets: Sequence[str | NetSpec] | None,
    rules: Protocol,
    regimes: Sequence[str],
    prefix: int | None,
    beside: Sequence[str | Path | Beside],
    store: Store | None,
    wish: Wish,
) -> Asked:
    """Return what `evaluate` was asked for, all looked up, before anything is trained.

    Raises:
        InputError: as `evaluate`.
    """
    plain = choose(wish, order=1, flops=0, images=0, steps=0)  # refuses what is not to be had
    path, s = (None, s) if isinstance(s, DistilledSet) else (Path(s), load(s))
    note = "" if prefix is None else f"first {prefix} of {len(s.blocks)} blocks"
    if prefix is not None:
        path, s = None, s.prefix(prefix)
    data = reopen(s.ref) if data is None else data
    others = tuple(
        each if isinstance(each, Beside) else cut_to(each, len(s) // len(s.classes))
        for each in beside
    )
    for other in (s, *(one for each in others for one in each.sets)):
        if other.pretrains:
            raise InputError(
                f"{other!r} is for pre-training, not for training on classes: `potstill probe` "
                "scores it (in Python evaluate_pretraining)."
            )
        check_data(other, data)
        if (theirs := regimes_of(other, regimes, rules)) != (ours := regimes_of(s, regimes, rules)):
            raise InputError(
                f"Protocol {rules.name!r} would train on {ours[0]} labels of {s!r} and {theirs[0]} "
                f"ones of {other!r}: name the regime, hard or online."
            )
    modules = {  # refuses what does not fit before anything is trained
        net: build(net, channels=data.channels, size=data.size, classes=data.n_classes, seed=0)
        for net in nets_of(nets or (s.net,), s.net)
    }
    for space in (s.space, *(each.sets[0].space for each in others)):
        keep_space(space)
    return Asked(
        s=s,
        path=path,
        note=note,
        data=data,
        beside=others,
        rules=rules,
        regimes=regimes_of(s, regimes, rules),
        modules=modules,
        store=store or Store(default_cache()),
        wish=wish,
        plain=plain,
    )


def rules_of(protocol: str, seeds: int | None, baselines: bool) -> Protocol:
    """Return a protocol by its name, with so many networks a row, with or without baselines.

    Raises:
        InputError: for an unknown name, or no network.
    """
    rules = PROTOCOLS.get(protocol)
    seeds = rules.seeds if seeds is None else seeds
    if seeds < 1:
        raise InputError(f"seeds={seeds}: at least 1 network is needed.")
    return replace(rules, seeds=seeds, baselines=rules.baselines and baselines)


def nets_of(nets: Sequence[str | NetSpec], own: NetSpec) -> list[NetSpec]:
    """Return the networks, pools spread out, none twice."""
    found: list[NetSpec] = []
    for net in [nets] if isinstance(nets, str) else nets:
        if isinstance(net, str):
            found += [variant(name, own) for name in NET_POOLS.get(net, (net,))]
        else:
            found.append(filled(net))
    return list(dict.fromkeys(found))
