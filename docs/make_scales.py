"""Print docs/scales.md: what the scales `cpu` and `smoke` change in each recipe."""

from __future__ import annotations

from typing import Any

from potstill.core.spec import to_json
from potstill.recipes import RECIPES, from_recipe

HEAD = """# What the scales change

Written by `python docs/make_scales.py > docs/scales.md`; a test compares. A scale changes counts
only: loss, augmentation, normaliser, labels and the rules of evaluation stay. `full` is the
published setting. `smoke` runs on a bundled stand-in (the digits in the recipe's channels, at most
32 px and 10 classes), where networks from outside, which have no width, are a narrow ResNet-18 and
all teachers are trained; its numbers mean nothing.
"""


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Return every leaf of JSON data by its path."""
    if isinstance(value, dict):
        return {
            name: leaf
            for key, item in value.items()
            for name, leaf in leaves(item, f"{path}.{key}" if path else key).items()
        }
    return {path: value}


def main() -> str:
    """Return the text of docs/scales.md."""
    lines = [HEAD]
    for name in RECIPES.names():
        runs = {s: leaves(to_json(from_recipe(name, data="DATA", scale=s))) for s in SCALES}
        lines += [f"## {name}", "", "| setting | full | cpu | smoke |", "|---|---|---|---|"]
        paths = [p for p in runs["full"] if len({str(runs[s].get(p)) for s in SCALES}) > 1]
        for path in paths:
            if path != "scale":
                values = " | ".join(_text(runs[s].get(path)) for s in SCALES)
                lines.append(f"| {path} | {values} |")
        lines.append("")
    return "\n".join(lines)


def _text(value: Any) -> str:
    return "all" if value is None else str(value)


SCALES = ("full", "cpu", "smoke")

if __name__ == "__main__":
    print(main(), end="")
