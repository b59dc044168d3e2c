"""Experiments of the literature from the command line: runs, table, figure, JSON."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from thermodiff._check import count, write_atomically
from thermodiff._tasks import cores
from thermodiff.bench import machine
from thermodiff.cli.stopping import resumable
from thermodiff.experiments import transport
from thermodiff.experiments.store import Store

COLOURS = {3: "#1f4e79", 6: "#2a9d8f", 9: "#c1440e"}


def run_transport(
    *,
    dims: Sequence[int],
    schedules: Sequence[str],
    steps: Sequence[int],
    seeds: int,
    workers: int | None,
    plain: bool,
    out: Path,
    quiet: bool,
) -> list[transport.Point]:
    """The transport experiment; what was done before in ``out`` is not done again."""
    for dim in dims:
        if dim not in transport.DIMS:
            raise ValueError(f"--dim must be one of {transport.DIMS}, got {dim}.")
    for name in schedules:
        if name not in transport.SCHEDULES:
            raise ValueError(f"unknown schedule {name!r}; choose among {', '.join(transport.SCHEDULES)}.")
    for number in steps:
        count("--steps", number)
    count("--seeds", seeds)
    workers = cores() if workers is None else count("--workers", workers)
    require_torch()
    todo = transport.runs(dims, schedules, steps, seeds)
    store = Store(out / "runs", transport.settings(plain))
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    records = []
    with resumable(), Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        steps_of = transport.steps_for(todo, plain)
        task = bar.add_task("steps of training", total=sum(steps_of.values()))
        for record in transport.carry_out(todo, store, workers, plain):
            records.append(record)
            bar.advance(task, steps_of[transport.Run(*(record[name] for name in transport.Run._fields))])
    points = transport.curve(records)
    written = _write(out, store.settings, points, records)
    if not quiet:
        _show(Console(width=None if sys.stdout.isatty() else 110), points, written)
    return points


def require_torch() -> None:
    """Refuse where the networks cannot be trained."""
    try:
        import thermodiff.learned  # noqa: F401
    except ImportError:
        raise ImportError(
            "experiments train networks; install torch and safetensors with: pip install 'thermodiff[learned]'."
        ) from None


def _write(
    out: Path, settings: dict[str, Any], points: Sequence[transport.Point], records: Sequence[dict[str, Any]]
) -> list[Path]:
    published = [
        {"schedule": schedule, "dim": dim, "epochs": list(transport.EPOCHS), "neural": list(values)}
        for (schedule, dim), values in transport.PUBLISHED.items()
    ]
    found = {
        "machine": machine.describe(),
        "settings": settings,
        "training seconds in all": round(sum(record["training seconds"] for record in records), 1),
        "points": [point._asdict() for point in points],
        "published": published,
    }
    written = [out / "transport.json"]
    picture = _figure(points)
    if picture is not None:
        write_atomically(out / "transport.png", picture)
        written.append(out / "transport.png")
    write_atomically(out / "transport.json", json.dumps(found, indent=1).encode())
    return written


def _show(console: Console, points: Sequence[transport.Point], written: Sequence[Path]) -> None:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("schedule", "D", "steps", "seeds", "S_NN (nats)", "S_tot", "S_NN / S_tot", "mismatch", "published, last"):
        table.add_column(name, justify="left" if name == "schedule" else "right")
    last = ("", 0)
    for point in points:
        if last not in (("", 0), (point.schedule, point.dim)):
            table.add_section()
        last = (point.schedule, point.dim)
        table.add_row(
            point.schedule, str(point.dim), str(point.steps), str(point.seeds), f"{point.neural:.3f} ± {point.error:.3f}",
            f"{point.total:.3f}", f"{point.neural / point.total:.4f}", f"{point.mismatch:.3f}",
            f"{transport.PUBLISHED[last][-1]:g}",
        )  # fmt: skip
    console.print(table)
    steps = transport.STEPS_PER_EPOCH * transport.EPOCHS[-1]
    console.print(f"published: mean of four seeds after {steps} steps of the plain network", highlight=False)
    console.print(f"written to {written[0].parent}: {', '.join(path.name for path in written)}", highlight=False)


def _figure(points: Sequence[transport.Point]) -> bytes | None:
    """S_NN / S_tot over steps, one panel per schedule: ours filled, the published open."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
    except ImportError:
        print("transport.png was not drawn: it needs matplotlib (pip install 'thermodiff[plot]').", file=sys.stderr)
        return None
    names = list(dict.fromkeys(point.schedule for point in points))
    figure = Figure(figsize=(4.4 * len(names), 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False, sharey=True)[0], names, strict=True):
        for dim in dict.fromkeys(point.dim for point in points if point.schedule == name):
            here = [point for point in points if (point.schedule, point.dim) == (name, dim)]
            steps, ratios = [p.steps for p in here], [p.neural / p.total for p in here]
            errors = [2.0 * p.error / p.total for p in here]
            axes.errorbar(steps, ratios, errors, marker="o", markersize=4, color=COLOURS[dim], label=f"D = {dim}")
            known = [value / here[0].total for value in transport.PUBLISHED[name, dim]]
            paper = [epoch * transport.STEPS_PER_EPOCH for epoch in transport.EPOCHS]
            axes.plot(paper, known, marker="o", markersize=4, markerfacecolor="none", linestyle=":", color=COLOURS[dim])
        axes.axhline(1.0, color="#888888", linewidth=0.8)
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 100.0 * low else (1.0,)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("steps of training (open: published)")
        axes.legend(frameon=False)
    figure.axes[0].set_ylabel("S_NN / S_tot")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
