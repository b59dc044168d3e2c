"""Closed-form cases, measured and compared with their exact values."""

from __future__ import annotations

import json
import math
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from thermodiff import __version__, cases
from thermodiff._check import DivergenceError, above, count, require_folder, require_writable, write_atomically
from thermodiff.accounting import Estimate

MOST_Z = 4.0
"""Standard errors within which a case passes."""
PATIENCE = 2.0
"""Seconds after which a progress bar appears."""


@dataclass(frozen=True)
class Result:
    """One case, measured; ``trouble`` in place of a value where the measurement failed."""

    case: cases.Case
    measured: Estimate
    size: int
    seconds: float
    trouble: str | None = None

    @property
    def z(self) -> float:
        """(measured - exact) in standard errors."""
        return self.case.z(self.measured)

    @property
    def passed(self) -> bool:
        """Whether the exact value lies within the error bars; never for nan."""
        return abs(self.z) < MOST_Z

    def record(self) -> dict[str, Any]:
        """The result as written to a file."""
        case = self.case
        about = {name: getattr(case, name) for name in ("name", "statement", "source", "method", "unit", "exact")}
        numbers = {"value": self.measured.value, "error": self.measured.error, "z": self.z}
        kept = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        return {
            **about,
            **kept,
            "passed": self.passed,
            "trouble": self.trouble,
            "size": self.size,
            "seconds": round(self.seconds, 3),
        }


def run(*, names: Sequence[str], seed: int, scale: float, out: Path | None, quiet: bool) -> bool:
    """Run the cases; whether all of them passed."""
    count("--seed", seed, 0)
    above("--scale", scale, 0.0, "it multiplies the number of samples")
    chosen = [cases.get(name) for name in dict.fromkeys(names)] or list(cases.CASES)
    if out is not None:
        _check_out(out)
    results: list[Result] = []
    with _bar(len(chosen), quiet) as show_progress:
        for case in chosen:
            show_progress(case.name)
            results.append(measure(case, seed, scale))
    passed = all(result.passed for result in results)
    if out is not None:
        record = {"thermodiff": __version__, "seed": seed, "scale": scale, "passed": passed}
        record["cases"] = [result.record() for result in results]
        write_atomically(out, json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False).encode())
    if not quiet:
        _show(Console(width=None if sys.stdout.isatty() else 110), results, seed, out)
    return passed


def measure(case: cases.Case, seed: int, scale: float) -> Result:
    """One case.  Its draws depend on its name and the seed, not on what else is measured."""
    start, size = time.perf_counter(), case.scaled(scale)
    rng = np.random.SeedSequence([seed, zlib.crc32(case.name.encode())])
    try:
        measured, trouble = case.measure(rng, size), None
    except DivergenceError as error:
        measured, trouble = Estimate(math.nan, math.nan), str(error)
    return Result(case, measured, size, time.perf_counter() - start, trouble)


def _check_out(out: Path) -> None:
    """Refuse what cannot be written before anything is measured."""
    if out.suffix != ".json" or out.is_dir():
        raise ValueError(f"--out must be a file that ends in .json, got {str(out)!r}.")
    require_folder("--out", out.parent)
    require_writable("--out", out.parent)


@contextmanager
def _bar(total: int, quiet: bool) -> Iterator[Callable[[str], None]]:
    """A progress bar on standard error, when that is a terminal and the work takes a while."""
    console = Console(stderr=True)
    columns = (TextColumn("measuring {task.description}"), BarColumn(), MofNCompleteColumn())
    bar = Progress(*columns, console=console, transient=True)
    task, begun = bar.add_task("", total=total), 0
    # A timer, because a single case may take that long.
    timer = threading.Timer(PATIENCE, bar.start)
    timer.daemon = True

    def next_case(name: str) -> None:
        nonlocal begun
        bar.update(task, description=name, completed=begun)
        begun += 1

    if not quiet and console.is_terminal:
        timer.start()
    try:
        yield next_case
    finally:
        timer.cancel()
        if timer.ident is not None:
            timer.join()
        if bar.live.is_started:
            bar.stop()


def _show(console: Console, results: Sequence[Result], seed: int, out: Path | None) -> None:
    table = Table(title=f"closed-form cases, seed {seed}", title_justify="left", title_style="bold")
    table.add_column("case", no_wrap=True)
    table.add_column("exact", justify="right")
    table.add_column("measured ± error", justify="right")
    table.add_column("unit")
    table.add_column("z", justify="right")
    for result in results:
        z = f"{result.z:+.2f}" if math.isfinite(result.z) else "–"
        measured = "failed" if result.trouble else str(result.measured)
        style = None if result.passed else "bold red"
        table.add_row(result.case.name, f"{result.case.exact:.8g}", measured, result.case.unit, z, style=style)
    console.print(table)
    wrong = [result for result in results if not result.passed]
    seconds = sum(result.seconds for result in results)
    line = f"{len(results) - len(wrong)} of {len(results)} cases passed (|z| < {MOST_Z:g}), {seconds:.0f} s"
    console.print(
        line + ("." if not wrong else f"; not: {', '.join(result.case.name for result in wrong)}."), highlight=False
    )
    for result in wrong:
        if result.trouble:
            console.print(f"{result.case.name}: {result.trouble}", highlight=False, markup=False)
    if out is not None:
        console.print(f"written to {out}", highlight=False, markup=False)
