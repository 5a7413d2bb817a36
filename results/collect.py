"""Keep the rows of a finished run in results/ and write the page of results anew.

usage: python results/collect.py RUN NAME "COMMAND"        (in a clean checkout)
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
HEAD = """# Measured results

Written by `python results/collect.py`. Every row is in a JSONL file here with its command, commit,
machine, accuracies of each network and the full configuration. Accuracies are of the last epoch on
the test part, in percent, mean ± standard deviation (ddof 1) over n networks; the interval is
Student's t, 95 %. Distillation itself was done once (its seed is in the configuration), so the
spread is that of training on the set, not of distilling it anew.
"""


def machine() -> str:
    """Return processor, cores and torch of this machine in a few words."""
    import torch

    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":")[1].strip() for line in text.splitlines() if "model name" in line]
    name = names[0] if names else platform.machine()
    return f"{name}, {os.cpu_count()} cores, no GPU, torch {torch.__version__}"


def collect(run: Path, name: str, command: str) -> None:
    """Write results/NAME.jsonl from RUN/eval.jsonl."""
    git = ["git", "-C", str(HERE)]
    commit = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()
    changed = subprocess.check_output([*git, "status", "--porcelain", "..", ":!."], text=True)
    config = json.loads((run / "config.json").read_text())
    cost = json.loads(json.loads((run / "distilled" / "set.json").read_text())["origin"]["cost"])
    facts = {
        "command": command,
        "commit": commit + (" with changes" if changed.strip() else ""),
        "machine": machine(),
        "distillation": cost,
        "config": config,
    }
    rows = [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()]
    lines = [json.dumps({**row, **facts}) for row in rows]
    (HERE / f"{name}.jsonl").write_text("".join(line + "\n" for line in lines))


def page() -> str:
    """Return the text of results/README.md from all JSONL files."""
    parts = [HEAD]
    for path in sorted(HERE.glob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        first = rows[0]
        cost = first["distillation"]
        parts += [
            f"## {path.stem}\n",
            f"`{first['command']}`\n",
            f"Commit {first['commit'][:10]}; {first['machine']}; distilled in "
            f"{cost['cpu_seconds']:.0f} CPU seconds (peak {cost['peak_bytes'] / 2**20:.0f} MiB).\n",
            "| trained on | network | accuracy % | 95 % interval | n | step size | note |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in rows:
            mean, half = 100 * row["mean"], 100 * (row["ci95"] or 0)
            parts.append(
                f"| {row['name']} | {row['net']} | {mean:.2f} ± {100 * (row['std'] or 0):.2f} | "
                f"{mean - half:.2f} to {mean + half:.2f} | {row['n']} | {row['lr']:.4g} | "
                f"{row['note']} |"
            )
        note = HERE / f"{path.stem}.md"
        parts.append("\n" + note.read_text().strip() + "\n" if note.exists() else "")
    return "\n".join(parts)


if __name__ == "__main__":
    if len(sys.argv) == 4:
        collect(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
    (HERE / "README.md").write_text(page())
