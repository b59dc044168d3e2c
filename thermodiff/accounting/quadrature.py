"""How far Gauss-Legendre quadrature is off, from closed forms with the same log-SNR scales as the data.

For Gaussian data with covariance eigenvalues e_j and second moment M the rates per unit of lam are

    medium  (q^2 (alpha^2 M + sigma^2 d) + q sigma d) / 2
    system  (sum_j sigma^2 / (alpha^2 e_j + sigma^2) + q sigma d) / 2

Their integrals are known to machine precision, so the error of the nodes on them is measured, not guessed.  It is taken as
the quadrature error of the ledger: exact for Gaussian data, an order of magnitude for others (same poles in lam).
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


def quadrature_errors(
    noise: Schedule,
    window: tuple[float, float],
    lam: FloatArray,
    weights: FloatArray,
    second_moment: float,
    widths: Widths,
) -> dict[str, float]:
    """Size of the quadrature error of each row, nats; the largest over the descriptions in ``widths``."""
    exact_lam, exact_weights = fine(*window)
    errors = {"medium": 0.0, "system": 0.0, "total": 0.0}
    for shares, eigenvalues in widths:
        medium, system = _rates(noise, lam, second_moment, shares, eigenvalues)
        exact_medium, exact_system = _rates(noise, exact_lam, second_moment, shares, eigenvalues)
        off_medium = float(weights @ medium - exact_weights @ exact_medium)
        off_system = float(weights @ system - exact_weights @ exact_system)
        size = {"medium": off_medium, "system": off_system, "total": off_medium + off_system}
        errors = {row: max(error, abs(size[row])) for row, error in errors.items()}
    return errors
