"""The storage experiment from the command line: trainings, measurements, table, figure, sheets of samples, JSON."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from thermodiff._check import above, choice, count, write_atomically
from thermodiff._tasks import cores
from thermodiff.accounting import Estimate
from thermodiff.bench import machine
from thermodiff.cli.experiment import require_torch
from thermodiff.cli.stopping import resumable
from thermodiff.experiments import storage
from thermodiff.experiments.storage import Budget, Experiment, Slope, averaged, slope

COLOURS = ("#1f4e79", "#2a9d8f", "#c1440e", "#7a5195", "#e9a23b")
ROWS = {
    "held-out": ("lam", "held-out", "neural"),
    "training": ("lam", "training", "neural"),
    "denoising held-out": ("lam", "held-out", "denoising"),
    "denoising training": ("lam", "training", "denoising"),
    "paper held-out": ("paper", "held-out", "neural"),
}
"""Columns of results: grid, images and row of the records."""


class Point(NamedTuple):
    """What was found for one N and one length of training, over seeds."""

    steps: int
    n: int
    seeds: int
    values: dict[str, Estimate]
    memorising: float
    published: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {**self._asdict(), "values": {name: value.to_dict() for name, value in self.values.items()}}


class Results(NamedTuple):
    """All points, and what they are compared with."""

    points: list[Point]
    gaussian: Estimate
    slopes: dict[int, dict[str, Slope]]
    """By length of training and column."""
    records: list[dict[str, Any]]


def run_storage(
    *,
    data: str,
    sizes: Sequence[int] | None,
    steps: Sequence[int],
    seeds: int,
    grids: Sequence[str],
    lr: float | None,
    constant: bool,
    threads: int | None,
    out: Path,
    quiet: bool,
    budget: Budget,
) -> Results:
    """The storage experiment; what was done before in ``out`` is not done again."""
    for number in steps:
        count("--steps", number)
    for grid in grids:
        choice("--grid", grid, tuple(storage.GRIDS))
    above("--lam-max", budget.lam_max, budget.window[0], "the window begins there")
    if lr is not None:
        above("--lr", lr, 0.0, "nothing would be learned")
    grids = tuple(dict.fromkeys(grids))
    threads = cores() if threads is None else count("--threads", threads)
    require_torch()
    from thermodiff.learned import torch_threads

    train, held_out = storage.read(data)
    sizes = [n for n in storage.SIZES if n <= len(train)] if sizes is None else sizes
    for n in sizes:
        storage.chosen(train, n)
    todo = storage.runs(sizes, steps, count("--seeds", seeds))
    experiment = Experiment(train, held_out, out, lr, constant, budget, not quiet)
    console = Console(stderr=True, quiet=quiet)
    with resumable(), torch_threads(threads):
        records = list(experiment.carry_out(todo, grids, lambda text: console.print(text, highlight=False)))
    results = _results(experiment, records)
    written = _write(experiment, results, todo)
    if not quiet:
        _show(Console(width=None if sys.stdout.isatty() else 125), results, experiment, written)
    return results


def _results(experiment: Experiment, records: list[dict[str, Any]]) -> Results:
    points = []
    for steps, n in dict.fromkeys((record["steps"], record["n"]) for record in records):
        found = {
            name: averaged(records, row, steps=steps, n=n, grid=grid, part=part) for name, (grid, part, row) in ROWS.items()
        }
        values = {name: value for name, value in found.items() if value is not None}
        seeds = len({record["seed"] for record in records if (record["steps"], record["n"]) == (steps, n)})
        law = _points(storage.chosen(experiment.train, n))
        memorising = storage.memorising_total(law, storage.NOISE, experiment.budget.window)
        known = storage.published(experiment.train.shape, n)
        points.append(Point(steps, n, seeds, values, memorising, known))
    gaussian = storage.gaussian_part(_points(experiment.train), storage.NOISE, experiment.budget.window)
    slopes = {steps: _slopes([point for point in points if point.steps == steps]) for steps in {p.steps for p in points}}
    return Results(points, gaussian, dict(sorted(slopes.items())), records)


def _slopes(points: Sequence[Point]) -> dict[str, Slope]:
    """Slopes of the columns, and that of the published values at the same N."""
    found = {}
    for name in (*ROWS, "published"):
        here = [(point.n, value) for point in points if (value := _column(point, name)) is not None]
        line = slope([n for n, _ in here], [value for _, value in here])
        if line is not None:
            found[name] = line
    return found


def _column(point: Point, name: str) -> Estimate | None:
    if name == "published":
        return None if point.published is None else Estimate(point.published, storage.READ_TO)
    return point.values.get(name)


def _points(images: Any) -> np.ndarray:
    return np.asarray(images, dtype=np.float64).reshape(len(images), -1)


def _write(experiment: Experiment, results: Results, todo: Sequence[storage.Run]) -> list[Path]:
    out, trainings = experiment.folder, experiment.trainings(todo)
    found = {
        "machine": machine.describe(),
        "settings": experiment.settings,
        "training seconds in all": round(sum(record["training seconds"] for record in trainings), 1),
        "measuring seconds in all": round(sum(record["seconds"] for record in results.records), 1),
        "gaussian part": results.gaussian.to_dict(),
        "points": [point.to_dict() for point in results.points],
        "slopes": {steps: {name: line._asdict() for name, line in lines.items()} for steps, lines in results.slopes.items()},
        "published": storage.PUBLISHED,
        "trainings": trainings,
        "measurements": results.records,
    }
    pictures = {"storage.png": _figure(results), **{f"{run.name}.png": _sheet(experiment.sheet(run)) for run in todo}}
    if None in pictures.values():
        print("no pictures were drawn: they need matplotlib (pip install 'thermodiff[plot]').", file=sys.stderr)
    written = [out / "storage.json"]
    for name, picture in pictures.items():
        if picture is not None:
            write_atomically(out / name, picture)
            written.append(out / name)
    write_atomically(out / "storage.json", json.dumps(found, indent=1).encode())
    return written


def _show(console: Console, results: Results, experiment: Experiment, written: Sequence[Path]) -> None:
    low, high = experiment.range
    console.print(_table(results))
    console.print(
        f"nats, data in [{low:g}, {high:g}], up to lam_max = {experiment.budget.lam_max:.3f}; slopes per e-fold of N",
        f"Gaussian of the moments of all {len(experiment.train)} training images: {results.gaussian}",
        f"written to {written[0].parent}: {', '.join(path.name for path in written)}",
        sep="\n",
        highlight=False,
        soft_wrap=True,
    )


def _table(results: Results) -> Table:
    """A row for each N, and the slopes beneath those of one length of training."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    names = ("held-out", "training", "denoising held-out", "denoising training", "paper held-out", "published")
    titles = ("S_NN held-out", "training", "denoising held-out", "training", "paper's grid", "published")
    for title in ("steps", "N", *titles[:2], "held-out less Gaussian", *titles[2:]):
        table.add_column(title, justify="right")
    for steps, lines in results.slopes.items():
        for point in (point for point in results.points if point.steps == steps):
            cells: list[Any] = [point.values.get(name) for name in names[:-1]]
            cells.insert(2, None if cells[0] is None else cells[0] - results.gaussian)
            cells.append(None if point.published is None else f"{point.published:.0f}")
            table.add_row(str(steps), str(point.n), *("" if cell is None else str(cell) for cell in cells))
        cells = [_slope(lines, name) for name in names]
        cells.insert(2, "")
        if lines:
            table.add_row("", "slope", *map(str, cells), style="dim")
        table.add_section()
    return table


