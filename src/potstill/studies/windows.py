"""Meta-gradients by where the differentiated window lies: their norms, and how they agree.

For students k = 1..n, each with its own network, batches and real images, the gradient G(s, L) of
the loss after s plain and L differentiated steps, at the images of a run:

    by position  G(s, M), s from 0 to T - M      BPTT    G(0, T)
    T-BPTT       G(T - M, M)                     R-BPTT  G(0, L), L ~ U{M..T}
    RaT          G(s, M), s ~ U{least..T - M}

cosine of students = <G_j, G_k> / |G_j| |G_k|, the mean over pairs j < k; cosine to the whole =
that of G(s, L) and G(0, s + L) of the same student: what truncation changes.

Source: Feng, Vedantam, Kempe, ICLR 2024 (arXiv 2311.07025), which plots norms of the first kind.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from potstill.artefact import DistilledSet, Soft
from potstill.core.errors import InputError
from potstill.core.keys import generator
from potstill.core.threads import using_threads
from potstill.methods import Context, SynthBlock, name_of
from potstill.methods.boost import Boost
from potstill.methods.outer import State, on_device
from potstill.methods.ratbptt import RaTBPTT
from potstill.methods.windows import Placed, Turn
from potstill.studies.kept import Study, finite, mean_text

POSITION = "by position"
HEAD = ("images of", "window", "start", "steps", "n", "gradient norm", "cosine of students")
HEAD += ("cosine to the whole", "loss")


@dataclass(frozen=True, kw_only=True)
class Studied:
    """Images at which meta-gradients are looked at, and how students train on them."""

    name: str
    method: RaTBPTT
    ctx: Context
    state: State


def studied(name: str, method: Any, ctx: Context, s: DistilledSet | None) -> Studied:
    """Return what to study of a run: its distilled set s, or its first images if that is None.

    Raises:
        InputError: for a method without such students.
    """
    method = method.base if isinstance(method, Boost) else method
    if not isinstance(method, RaTBPTT):
        kind = name_of(method)
        raise InputError(f"{name} is a run of {kind}; windows are those of ratbptt (or boost).")
    if s is not None and s.blocks:
        each = [(block.stop - block.start) // len(s.classes) for block in s.blocks]
        ctx = replace(ctx, synth=tuple(SynthBlock(ipc=ipc) for ipc in each))
    phase = method.phases(ctx, {})
    ctx = replace(ctx, plan=replace(ctx.plan, prefix=None))  # windows of any start compare
    ctx = replace(ctx, nets=getattr(phase, "nets", None))
    state = method.init(ctx)
    if s is not None:
        sizes = [len(x) for x in state["images"]]
        labels = s.targets.values.split(sizes) if isinstance(s.targets, Soft) else ()
        lr = torch.tensor(s.recipe.lr)
        images = tuple(s.inputs.split(sizes))
        state: State = {**state, "images": images, "labels": tuple(labels), "lr": lr}
    state = on_device(state, ctx.plan.window.device)
    return Studied(name=name, method=method, ctx=ctx, state=state)


def windowed(method: Any, length: int | None, total: int | None) -> Any:
    """Return a method with another window of M = length and T = total steps, where they are given.

    Raises:
        InputError: for a method without windows, or a window longer than the total.
    """
    if length is None and total is None:
        return method
    if isinstance(method, Boost):
        return replace(method, base=windowed(method.base, length, total))
    window = getattr(method, "window", None)
    if window is None:
        raise InputError(f"{name_of(method)} has no window to be set.")
    length = window.length if length is None else length
    total = window.total if total is None else total
    least = min(window.least, max(0, total - length))
    return replace(method, window=replace(window, length=length, total=total, least=least))


def windows(
    what: Sequence[Studied],
    *,
    draws: int = 4,
    positions: int = 5,
    whole: bool | None = None,
    on_done: Callable[[int, int], None] = lambda done, total: None,
) -> Study:
    """Return norms and cosines of meta-gradients by the place of the window.

    Args:
        what: images and their students.
        draws: n, students at each place.
        positions: places that windows of M steps have, from the first start to the last.
        whole: also differentiate whole trainings (BPTT, R-BPTT, cosines to them), by the adjoint;
            by default where T is at most 100.
        on_done: called as (finished, all) after each student's gradient in a window.

    Raises:
        InputError: for fewer than 2 draws or 1 position, or runs of one name.
    """
    if draws < 2 or positions < 1:
        raise InputError(
            f"draws must be at least 2 and positions at least 1, not {draws} and {positions}."
        )
    names = [one.name for one in what]
    if len(set(names)) < len(names):
        raise InputError(f"Each run can be named once only, not {', '.join(names)}.")
    jobs = [
        (one, kind, k, place, all_steps)
        for one in what
        for all_steps in [one.method.window.total <= 100 if whole is None else whole]
        for kind, places in _places(one, draws, positions, all_steps)
        for k, place in enumerate(places)
    ]
    rows, gradients, known = [], [], {}

    def at(one: Studied, k: int, place: Placed) -> tuple[float, Tensor]:
        key = one.name, k, place
        if key not in known:
            known[key] = _gradient(one, k, place)
        return known[key]

    for done, (one, kind, k, place, all_steps) in enumerate(jobs, 1):
        loss, gradient = at(one, k, place)
        cosine = None
        if all_steps:
            end = Placed(0, place.start + place.length)
            cosine = _cosine(gradient, at(one, k, end)[1]) if place.start else 1.0
        row = {"of": one.name, "window": kind, "draw": k, **place._asdict(), "loss": loss}
        row |= {"norm": float(gradient.norm()), "cosine_to_whole": cosine}
        rows.append({name: finite(value) for name, value in row.items()})
        gradients.append(gradient)
        on_done(done, len(jobs))
    return Study(rows=tuple(rows), table=(HEAD, *_summed(rows, gradients)))


def _places(
    one: Studied, draws: int, positions: int, whole: bool
) -> list[tuple[str, list[Placed]]]:
    """Return the windows of each kind, one a student."""
    window = one.method.window
    m, last = window.length, window.last
    chance = generator(one.ctx.seed, "study", "windows")
    starts = torch.linspace(0, last, min(positions, last + 1)).round().int().unique().tolist()
    drawn = torch.randint(min(window.least, last), last + 1, (draws,), generator=chance).tolist()
    longer = torch.randint(m, window.total + 1, (draws,), generator=chance).tolist()
    return [
        *((POSITION, [Placed(start, m)] * draws) for start in starts),
        *([("BPTT", [Placed(0, window.total)] * draws)] if whole else []),
        ("T-BPTT", [Placed(last, m)] * draws),
        *([("R-BPTT", [Placed(0, length) for length in longer])] if whole else []),
        ("RaT", [Placed(start, m) for start in drawn]),
    ]


def _gradient(one: Studied, k: int, place: Placed) -> tuple[float, Tensor]:
    """Return loss and gradient, flat and float64, of student k in one window."""
    ctx = one.ctx
    turn: Turn = {**one.state["turn"], "start": place.start, "length": place.length}
    state: State = {**one.state, "turn": turn}
    if place.length > one.method.window.length:
        ctx = replace(ctx, plan=replace(ctx.plan, strategy="adjoint"))
    with ctx.net.keeping_statistics(), using_threads(ctx.plan.window.threads):
        found = one.method.task(ctx, state, k, 0)
    return float(found.loss), torch.cat([x.flatten() for x in found.images]).double().cpu()


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.dot(a / a.norm(), b / b.norm()))


def _summed(rows: Sequence[dict[str, Any]], gradients: Sequence[Tensor]) -> list[tuple[str, ...]]:
    """Return a line for each window of each run: mean and standard deviation over students.

    Rows learn the mean cosine of their student's gradient to those of the others.
    """
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, row in enumerate(rows):
        place = row["start"] if row["window"] == POSITION else None
        groups.setdefault((row["of"], row["window"], place), []).append(i)
    lines: list[tuple[str, ...]] = []
    for (name, kind, _), members in groups.items():
        cosines = {(i, j): _cosine(gradients[i], gradients[j]) for i, j in combinations(members, 2)}
        for i in members:
            rows[i]["cosine_of_students"] = finite(
                statistics.fmean(cosine for pair, cosine in cosines.items() if i in pair)
            )
        lines.append(
            (
                name,
                kind,
                _range(rows[i]["start"] for i in members),
                _range(rows[i]["length"] for i in members),
                str(len(members)),
                mean_text([rows[i]["norm"] for i in members], 3),
                mean_text(list(cosines.values()), 2),
                mean_text([rows[i]["cosine_to_whole"] for i in members], 2),
                mean_text([rows[i]["loss"] for i in members], 3),
            )
        )
    return lines


def _range(numbers: Any) -> str:
    low, *_, high = sorted(numbers)
    return str(low) if low == high else f"{low} to {high}"
