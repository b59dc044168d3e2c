"""The log-density of a learned model from below: what its reverse process costs.

For x_lam = alpha x + sigma z (Premkumar, 2409.03817, in log-SNR)

    E ln p(x') >= E ln p_lo(x_lo) + d ln(alpha_hi sigma_lo / sigma_hi) - 1/2 int dlam E |b_theta(x_lam) + z|^2,

the mean of ln p over x' = x + (sigma_hi / alpha_hi) z, in data units.  The prior term is exact.  Averaged over the data a
perfect model has the bound -h(p_hi) - KL(p_lo || prior), h of the smoothed data.

The integral would have a variance of d / 2 per unit of lam.  It is drawn by importance in lam, stratified, in pairs z, -z;
and |b_G + z|^2, with b_G of the Gaussian of the same moments, is a control variate: its mean given x and lam,

    E |b_G + z|^2 = sum_j (sigma^2 alpha^2 (x - m)_j^2 + alpha^4 e_j^2) / (alpha^2 e_j + sigma^2)^2,

has a known integral.  Its coefficient is fitted on the other replicates, so that the estimate stays unbiased.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from thermodiff._check import DivergenceError, count, seed_words
from thermodiff.accounting.nodes import fine
from thermodiff.densities import Density
from thermodiff.densities.empirical import normals
from thermodiff.kernels import philox
from thermodiff.kernels.jit import LANES
from thermodiff.learned.batches import LamProposal
from thermodiff.learned.likelihood import LogDensity, points_of
from thermodiff.learned.streams import stream
from thermodiff.schedules import Row

if TYPE_CHECKING:
    from thermodiff.learned.model import LearnedDiffusion

FloatArray = npt.NDArray[np.float64]

MOST_COORDINATES = 512
"""Dimension up to which the control variate is the Gaussian of the full covariance; beyond, of single coordinates."""

PART = 1 << 20
"""Numbers in the points that are taken at a time, about."""


class Axes(NamedTuple):
    """The Gaussian of the data's moments: mean, variances along its axes, axes as columns (None: the coordinates)."""

    mean: FloatArray
    variances: FloatArray
    columns: FloatArray | None

    def turned(self, x: FloatArray) -> FloatArray:
        """Vectors (n, d) in these axes."""
        return x if self.columns is None else x @ self.columns


