"""How far the quadrature is off, and what the default window leaves out, from closed forms with the scales of the data.

For Gaussian data with covariance eigenvalues e_j and second moment M the rates per unit of lam are

    medium  (q^2 (alpha^2 M + sigma^2 d) + q sigma d) / 2
    system  (sum_j sigma^2 / (alpha^2 e_j + sigma^2) + q sigma d) / 2

Their integrals are known to machine precision, so the error of the nodes on them is measured, not guessed.  It is taken
as the quadrature error of the ledger: exact for Gaussian data, an order of magnitude for others (same poles in lam).  Where
no window was asked for, the ledger stands for the whole process, and the integral beyond the default edge counts as error.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from thermodiff.accounting.nodes import fine
from thermodiff.schedules import Schedule

FloatArray = npt.NDArray[np.float64]

Widths = list[tuple[FloatArray, FloatArray]]
"""Reference Gaussians of a law: (weights (K,), eigenvalues of the covariances (K, d)) of each description of it."""


def _rates(
    noise: Schedule, lam: FloatArray, second_moment: float, weights: FloatArray, eigenvalues: FloatArray
) -> tuple[FloatArray, FloatArray]:
    row = noise.at(lam)
    q = -2.0 * row.growth / row.sigma
    dim = eigenvalues.shape[1]
    medium = 0.5 * (q * q * (row.alpha**2 * second_moment + row.sigma**2 * dim) + q * row.sigma * dim)
    ratio = 1.0 / (1.0 + np.exp(np.minimum(lam, 700.0))[:, None, None] * eigenvalues)
    system = 0.5 * (np.einsum("k,lkj->l", weights, ratio) + q * row.sigma * dim)
    return medium, system


ROUND_OFF = 1e-12
"""Relative size of what the sums over samples and nodes may lose."""
BEYOND = 60.0
"""Units of lam after which nothing is left."""


def quadrature_errors(
    noise: Schedule,
    window: tuple[float, float],
    lam: FloatArray,
    weights: FloatArray,
    second_moment: float,
    widths: Widths,
    *,
    open_ended: bool,
) -> dict[str, float]:
    """Deterministic error of each row, nats: quadrature, round-off and, if ``open_ended``, what lies above the window.

    The largest over the descriptions in ``widths``.
    """

    def integrals(nodes: FloatArray, node_weights: FloatArray, reference: tuple[FloatArray, FloatArray]) -> FloatArray:
        medium, system = _rates(noise, nodes, second_moment, *reference)
        return np.array([node_weights @ (medium + system), node_weights @ system, node_weights @ medium])

    worst = np.zeros(3)
    for reference in widths:
        truth = integrals(*fine(*window), reference)
        error = np.abs(integrals(lam, weights, reference) - truth) + ROUND_OFF * np.abs(truth[1:]).sum()
        if open_ended:
            error += np.abs(integrals(*fine(window[1], window[1] + BEYOND), reference))
        worst = np.maximum(worst, error)
    return dict(zip(("total", "system", "medium"), worst.tolist(), strict=True))
