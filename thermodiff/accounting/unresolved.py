"""What the nodes do not resolve in a rate whose course over log-SNR is not known, as that of a network.

The rates at K Gauss-Legendre nodes have K coefficients in Legendre polynomials.  The rule is exact up to degree 2 K - 1, so
its error comes from coefficients that are not seen; those that are tell how they go on.  Courses are supposed whose squared
coefficients are, on average, the sum of a geometric part, as of an analytic course, and of a rough one, as of a step, of a
peak or of waves; each counts by the likelihood of the coefficients under it, noise of the rates included, and has a mean
square error of the rule.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

FEWEST, MOST = 24, 1024
"""Nodes between which there is something to be said: the few coefficients of fewer nodes do not tell a step from a smooth
course that has not fallen off yet, and more nodes resolve what networks do."""
LAST = 8
"""Coefficients at the end that must stand out of the noise, at least; else there is nothing that the nodes show."""
CLEARLY = 3.0
"""Standard deviations of its mean square by which they must."""
FALLS = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9)
"""Of the geometric part, over a quarter of the coefficients."""
ROUGH = 10.0 ** np.arange(-9.0, 1.0)
"""Squares of the rough part beside those of the geometric one, where the coefficients that are looked at begin."""
POWERS = {-1.0: 1.0, 0.0: 0.05, 1.0: 0.05}
"""Of the degree, as squares of the rough part go: for steps, and for peaks and waves that the nodes do not follow, with the
weights before the rates are known.  At equal weights the error at steps would be half as large again as it is."""
LEVELS = 3.0 * 10.0 ** np.arange(-14.0, 2.0)
"""Of the squares, beside those that are seen."""


class _Courses(NamedTuple):
    """Mean squares of the last coefficients (H, n), mean square of the error on [-1, 1] (H,), logarithm of weights (H,)."""

    squares: FloatArray
    error: FloatArray
    weights: FloatArray


def unresolved(
    lam: FloatArray, weights: FloatArray, window: tuple[float, float], rates: FloatArray, errors: FloatArray
) -> float:
    """Standard error of the integral of ``rates`` for what the nodes miss; 0 where they show nothing of the kind.

    Parameters
    ----------
    lam, weights, rates, errors : (K,) arrays
        Nodes and weights in lam, the rates there per unit of lam, and their standard errors.
    window : (float, float)
        Edges of the log-SNR window.
    """
    nodes, half = lam.size, 0.5 * (window[1] - window[0])
    if not FEWEST <= nodes <= MOST:
        return 0.0
    values = np.polynomial.legendre.legvander((lam - window[0]) / half - 1.0, nodes - 1)
    factors = (np.arange(nodes) + 0.5) * (values * (weights / half)[:, None])
    rounding = np.finfo(np.float64).eps * np.max(np.abs(rates))
    seen = slice(nodes // 4, None)
    squares, noise = ((rates @ factors) ** 2)[seen], ((errors**2 + rounding**2) @ factors**2)[seen]
    if not _stand_out(squares, noise, max(nodes // 4, LAST)):
        return 0.0
    size, courses = float(np.mean(squares)), _courses(nodes)
    likely = np.array([_likelihood(squares, level * size * courses.squares + noise) for level in LEVELS])
    shares = np.exp(likely - np.max(likely) + courses.weights)
    mean_square = np.sum(shares * (size * LEVELS)[:, None] * courses.error) / np.sum(shares)
    return half * float(np.sqrt(mean_square))


def _stand_out(squares: FloatArray, noise: FloatArray, last: int) -> bool:
    """Whether the mean square of the ``last`` coefficients is more than noise."""
    spread = float(np.sqrt(2.0 * np.sum(noise[-last:] ** 2)))
    return float(np.sum(squares[-last:]) - np.sum(noise[-last:])) > CLEARLY * spread


def _likelihood(squares: FloatArray, variances: FloatArray) -> FloatArray:
    """Logarithm, but for a constant, of that of normal numbers with ``squares``, (...) for variances (..., n)."""
    return -0.5 * np.sum(squares / variances + np.log(variances), axis=-1)


@lru_cache(maxsize=16)
def _courses(nodes: int) -> _Courses:
    """All the courses that are supposed, their squares scaled to a mean of one."""
    degrees, (beyond, off) = np.arange(nodes // 4, nodes) / nodes, _rule(nodes)
    found: list[tuple[FloatArray, float, float]] = []
    for power, weight in POWERS.items():
        # What does not fall must end; at twice the degrees that the rule takes.
        ends = np.where((power < 0.0) | (beyond < 4.0), 1.0, 0.0)
        rough = (4.0 * degrees) ** power, (4.0 * beyond) ** power * ends
        found.append((rough[0], float(off @ rough[1]), weight))
        for fall in FALLS:
            smooth = [fall ** (8.0 * (at - degrees[0])) for at in (degrees, beyond)]
            found += [
                (smooth[0] + share * rough[0], float(off @ (smooth[1] + share * rough[1])), weight)
                for share in (0.0, *ROUGH)
            ]
    squares, error, weights = (np.array(entry) for entry in zip(*found, strict=True))
    scale = np.mean(squares, axis=1)
    return _Courses(squares / scale[:, None], error / scale, np.log(weights))


def _rule(nodes: int) -> tuple[FloatArray, FloatArray]:
    """Degrees that the rule errs at, by the number of nodes, and the squares of its errors on [-1, 1]."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    before, value, last = np.ones(nodes), x, 8 * nodes
    off = np.empty(last)
    for degree in range(2, last):
        before, value = value, ((2 * degree - 1) * x * value - (degree - 1) * before) / degree
        off[degree] = w @ value
    return np.arange(2 * nodes, last) / nodes, off[2 * nodes :] ** 2
