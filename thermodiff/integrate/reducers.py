"""Running statistics of an ensemble, in place of its states."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from thermodiff._check import count

FloatArray = npt.NDArray[np.float64]

CACHED = 2**14
"""Numbers that are counted at a time."""


@runtime_checkable
class Reducer(Protocol):
    """What ``simulate(..., reduce=)`` takes; any object with these three methods.

    ``of`` is called with the states (T, m, d) of a block of at most 256 paths, where the block was computed (paths that
    left the finite numbers are left out); ``merge`` combines two of its results, always in the order of the paths;
    ``result`` makes the answer of the last.  Where ``of`` has arguments called ``heat`` or ``work``, it gets these too,
    (T, m) each, of runs with ``heat=True`` or ``work=True``.
    """

    def of(self, states: FloatArray) -> Any: ...
    def merge(self, one: Any, two: Any) -> Any: ...
    def result(self, total: Any) -> Any: ...


class Running:
    """Merge pieces in the order in which they come."""

    def __init__(self, reducer: Reducer) -> None:
        self.reducer, self.total, self.begun = reducer, None, False

    def add(self, pieces: list[Any]) -> None:
        """The pieces of consecutive blocks."""
        # As where they were made: what overflows is infinite in the result, which is enough of a sign.
        with np.errstate(over="ignore", invalid="ignore"):
            for piece in pieces:
                self.total = self.reducer.merge(self.total, piece) if self.begun else piece
                self.begun = True

    def result(self) -> Any:
        """The answer; None where every path was lost."""
        with np.errstate(over="ignore", invalid="ignore"):
            return self.reducer.result(self.total) if self.begun else None


class Moments:
    """Mean (T, d) and covariance (T, d, d) at the asked times, with the number of paths.

    Merging is by Chan, Golub and LeVeque (1979): no cancellation, however far the mean is from zero.
    """

    def of(self, states: FloatArray) -> tuple[int, FloatArray, FloatArray]:
        # Paths last: sums over them, in one layout whatever the caller's, then run along memory.
        by_coordinate = states.transpose(0, 2, 1).copy()
        mean = by_coordinate.mean(axis=2)
        by_coordinate -= mean[:, :, None]
        return states.shape[1], mean, np.einsum("tin,tjn->tij", by_coordinate, by_coordinate)

    def merge(self, one: Any, two: Any) -> Any:
        (n, mean, spread), (m, other, more) = one, two
        gap = other - mean
        outer = gap[:, :, None] * gap[:, None, :]
        return n + m, mean + gap * (m / (n + m)), spread + more + outer * (n * m / (n + m))

    def result(self, total: Any) -> dict[str, Any]:
        n, mean, spread = total
        # Of a single path neither is known.
        covariance = spread / (n - 1) if n > 1 else np.full_like(spread, np.nan)
        error = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2) / n)
        return {"n": n, "mean": mean, "covariance": covariance, "mean_error": error}

    def __repr__(self) -> str:
        return "Moments()"


class Histogram:
    """Counts (T, bins) of one coordinate at the asked times; ``edges`` (bins + 1,), values outside are not counted."""

    def __init__(self, edges: npt.ArrayLike, coordinate: int = 0) -> None:
        try:
            self.edges = np.asarray(edges, dtype=np.float64)
        except (TypeError, ValueError):
            self.edges = np.zeros(0)
        if self.edges.ndim != 1 or self.edges.size < 2 or not np.all(np.diff(self.edges) > 0.0):
            raise ValueError(f"Histogram: edges must be at least two increasing numbers, got {edges!r:.60}.")
        self.coordinate = count("Histogram: coordinate", coordinate, 0)
        self._even, high = _are_even(self.edges), self.edges[-1]
        # The last bin has its right edge: what lies above begins with the next number, if there is one.
        above = np.nextafter(high, np.inf) if high < np.inf else np.nan
        self._limits = np.array([-np.inf, *self.edges[:-1], above, np.nan])

    def of(self, states: FloatArray) -> npt.NDArray[np.int64]:
        dim = states.shape[2]
        if self.coordinate >= dim:
            raise ValueError(f"Histogram: coordinate {self.coordinate} does not exist; use 0 ... {dim - 1}.")
        values = states[:, :, self.coordinate]
        # So many rows at a time as the cache of a core holds.
        rows = max(CACHED // max(values.shape[1], 1), 1)
        return np.concatenate([self._counts(values[k : k + rows]) for k in range(0, len(values), rows)])

    def _counts(self, values: FloatArray) -> npt.NDArray[np.int64]:
        """Of each row, as np.histogram."""
        slots = self._slots(values)
        times, each = len(values), self.edges.size + 1
        slots += each * np.arange(times)[:, None]
        return np.bincount(slots.ravel(), minlength=times * each).reshape(times, each)[:, 1:-1]

    def _slots(self, values: FloatArray) -> npt.NDArray[np.intp]:
        """The bin of each value, the first being 1; values outside have the slots beside them, nan either."""
        low, high, bins = self.edges[0], self.edges[-1], self.edges.size - 1
        if not self._even:
            # In order, and so row by row, they are found in less time.
            return np.searchsorted(self._limits[1:-1], np.sort(values, axis=1), side="right")
        guess = (values - low) * (bins / (high - low)) + 1.0
        slots = np.fmin(np.fmax(guess, 0.0, out=guess), bins + 1.0, out=guess).astype(np.intp)
        slots -= values < self._limits[slots]
        slots += values >= self._limits[slots + 1]
        return slots

    def merge(self, one: Any, two: Any) -> Any:
        return one + two

    def result(self, total: Any) -> dict[str, Any]:
        return {"edges": self.edges, "counts": total}

    def __repr__(self) -> str:
        return f"Histogram({self.edges.size - 1} bins from {self.edges[0]:g} to {self.edges[-1]:g}, {self.coordinate})"


def _are_even(edges: FloatArray) -> bool:
    """Whether arithmetic finds the bin of a value, or one beside it."""
    with np.errstate(over="ignore", invalid="ignore"):
        width = (edges[-1] - edges[0]) / (edges.size - 1)
        even = edges[0] + width * np.arange(edges.size)
        return bool(width < np.inf and np.abs(edges - even).max() < 0.25 * width)
