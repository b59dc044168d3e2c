"""The table of docs/benchmarks.md from results: python benchmarks/table.py benchmarks/results/bench.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def table(record: dict[str, Any]) -> str:
    """Markdown, one section for each work."""
    machine = record["machine"]
    lines = [
        f"{machine['cpu']}, {machine['cores used']} cores, {machine['system']}, {machine['date'][:10]}; "
        f"least time of {record['rounds']} runs in turn, {record['size']} sizes.",
    ]
    for work in record["works"]:
        lines += ["", f"**{work['name']}**: {work['statement']}", "", "| way | threads | time | ratio | goal | deviation |"]
        lines += ["|---|---|---|---|---|---|"]
        lines += [row(way) for way in work["ways"]]
    return "\n".join(lines) + "\n"


def row(way: dict[str, Any]) -> str:
    """One way."""
    if way.get("skipped"):
        return f"| {way['way']} | {way['threads']} | skipped: {way['skipped']} | | | |"
    goal = f"≥ {way['goal']:.3g} {'✓' if way['ratio'] >= way['goal'] else '✗'}" if way["goal"] else ""
    return (
        f"| {way['way']} | {way['threads']} | {way['cost']:.3g} {way['unit']} | {way['ratio']:.3g} | {goal} "
        f"| {deviation(way.get('verdict'))} |"
    )


def deviation(verdict: dict[str, Any] | None) -> str:
    """What the result differs from the truth by."""
    if verdict is None:
        return ""
    what, value, error = verdict["what"].replace("|", r"\|"), verdict["deviation"], verdict["error"]
    return f"{what}: {100 * value:+.2f} ± {100 * error:.2f} %" if error > 0.0 else f"{what}: {value:.1e}"


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text())), end="")