def lower_bound(
    model: LearnedDiffusion,
    x: Any,
    *,
    strata: int = 32,
    replicates: int = 16,
    lam: tuple[float, float] | None = None,
    rng: Any = None,
) -> LogDensity:
    """A lower bound of the log-density of the model at each point.

    Parameters
    ----------
    model : LearnedDiffusion
    x : (n, d) or (n, channels, height, width) array, or Images
        Points in data units; grey levels as for `log_prob`.
    strata, replicates : int
        Each of the independent replicates, at least 4, has one log-SNR in each stratum, and two draws there for each
        point.  Points share the log-SNR, not the noise.
    lam : (float, float), optional
        Log-SNR window; default that of an account.
    rng : int, SeedSequence, Generator or None
        Fixes every draw.

    Returns
    -------
    LogDensity
        In nats, with the standard error over the replicates.

    Raises
    ------
    DivergenceError
        Where the score of the network is not finite.
    """
    strata, replicates = count("strata", strata), count("replicates", replicates, 4)
    window, key = model.window(lam), seed_words(rng)
    model.try_out()
    x, cell = points_of(model, x, key)
    axes = moments(model)
    proposal = LamProposal(model.noise, *window, axes.variances)
    uniforms = stream(key, "log-SNR").random((replicates, strata))
    levels, density = proposal((np.arange(strata) + uniforms) / strata)
    found, control = np.zeros((2, replicates, len(x)))
    # So many at a time that memory does not grow with the points; noise comes in blocks of LANES.
    size = max(PART // (model.dim * LANES), 1) * LANES
    parts = [slice(first, first + size) for first in range(0, len(x), size)]
    for r in range(replicates):
        for j in range(strata):
            row = Row(*(float(entry) for entry in model.noise.at(levels[r, j])))
            for part in parts:
                z = normals(key, r * strata + j, model.dim, len(x[part]), philox.NOISE, part.start).T
                pair = _integrand(model, axes, x[part], row, z)
                _require_finite(pair[0], row)
                found[r, part] += pair[0] / (density[r, j] * strata)
                control[r, part] += pair[1] / (density[r, j] * strata)
    control -= _known(model, axes, x, window)
    costs = found - _coefficients(found, control) * control
    values = _ends(model, x, window) - costs.mean(axis=0)
    common = costs.mean(axis=1).std(ddof=1) / np.sqrt(replicates)
    return LogDensity(values, costs.std(axis=0, ddof=1) / np.sqrt(replicates), float(common), model.dim, window, cell)


def moments(model: LearnedDiffusion) -> Axes:
    """The moments of the data of ``model``."""
    if isinstance(model.data, Density) or model.dim <= MOST_COORDINATES:
        variances, columns = np.linalg.eigh(model.data.covariance())
        return Axes(model.data.mean(), np.maximum(variances, 0.0), columns)
    return Axes(model.data.mean(), model.data.points.var(axis=0), None)


def _integrand(model: LearnedDiffusion, axes: Axes, x: FloatArray, row: Row, z: FloatArray) -> tuple[FloatArray, FloatArray]:
    """|b_theta + z|^2 / 2 and |b_G + z|^2 / 2 of each point; averaged over z and -z."""
    found, control = np.zeros((2, len(x)))
    variances, alpha, sigma = row.alpha**2 * axes.variances + row.sigma**2, row.alpha, row.sigma
    offset = axes.turned(x - axes.mean)
    for noise in (z, -z):
        found += 0.25 * np.sum((model.field.values(alpha * x + sigma * noise, row) + noise) ** 2, axis=1)
        turned = axes.turned(noise)
        control += 0.25 * np.sum((turned - sigma * (alpha * offset + sigma * turned) / variances) ** 2, axis=1)
    return found, control


def _require_finite(squares: FloatArray, row: Row) -> None:
    bad = int(np.count_nonzero(~np.isfinite(squares)))
    if bad:
        raise DivergenceError(
            f"the score is nan or infinite at {bad} of {len(squares)} points at lam = {row.lam:.4g} (t = {row.time:.4g}); "
            "check the network there, or choose a window without this point."
        )


def _known(model: LearnedDiffusion, axes: Axes, x: FloatArray, window: tuple[float, float]) -> FloatArray:
    """The integral over lam of the mean of |b_G + z|^2 / 2 at each point."""
    lam, weights = fine(*window)
    row = model.noise.at(lam)
    alpha2, sigma2 = row.alpha[:, None] ** 2, row.sigma[:, None] ** 2
    variances = alpha2 * axes.variances + sigma2
    slopes = weights @ (sigma2 * alpha2 / variances**2)
    constant = weights @ np.sum((alpha2 * axes.variances / variances) ** 2, axis=1)
    return 0.5 * (axes.turned(x - axes.mean) ** 2 @ slopes + constant)


def _coefficients(found: FloatArray, control: FloatArray) -> FloatArray:
    """Coefficient of the control for each replicate, (replicates, 1), from all others."""
    result = np.empty((len(found), 1))
    for r in range(len(found)):
        others = np.arange(len(found)) != r
        one, two = (values[others] - values[others].mean(axis=0) for values in (found, control))
        square = np.sum(two**2)
        result[r] = np.sum(one * two) / square if square > 0.0 else 0.0
    return result


def _ends(model: LearnedDiffusion, x: FloatArray, window: tuple[float, float]) -> FloatArray:
    """E ln p_lo(x_lo) + d ln(alpha_hi sigma_lo / sigma_hi), exact."""
    low, high = (model.noise.at(edge) for edge in window)
    width, d = model.noise.equilibrium_std or float(low.sigma), model.dim
    moment = low.alpha**2 * np.sum(x**2, axis=1) + d * low.sigma**2
    prior = -0.5 * d * np.log(2.0 * np.pi * width**2) - 0.5 * moment / width**2
    return prior + d * float(np.log(high.alpha * low.sigma / high.sigma))
