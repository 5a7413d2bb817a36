"""The card of a distilled set: README.md, for the people who find the folder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from potstill.artefact.preview import COLUMNS, ROWS, plain
from potstill.artefact.stored import LabelStore
from potstill.artefact.targets import Embedding
from potstill.core.spec import to_json

if TYPE_CHECKING:
    from potstill.artefact.records import Block
    from potstill.artefact.types import DistilledSet

CARD = """# Distilled set: {data}

{count} images of {channels} x {height} x {width} that stand for the training part of `{data}` \
({classes} classes, {ipc}), made by the method {method}. {nature}

```python
import potstill
{use}  # takes uint8, or float in [0, 1]
```

## Accuracy

{accuracy}

## Facts

{facts}

## Method and constants

{constants}

## Recipe for training on it

{stages}{recipe}

## Preview

![The images of each class, in view space](preview.png)

At most {rows} classes and {columns} stored images of each are shown, with normalisation undone.

## Terms

A distilled set inherits the licence and the terms of its source data: see those of `{data}` \
before you share it. It is not anonymised: {risk}
"""
OPTIMISED = (
    "They are optimised for training networks, not for looking.",
    "distilled images may reveal training images.",
)
CHOSEN = (
    "They are real training images, chosen and not changed.",
    "its images are training images.",
)


def card(distilled: DistilledSet) -> str:
    """Return the card as Markdown; it follows from the set alone."""
    origin = distilled.origin
    channels, height, width = distilled.shape
    nature, risk = CHOSEN if origin.rows else OPTIMISED
    return CARD.format(
        data=_cell(origin.data),
        count=len(distilled),
        channels=channels,
        height=height,
        width=width,
        classes=len(distilled.classes),
        ipc=_balance(distilled),
        method=_cell(origin.method_spec.get("type", "?")),
        nature=nature,
        risk=risk,
        use=_use(distilled),
        accuracy=_table(origin.measured) if origin.measured else "Not measured yet.",
        facts=_table(_facts(distilled)),
        constants=_table(origin.method_spec),
        stages=_stages(distilled),
        recipe=_table({"network": to_json(distilled.net), **to_json(distilled.recipe)}),
        rows=ROWS,
        columns=COLUMNS,
    )


def _balance(distilled: DistilledSet) -> str:
    """Return the images per class in words, as far as they are known."""
    unknown = isinstance(distilled.targets, Embedding) and distilled.targets.own is None
    return "which images are of which is not known" if unknown else ipc_text(distilled.ipc)


def _use(distilled: DistilledSet) -> str:
    """Return the line of code that trains a network on the set."""
    what, how = "model", "train"
    if distilled.pretrains:
        what, how = "encoder", "pretrain"
    return f'{what} = potstill.load("path/to/this/folder").{how}("{distilled.net.name}")'


def ipc_text(ipc: tuple[int, ...]) -> str:
    """Return the images per class in words: "10 images per class", "1 to 10 ..."."""
    low, high = min(ipc), max(ipc)
    if low == high:
        return f"{low} image{'' if low == 1 else 's'} per class"
    return f"{low} to {high} images per class"


def _facts(distilled: DistilledSet) -> dict[str, Any]:
    origin, names = distilled.origin, [plain(name) for name in distilled.classes]
    targets, counts = distilled.targets, distilled.ipc
    stored = targets if isinstance(targets, LabelStore) else None
    kind = type(targets).__name__.lower() if stored is None else "labels of views"
    index = distilled.decode.index(targets.classes)
    more = f" and {len(names) - ROWS} more" if len(names) > ROWS else ""
    known = not isinstance(targets, Embedding) or targets.own is not None
    uneven = known and len(set(counts)) > 1
    return {
        "classes": ", ".join(names[:ROWS]) + more,
        "images of each": f"{str(list(counts[:ROWS]))[1:-1]}{more}" if uneven else None,
        "classes without an image": counts.count(0) if uneven else None,
        "targets": "none; views are learned" if distilled.recipe.pairs else kind,
        "encoder": targets.by and to_json(targets.by) if isinstance(targets, Embedding) else None,
        "features": targets.features.shape[1] if isinstance(targets, Embedding) else None,
        "labels of views": stored and {**to_json(stored.plan), "teachers": list(stored.teachers)},
        "bytes": distilled.nbytes(),
        "normaliser": distilled.space.describe(),
        "decoder": to_json(distilled.decode),
        "training images": len(index) if len(index) != len(distilled) else None,
        "blocks": {b.name: _block(b, distilled.recipe.lr) for b in distilled.blocks},
        "data identity": origin.identity,
        "images read with": {k: v for k, v in to_json(origin.reading).items() if k != "type"},
        "recipe": origin.recipe or "none (own settings)",
        "seed": origin.seed,
        "iteration": f"{origin.iteration} ({origin.selection})",
        "potstill": origin.version,
        "cost": origin.costs,
        "parents": ", ".join(origin.parents),
    }


def _block(block: Block, lr: float) -> str:
    """Return the images of a block and how the union up to it is trained on, if it says so."""
    parts = [
        f"{part.epochs} epochs at step size {(block.lr or lr) * part.lr_scale:.4g}"
        for part in block.train
    ]
    return ", ".join([f"{block.start} to {block.stop}", *parts])


def _stages(distilled: DistilledSet) -> str:
    """Return in words how a set with stages is trained on; "" for any other."""
    training = distilled.training
    if training is distilled.recipe:
        return ""
    steps = training.steps(distilled.ends[-1], distilled.ends)
    return (
        f"The set has {len(distilled.blocks)} stages, its blocks: `train` trains on the first, "
        "then on the first two, and so on, by the epochs and step sizes in the facts above, and "
        f"carries the state of the optimizer on ({steps:,} steps). The segments below are for all "
        "images at once, as in a plain training on the union.\n\n"
    )


def _table(data: dict[str, Any]) -> str:
    lines = [f"| {_cell(name)} | {_cell(value)} |" for name, value in _flat(data)]
    return "\n".join(["| | |", "|---|---|", *lines])


def _flat(data: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted names and values; empty ones are left out, lists of numbers stay whole."""
    for name, value in data.items():
        if isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
            value = {str(i): item for i, item in enumerate(value)}
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif value not in ("", None, []):
            yield prefix + name, value


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_cell(item) for item in value)
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return plain(text).replace("`", "'").replace("|", "\\|")
