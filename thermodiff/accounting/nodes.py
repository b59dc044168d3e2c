"""Quadrature in log-SNR."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


MOST_NODES = 4096
"""In an account: finding the nodes takes time as the cube of their number."""


@cache
def _legendre(nodes: int) -> tuple[FloatArray, FloatArray]:
    """Nodes and weights in (-1, 1).  Kept: NumPy solves an eigenvalue problem for them, and the threads of its linear
    algebra then spin for a while on the cores that the kernels need.
    """
    return np.polynomial.legendre.leggauss(nodes)


def gauss_legendre(low: float, high: float, nodes: int) -> tuple[FloatArray, FloatArray]:
    """Nodes from ``high`` down to ``low`` (forward in time) and their positive weights."""
    x, w = _legendre(nodes)
    half = 0.5 * (high - low)
    return (0.5 * (high + low) + half * x)[::-1].copy(), (half * w)[::-1].copy()


def fine(low: float, high: float) -> tuple[FloatArray, FloatArray]:
    """A composite rule, sixteen nodes to each unit of lam: machine precision for the closed-form integrands."""
    edges = np.linspace(low, high, int(np.ceil(high - low)) + 1)
    x, w = _legendre(16)
    half = 0.5 * np.diff(edges)[:, None]
    middle = 0.5 * (edges[1:] + edges[:-1])[:, None]
    return (middle + half * x).ravel()[::-1].copy(), (half * w).ravel()[::-1].copy()


def running_integral(lam: FloatArray, low: float, high: float) -> FloatArray:
    """Matrix that takes values at Gauss-Legendre nodes to integrals from ``high`` down to each node.

    It integrates the interpolating polynomial: row k applied to the values gives the integral from lam = high (the data)
    to lam[k].
    """
    n = lam.size
    half = 0.5 * (high - low)
    x = (lam - 0.5 * (high + low)) / half
    weights = _legendre(n)[1][::-1]
    vander = np.polynomial.legendre.legvander(x, n)
    # Coefficients of the interpolant, then the antiderivative of each Legendre polynomial from x to 1.
    to_coefficients = (vander[:, :n] * weights[:, None]).T * (np.arange(n) + 0.5)[:, None]
    antiderivative = np.empty((n, n))
    antiderivative[:, 0] = 1.0 - x
    order = np.arange(1, n)
    antiderivative[:, 1:] = (vander[:, : n - 1] - vander[:, 2 : n + 1]) / (2 * order + 1)
    return half * antiderivative @ to_coefficients