def _slope(lines: dict[str, Slope], name: str) -> str:
    return "" if name.startswith("denoising") or name not in lines else str(Estimate(lines[name].value, lines[name].error))


def _figure(results: Results) -> bytes | None:
    """S_NN over N, ours and the published; and where in log-SNR it is stored."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(10.0, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for colour, steps in zip(COLOURS, results.slopes, strict=False):
        points = [point for point in results.points if point.steps == steps]
        for name, style in {"held-out": "o-", "training": "s--", "paper held-out": "x:"}.items():
            here = [(point.n, point.values[name]) for point in points if name in point.values]
            if here:
                heights, errors = [value.value for _, value in here], [2.0 * value.error for _, value in here]
                label = f"{name}, {steps} steps"
                left.errorbar([n for n, _ in here], heights, errors, fmt=style, color=colour, markersize=5, label=label)
    sizes = {point.n: point for point in results.points}
    known = {n: point.published for n, point in sizes.items() if point.published is not None}
    if known:
        left.plot(list(known), list(known.values()), "D", color="black", fillstyle="none", label="published")
    left.plot(list(sizes), [point.memorising for point in sizes.values()], color="#888888", label="memorising law")
    left.axhline(results.gaussian.value, color="#888888", linestyle=":", label="Gaussian part")
    left.set(xscale="log", xlabel="images in the training set, N", ylabel="S_NN (nats)")
    left.legend(frameon=False, fontsize=8)
    _curves(right, results)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def _curves(axes: Any, results: Results) -> None:
    """Rates on held-out images over log-SNR, after the longest training, first seed."""
    longest = max(results.slopes)
    drawn = [record for record in results.records if (record["grid"], record["part"]) == ("lam", "held-out")]
    drawn = [record for record in drawn if (record["steps"], record["seed"]) == (longest, 0)]
    for colour, record in zip(COLOURS, drawn, strict=False):
        rate, error = np.array(record["rate"]), 2.0 * np.array(record["rate error"])
        axes.plot(record["lam"], rate, color=colour, label=f"N = {record['n']}, {longest} steps")
        axes.fill_between(record["lam"], rate - error, rate + error, color=colour, alpha=0.25, linewidth=0)
    axes.set(xlabel="log-SNR  λ   (noise → data)", ylabel="nats per unit of λ, held-out")
    if drawn:
        axes.legend(frameon=False, fontsize=8)


def _sheet(path: Path) -> bytes | None:
    """Samples side by side, eight in a row, each pixel as a square of two."""
    try:
        from matplotlib.image import imsave
    except ImportError:
        return None
    levels = storage.read_samples(path)
    n, channels, height, width = levels.shape
    rows = -(-n // 8)
    page = np.zeros((rows * 8, channels, height + 1, width + 1), dtype=np.uint8)
    page[:n, :, :height, :width] = levels
    page = page.reshape(rows, 8, channels, height + 1, width + 1).transpose(0, 3, 1, 4, 2)
    page = page.reshape(rows * (height + 1), 8 * (width + 1), channels).repeat(2, axis=0).repeat(2, axis=1)
    buffer = io.BytesIO()
    imsave(buffer, page[:, :, :3] if channels >= 3 else page[:, :, 0], format="png", cmap="gray", vmin=0, vmax=255)
    return buffer.getvalue()
