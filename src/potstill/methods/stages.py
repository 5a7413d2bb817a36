"""What lies between the stages of a progressive run: links, filters, frozen blocks.

Source: Chen et al., ICLR 2024 (arXiv 2310.06982).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from potstill.artefact import DistilledSet, Soft, load, set_digest
from potstill.core.errors import InputError
from potstill.core.spec import spec_hash
from potstill.core.store import Store, default_cache
from potstill.coresets import RealFilter, filter_tasks, score_tasks
from potstill.data import DataSet
from potstill.engine import Tasks
from potstill.experts import After, Begin, ImportedExpert, Link, kept, link_tasks, read_rows
from potstill.functional import Segment, TrainSpec
from potstill.methods.api import Context, Done, SynthBlock

Chains = Sequence[Begin | ImportedExpert | Link]


def name(what: str, stage: int) -> str:
    """Return the name of a phase of a stage (1 = the first)."""
    return f"{what}{stage}"


def due(done: Done, stages: int) -> int:
    """Return the number of the stage that is due."""
    return 1 + sum(name("stage", k) in done for k in range(1, stages))


def before(
    ctx: Context, done: Done, stage: int, links: Chains, which: RealFilter, stages: int
) -> Tasks | None:
    """Return the next work before a stage: its links, the scores and rows of its filter."""
    if stage > 1 and name("links", stage) not in done:
        union = done[name("stage", stage - 1)][0]
        tasks = link_tasks([x for x in links if isinstance(x, Link)], union, store_of(ctx))
        return replace(tasks, name=name("links", stage), label=f"networks for stage {stage}")
    first = 1 if which.rule == "forgetting" else 2
    if which.rule == "none" or stage < first or name("filter", stage) in done:
        return None
    sources: Sequence[Any] = links
    if which.rule == "forgetting":
        scores = score_tasks(
            "forgetting",
            which.training,
            ctx.data,
            ctx.space,
            ctx.net_spec,
            seed=ctx.seed,
            compute=ctx.plan.tasks,
        )
        if scores.phase not in done:
            return scores
        sources = scores.specs
    tasks = filter_tasks(
        which,
        ctx.data,
        ctx.space,
        ctx.net_spec,
        stage=stage,
        stages=stages,
        sources=tuple(map(spec_hash, sources)),
        seed=ctx.seed,
        compute=ctx.plan.tasks,
        store=store_of(ctx),
    )
    return replace(tasks, name=name("filter", stage))


def links_before(
    ctx: Context, done: Done, stage: int, firsts: Chains, segments: tuple[Segment, ...]
) -> Chains:
    """Return the last links of the chains that go through all earlier unions from `firsts`.

    Networks are trained on each union by its recipe, for these segments.
    """
    chains, digest = firsts, ""
    for earlier in range(1, stage):
        known = _known(*_place(done, earlier))
        if earlier > 1 and known.before != digest:
            folder = done[name("stage", earlier)][0]
            raise InputError(
                f"{folder} does not begin with the stage before it; remove it and later stages to "
                "have them made again."
            )
        digest = known.digest
        chains = [
            Link(
                after=after,
                union=digest,
                train=replace(known.recipe, segments=segments),
                net=ctx.net_spec,
                data=ctx.data.ref,
                space=ctx.space.record(),
                compute=ctx.plan.tasks,
            )
            for after in chains
        ]
    return chains


def at_stage(ctx: Context, done: Done, stage: int, links: Chains = ()) -> Context:
    """Return the context of a stage but for its blocks: where networks begin, what they see."""
    filtered = done.get(name("filter", stage))
    if stage == 1 and filtered is None:
        return ctx
    after = After(
        links=tuple(x for x in links if isinstance(x, Link)),
        folders=tuple(done.get(name("links", stage), ())),
        store=store_of(ctx),
        rows=filtered[0].name if filtered else "",
    )
    data = _filtered(ctx.data, filtered[0]) if filtered else ctx.data
    return replace(ctx, data=data, after=after)


def union_after(done: Done, stage: int) -> DistilledSet:
    """Return the union of the stages up to a finished one."""
    return _read(*_place(done, stage))


def frozen(union: DistilledSet) -> tuple[SynthBlock, ...]:
    """Return the blocks of a union as frozen ones."""
    soft, classes = isinstance(union.targets, Soft), len(union.classes)
    return tuple(
        SynthBlock(
            ipc=(block.stop - block.start) // classes,
            lr_scale=0,
            images=union.inputs[block.start : block.stop],
            labels=union.targets.values[block.start : block.stop] if soft else None,
        )
        for block in union.blocks
    )


def store_of(ctx: Context) -> Store:
    """Return where finished work lies."""
    return ctx.store or Store(default_cache())


class _Known(NamedTuple):
    """Digests of a union and of all but its last block, and its recipe."""

    digest: str
    before: str
    recipe: TrainSpec


def _place(done: Done, stage: int) -> tuple[Path, int]:
    """Return where the union of a finished stage is, and when it was written."""
    folder = done[name("stage", stage)][0]
    return folder, (folder / "set.json").stat().st_mtime_ns


@lru_cache(maxsize=1)
def _read(folder: Path, written: int) -> DistilledSet:
    return load(folder)


@lru_cache(maxsize=64)
def _known(folder: Path, written: int) -> _Known:
    s = load(folder)
    before = set_digest(s.prefix(len(s.blocks) - 1)) if len(s.blocks) > 1 else ""
    return _Known(set_digest(s), before, s.recipe)


@lru_cache(maxsize=1)
def _filtered(data: DataSet, folder: Path) -> DataSet:
    return kept(data, read_rows(folder))
