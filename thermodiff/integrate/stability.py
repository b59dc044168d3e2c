"""Whether a step is too large for a drift: an estimate from a few states, and a warning."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from thermodiff.processes import Langevin

FloatArray = npt.NDArray[np.float64]

MOST_PATHS = 8
"""Paths that are looked at."""
MOST_TIMES = 8
"""Asked times at which they are looked at, beside the start and stops on the way."""
LARGEST = 1.0
"""Of h times the rate of the drift, at most paths; at a single one twice that, where Euler's rule turns unstable."""
_SQUARINGS = 5
LARGEST_GROWTH = 0.25
"""Of what a rule adds to the growth of a rotating mode, beside its decay: a variance that is a third too large."""
ORDERS = {"euler": 1, "milstein": 1, "heun": 2, "weak2": 2, "rk4": 4}
"""Powers in the factor by which a step multiplies a mode."""
MOST_MODES = 16
"""Coordinates up to which modes are looked for."""
MOST_JACOBIAN = 64
"""Coordinates up to which whole Jacobians are made."""
_ROUNDS = 24
SEE_WHETHER = (
    "See whether drift and diffusivity have values {}: the log or root of a negative number, an index out of range, or a "
    "negative diffusivity has none."
)
"""What may be wrong beside the step where paths are lost."""


