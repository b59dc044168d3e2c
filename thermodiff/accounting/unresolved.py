"""What the nodes do not resolve in a rate whose course over log-SNR is not known, as that of a network.

The rates at K Gauss-Legendre nodes have K coefficients in Legendre polynomials.  The rule is exact up to degree 2 K - 1, so
its error comes from coefficients that are not seen; the last of those that are tell their size.  At a step they hardly
fall, the rate errs from node to node, and the error of the rule is that of so many numbers of their size.  Where they fall
fast and steadily, as for an analytic course, they are continued; a small step on smooth ground makes them fall slower at
last.  What the errors of the rates bring about is taken off.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

FEWEST, MOST = 24, 1024
"""Nodes between which there is something to be said: the few coefficients of fewer nodes do not tell a step from a smooth
course that has not fallen off yet, and more nodes resolve what networks do."""
LAST = 8
"""Coefficients at the end that are looked at, at least."""
CLEARLY = 3.0
"""Standard deviations of its mean square by which the last coefficients must stand out of the noise."""
FAST = 0.35
"""From one quarter of the coefficients to the next: a fall that is continued."""
QUARTERS = 3
"""By so many, of the 4.5 from the last quarter to the first coefficient that is not integrated."""
SHARE = 1.5
"""Error of the rule on [-1, 1] for coefficients of rms c that do not fall: SHARE c / sqrt(K), found with steps and noise."""


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
    degrees = np.arange(nodes)
    values = np.polynomial.legendre.legvander((lam - window[0]) / half - 1.0, nodes - 1)
    factors = (degrees + 0.5) * (values * (weights / half)[:, None])
    squares, noise = (rates @ factors) ** 2, (errors**2) @ factors**2
    last = max(nodes // 4, LAST)
    excess = _excess(squares[-last:], noise[-last:])
    quarter = nodes // 4
    bands = [slice(nodes - (k + 1) * quarter, nodes - k * quarter) for k in range(3)]
    third, second, first = (_excess(squares[band], noise[band]) for band in bands)
    falls = [np.sqrt(after / before) if before > 0.0 else 1.0 for before, after in ((first, second), (second, third))]
    if max(falls) < FAST:
        excess = third * max(falls) ** (2 * QUARTERS)
    return float(half * SHARE * np.sqrt(excess / nodes))


def _excess(squares: FloatArray, noise: FloatArray) -> float:
    """Mean of ``squares`` less that of the noise in them; 0 where it does not stand out."""
    excess = float(np.mean(squares) - np.mean(noise))
    return excess if excess > CLEARLY * np.sqrt(2.0 * np.mean(noise**2) / noise.size) else 0.0
