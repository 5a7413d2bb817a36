"""Write results/speed/README.md from the rows of finished benchmarks there.

python benchmarks/page.py
"""

from __future__ import annotations

import json
from pathlib import Path

import evaluate
import experts
import gradient_matching
import metagradient
import pipeline
import recover
import relabel
import selfsup
import unroll
from rows import Row

FOLDER = Path(__file__).parents[1] / "results" / "speed"
SHOW = {
    module.__name__: module.show
    for module in (
        *(unroll, experts, evaluate, pipeline, metagradient, gradient_matching),
        *(recover, relabel, selfsup),
    )
}
HEAD = """# Measured speed

Written by `python benchmarks/page.py` from the JSONL files here, which hold every single time, the
commit and the machine. [benchmarks/README.md](../../benchmarks/README.md) has the commands and says
what is compared and how to read it.
"""


def text_of(row: Row) -> str:
    """Return a row as it was printed, and where it was measured."""
    where = (
        f"commit {row['commit']}; {row['machine']}, {row['cores']} cores shared with other work "
        f"(load {row['load']:.1f}), {row['threads']} thread, torch {row['torch']}"
    )
    return "\n".join(["```", *SHOW[row["benchmark"]](row), "```", "", where, ""])


def page() -> str:
    """Return the whole text."""
    parts = [HEAD]
    for path in sorted(FOLDER.glob("*.jsonl")):
        parts.append(f"## {path.stem}\n")
        parts += [text_of(json.loads(line)) for line in path.read_text().splitlines()]
        note = path.with_suffix(".md")
        parts += [note.read_text()] if note.exists() else []
    return "\n".join(parts)


if __name__ == "__main__":
    (FOLDER / "README.md").write_text(page())