def sampled(count: int, most: int) -> npt.NDArray[np.intp]:
    """At most ``most`` of ``count`` indices, evenly, the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.intp))


def warn_if_too_large(
    process: Langevin,
    states: Iterable[tuple[float, float, FloatArray]],
    *,
    rule: str = "euler",
    duration: float = np.inf,
    stacklevel: int,
) -> bool:
    """Warn where a step h from states x (n, d) at time t, given as (t, h, x), is too large; once, for the largest excess.

    Returns
    -------
    bool
        Whether it was.
    """
    rates, shares = [(0.0, 0.0, 0.0)], [(0.0, 0.0, 0.0)]
    for t, h, x in states:
        if process.dim > MOST_JACOBIAN:
            rates.append((step_rate(process, x, t, h), h, t))
        else:
            jacobian = _jacobian(process, x, t, h)
            rates.append((_fastest(jacobian, h), h, t))
            shares.append((_growth_of(jacobian, h, rule, duration), h, t))
    rate, h, t = max(rates)
    if rate > LARGEST:
        # Two half steps of dx/dt = -k x differ from one by h k / 4 of its length.
        warnings.warn(
            f"the step {h:.3g} is too large for this drift: two half steps differ from it by {25.0 * rate:.0f} % of its "
            f"length at t = {t:.3g}; use a smaller dt.",
            RuntimeWarning,
            stacklevel=stacklevel + 1,
        )
        return True
    share, h, t = max(shares)
    if share <= LARGEST_GROWTH:
        return False
    cure = 'use a smaller dt, or method="heun"' if rule == "euler" else "use a smaller dt"
    warnings.warn(
        f"the step {h:.3g} is too large for the rotation in this drift: the rule adds a growth of {100.0 * share:.0f} % of "
        f"the rate at which it decays, or over the run, at t = {t:.3g}; {cure}.",
        RuntimeWarning,
        stacklevel=stacklevel + 1,
    )
    return True


def growth(process: Langevin, x: FloatArray, t: float, h: float, rule: str, duration: float) -> float:
    """What a step rule adds to the growth of rotating modes that do not grow, beside their decay or 1 / ``duration``.

    A step multiplies a mode of rate k by R(h k).  Euler's 1 + h k is longer than exp(h k) by h^2 (Im k)^2 / 2: where that
    passes the decay a spiral turns outwards, however small h k is.  The median over the points.
    """
    return _growth_of(_jacobian(process, x, t, h), h, rule, duration)


def _growth_of(jacobian: FloatArray, h: float, rule: str, duration: float) -> float:
    if not 2 <= jacobian.shape[1] <= MOST_MODES:
        return 0.0
    with np.errstate(all="ignore"):
        jacobian = jacobian[np.isfinite(jacobian).all(axis=(1, 2))]
        if not len(jacobian):
            return 0.0
        rates = np.linalg.eigvals(jacobian)
        z = h * rates
        factor = 1.0 + z
        for k in range(2, ORDERS.get(rule, 1) + 1):
            factor = factor + z**k / math.factorial(k)
        added = (np.log(np.abs(factor)) - z.real) / h
        turning = (np.abs(rates.imag) > 1e-6 * np.abs(rates)) & (rates.real <= 0.0)
        share = np.where(turning, added / np.maximum(-rates.real, 1.0 / duration), 0.0).max(axis=1)
    return float(np.median(share)) if np.all(np.isfinite(share)) else 0.0


def step_rate(process: Langevin, x: FloatArray, t: float, h: float) -> float:
    """h times the rate of the drift near the points x (n, d): the spectral radius of its Jacobian, roughly.

    It is that of the middle one of the points, or half of the largest.  Slopes are taken over the width of a step: a kink
    in the drift is not stiff where the noise passes over it.  Points where anything is not finite are left out.
    """
    if process.dim <= MOST_JACOBIAN:
        return _fastest(_jacobian(process, x, t, h), h)
    with np.errstate(all="ignore"):
        return _typical(h * _growth(process, *_near(process, x, t, h)))


def _fastest(jacobian: FloatArray, h: float) -> float:
    with np.errstate(all="ignore"):
        return _typical(h * _spectral_radius(jacobian)) if len(jacobian) else 0.0


def _typical(radius: FloatArray) -> float:
    """The middle one of those that are finite, or half of the largest."""
    radius = radius[np.isfinite(radius)]
    return max(float(np.median(radius)), 0.5 * float(radius.max())) if radius.size else 0.0


def _near(process: Langevin, x: FloatArray, t: float, h: float) -> tuple[FloatArray, float, FloatArray, FloatArray]:
    """Points and slopes where both are finite, with the time, and how far a step reaches in each coordinate."""
    x = x[np.isfinite(x).all(axis=1)]
    slope = process.force(x, t) if len(x) else x
    x, slope = (values[np.isfinite(slope).all(axis=1)] for values in (x, slope))
    if not len(x):
        return x, t, slope, np.ones(process.dim)
    reach = np.sqrt(np.mean((h * slope) ** 2, axis=0)) + np.sqrt(h) * _noise_width(process, x, t)
    return x, t, slope, np.where(np.isfinite(reach) & (reach > 0.0), reach, 1e-6 * (1.0 + np.abs(x).max(axis=0)))


def _jacobian(process: Langevin, x: FloatArray, t: float, h: float) -> FloatArray:
    """Jacobians (n, d, d) of the drift over the width of a step; entry [n, j, i] is the derivative of f_i by x_j."""
    with np.errstate(all="ignore"):
        x, t, slope, reach = _near(process, x, t, h)
        n, dim = x.shape
        if not n:
            return np.zeros((0, dim, dim))
        moved = (x[:, None] + reach * np.eye(dim)).reshape(n * dim, dim)
        return (process.force(moved, t).reshape(n, dim, dim) - slope[:, None]) / reach[:, None]


def _noise_width(process: Langevin, x: FloatArray, t: float) -> FloatArray:
    """Standard deviation of the noise of each coordinate in unit time, its mean over the points."""
    if process.state_dependent:
        diffusivity = process.diffusivity.at(x, t, process.diffusivity_params)[:, : process.dim]
        return np.sqrt(np.mean(2.0 * diffusivity, axis=0))
    return np.linalg.norm(process.mix(np.array([t]))[0], axis=1)


def _growth(process: Langevin, x: FloatArray, t: float, slope: FloatArray, reach: FloatArray) -> FloatArray:
    """The spectral radius of the Jacobians at x (n, d) from below and nearly, by powers of them on one vector each."""
    vector = np.random.default_rng(0).standard_normal(x.shape)
    logarithm, rate = np.zeros(len(x)), np.full(len(x), np.inf)
    for k in range(_ROUNDS):
        vector /= np.abs(vector / reach).max(axis=1, keepdims=True)
        image = process.force(x + vector, t) - slope
        # Nothing is left where the slope is constant, or after some rounds where its Jacobian is nilpotent.
        rate[~image.any(axis=1)], rate[~np.isfinite(image).all(axis=1)] = 0.0, np.nan
        image[~(rate > 0.0)] = 1.0
        if k >= _ROUNDS // 2:
            logarithm += np.log(np.linalg.norm(image, axis=1) / np.linalg.norm(vector, axis=1))
        vector = image
    return np.where(rate > 0.0, np.exp(logarithm / (_ROUNDS - _ROUNDS // 2)), rate)


def _spectral_radius(matrices: FloatArray) -> FloatArray:
    """Of (n, d, d), from above and nearly: |A^32|^(1/32).  An eigenvalue solver would wake the threads of a BLAS."""
    power, logarithm = matrices, np.zeros(len(matrices))
    for k in range(_SQUARINGS):
        size = np.linalg.norm(power, axis=(1, 2))
        logarithm += np.log(size) / 2**k
        power = np.einsum("nij,njk->nik", power / size[:, None, None], power / size[:, None, None])
    return np.exp(logarithm + np.log(np.linalg.norm(power, axis=(1, 2))) / 2**_SQUARINGS)


def without_value(process: Langevin, x: FloatArray, t: float) -> tuple[str, npt.NDArray[np.bool_]] | None:
    """What is wrong with the drift or D at some of the points x (n, d), and at which."""
    with np.errstate(all="ignore"):
        bad = {"the drift is not finite": ~np.isfinite(process.force(x, t)).all(axis=1)}
        if process.state_dependent:
            level = process.diffusivity.at(x, t, process.diffusivity_params)[:, : process.dim]
            bad["the diffusivity is not finite"] = ~np.isfinite(level).all(axis=1)
            bad["the diffusivity is negative"] = (level < 0.0).any(axis=1)
    return next(((what, np.asarray(where)) for what, where in bad.items() if where.any()), None)


def shown(x: FloatArray) -> str:
    """A point, for a message."""
    return np.array2string(x, precision=6, threshold=8)
