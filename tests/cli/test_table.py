"""The tables of the command."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from thermodiff.accounting import Estimate, Ledger, ratio
from thermodiff.accounting.nodes import gauss_legendre
from thermodiff.cli.table import ORDER, show


@dataclass
class Entry:
    """As `thermodiff.cli.entropy.Entry`."""

    ledger: Ledger
    schedule: str = "VP"
    score: str = "exact"
    data: str = "law"
    extra: dict = field(default_factory=dict)


def ledger(rows: dict[str, float], oracle: Estimate | None = None, fixed: dict[str, Estimate] | None = None) -> Ledger:
    """A ledger of four samples whose rows have these means and a standard error of 0.05."""
    lam, weights = gauss_legendre(-8.0, 20.0, 3)
    spread = 0.05 * np.sqrt(3.0) * np.array([1.0, -1.0, 1.0, -1.0])
    return Ledger(
        samples={row: value + spread for row, value in rows.items()},
        rates={row: np.ones(3) for row in rows},
        rate_errors={row: np.ones(3) for row in rows},
        lam=lam,
        times=np.linspace(0.1, 0.9, 3),
        weights=weights,
        lam_per_time=np.ones(3),
        window=(-8.0, 20.0),
        key=(1, 2),
        about={"data": "two peaks", "schedule": "VP", "score": "exact"},
        fixed=fixed or {},
        check=oracle,
    )


EXACT = {"total": 1.25, "system": 0.5, "medium": 0.75}


def shown(entries: list[Entry], out: Path, width: int = 110) -> str:
    console = Console(file=io.StringIO(), width=width)
    show(console, entries, [out / "ledgers.json"])
    return console.file.getvalue()


def test_exact(tmp_path: Path) -> None:
    (tmp_path / "ledgers.json").touch()
    fixed = {"excess": Estimate(1.25, 0.05), "housekeeping": Estimate(0.0, 0.0)}
    text = shown([Entry(ledger(EXACT, Estimate(1.2, 0.01, 0.98), fixed))], tmp_path)
    assert "VP: two peaks" in text
    assert "-8.000 … 20.000 (log-SNR), 3 nodes" in text
    assert "nats" in text
    lines = {line.split("│")[1].strip(): line for line in text.splitlines() if line.startswith("│")}
    assert list(lines) == ["total", "system", "medium", "excess", "housekeeping"]
    assert "1.25" in lines["total"]
    assert "± 0.05" in lines["total"]
    assert "0 (exact)" in lines["housekeeping"]
    assert "entropy given to the bath" in lines["medium"]
    assert "z = +0.98: the exact total agrees." in text
    assert "1.200 ± 0.01 nats" in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("z", "verdict"), [(3.99, "agrees"), (-3.99, "agrees"), (4.0, "DISAGREES"), (-7.5, "DISAGREES"), (0.0, "agrees")]
)
def test_verdict(tmp_path: Path, z: float, verdict: str) -> None:
    text = shown([Entry(ledger(EXACT, Estimate(1.2, 0.01, z)))], tmp_path)
    assert f"z = {z:+.2f}: the exact total {verdict}." in text


def test_no_oracle_no_verdict(tmp_path: Path) -> None:
    assert "oracle:" not in shown([Entry(ledger(EXACT))], tmp_path)


def test_learned_beside_exact(tmp_path: Path) -> None:
    learned = ledger({**EXACT, "neural": 1.0, "mismatch": 0.25}, fixed={"prior": Estimate(1e-3, 1e-5)})
    text = shown([Entry(ledger(EXACT)), Entry(learned, score="learned")], tmp_path)
    lines = {line.split("│")[1].strip(): line.split("│")[2:] for line in text.splitlines() if line.startswith("│")}
    assert list(lines)[-1] == "neural / total"
    assert [row for row in lines if row in ORDER] == [row for row in ORDER if row in learned.rows]
    assert lines["neural"][0].strip() == ""
    assert "1.00" in lines["neural"][1]
    # Samples that move together leave the difference without error.
    assert "-0.25 (exact)" in lines["neural - total"][1]
    share = ratio(learned, learned)
    assert share.value == pytest.approx(0.8)
    assert f"{share.value:.3f}" in lines["neural / total"][1]
    assert "0.251" in lines["kl_bound"][1]
    assert "mismatch + prior >= KL(data || model)" in lines["kl_bound"][2]


def test_samples_have_no_share(tmp_path: Path) -> None:
    learned = Entry(ledger({"medium": 0.75, "neural": 1.0}), score="learned", data="held-out")
    text = shown([Entry(ledger(EXACT), data="memorising law"), learned], tmp_path)
    assert "held-out" in text
    assert "neural / total" not in text


def test_one_table_for_each_schedule(tmp_path: Path) -> None:
    entries = [Entry(ledger(EXACT), schedule=name) for name in ("VP", "SL")]
    text = shown(entries, tmp_path)
    assert text.index("VP: two peaks") < text.index("SL: two peaks")
    assert text.count("│ total") == 2


@pytest.mark.parametrize("width", [60, 80, 110, 200])
def test_fits_the_console(tmp_path: Path, width: int) -> None:
    learned = ledger({**EXACT, "neural": 1.0, "mismatch": 0.25}, fixed={"prior": Estimate(1e-3, 1e-5)})
    text = shown([Entry(ledger(EXACT)), Entry(learned, score="learned")], tmp_path, width)
    assert max(map(len, text.splitlines())) <= width
    if width >= 110:
        assert "neural - total" in text


def test_names_only_what_was_written(tmp_path: Path) -> None:
    """`--out .` must not claim the user's files."""
    (tmp_path / "thesis.tex").touch()
    (tmp_path / "ledgers.json").touch()
    assert "thesis.tex" not in shown([Entry(ledger(EXACT))], tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "run[a]",
        "run[/a]",
    ],
)
def test_names_of_folders_are_not_markup(tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    out.mkdir(parents=True)
    assert name in shown([Entry(ledger(EXACT))], out, width=400)
