"""Reading the record of a ledger.  Every entry is checked, since a file may have been cut or edited."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from thermodiff._check import increasing_pair
from thermodiff.accounting.estimate import Estimate

FloatArray = npt.NDArray[np.float64]

MOST = sys.float_info.max
"""Bound of the finite numbers."""


def fields(record: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `Ledger` from the record that `Ledger.save` writes.

    Raises
    ------
    ArithmeticError, AttributeError, LookupError, TypeError, ValueError
        If an entry is missing, or is not what a ledger can hold.
    """
    low, high = increasing_pair("window", record["window"])
    lam = _numbers("lam", record["lam"], None, low, high)
    if np.any(np.diff(lam) >= 0.0):
        raise ValueError("lam does not descend")
    samples = _rows("integrals", record["integrals"], _integer("samples", record["samples"], 2))
    rates = _rows("rates", record["rates"], lam.size)
    rate_errors = _rows("rate_errors", record["rate_errors"], lam.size, 0.0)
    if not samples or not rates.keys() == rate_errors.keys() <= samples.keys():
        raise ValueError("its rows do not fit together")
    oracle = record["oracle"]
    return {
        "samples": samples,
        "rates": rates,
        "rate_errors": rate_errors,
        "lam": lam,
        "times": _numbers("times", record["times"], lam.size, 0.0),
        "weights": _numbers("weights", record["weights"], lam.size, 0.0),
        # Infinite where t, next to the end of some clocks, cannot be told from it.
        "lam_per_time": _numbers("lam_per_time", record["lam_per_time"], lam.size, 0.0, np.inf),
        "window": (low, high),
        "key": _key(record["key"]),
        "about": _about(record["about"]),
        "clusters": None if record["clusters"] is None else _integer("clusters", record["clusters"], 2),
        "quadrature": {row: _number(f"quadrature of {row}", v, 0.0) for row, v in record["quadrature"].items()},
        # Ledgers of earlier versions know nothing of it.
        "unresolved": {row: _number(f"unresolved of {row}", v, 0.0) for row, v in record.get("unresolved", {}).items()},
        "corrections": {row: _number(f"correction of {row}", v) for row, v in record["corrections"].items()},
        "fixed": {row: _estimate(row, entry) for row, entry in record["fixed"].items()},
        "check": None if oracle is None else _estimate("oracle", oracle, checked=True),
    }


def require_totals(record: Mapping[str, Any], totals: Mapping[str, Estimate]) -> None:
    """Refuse a record whose totals are not those of its integrals."""
    if record["totals"].keys() != totals.keys():
        raise ValueError("its totals are not those of its rows")
    for row, total in totals.items():
        written = _estimate(row, record["totals"][row])
        gap = max(abs(written.value - total.value), abs(written.error - total.error))
        # Sums may be rounded otherwise on another machine.
        if gap > 1e-9 * (abs(total.value) + total.error):
            raise ValueError(f"the total of {row} is not that of its integrals")


def _numbers(name: str, values: Any, size: int | None, least: float = -MOST, most: float = MOST) -> FloatArray:
    """A list of ``size`` numbers (any but none, for None) within bounds, as an array."""
    if not isinstance(values, list) or not set(map(type, values)) <= {int, float}:
        raise TypeError(f"{name} must be a list of numbers")
    if not values or (size is not None and len(values) != size):
        raise ValueError(f"{name} has {len(values)} entries")
    result = np.array(values, dtype=np.float64)
    if not np.all((result >= least) & (result <= most)):
        raise ValueError(f"{name} must hold numbers within {least:.6g} ... {most:.6g}")
    return result


def _number(name: str, value: Any, least: float = -MOST, most: float = MOST) -> float:
    return float(_numbers(name, [value], 1, least, most)[0])


def _rows(name: str, record: Mapping[str, Any], size: int, least: float = -MOST) -> dict[str, FloatArray]:
    return {row: _numbers(f"{name} of {row}", values, size, least) for row, values in record.items()}


def _integer(name: str, value: Any, least: int, most: float = np.inf) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r:.60}")
    return value


def _key(words: Any) -> tuple[int, int]:
    first, second = (_integer("key", word, 0, 2**32 - 1) for word in words)
    return first, second


def _about(record: Mapping[str, Any]) -> dict[str, Any]:
    if not all(isinstance(record[name], str) for name in ("data", "schedule", "score")):
        raise TypeError("about must name data, schedule and score")
    return dict(record)


def _estimate(name: str, record: Mapping[str, Any], *, checked: bool = False) -> Estimate:
    """Value, error and, where there was a check, z, which is infinite for a gap between exact values."""
    if not {"value", "error"} <= record.keys() <= {"value", "error", "z"} or (checked and "z" not in record):
        raise ValueError(f"{name} has entries {sorted(record)}")
    value, error = _number(name, record["value"]), _number(f"error of {name}", record["error"], 0.0)
    return Estimate(value, error, _number(f"z of {name}", record["z"], -np.inf, np.inf) if "z" in record else None)
