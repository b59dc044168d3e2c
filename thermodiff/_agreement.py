"""Whether a compiled field computes what its plain function does.

Compiled whole numbers have 64 bits: they wrap where Python's grow, and a whole number to a negative whole power is 0.  No
rule about the code would find all such cases; a few points do.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Function = Callable[[FloatArray, float], Any]
"""Values at a point x (d,) and a time."""

SIZES = (0.2, 1.0, 3.0, 10.0, 0.5, 30.0)
"""Of the points, on average; every second one has positive coordinates only, for functions with roots or logarithms."""
TIMES = (0.0, 0.3, 1.7)
LONGEST = 0.5
"""Seconds of calls in plain Python after which no more are made."""
CLOSE = 1e-6
"""Relative difference that is let pass, beside what the rounding of the point itself brings about."""
CLOSE_SLOPE = 1e-2
"""The same for a derivative, beside a difference quotient."""


class Difference(NamedTuple):
    """Where, and what is computed there; for a potential ``plain`` is the slope of -U along a line."""

    x: FloatArray
    t: float
    plain: FloatArray
    compiled: FloatArray


def points_to_try(dim: int) -> FloatArray:
    """Points (m, d), the same for every function."""
    rng = np.random.default_rng(20)
    points = np.array([size * rng.standard_normal(dim) for size in SIZES])
    points[1::2] = np.abs(points[1::2])
    return points


def disagreement(plain: Function, compiled: Function, dim: int) -> Difference | None:
    """The first of some points at which the values of two functions of (x, t) differ; None where there is none.

    Points at which ``plain`` ends in an error are left out.
    """

    def differ(x: FloatArray, t: float, found: FloatArray) -> FloatArray | None:
        expected, beside = _quietly(plain, x, t), _quietly(plain, x * (1.0 + 1e-10), t)
        if expected is None or beside is None:
            return None
        if not np.all(np.isfinite(found)):
            return expected
        size = np.abs(expected) + np.abs(found)
        far = np.abs(found - expected) > CLOSE * size + 1e3 * np.abs(beside - expected) + 1e-9
        return expected if far.any() else None

    return _first(compiled, differ, dim)


def slope_disagreement(plain: Function, compiled: Function, dim: int) -> Difference | None:
    """The same for minus the gradient of a ``plain`` function with one value, by its slope along one line at each point."""

    def differ(x: FloatArray, t: float, found: FloatArray) -> FloatArray | None:
        direction, length = np.cos(1.0 + np.arange(x.size)), 1.0 + np.abs(x).max()
        slopes, size = [], 0.0
        for width in (1e-4 * length, 3e-5 * length, 1.3e-5 * length):
            ends = [_quietly(plain, x + sign * width * direction, t) for sign in (1.0, -1.0)]
            if ends[0] is None or ends[1] is None:
                return None
            slopes.append(float(ends[1] - ends[0]) / (2.0 * width))
            size = max(size, abs(float(ends[0])))
        own, noise = float(found @ direction), 1e-16 * size / (1e-5 * length)
        slope, spread = np.abs(slopes).max(), np.ptp(slopes)
        # Where quotients differ there is a kink, or a wave that is shorter than they are wide; of 0 there is no telling.
        if slope == 0.0 or spread > 0.1 * CLOSE_SLOPE * slope or 1e3 * noise > CLOSE_SLOPE * slope:
            return None
        far = not math.isfinite(own) or abs(own - slopes[2]) > CLOSE_SLOPE * (slope + np.abs(found * direction).sum())
        return np.array(slopes[2]) if far else None

    return _first(compiled, differ, dim)


def _first(compiled: Function, differ: Callable[[FloatArray, float, FloatArray], Any], dim: int) -> Difference | None:
    begin = time.monotonic()
    for k, x in enumerate(points_to_try(dim)):
        t = TIMES[k % len(TIMES)]
        found = compiled(x, t)
        expected = differ(x, t, found)
        if expected is not None:
            return Difference(x, t, expected, found)
        if time.monotonic() - begin > LONGEST:
            return None
    return None


def _quietly(plain: Function, x: FloatArray, t: float) -> Any:
    """What a call gives; None where it ends in an error, or is not finite, real and of full precision."""
    with np.errstate(all="ignore"):
        try:
            given = plain(x, t)
            value = np.asarray(given, dtype=np.float64)
        except Exception:
            return None
    entries = given if isinstance(given, tuple) else (given,)
    # A table in float32 makes Python's values so; compiled they are float64.
    rough = any(getattr(entry, "dtype", value.dtype).itemsize < 8 for entry in entries)
    return value if np.all(np.isfinite(value)) and not rough else None
