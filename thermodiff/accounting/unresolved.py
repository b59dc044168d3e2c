"""What the nodes do not resolve in a rate whose course over log-SNR is not known, as that of a network.

The rates at K Gauss-Legendre nodes have K coefficients in Legendre polynomials.  The rule is exact up to degree 2 K - 1, so
its error comes from coefficients that are not seen; the last of those that are tell their size.  At a step they hardly
fall, the rate errs from node to node, and the error of the rule is that of so many numbers of their size.  For an analytic
course this is more than the error, and still little.  What the errors of the rates bring about is taken off.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

FEWEST, MOST = 8, 1024
"""Nodes between which there is something to be said: fewer have no upper half, and more resolve what networks do."""
CLEARLY = 3.0
"""Standard deviations of its mean square by which the last coefficients must stand out of the noise."""
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
    degrees = np.arange(nodes - max(nodes // 4, min(FEWEST, nodes // 2)), nodes)
    values = np.polynomial.legendre.legvander((lam - window[0]) / half - 1.0, nodes - 1)[:, degrees]
    factors = (degrees + 0.5) * (values * (weights / half)[:, None])
    noise = (errors**2) @ factors**2
    excess = float(np.mean((rates @ factors) ** 2) - np.mean(noise))
    if excess <= CLEARLY * np.sqrt(2.0 * np.mean(noise**2) / noise.size):
        return 0.0
    return float(half * SHARE * np.sqrt(excess / nodes))
