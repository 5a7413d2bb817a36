"""`potstill demo`: the main job, offline, on real images that scikit-learn brings along."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from potstill.core.log import Reporter
from potstill.experts import ExpertPlan
from potstill.methods.mtt import MTT
from potstill.nets import NetSpec
from potstill.run import Run

MARGIN = 0.10
"""How much better than random real images the distilled ones must be."""


@dataclass(frozen=True, kw_only=True)
class DemoFlags:
    """Where the demo puts its run."""

    out: Path | None = None
    """Folder of the run; a new one under runs/ by default."""


def demo_run() -> Run:
    """Return the demo: the digits to 1 image a class by MTT on a small ConvNet."""
    method = MTT(
        iterations=400,
        steps=20,
        expert_epochs=3,
        max_start_epoch=6,
        lr_img=10.0,
        lr_lr=1e-5,
        lr_init=0.05,
        augment=None,
        evaluation_epochs=300,
        experts=ExpertPlan(count=8, epochs=12, lr=0.05, batch=64, augment=None),
    )
    return Run(
        method=method,
        data="digits",
        ipc=1,
        net=NetSpec(name="convnet2", width=32),
        select_every=100,
        device="cpu",
        threads=1,
    )


def demo(out: Path | None, report: Reporter) -> int:
    """Distil, evaluate, print the table; return 1 if the margin over random is missed."""
    from rich.console import Console

    from potstill.job import score
    from potstill.report import rich_table
    from potstill.run import distil, resume_line, stoppable

    began = time.perf_counter()
    out = out or Path("runs") / time.strftime("demo-%Y%m%d-%H%M%S")
    report.say("Distilling 1,078 handwritten digits to 10 pictures, one a class ...")
    distil(demo_run(), out, report=report)
    report.say("Training fresh networks on them and on real pictures (5 each) ...")
    with stoppable(resume_line(out)):
        result = score(out, whole=True, report=report)
    Console(width=None if sys.stdout.isatty() else 140).print(rich_table(result))
    distilled = result.row("distilled")
    assert distilled is not None
    random = max(row.mean for row in result.rows if row.name.startswith("random"))
    print(f"Look at {out / 'distilled' / 'preview.png'}; use the set in two lines of Python:")
    print(f'  import potstill; s = potstill.load("{out}")')
    print('  model = s.train("convnet2")')
    print(f"Done in {time.perf_counter() - began:.0f} s.")
    if distilled.mean - random < MARGIN:
        print(
            f"potstill: the distilled set is only {100 * (distilled.mean - random):.1f} points "
            f"better than random real images; at least {100 * MARGIN:.0f} were expected.",
            file=sys.stderr,
        )
        return 1
    return 0
