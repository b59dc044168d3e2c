"""The log-density of a learned model from below: what its reverse process costs.

For x_lam = alpha x + sigma z (Premkumar, 2409.03817, in log-SNR)

    E ln p(x') >= E ln p_lo(x_lo) + d ln(alpha_hi sigma_lo / sigma_hi) - 1/2 int dlam E |b_theta(x_lam) + z|^2,

the mean of ln p over x' = x + (sigma_hi / alpha_hi) z, in data units.  The prior term is exact.  Averaged over the data a
perfect model has the bound -h(p_hi) - KL(p_lo || prior), h of the smoothed data.

The integral would have a variance of d / 2 per unit of lam.  It is drawn stratified in lam, in pairs z, -z; half of the
draws by importance, half uniform, since a network may err anywhere and where draws are few their weights are large.  And
|b_G + z|^2, with b_G of the Gaussian of the same moments, is a control variate: its mean given x and lam,

    E |b_G + z|^2 = sum_j (sigma^2 alpha^2 (x - m)_j^2 + alpha^4 e_j^2) / (alpha^2 e_j + sigma^2)^2,

has a known integral.  Its coefficient is fitted on draws of its own, some for each stratum at a few of the points: given it
the draws of the estimate are independent, so that the estimate is unbiased and its error the spread in each stratum.
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
from thermodiff.schedules import Row, Schedule

if TYPE_CHECKING:
    from thermodiff.learned.model import LearnedDiffusion

FloatArray = npt.NDArray[np.float64]

MOST_COORDINATES = 512
"""Dimension up to which the control variate is the Gaussian of the full covariance; beyond, of single coordinates."""

PART = 1 << 20
"""Numbers in the points that are taken at a time, about."""

PILOTS = 32
"""Log-SNRs, at least, at which the coefficient of the control is fitted; two or more in each stratum."""
PILOT_POINTS = 64
"""Points, at most, at which it is."""
UNIFORM = 0.5
"""Share of the draws of lam that is uniform over the window: no weight exceeds 1 / UNIFORM times the width."""


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
        point.  Points share the log-SNR, not the noise.  A few draws more fit the control variate.
    lam : (float, float), optional
        Log-SNR window; default that of an account.
    rng : int, SeedSequence, Generator or None
        Fixes every draw.

    Returns
    -------
    LogDensity
        In nats, with the standard error from the spread of the replicates in each stratum.

    Raises
    ------
    DivergenceError
        Where the score of the network is not finite.
    """
    strata, replicates = count("strata", strata), count("replicates", replicates, 4)
    window, key = model.window(lam), seed_words(rng)
    model.try_out()
    x, cell = points_of(model, x, key)
    pilots = max(2, -(-PILOTS // strata))
    draws = Draws(model, window, strata, replicates + pilots, key)
    coefficient = _coefficient(draws, x, range(replicates, replicates + pilots))
    values = _ends(model, x, window) - coefficient * _known(model, draws.axes, x, window)
    spreads, common = np.empty((strata, len(x))), np.empty(strata)
    for j in range(strata):
        costs = np.empty((replicates, len(x)))
        for r in range(replicates):
            found, control = draws(x, r, j)
            costs[r] = found - coefficient * control
        values -= costs.mean(axis=0)
        spreads[j] = costs.var(axis=0, ddof=1)
        common[j] = costs.mean(axis=1).var(ddof=1)
    errors = _student(spreads, replicates)
    return LogDensity(values, errors, float(_student(common[:, None], replicates)[0]), model.dim, window, cell)


def _student(spreads: FloatArray, replicates: int) -> FloatArray:
    """Standard error of a sum of means of ``replicates`` draws with variances ``spreads`` (strata, n), by Student's t.

    So that the rms of z is one: where one stratum has most of the variance, its few draws are all that tell it, and the
    degrees of freedom are those of Welch and Satterthwaite.
    """
    variance = spreads.sum(axis=0)
    shares = np.divide(spreads, variance, out=np.zeros_like(spreads), where=variance > 0.0)
    over_freedom = np.square(shares).sum(axis=0) / (replicates - 1)  # at most 1 / 3
    return np.sqrt(variance / (1.0 - 2.0 * over_freedom) / replicates)


class Draws:
    """|b_theta + z|^2 / 2 and |b_G + z|^2 / 2 at a log-SNR for each replicate and stratum.

    They are weighted so that sums over the strata have the integrals over the window as their means.
    """

    def __init__(self, model: LearnedDiffusion, window: tuple[float, float], strata: int, replicates: int, key: Any) -> None:
        self.model, self.axes, self.strata, self._key = model, moments(model), strata, key
        uniforms = stream(key, "log-SNR").random((replicates, strata))
        proposal = _HalfUniform(model.noise, *window, self.axes.variances)
        self._levels, density = proposal((np.arange(strata) + uniforms) / strata)
        self._weights = 1.0 / (density * strata)

    def __call__(self, x: FloatArray, replicate: int, stratum: int) -> FloatArray:
        """The weighted pair, (2, n), at points (n, d)."""
        model, out = self.model, np.empty((2, len(x)))
        row = Row(*(float(entry) for entry in model.noise.at(self._levels[replicate, stratum])))
        # So many at a time that memory does not grow with the points; noise comes in blocks of LANES.
        size = max(PART // (model.dim * LANES), 1) * LANES
        for first in range(0, len(x), size):
            part = x[first : first + size]
            z = normals(self._key, replicate * self.strata + stratum, model.dim, len(part), philox.NOISE, first).T
            out[:, first : first + size] = _integrand(model, self.axes, part, row, z)
        _require_finite(out[0], row)
        return self._weights[replicate, stratum] * out


class _HalfUniform(LamProposal):
    """The density from which trainings draw lam, and the uniform one, mixed."""

    def __init__(self, noise: Schedule, low: float, high: float, variances: FloatArray) -> None:
        super().__init__(noise, low, high, variances)
        self.density = UNIFORM / (high - low) + (1.0 - UNIFORM) * self.density
        self.cumulative = UNIFORM * np.linspace(0.0, 1.0, len(self.edges)) + (1.0 - UNIFORM) * self.cumulative


def _coefficient(draws: Draws, x: FloatArray, replicates: range) -> float:
    """Coefficient of the control, fitted within the strata on these ``replicates`` at some of the points."""
    some = x[:: -(-len(x) // PILOT_POINTS)]
    pairs = np.array([[draws(some, r, j) for j in range(draws.strata)] for r in replicates])
    found, control = np.moveaxis(pairs - pairs.mean(axis=0), 2, 0)
    square = np.sum(control**2)
    return float(np.sum(found * control) / square) if square > 0.0 else 0.0


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


def _ends(model: LearnedDiffusion, x: FloatArray, window: tuple[float, float]) -> FloatArray:
    """E ln p_lo(x_lo) + d ln(alpha_hi sigma_lo / sigma_hi), exact."""
    low, high = (model.noise.at(edge) for edge in window)
    width, d = model.noise.equilibrium_std or float(low.sigma), model.dim
    moment = low.alpha**2 * np.sum(x**2, axis=1) + d * low.sigma**2
    prior = -0.5 * d * np.log(2.0 * np.pi * width**2) - 0.5 * moment / width**2
    return prior + d * float(np.log(high.alpha * low.sigma / high.sigma))
