"""The steps of a run: asked times, and what lies between them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from thermodiff._check import above

FloatArray = npt.NDArray[np.float64]

MOST_NORMALS = 2**34
"""Normals of a path: four for each value of the 32 bits that count them."""


@dataclass(frozen=True)
class Grid:
    """Asked times and the steps between them: interval j is ``counts[j]`` steps of ``widths[j]`` from ``times[j]``."""

    times: FloatArray
    widths: FloatArray
    counts: npt.NDArray[np.int64]
    skips: npt.NDArray[np.int64]
    """Steps from ``times[j]`` that come before those of interval j: 0 unless it is the rest of one."""
    stops: FloatArray
    """The asked time at which interval j ends; nan where it is cut before."""

    @classmethod
    def of(cls, times: npt.ArrayLike, dt: float, dim: int) -> Grid:
        """Each interval in ceil(interval / dt - 1e-9) equal steps; a single number means [0, times]."""
        dt = above("dt", dt, 0.0, "it is the longest step")
        try:
            asked = np.zeros(0) if isinstance(times, str | bytes) else np.asarray(times, dtype=np.float64)
        except (TypeError, ValueError):
            asked = np.zeros(0)
        if asked.ndim == 0:
            asked = np.array([0.0, float(asked)])
        if asked.ndim == 1 and asked.size == 2 and np.ndim(times) == 0 and not asked[1] > 0.0:
            raise ValueError(f"times: a number t means [0, t] and must be positive, got {times!r:.80}.")
        if asked.ndim != 1 or asked.size < 2 or not np.all(np.isfinite(asked)) or not np.all(np.diff(asked) > 0.0):
            raise ValueError(f"times must be at least two finite, increasing numbers, got {times!r:.80}.")
        # Differences of late times are off by the rounding of the times themselves.
        slack = 1e-9 + 4.0 * np.finfo(np.float64).eps * np.abs(asked).max() / dt
        wanted = np.maximum(np.ceil(np.diff(asked) / dt - min(slack, 0.01)), 1.0)
        if wanted.sum() * dim > MOST_NORMALS:
            raise ValueError(
                f"dt = {dt:g} makes {wanted.sum():.3g} steps of these times, more than the {MOST_NORMALS // dim} for which "
                f"a path in d = {dim} has random numbers; take a larger dt."
            )
        counts = wanted.astype(np.int64)
        return cls(asked, np.diff(asked) / counts, counts, np.zeros_like(counts), asked[1:])

    def cut(self, stops: npt.NDArray[np.int64]) -> tuple[Grid, npt.NDArray[np.intp]]:
        """The same steps with stops after these numbers of steps too, and which of its times are those of this grid."""
        ends = np.cumsum(self.counts)
        at = np.union1d(ends, stops[(stops > 0) & (stops < ends[-1])])
        whole, first = np.searchsorted(ends, at), np.concatenate([[0], at[:-1]])
        skips = first - (ends - self.counts)[whole]
        starts = np.concatenate([self.times[whole], self.times[-1:]])
        reached, kept = np.where(at == ends[whole], self.stops[whole], np.nan), np.searchsorted(at, ends)
        return Grid(starts, self.widths[whole], at - first, skips, reached), np.concatenate([[0], 1 + kept])

    def part(self, first: int, last: int) -> tuple[Grid, int]:
        """Steps number ``first`` ... ``last`` - 1, and the interval to which the first of them belongs."""
        ends = np.cumsum(self.counts)
        j, end = int(np.searchsorted(ends, first, side="right")), int(np.searchsorted(ends, last)) + 1
        ends = ends[j:end]
        begun = ends - self.counts[j:end]
        gone = np.maximum(first - begun, 0)
        counts = np.minimum(ends, last) - begun - gone
        stops = np.where(begun + gone + counts == ends, self.stops[j:end], np.nan)
        return Grid(self.times[j : end + 1], self.widths[j:end], counts, self.skips[j:end] + gone, stops), j

    def ends(self) -> FloatArray:
        """Time at the end of each interval."""
        return self.times[:-1] + self.widths * (self.skips + self.counts)

    @property
    def middles(self) -> FloatArray:
        """The middle of each step."""
        pieces = [t + h * (np.arange(n) + 0.5) for t, h, n in zip(self.times[:-1], self.widths, self.counts, strict=True)]
        return np.concatenate(pieces)
