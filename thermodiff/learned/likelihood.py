"""Log-densities of a learned model by its probability flow.

With y = x / alpha and V the logarithm of the volume change beyond that of alpha, the flow in log-SNR is

    dy / dlam = exp(-lam / 2) b_theta / 2,    dV / dlam = (sigma / 2) div b_theta,

from y = x at the data end of the window down to the noise end, and ln p(x) = ln p_lo(alpha_lo y) + d ln alpha_lo + V.

It is the density of the data smoothed by sigma_hi / alpha_hi = exp(-lam_hi / 2): state the window beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from thermodiff._check import DivergenceError, above, array, choice, count, seed_words
from thermodiff.accounting import Estimate
from thermodiff.densities import Density
from thermodiff.kernels.jit import LANES
from thermodiff.learned.images import Images, plain_array, require_span
from thermodiff.learned.probes import FREEDOM, probe_errors, sign_probes
from thermodiff.learned.streams import stream
from thermodiff.schedules import Row

if TYPE_CHECKING:
    from thermodiff.learned.model import LearnedDiffusion

FloatArray = npt.NDArray[np.float64]
Key = npt.NDArray[np.uint32]

MOST_EXACT = 64
"""Dimension up to which the divergence may be exact: it takes d backward passes."""
MOST_COORDINATES = 512
"""Dimension up to which the control variate is the Gaussian of the full covariance; beyond, of single coordinates."""
SMALLEST = 1e-6
"""Share of the window that a step must cover."""


@dataclass(frozen=True, eq=False)
class LogDensity:
    """Log-densities in nats.

    Attributes
    ----------
    values, errors : (n,) arrays
        At each point, with the standard error of probes or draws; zeros where there are none.
    common : float
        Standard error of the mean of ``values`` from draws that all points share.
    dim : int
    window : (float, float)
        Log-SNR; the density is that of the data smoothed by exp(-window[1] / 2).
    cell : float
        Width of a grey level: 1 for data that are no grey levels.
    """

    values: FloatArray
    errors: FloatArray
    common: float
    dim: int
    window: tuple[float, float]
    cell: float = 1.0

    @property
    def mean(self) -> Estimate:
        """Mean over the points, as an estimate of that over their law: errors of points and of draws."""
        spread = float(np.std(self.values, ddof=1) / np.sqrt(self.values.size)) if self.values.size > 1 else np.inf
        return Estimate(float(np.mean(self.values)), float(np.hypot(spread, self.common)))

    def bits_per_dim(self) -> Estimate:
        """Mean code length of a coordinate in bits, to the precision of ``cell``: -(ln p + d ln cell) / (d ln 2)."""
        mean, unit = self.mean, self.dim * np.log(2.0)
        return Estimate(float(-(mean.value + self.dim * np.log(self.cell)) / unit), float(mean.error / unit))


def log_prob(
    model: LearnedDiffusion,
    x: Any,
    *,
    divergence: str = "exact",
    count_probes: int = 16,
    prior: str | None = None,
    lam: tuple[float, float] | None = None,
    tol: float = 1e-6,
    rng: Any = None,
) -> LogDensity:
    """Log-density of the model by its probability flow, with steps of Dormand and Prince's pair of order 5(4).

    Parameters
    ----------
    model : LearnedDiffusion
    x : (n, d) or (n, channels, height, width) array, or Images
        Points in data units.  Grey levels are dequantised by ``Images(..., dequantise=True)``.
    divergence : {"exact", "hutchinson"}
        Exact up to d = 64; else from random signs, which stay the same along a path, so that the mean is unbiased.
    count_probes : int
        Vectors of random signs for each point, at least 2, all different.  Their errors rest on the spread at the point and
        on that over all points.  With as many as dimensions the divergence is exact, at the same cost, and has no error.
    prior : {"equilibrium", "marginal"}, optional
        At the noise end: what the model generates from, or the exact p_T.  Default: p_T where the law of the data is
        known, as for `td.log_prob` and `td.reverse`; for samples the equilibrium.
    lam : (float, float), optional
        Log-SNR window; default that of an account.
    tol : float
        Error of a step: ``tol`` rms deviations of the data in y, and tol max(1, |V|) nats in V.
    rng : int, SeedSequence, Generator or None
        Draws probes and grey levels.

    Returns
    -------
    LogDensity

    Raises
    ------
    ValueError
        For an exact divergence above d = 64; where a window must be stated; for too few probes at a few points.
    DivergenceError
        Where steps get too short: the network is not smooth at its precision, or not finite.
    """
    choice("divergence", divergence, ("exact", "hutchinson"))
    prior = prior or ("marginal" if isinstance(model.data, Density) else "equilibrium")
    choice("prior", prior, ("equilibrium", "marginal"))
    if divergence == "exact" and model.dim > MOST_EXACT:
        raise ValueError(f'the exact divergence takes d = {model.dim} backward passes; pass divergence="hutchinson".')
    if prior == "marginal" and not isinstance(model.data, Density):
        raise ValueError('prior="marginal" needs data whose law is known; use prior="equilibrium".')
    k = 0 if divergence == "exact" else count("count_probes", count_probes, 2)
    above("tol", tol, 0.0, "no step would be short enough")
    window, key = model.window(lam), seed_words(rng)
    model.try_out()
    x, cell = points_of(model, x, key)
    if model.dim <= k:
        k = 0  # as many backward passes along the axes are exact
    if k > 0 and len(x) * (k - 1) < FREEDOM:
        raise ValueError(
            f"count_probes={k} leaves the errors unknown for so few points as {len(x)}; take {FREEDOM + 1} probes or more."
        )
    values = np.empty((max(k, 1), x.shape[0]))
    for first in range(0, x.shape[0], LANES):
        part = x[first : first + LANES]
        signs = sign_probes(key, k, model.dim, len(part), first) if k else None
        y, volume = _flow(model, part, signs, window, tol)
        values[:, first : first + len(part)] = volume + _prior(model, y, window[0], prior)
    errors = probe_errors(values, model.dim) if k else np.zeros(x.shape[0])
    return LogDensity(values.mean(axis=0), errors, 0.0, model.dim, window, cell)


def points_of(model: LearnedDiffusion, x: Any, key: Key) -> tuple[FloatArray, float]:
    """``x`` as points (n, d), and the width of a grey level."""
    cell = 1.0
    if isinstance(x, Images):
        if x.quantised and not x.dequantise:
            raise ValueError("grey levels have no density; pass Images(..., dequantise=True), as in training.")
        require_span(x, model.span)
        cell = x.cell if x.quantised else 1.0
        import torch

        x = x.draw(torch.arange(len(x)), stream(key, "grey levels"))
    x = plain_array(x)
    if x.dtype.kind in "iub" and len(model.shape) > 1:
        raise TypeError(
            f"the images are of type {x.dtype}, whose scale is not said; pass Images(values, span=(0, 1), dequantise=True) "
            "with the span of the model's data, or divide."
        )
    shape = f"(n, {model.dim})" if x.ndim == 2 else f"(n, {', '.join(map(str, model.shape))})"
    checked = array("x", x, shape, 2 if x.ndim == 2 else 1 + len(model.shape))
    if checked.shape[1:] not in ((model.dim,), tuple(model.shape)):
        raise ValueError(f"x must have shape {shape}, got {checked.shape}; one row for each point.")
    return checked.reshape(len(checked), -1), cell


def _prior(model: LearnedDiffusion, y: FloatArray, lam: float, prior: str) -> FloatArray:
    """ln p_lo(alpha y) + d ln alpha."""
    row = model.noise.at(lam)
    alpha, sigma = float(row.alpha), float(row.sigma)
    shift = model.dim * np.log(alpha)
    if prior == "marginal":
        assert isinstance(model.data, Density)
        return model.data.log_prob(alpha * y, alpha=alpha, sigma=sigma) + shift
    width = model.noise.equilibrium_std or sigma
    return shift - 0.5 * np.sum((alpha / width * y) ** 2, axis=1) - 0.5 * model.dim * np.log(2.0 * np.pi * width**2)


# The flow

_NODES = np.array([0.0, 0.2, 0.3, 0.8, 8 / 9, 1.0, 1.0])
_STAGES = [
    np.array(row)
    for row in (
        [1 / 5],
        [3 / 40, 9 / 40],
        [44 / 45, -56 / 15, 32 / 9],
        [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729],
        [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656],
        [35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84],
    )
]
_ERROR = np.array([71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40])


def _flow(
    model: LearnedDiffusion, x: FloatArray, signs: FloatArray | None, window: tuple[float, float], tol: float
) -> tuple[FloatArray, FloatArray]:
    """y (n, d) at the noise end, and V (n,) or, with probes, (k, n); the points share their steps."""
    size = np.sqrt(np.trace(model.data.covariance()) / model.dim) if model.dim <= MOST_COORDINATES else _rms(model)

    def rates(lam: float, y: FloatArray) -> tuple[FloatArray, FloatArray]:
        row = Row(*(float(entry) for entry in model.noise.at(lam)))
        score, slope = model.field.with_divergence(row.alpha * y, row, signs)
        return 0.5 * np.exp(-0.5 * lam) * score, 0.5 * row.sigma * slope

    def error(y: FloatArray, volume: FloatArray, total: FloatArray) -> float:
        moved = float(np.sqrt(np.max(np.mean((y / size) ** 2, axis=1))))
        return max(moved, float(np.max(np.abs(volume) / np.maximum(1.0, np.abs(total))))) / tol

    return dormand_prince(rates, error, x, window[1], window[0])


def _rms(model: LearnedDiffusion) -> float:
    points = model.data.sample(1000, rng=0) if isinstance(model.data, Density) else model.data.points
    return float(np.sqrt(np.mean(points.var(axis=0))))


def dormand_prince(
    rates: Callable[[float, FloatArray], tuple[FloatArray, FloatArray]],
    error: Callable[[FloatArray, FloatArray, FloatArray], float],
    y: FloatArray,
    start: float,
    end: float,
) -> tuple[FloatArray, FloatArray]:
    """Integrate dy, dV from ``start`` to ``end`` with steps whose ``error(dy, dV, V)`` stays below 1; V starts at 0.

    Raises
    ------
    DivergenceError
        Where a step would be shorter than a millionth of the way.
    """
    lam, step = start, (end - start) / 50.0
    slopes = [rates(lam, y)]
    volume = np.zeros_like(slopes[0][1])
    while lam != end:
        last = abs(step) >= abs(end - lam)
        step = end - lam if last else step
        del slopes[1:]
        for node, stage in zip(_NODES[1:], _STAGES, strict=True):
            slopes.append(rates(lam + node * step, y + step * _sum(stage, slopes, 0)))
        grown = volume + step * _sum(_STAGES[-1], slopes, 1)
        size = error(step * _sum(_ERROR, slopes, 0), step * _sum(_ERROR, slopes, 1), grown)
        if size <= 1.0:
            y, volume = y + step * _sum(_STAGES[-1], slopes, 0), grown
            lam = end if last else lam + step
            slopes[0] = slopes[6]  # the last stage of a step is the first of the next
        step *= min(5.0, max(0.2, 0.9 * size**-0.2)) if 0.0 < size < np.inf else (5.0 if size == 0.0 else 0.2)
        if abs(step) < SMALLEST * abs(end - start) and lam != end:
            raise DivergenceError(
                f"the steps of the flow shrank to {abs(step):.1e} at lam = {lam:.4g}; the network is not smooth at its "
                "precision there. Raise tol, use float64 weights, or choose a narrower window."
            )
    return y, volume


def _sum(factors: FloatArray, slopes: list[tuple[FloatArray, FloatArray]], which: int) -> FloatArray:
    return sum(f * slope[which] for f, slope in zip(factors, slopes, strict=False) if f)  # pyright: ignore[reportReturnType]
