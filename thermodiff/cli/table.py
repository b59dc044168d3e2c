"""The result of the main job as tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.table import Table

from thermodiff.accounting import Estimate, Ledger, ratio
from thermodiff.accounting.estimate import format_value
from thermodiff.accounting.report import MEANING

ORDER = (
    "total",
    "system",
    "medium",
    "excess",
    "housekeeping",
    "neural",
    "neural - total",
    "mismatch",
    "prior",
    "kl_bound",
)


class Column(Protocol):
    """One ledger of the run, see `thermodiff.cli.entropy.Entry`."""

    @property
    def schedule(self) -> str: ...
    @property
    def score(self) -> str: ...
    @property
    def data(self) -> str: ...
    @property
    def ledger(self) -> Ledger: ...


def show(console: Console, entries: Sequence[Column], written: Sequence[Path]) -> None:
    """Print one table per schedule."""
    for name in dict.fromkeys(entry.schedule for entry in entries):
        group = [entry for entry in entries if entry.schedule == name]
        console.print(_table(name, group))
        checks = [entry.ledger.oracle for entry in group if entry.score == "exact"]
        for oracle in (check for check in checks if check is not None):
            verdict = "agrees" if abs(oracle.z or 0.0) < 4.0 else "DISAGREES"
            console.print(f"oracle: {_cell(oracle)} nats, z = {oracle.z:+.2f}: the exact total {verdict}.\n")
    names = ", ".join(path.name for path in written)
    console.print(f"written to {written[0].parent}: {names}", highlight=False, markup=False)


def _table(name: str, group: Sequence[Column]) -> Table:
    ledger = group[0].ledger
    low, high = ledger.window
    title = f"{name}: {ledger.about['data']}\nwindow λ = {low:.3f} … {high:.3f} (log-SNR), {ledger.lam.size} nodes"
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("nats")
    for entry in group:
        table.add_column(f"{entry.score}\n{entry.data}", justify="right")
    table.add_column("meaning")
    for row in ORDER:
        cells = [_cell(entry.ledger.total(row)) if row in entry.ledger.rows else "" for entry in group]
        if any(cells):
            table.add_row(row, *cells, MEANING[row])
    if any("neural - total" in entry.ledger.rows for entry in group):
        cells = [_share(entry.ledger) if "neural - total" in entry.ledger.rows else "" for entry in group]
        table.add_row("neural / total", *cells, "share of the entropy that the network stores")
    return table


def _share(ledger: Ledger) -> str:
    return _cell(ratio(ledger, ledger))


def _cell(estimate: Estimate) -> str:
    if not estimate.error > 0.0:
        return f"{estimate.value:.6g} (exact)"
    return f"{format_value(estimate.value, estimate.error)} ± {estimate.error:.1g}"
