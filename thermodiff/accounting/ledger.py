"""The entropy ledger: per-sample integrals over the window, their means and standard errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thermodiff._check import choice, write_atomically
from thermodiff.accounting.estimate import Estimate
from thermodiff.accounting.nodes import running_integral
from thermodiff.accounting.record import fields, require_totals

FloatArray = npt.NDArray[np.float64]

FORMAT = "thermodiff-ledger-1"


@dataclass(frozen=True, eq=False)
class Ledger:
    """What a diffusion costs in entropy, row by row, in nats.

    Rows are "total", "system", "medium" for an exact score; "neural" (S_NN), "mismatch" and their like for a learned one.
    Time runs from data to noise: arrays over nodes go from the largest lam to the smallest.

    Attributes
    ----------
    samples : dict of str to (n,) array
        Integral over the window for each sample, after control variates; their mean is the value of the row.
    lam, times, weights : (nodes,) arrays
        Log-SNR and time of the nodes, quadrature weights in lam.
    window : (float, float)
        Edges of the log-SNR window; every entropy refers to it.
    key : tuple of int
        The random key.  Equal keys, nodes and schedules mean equal draws.
    quadrature : dict of str to float
        What the nodes may be off, included in the errors; nats.
    unresolved : dict of str to float
        What the nodes seem to miss of rates whose course is not known, those of a network; included in the errors; nats.
    corrections : dict of str to float
        What was added to the integrals of the rates over the nodes, for error of the nodes that is known; nats.
    about : dict
        Data, schedule and score of the run.
    fixed : dict of str to Estimate
        Rows that are not integrals over nodes (prior), or follow from others by theory (excess, housekeeping).
    """

    samples: dict[str, FloatArray]
    rates: dict[str, FloatArray]
    rate_errors: dict[str, FloatArray]
    lam: FloatArray
    times: FloatArray
    weights: FloatArray
    lam_per_time: FloatArray
    window: tuple[float, float]
    key: tuple[int, int]
    about: dict[str, Any]
    clusters: int | None = None
    quadrature: dict[str, float] = field(default_factory=dict)
    unresolved: dict[str, float] = field(default_factory=dict)
    corrections: dict[str, float] = field(default_factory=dict)
    fixed: dict[str, Estimate] = field(default_factory=dict)
    check: Callable[[], Estimate] | Estimate | None = None

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of the rows there are."""
        derived = ["neural - total"] if {"neural", "total"} <= set(self.samples) else []
        if "mismatch" in self.samples and "prior" in self.fixed:
            derived.append("kl_bound")
        return (*self.samples, *derived, *self.fixed)

    def total(self, row: str) -> Estimate:
        """Integral of a row over the window.

        Raises
        ------
        KeyError
            For a row that this source has not; the message names those that it has.
        """
        self._require(row)
        if row in self.fixed:
            return self.fixed[row]
        if row == "neural - total":
            return self._mean(self.samples["neural"] - self.samples["total"], self._node_error(row))
        if row == "kl_bound":
            mismatch, prior = self.total("mismatch"), self.fixed["prior"]
            return Estimate(mismatch.value + prior.value, float(np.hypot(mismatch.error, prior.error)))
        return self._mean(self.samples[row], self._node_error(row))

    def _node_error(self, row: str) -> float:
        return float(np.hypot(self.quadrature.get(row, 0.0), self.unresolved.get(row, 0.0)))

    def rate(self, row: str, per: str = "t") -> FloatArray:
        """Rate of a row at the nodes: per unit of time (at ``times``) or, with ``per="lam"``, of log-SNR (at ``lam``)."""
        return self._per(self._node_row(self.rates, row), per)

    def error(self, row: str, per: str = "t") -> FloatArray:
        """Standard error of `rate` at each node."""
        return self._per(self._node_row(self.rate_errors, row), per)

    def cumulative(self, row: str) -> FloatArray:
        """Entropy from the data end of the window to each node, (nodes,)."""
        low, high = self.window
        return running_integral(self.lam, low, high) @ self._node_row(self.rates, row)

    @property
    def oracle(self) -> Estimate | None:
        """The independent value of "total" in the same window, with z; None where there is none.

        It is computed when first asked for, and kept.
        """
        if isinstance(self.check, Estimate) or self.check is None:
            return self.check
        oracle = self._with_z(self.check())
        object.__setattr__(self, "check", oracle)
        return oracle

    def __str__(self) -> str:
        from thermodiff.accounting.report import text

        return text(self)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the per-sample integrals, as plain lists and numbers."""
        oracle = self.oracle
        return {
            "format": FORMAT,
            "about": self.about,
            "window": list(self.window),
            "key": list(self.key),
            "samples": self.sample_count,
            "clusters": self.clusters,
            "totals": {row: self.total(row).to_dict() for row in self.rows},
            "oracle": None if oracle is None else oracle.to_dict(),
            "lam": self.lam.tolist(),
            "times": self.times.tolist(),
            "weights": self.weights.tolist(),
            "lam_per_time": self.lam_per_time.tolist(),
            "rates": {row: values.tolist() for row, values in self.rates.items()},
            "rate_errors": {row: values.tolist() for row, values in self.rate_errors.items()},
            "quadrature": self.quadrature,
            "unresolved": self.unresolved,
            "corrections": self.corrections,
            "fixed": {row: estimate.to_dict() for row, estimate in self.fixed.items()},
        }

    def save(self, path: str | Path) -> None:
        """Write the ledger, per-sample integrals included, as JSON (to a temporary name, then renamed)."""
        record = {**self.to_dict(), "integrals": {row: values.tolist() for row, values in self.samples.items()}}
        write_atomically(Path(path), json.dumps(record).encode())

    @classmethod
    def load(cls, path: str | Path) -> Ledger:
        """Read what `save` wrote.

        Raises
        ------
        ValueError
            If the file is not such a ledger.
        """
        try:
            record = json.loads(Path(path).read_bytes())
            if record["format"] != FORMAT:
                raise ValueError(f"format {record['format']!r}")
            ledger = cls(**fields(record))
            require_totals(record, {row: ledger.total(row) for row in ledger.rows})
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
            raise ValueError(f"{path} is not a ledger written by Ledger.save ({error}); save it again.") from None
        return ledger

    @property
    def sample_count(self) -> int:
        """Samples per node."""
        return next(iter(self.samples.values())).size

    def _require(self, row: str) -> None:
        if row not in self.rows:
            missing = {
                "residual": ' (pass divergence="exact" to account)',
                "mismatch": " (it needs data whose score is known)",
                "neural": " (it needs a LearnedDiffusion)",
            }.get(row, "")
            raise KeyError(f"this ledger has no row {row!r}{missing}; its rows are {', '.join(self.rows)}.")

    def _node_row(self, table: dict[str, FloatArray], row: str) -> FloatArray:
        self._require(row)
        if row not in table:
            raise KeyError(f"row {row!r} has no rate; rows with a rate are {', '.join(table)}.")
        return table[row]

    def _per(self, values: FloatArray, per: str) -> FloatArray:
        return values if choice("per", per, ("t", "lam")) == "lam" else values * self.lam_per_time

    def _mean(self, integrals: FloatArray, quadrature: float) -> Estimate:
        return Estimate(float(np.mean(integrals)), float(np.hypot(standard_error(integrals, self.clusters), quadrature)))

    def _with_z(self, oracle: Estimate) -> Estimate:
        return Estimate(oracle.value, oracle.error, self.total("total").deviation(oracle))


def standard_error(integrals: FloatArray, clusters: int | None) -> float:
    """Standard error of the mean of per-sample values.

    ``clusters``: sample i belongs to cluster i mod clusters (a data point that serves several samples), and clusters are
    the independent units.
    """
    n = integrals.size
    if clusters is not None and clusters < n:
        sums = np.bincount(np.arange(n) % clusters, weights=integrals - np.mean(integrals), minlength=clusters)
        return float(np.sqrt(np.sum(sums**2) * clusters / max(clusters - 1, 1)) / n)
    return float(np.std(integrals, ddof=1) / np.sqrt(n)) if n > 1 else float("inf")
