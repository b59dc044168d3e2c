"""The entropy production of a Gaussian with the moments of a law that is known by points alone.

With eigenvalues e_j of the covariance and M = E|x_0|^2 it is the medium, linear in M, plus 1/2 sum_j of ln v_j from the
data to the noise end, v_j = alpha^2 e_j + sigma^2.  The mean of |x|^2 is an unbiased M.  The logarithms of eigenvalues of a
sample are not: they are too low by about r^2 / 4n nats, r = sum_j alpha^2 e_j / v_j, nine standard errors for a thousand
points in d = 64.  So they are taken by the jackknife: with f of all points and f_i of all but point i, n f less n - 1 times
the mean of f_i has no error of order 1 / n, whatever the law.  Each f_i costs one product in the eigenbasis of all points:

    ln det V_i = sum_j ln v'_j + ln(1 - c sum_j t_ij^2 / v'_j),

where v' = alpha^2 e n / (n - 1) + sigma^2, c = alpha^2 n / (n - 1)^2, and t_i is the point less the mean.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from thermodiff.accounting import Estimate
from thermodiff.accounting.ledger import standard_error
from thermodiff.diffusion import medium_integral
from thermodiff.schedules import Row, Schedule

FloatArray = npt.NDArray[np.float64]

PART = 1 << 20
"""Numbers of the points in the eigenbasis that exist at a time, about."""


class GaussianPart(NamedTuple):
    """A value in nats, what each point adds to it beyond the mean, (n,), and the bias that may be left."""

    value: float
    influence: FloatArray
    bias: float

    @property
    def estimate(self) -> Estimate:
        """The value with its error: by data point, and the bias that may be left."""
        return Estimate(self.value, float(np.hypot(standard_error(self.influence, None), self.bias)))


def gaussian_production(points: FloatArray, noise: Schedule, window: tuple[float, float]) -> GaussianPart:
    """Entropy production in the window of the Gaussian with the moments of the law of ``points`` (n, d).

    With fewer points than directions in which the law is wider than the noise, the bias that may be left is of the size of
    the correction.
    """
    (n, dim), mean = points.shape, points.mean(axis=0)
    centred = points - mean
    spectrum, columns = np.linalg.eigh(centred.T @ centred / n)
    spectrum = np.maximum(spectrum, 0.0)
    ends = [noise.at(edge) for edge in window]
    part, logs, shares = max(1, PART // dim), np.empty((2, n)), np.empty((2, n))
    for first in range(0, n, part):
        here = slice(first, first + part)
        squares = (centred[here] @ columns) ** 2
        for end, row in enumerate(ends):
            logs[end, here], shares[end, here] = _without(squares, spectrum, n, row)
    whole = [0.5 * float(np.sum(np.log(row.alpha**2 * spectrum + row.sigma**2))) for row in ends]
    without = logs[0] - logs[1]
    correction = (n - 1) * (whole[0] - whole[1] - float(without.mean()))
    squares = np.sum(points**2, axis=1)
    heat = medium_integral(noise, window, 1.0, dim) - medium_integral(noise, window, 0.0, dim)
    value = medium_integral(noise, window, float(squares.mean()), dim) + whole[0] - whole[1] + correction
    influence = heat * (squares - squares.mean()) + (n - 1) * (without.mean() - without)
    return GaussianPart(value, influence, abs(correction) * _next_order(shares))


def _without(squares: FloatArray, spectrum: FloatArray, n: int, row: Row) -> tuple[FloatArray, FloatArray]:
    """Half of ln det V without each of the points, and how much of the rest it was: its leverage, in [0, 1)."""
    variances = row.alpha**2 * spectrum * n / (n - 1) + row.sigma**2
    leverage = row.alpha**2 * n / (n - 1) ** 2 * (squares @ (1.0 / variances))
    left = np.maximum(1.0 - leverage, np.finfo(np.float64).eps)
    return 0.5 * (float(np.sum(np.log(variances))) + np.log(left)), leverage


def _next_order(shares: FloatArray) -> float:
    """The order 1 / n^2 beside that of 1 / n, at the end where it is larger.

    For a Gaussian it is a third of the effective dimension by n, that is of the mean leverage, and more where that comes
    near to one; the mean is weighted by leverage, so that tails count.
    """
    totals = shares.sum(axis=1)
    weighted = float(np.max(np.sum(shares**2, axis=1) / np.where(totals > 0.0, totals, 1.0)))
    return weighted * (1.0 + weighted) / 3.0
