"""Keep the rows of a finished run in results/ and write the page of results anew.

usage: python results/collect.py NAME "COMMAND" RUN...        (in a clean checkout; of a study
studies/NAME and its folder)
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


def collect(runs: list[Path], name: str, command: str) -> None:
    """Write results/NAME.jsonl from the rows of one or more runs."""
    git = ["git", "-C", str(HERE)]
    commit = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()
    changed = subprocess.check_output(
        [*git, "status", "--porcelain", "-uno", "..", ":!."], text=True
    )
    facts = {
        "command": command,
        "commit": commit + (" with changes" if changed.strip() else ""),
        "machine": machine(),
    }
    lines = [json.dumps({**row, **facts}) for run in runs for row in rows_of(run)]
    (HERE / f"{name}.jsonl").write_text("".join(line + "\n" for line in lines))


def rows_of(run: Path) -> list[dict]:
    """Return the rows of a run with its cost and configuration, or those of a study as they are."""
    if (study := run / "rows.jsonl").exists():
        return [json.loads(line) for line in study.read_text().splitlines()]
    config = json.loads((run / "config.json").read_text())
    cost = json.loads(json.loads((run / "distilled" / "set.json").read_text())["origin"]["cost"])
    rows = [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()]
    return [{**row, "distillation": cost, "config": config} for row in rows]


def page() -> str:
    """Return the text of results/README.md from all JSONL files."""
    parts = [HEAD]
    for path in sorted(HERE.glob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        first = rows[0]
        costs = {json.dumps(row["config"]): row["distillation"] for row in rows}.values()
        seconds = sum(cost["cpu_seconds"] for cost in costs)
        peak = max(cost["peak_bytes"] for cost in costs) / 2**20
        parts += [
            f"## {path.stem}\n",
            f"`{first['command']}`\n",
            f"Commit {first['commit'][:10]}; {first['machine']}; distilled in "
            f"{seconds:.0f} CPU seconds (peak {peak:.0f} MiB); protocol "
            f"{', '.join(dict.fromkeys(row['protocol'] for row in rows))}.\n",
            "| method, ipc or images | trained on | network | labels | accuracy % | 95 % interval "
            "| n | step size | note |",
            "|---|---|---|---|---|---|---|---|---|",
            *map(line_of, rows),
        ]
        note = HERE / f"{path.stem}.md"
        parts.append("\n" + note.read_text().strip() + "\n" if note.exists() else "")
    return "\n".join(parts)


def line_of(row: dict) -> str:
    """Return one row as a line of a Markdown table."""
    run = row["config"]["run"]
    mean, half = 100 * row["mean"], 100 * (row["ci95"] or 0)
    labels = f"{row['labels']} of {row['target'].rpartition('/')[2]}" if "target" in row else None
    cells = (
        f"{said(run['method'])}, {run.get('size') or run['ipc']}",
        row["name"],
        row["net"],
        labels or row.get("regime", "hard"),
        f"{mean:.2f} ± {100 * (row['std'] or 0):.2f}",
        f"{mean - half:.2f} to {mean + half:.2f}",
        str(row["n"]),
        "-" if row["lr"] is None else f"{row['lr']:.4g}",
        row["note"],
    )
    return f"| {' | '.join(cells)} |"


def said(method: dict) -> str:
    """Return a method in a few words: with its windows, its parts, the images in a stored one."""
    name = method["type"].removesuffix("Method").lower()
    if base := method.get("base"):
        parts, kept = method.get("stages") or method["blocks"], method.get("filter", {}).get("rule")
        about = f"{parts} parts" + (f", filter {kept}" if kept not in (None, "none") else "")
        return f"{name} {said(base)}, {about}"
    if recovery := method.get("recovery"):
        return f"{name} ({recovery['iterations']:,} steps from {recovery['start']})"
    if window := method.get("window"):
        return f"{name} ({window['place']})"
    return f"{name} (factor {method['factor']})" if name == "idc" else name


if __name__ == "__main__":
    if len(sys.argv) >= 4:
        collect([Path(run) for run in sys.argv[3:]], sys.argv[1], sys.argv[2])
    (HERE / "README.md").write_text(page())
