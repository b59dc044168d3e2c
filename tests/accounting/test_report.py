"""The printed ledger."""

import pytest
from systems import LINE

import thermodiff as td
from thermodiff.accounting.report import MEANING, text


@pytest.fixture(scope="module")
def ledger() -> td.Ledger:
    return td.account(
        td.Diffusion(LINE, td.VP(scale=0.1)), nodes=16, samples=500, rng=1, lam=(-3.0, 9.5), divergence="exact"
    )


def test_the_header_says_what_was_measured(ledger: td.Ledger) -> None:
    first = text(ledger).splitlines()[0]
    assert "GaussianMixture: 2 components in d = 1" in first
    assert "VP(scale=0.1)" in first
    assert "exact score" in first


def test_unit_and_window_are_stated(ledger: td.Ledger) -> None:
    assert "nats" in str(ledger)
    assert "lam = -3 ... 9.5" in str(ledger)
    assert "16 nodes x 500 samples" in str(ledger)


def test_every_row_has_a_line_with_its_meaning(ledger: td.Ledger) -> None:
    lines = str(ledger).splitlines()
    for row in ledger.rows:
        (line,) = [line for line in lines if line.startswith(f"{row} ")]
        assert f"{ledger.total(row).value:.6g}" in line
        assert MEANING[row] in line


def test_exact_rows_say_so(ledger: td.Ledger) -> None:
    (line,) = [line for line in str(ledger).splitlines() if line.startswith("housekeeping")]
    assert "exact" in line


def test_the_oracle_is_printed_with_its_deviation(ledger: td.Ledger) -> None:
    last = str(ledger).splitlines()[-1]
    assert last.startswith("oracle")
    assert f"z = {ledger.oracle.z:+.2f}" in last


def test_str_is_the_report(ledger: td.Ledger) -> None:
    assert str(ledger) == text(ledger)
