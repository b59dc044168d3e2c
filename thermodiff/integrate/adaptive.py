"""The probability flow to a given tolerance: the table of the schedule, and what can go wrong."""

from __future__ import annotations

from concurrent.futures import Executor
from functools import partial

import numpy as np
import numpy.typing as npt
from numpy.polynomial import chebyshev

from thermodiff._check import DivergenceError, above, count
from thermodiff._progress import Report
from thermodiff.densities.base import Law
from thermodiff.diffusion import Diffusion
from thermodiff.kernels import adaptive
from thermodiff.kernels.jit import LANES
from thermodiff.kernels.tasks import blocks_per_task, over_blocks
from thermodiff.schedules import Schedule

FloatArray = npt.NDArray[np.float64]

MOST_STEPS = 100_000
"""Attempted steps of a block before it gives up."""
USUAL_STEPS = 500
"""Evaluations of the score, for dealing out tasks."""
LEAST_RTOL = 1e-13
"""Below, the rounding of states and slopes is all that a step could control."""
DEGREE = 12
# The schedules here have their nearest singularities at a distance of pi from the real axis (1 + exp(-lam) = 0), so a
# Chebyshev sum of degree 12 on a piece of length 1 leaves 12.6**-13 = 5e-15 of the functions: their rounding, in effect.
TABLE_ERROR = 1e-13
MOST_PIECES = 1 << 14


def tolerances(rtol: float, atol: float) -> tuple[float, float]:
    """Both as floats that a step can meet."""
    rtol = above("rtol", rtol, 0.0, "it is the relative error of a step")
    atol = above("atol", atol, 0.0, "it is the error of a step where a coordinate vanishes, in data units")
    if rtol < LEAST_RTOL:
        raise ValueError(f"rtol must be at least {LEAST_RTOL:g}, which float64 can still tell, got {rtol:g}; loosen it.")
    return rtol, atol


def table(noise: Schedule, low: float, high: float) -> FloatArray:
    """Chebyshev coefficients of (ln alpha, ln sigma^2, d ln alpha / d lam) on equal pieces of (low, high).

    Returns
    -------
    (pieces, 3, degree + 1) array

    Raises
    ------
    ValueError
        Where the schedule has a kink that no number of pieces resolves.
    """
    unit = np.cos(np.pi * (np.arange(DEGREE + 1) + 0.5) / (DEGREE + 1))
    fit = 2.0 / (DEGREE + 1) * chebyshev.chebvander(unit, DEGREE)
    fit[:, 0] *= 0.5
    # Between the points of the fit, where its error is largest.
    probe = np.cos(np.pi * np.arange(DEGREE + 2) / (DEGREE + 1))
    sums = chebyshev.chebvander(probe, DEGREE).T
    pieces = int(np.ceil(high - low))
    while True:
        values = _functions(noise, low, high, pieces, unit)
        # Of the differences within a piece: a logarithm of 40 would leave its own rounding in every coefficient.
        middle = values[:, :, DEGREE // 2]
        coefficients = (values - middle[:, :, None]) @ fit
        coefficients[:, :, 0] += middle
        truth = _functions(noise, low, high, pieces, probe)
        error = np.abs(coefficients @ sums - truth) / (1.0 + np.abs(truth))
        if error.max() < TABLE_ERROR:
            return np.ascontiguousarray(coefficients)
        if pieces > MOST_PIECES:
            worst = low + (high - low) * (np.argmax(error.max(axis=(1, 2))) + 0.5) / pieces
            raise ValueError(
                f'method="dopri5": {noise.name} is not smooth at log-SNR {worst:.4g} (an error of {error.max():.1g} with '
                f'{pieces} pieces); use method="rk4", or choose times on one side of it.'
            )
        pieces *= 2


def _functions(noise: Schedule, low: float, high: float, pieces: int, unit: FloatArray) -> FloatArray:
    """The functions of the table at the points ``unit`` in [-1, 1] of every piece, (pieces, 3, points)."""
    row = noise.at(low + (high - low) / pieces * (np.arange(pieces)[:, None] + 0.5 * (1.0 + unit)))
    return np.stack([np.log(row.alpha), 2.0 * np.log(row.sigma), row.growth], axis=1)


def flow(
    system: Diffusion,
    start: FloatArray,
    asked: FloatArray,
    rtol: float,
    atol: float,
    executor: Executor | None,
    chunk: int | None,
    narrow: float = -1.0,
    report: Report | None = None,
) -> FloatArray:
    """Carry ``start`` (d, n), or (d + 1, n) to integrate the divergence along, over the asked values of lam.

    With ``narrow``, the smallest variance of the data, the error of a step is measured by the smallest width of p_t, and
    both tolerances are in nats.

    Returns
    -------
    (T, d, n) or (T, d + 1, n) array
        The first entry is the start.
    """
    rtol, atol = tolerances(rtol, atol)
    chunk = blocks_per_task(start.shape[1], USUAL_STEPS * system.dim) if chunk is None else count("chunk", chunk)
    low, high = float(asked.min()), float(asked.max())
    task = partial(
        _flow_blocks, system.data.law, system.dim, table(system.noise, low, high), (low, high), asked, (rtol, atol, narrow),
        MOST_STEPS, start,
    )  # fmt: skip
    return over_blocks(task, start.shape[1], executor, chunk, report)


def _flow_blocks(
    law: Law,
    dim: int,
    coefficients: FloatArray,
    span: tuple[float, float],
    asked: FloatArray,
    tolerance: tuple[float, float, float],
    most: int,
    start: FloatArray,
    first: int,
    last: int,
) -> FloatArray:
    rows, n = start.shape
    states = np.empty((asked.size, rows, (last - first) * LANES))
    inside = start[:, first * LANES : min(last * LANES, n)]
    states[0, :, : inside.shape[1]] = inside
    states[0, :, inside.shape[1] :] = inside[:, -1:]
    status = np.empty((last - first, 3))
    adaptive.flow(
        law.score, law.params, coefficients, *span, dim, first, last, asked, *tolerance, most, states, status
    )  # fmt: skip
    failed = np.flatnonzero(status[:, 0] != adaptive.DONE)
    if failed.size:
        outcome, lam, taken = status[failed[0]]
        _refuse(outcome, lam, int(taken), (first + int(failed[0])) * LANES, n, most)
    return states


def _refuse(outcome: float, lam: float, taken: int, path: int, n: int, most: int) -> None:
    who = f"the probability flow of paths {path} to {min(path + LANES, n) - 1}"
    if outcome == adaptive.EXHAUSTED:
        raise DivergenceError(
            f"{who} reached only log-SNR {lam:.4g} in {most} attempted steps ({taken} taken); loosen rtol and atol, "
            "ask for a shorter stretch of times, or leave out points far from the data."
        )
    raise DivergenceError(
        f"{who} left the finite numbers at log-SNR {lam:.4g} after {taken} steps, or changes there faster than float64 "
        "can tell; start nearer to the data, or at a smaller log-SNR."
    )
