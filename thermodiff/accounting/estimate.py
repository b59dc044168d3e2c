"""A number with its standard error."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Estimate:
    """A value in nats with its standard error.

    Attributes
    ----------
    value, error : float
        The estimate and one standard error.
    z : float or None
        For a check: (checked value - this value) / combined standard error.
    """

    value: float
    error: float
    z: float | None = None

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return f"{format_value(self.value, self.error)} ± {self.error:.1g}"

    def __sub__(self, other: Estimate) -> Estimate:
        """Difference of *independent* estimates; for common random numbers use `thermodiff.compare`."""
        return Estimate(self.value - other.value, math.hypot(self.error, other.error))

    def deviation(self, other: Estimate) -> float:
        """(self - other) in combined standard errors; 0 where both are exact and equal."""
        error, gap = math.hypot(self.error, other.error), self.value - other.value
        return gap / error if error > 0.0 else (0.0 if gap == 0.0 else math.copysign(math.inf, gap))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, ``z`` only where there is one."""
        record = {"value": self.value, "error": self.error}
        return record if self.z is None else {**record, "z": self.z}


MOST_DIGITS = 8
"""Decimals that are shown at most."""


def format_value(value: float, error: float) -> str:
    """``value`` to the first digit of its error; six significant digits where the error is zero."""
    if not 0.0 < error < math.inf or not math.isfinite(value):
        return f"{value:.6g}"
    digits = max(0, min(MOST_DIGITS, 1 - math.floor(math.log10(error))))
    return f"{value:.{digits}f}"
