"""Benchmarks as table, JSON and figure."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from thermodiff._check import require_folder, require_writable, write_atomically
from thermodiff.bench import machine, timing
from thermodiff.bench.timing import Timing
from thermodiff.bench.works import Work, choose

ROUNDS = {"full": 9, "quick": 3, "tiny": 1}
CORES = 2
"""All ways run on this many cores, so that results of different machines can be compared."""


def run(*, size: str, only: Sequence[str], out: Path, quiet: bool) -> list[Timing]:
    """Measure; files appear in ``out`` only when all is done."""
    works = choose(only)
    require_folder("--out", out)
    require_writable("--out", out)
    timings: list[Timing] = []
    with _few_cores():
        described = machine.describe()
        for k, work in enumerate(works):
            with _status(f"{work.name} ({k + 1} of {len(works)}): {work.statement}", quiet):
                timings += timing.run(work, size, ROUNDS[size])
    written = _write(out, size, works, timings, described)
    if not quiet:
        _show(Console(width=None if sys.stdout.isatty() else 110), works, timings, written)
    return timings


@contextmanager
def _few_cores() -> Iterator[None]:
    """Keep this process, and the threads and processes that it starts, to CORES cores.

    XLA, OpenMP and Numba all ask the system how many they may use, so this reaches them all.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(allowed)[:CORES]))
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


@contextmanager
def _status(text: str, quiet: bool) -> Iterator[None]:
    """A line on standard error while something is measured, when that is a terminal; it does not move: that costs time."""
    shown = not quiet and sys.stderr.isatty()
    if shown:
        print(text, end="", file=sys.stderr, flush=True)
    yield
    if shown:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _write(out: Path, size: str, works: Sequence[Work], timings: Sequence[Timing], described: dict[str, Any]) -> list[Path]:
    record = {
        "machine": described,
        "size": size,
        "rounds": ROUNDS[size],
        "ratio": "least seconds of the way by least seconds of the work's first way, run in turn with it",
        "works": [
            {
                "name": work.name, "statement": work.statement, "problem": dict(work.sizes[size]),
                "ways": [found.record() for found in timings if found.work == work.name],
            }
            for work in works
        ],
    }  # fmt: skip
    picture = _figure(works, timings)
    written = [out / "bench.json"]
    if picture is not None:
        write_atomically(out / "bench.png", picture)
        written.append(out / "bench.png")
    write_atomically(out / "bench.json", json.dumps(record, indent=1).encode())
    return written


def _show(console: Console, works: Sequence[Work], timings: Sequence[Timing], written: Sequence[Path]) -> None:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("work", "way"):
        table.add_column(name)
    for name in ("threads", "time", "ratio", "goal"):
        table.add_column(name, justify="right")
    table.add_column("deviation from truth")
    for work in works:
        left = [work.name, *filter(None, [work.unit.name.partition(" ")[2]])]
        for k, found in enumerate(one for one in timings if one.work == work.name):
            table.add_row(left[k] if k < len(left) else "", found.way, str(found.threads), *_cells(found))
        table.add_section()
    console.print(table)
    for reason in dict.fromkeys(found.skipped for found in timings if found.skipped):
        console.print(f"skipped: {reason}", highlight=False, markup=False)
    names = ", ".join(path.name for path in written)
    console.print(f"written to {written[0].parent}: {names}", highlight=False, markup=False)


def _cells(found: Timing) -> tuple[str, str, str, str]:
    """Time, ratio, goal, deviation."""
    goal = f"≥ {found.goal:.3g}" if found.goal else ""
    if found.skipped:
        return "skipped", "", goal, ""
    met = "" if not found.goal else " ✓" if found.ratio >= found.goal else " ✗"
    deviation = ""
    if found.verdict is not None:
        what, value, error = found.verdict
        deviation = f"{what}: {100 * value:+.2f} ± {100 * error:.2f} %" if error > 0.0 else f"{what}: {value:.1e}"
    return f"{found.cost:.3g} {found.unit.partition(' ')[0]}", f"{found.ratio:.3g}", goal + met, deviation


def _bar_names(group: Sequence[Timing]) -> list[str]:
    """The ways, with their threads where two have one name: their bars would lie on one another."""
    ways = [found.way for found in group]
    return [f"{found.way}, threads: {found.threads}" if ways.count(found.way) > 1 else found.way for found in group]


def _figure(works: Sequence[Work], timings: Sequence[Timing]) -> bytes | None:
    """Ratios as bars, one panel for each work."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("bench.png was not drawn: it needs matplotlib (pip install 'thermodiff[plot]').", file=sys.stderr)
        return None
    groups = {work.name: [t for t in timings if t.work == work.name and not t.skipped] for work in works}
    groups = {name: group for name, group in groups.items() if group}
    heights = [len(group) + 1 for group in groups.values()] or [1]
    figure = Figure(figsize=(8.0, 0.6 + 0.26 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(heights), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for axes, (name, group) in zip(panels, groups.items(), strict=False):
        ratios = [found.ratio for found in group]
        bars = axes.barh(_bar_names(group), ratios, color=["#1f4e79"] + ["#e9a23b"] * (len(group) - 1))
        axes.bar_label(bars, [f"{found.ratio:.3g}   ({found.cost:.3g} {found.unit})" for found in group], padding=3, size=7)
        axes.set_xscale("log")
        axes.set_xlim(0.5 * min(ratios), 30.0 * max(ratios))
        axes.axvline(1.0, color="#888888", linewidth=0.8)
        axes.invert_yaxis()
        axes.tick_params(labelsize=7)
        axes.set_title(name, loc="left", size=9)
    panels[-1].set_xlabel("time by that of thermodiff (first bar of each work)", size=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
