"""Random signs for a divergence: probes that differ, and honest errors for few of them.

Independent signs coincide in low dimension, (1, -1) and (-1, 1) being one probe, and then seem to agree exactly.  So the
probes of a point are different rows of a Hadamard matrix of N >= d rows, the next power of two, times random signs that
they share.  Each one is a vector of independent signs, so that p.A p is unbiased for tr A; and the mean over all N is
exact, so that k of them have the variance S^2 (1 - k / N) / k of a sample without replacement.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from thermodiff.learned.streams import stream

FloatArray = npt.NDArray[np.float64]

SHRINKAGE = 8
"""Degrees of freedom that the spread over all points has beside that of a point: measured, less than one point in a hundred
then lies beyond four errors, for 2 to 16 probes in d = 3 to 64."""
FREEDOM = 4
"""Degrees of freedom, over all points, below which an error means nothing."""


def rows(dim: int) -> int:
    """Number of different probes."""
    return 1 << (dim - 1).bit_length()


def sign_probes(key: npt.NDArray[np.uint32], number: int, dim: int, points: int, first: int) -> FloatArray:
    """Signs (number, points, dim) for the points from ``first`` on; at most `rows` of them."""
    rng, columns = stream(key, "probes", first), np.arange(dim)
    flips = np.where(rng.random((points, dim)) < 0.5, 1.0, -1.0)
    chosen = np.stack([rng.choice(rows(dim), number, replace=False) for _ in range(points)])
    signs = np.empty((number, points, dim))
    for out, row in zip(signs, chosen.T, strict=True):
        np.multiply(flips, 1.0 - 2.0 * (np.bitwise_count(row[:, None] & columns) & 1), out=out)
    return signs


def probe_errors(values: FloatArray, dim: int) -> FloatArray:
    """Standard errors (n,) of the means of ``values`` (k, n) over the k probes of each point."""
    k = len(values)
    own = values.var(axis=0, ddof=1)
    spread = (SHRINKAGE * own.mean() + (k - 1) * own) / (SHRINKAGE + k - 1)
    return np.sqrt(spread * (1.0 - k / rows(dim)) / k)
