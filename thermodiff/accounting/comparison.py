"""Differences between two ledgers made with common random numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from thermodiff.accounting.estimate import Estimate
from thermodiff.accounting.ledger import Ledger, standard_error
from thermodiff.accounting.unresolved import unresolved


@dataclass(frozen=True)
class Comparison:
    """Rows of two ledgers side by side; differences are paired.

    Attributes
    ----------
    first, second : Ledger
    differences : dict of str to Estimate
        "second row - first row" for every row that both have, and "neural - total" where they have one each.
    """

    first: Ledger
    second: Ledger
    differences: dict[str, Estimate]

    @property
    def efficiency(self) -> Estimate | None:
        """S_NN / S_tot with its paired error; None unless one ledger has each."""
        pair = _learned_and_exact(self.first, self.second)
        return None if pair is None else ratio(*pair)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        efficiency = self.efficiency
        return {
            "differences": {row: estimate.to_dict() for row, estimate in self.differences.items()},
            "neural / total": None if efficiency is None else efficiency.to_dict(),
        }

    def __str__(self) -> str:
        lines = [str(self.first), "", str(self.second), "", "paired differences (nats)"]
        lines += [f"{row:<24}{estimate.value:>14.6g}{estimate.error:>12.1e}" for row, estimate in self.differences.items()]
        if self.efficiency is not None:
            lines.append(f"{'neural / total':<24}{self.efficiency.value:>14.6g}{self.efficiency.error:>12.1e}")
        return "\n".join(lines)


def compare(first: Ledger, second: Ledger) -> Comparison:
    """Compare two ledgers sample by sample.

    Parameters
    ----------
    first, second : Ledger
        Made with the same ``rng``, ``nodes`` and window, so that sample i of both is the same draw.  With different
        numbers of samples the common ones are compared, and most of the gain of pairing is lost.

    Notes
    -----
    On one law under one schedule the nodes err alike, and what they may be off cancels like the noise; on different ones
    the errors of both are added in quadrature.

    Raises
    ------
    TypeError, ValueError
        If these are not ledgers, or their dimensions or draws differ.
    """
    for ledger in (first, second):
        if not isinstance(ledger, Ledger):
            raise TypeError(f"compare: it takes two ledgers made by account, got {type(ledger).__name__}.")
    dims = [ledger.about.get("dim") for ledger in (first, second)]  # a ledger of an older file does not know it
    if None not in dims and dims[0] != dims[1]:
        raise ValueError(
            f"the ledgers have different dimensions, d = {dims[0]} and d = {dims[1]}, so their samples are not pairs; "
            "compare ledgers of one dimension."
        )
    if first.key != second.key:
        raise ValueError(
            f"the ledgers have different random keys {first.key} and {second.key}, so their samples are not pairs; "
            "pass the same integer rng= to both calls of account."
        )
    if first.lam.shape != second.lam.shape or not np.allclose(first.lam, second.lam, rtol=0.0, atol=1e-12):
        raise ValueError(
            f"the ledgers have different nodes ({first.lam.size} in {first.window}, {second.lam.size} in {second.window}); "
            "use the same nodes= and window."
        )
    differences = {
        row: _paired(second, row, first, row) for row in first.samples if row in second.samples
    }  # fmt: skip
    pair = _learned_and_exact(first, second)
    if pair is not None:
        differences["neural - total"] = _paired(pair[0], "neural", pair[1], "total")
    return Comparison(first, second, differences)


def _learned_and_exact(first: Ledger, second: Ledger) -> tuple[Ledger, Ledger] | None:
    for learned, exact in ((second, first), (first, second)):
        if "neural" in learned.samples and "total" in exact.samples:
            return learned, exact
    return None


def _paired(one: Ledger, one_row: str, two: Ledger, two_row: str) -> Estimate:
    if one.clusters != two.clusters:
        # Different data points: sample i of the one has nothing to do with sample i of the other.
        return one.total(one_row) - two.total(two_row)
    n = min(one.sample_count, two.sample_count)
    gap = one.samples[one_row][:n] - two.samples[two_row][:n]
    nodes = np.hypot(_node_error(one, one_row, two, two_row), _unresolved(one, one_row, two, two_row))
    return Estimate(float(np.mean(gap)), float(np.hypot(standard_error(gap, one.clusters), nodes)))


def _node_error(one: Ledger, one_row: str, two: Ledger, two_row: str) -> float:
    """What the nodes may add to a difference.  On one law under one schedule they err alike, in proportion to the rows."""
    first, second = one.quadrature.get(one_row, 0.0), two.quadrature.get(two_row, 0.0)
    if not _err_alike(one, two):
        return float(np.hypot(first, second))
    if one_row == two_row:
        return abs(first - second)
    return max(ledger.quadrature.get("neural - total", 0.0) for ledger in (one, two))


def _node_error_of_ratio(learned: Ledger, exact: Ledger, value: float) -> float:
    """What the nodes may add to neural - value total.  Rows that err in proportion leave their ratio as it is."""
    first, second = learned.quadrature.get("neural", 0.0), exact.quadrature.get("total", 0.0)
    if not _err_alike(learned, exact):
        return float(np.hypot(first, value * second))
    rounding = max(0.0, learned.quadrature.get("neural - total", 0.0) - abs(first - second))  # of the network
    return abs(first - abs(value) * second) + rounding


def _unresolved(one: Ledger, one_row: str, two: Ledger, two_row: str) -> float:
    """What the nodes miss of the course of networks, which is not the same for two of them.

    The noise of pairs cancels, so that it is at most what their difference shows.
    """
    both = float(np.hypot(one.unresolved.get(one_row, 0.0), two.unresolved.get(two_row, 0.0)))
    if both == 0.0 or one_row not in one.rates or two_row not in two.rates:
        return both
    curve = one.rates[one_row] - two.rates[two_row]
    return min(both, unresolved(one.lam, one.weights, one.window, curve, np.zeros(curve.size)))


def _err_alike(one: Ledger, two: Ledger) -> bool:
    """Whether the nodes err alike: on one law under one schedule."""
    return all(
        left.get(row) == right.get(row)
        for row in ("total", "system", "medium")
        for left, right in ((one.quadrature, two.quadrature), (one.corrections, two.corrections))
    )


def ratio(learned: Ledger, exact: Ledger) -> Estimate:
    """S_NN / S_tot by the delta method, on the paired samples where there are pairs."""
    if learned.clusters != exact.clusters:
        # As in `_paired`: no sample of the one belongs to a sample of the other.
        one, two = learned.total("neural"), exact.total("total")
        value = one.value / two.value
        return Estimate(value, float(np.hypot(one.error, value * two.error)) / abs(two.value))
    n = min(learned.sample_count, exact.sample_count)
    top, bottom = learned.samples["neural"][:n], exact.samples["total"][:n]
    value = float(np.mean(top) / np.mean(bottom))
    nodes = np.hypot(_node_error_of_ratio(learned, exact, value), learned.unresolved.get("neural", 0.0))
    error = np.hypot(standard_error(top - value * bottom, learned.clusters), nodes)
    return Estimate(value, float(error) / abs(float(np.mean(bottom))))
