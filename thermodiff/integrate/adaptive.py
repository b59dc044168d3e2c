"""The probability flow to a given tolerance: the table of the schedule, and what can go wrong."""

from __future__ import annotations

from concurrent.futures import Executor
from functools import partial
from typing import NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt
from numpy.polynomial import chebyshev

from thermodiff._check import DivergenceError, above, count
from thermodiff._progress import Report
from thermodiff.densities.base import Law
from thermodiff.densities.entropy import Part
from thermodiff.diffusion import Diffusion
from thermodiff.integrate import stiff
from thermodiff.kernels import adaptive
from thermodiff.kernels.jit import LANES
from thermodiff.kernels.tasks import blocks_per_task, over_blocks
from thermodiff.schedules import Schedule

FloatArray = npt.NDArray[np.float64]

MOST_STEPS = 100_000
"""Attempted steps of a block before it gives up."""
PATIENCE, LAST_PATIENCE = 1000, 16_000
"""Attempted steps of a block before it is asked which points it waits for, and before all that are stiff must go alone."""
USUAL_STEPS = 500
"""Evaluations of the score, for dealing out tasks."""
PER_SLOPE, STAGES_PER_L = 2e5, 2.0
"""Price of a slope of a block beside its lanes, and slopes for unit lam and unit L, which stability limits to 3.3 / L."""
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
    part: Part | None = None,
) -> FloatArray:
    """Carry ``start`` (d, n), or (d + 1, n) to integrate the divergence along, over the asked values of lam.

    With ``narrow``, the smallest variance of the data, the error of a step is measured by the smallest width of p_t, and
    both tolerances are in nats.  With ``part`` beside it, and from the first of ``asked`` to the last alone, points whose
    flow is stiff leave their block and go on by implicit steps.

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
        MOST_STEPS, part, start,
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
    part: Part | None,
    start: FloatArray,
    first: int,
    last: int,
) -> FloatArray:
    rows, n = start.shape
    states = np.empty((asked.size, rows, (last - first) * LANES))
    states[0] = _padded(start[:, first * LANES : min(last * LANES, n)], (last - first) * LANES)
    steps = Steps(law, dim, coefficients, span, tolerance)
    status = steps.carry(asked, states, most if part is None else min(most, PATIENCE))
    for block in np.flatnonzero(status[:, 0] != adaptive.DONE):
        path, offset = (first + int(block)) * LANES, int(block) * LANES
        if part is None or status[block, 0] == adaptive.LOST:
            outcome, lam, taken = status[block]
            refuse(outcome, lam, taken, path, n, most)
        inside = states[0, :, offset : offset + min(LANES, n - path)]
        finished = _without_stiff(steps, part, (asked[0], asked[-1]), most, inside, status[block], path, n)
        states[-1, :, offset : offset + LANES] = _padded(finished, LANES)
    return states


def _padded(inside: FloatArray, lanes: int) -> FloatArray:
    """``inside`` (rows, n) and copies of its last column."""
    return np.concatenate([inside, np.repeat(inside[:, -1:], lanes - inside.shape[1], axis=1)], axis=1)


class Steps(NamedTuple):
    """What the kernel is given with every block."""

    law: Law
    dim: int
    table: FloatArray
    span: tuple[float, float]
    tolerance: tuple[float, float, float]

    def carry(self, asked: FloatArray, states: FloatArray, most: int) -> FloatArray:
        """Fill ``states`` from its first entry; returns (how, lam, steps taken) of each block."""
        status = np.empty((states.shape[2] // LANES, 3))
        adaptive.flow(
            self.law.score, self.law.params, self.table, *self.span, self.dim, 0, len(status), asked, *self.tolerance, most,
            states, status,
        )  # fmt: skip
        return status

    def carry_some(
        self, ends: FloatArray, which: npt.NDArray[np.intp], span: tuple[float, float], most: int
    ) -> tuple[float, float, int]:
        """Carry the columns ``which`` of ``ends`` over ``span``; where they do not arrive they stay as they were."""
        states = np.empty((2, ends.shape[0], LANES))
        states[0] = _padded(ends[:, which], LANES)
        outcome, lam, taken = self.carry(np.array(span), states, most)[0]
        if outcome == adaptive.DONE:
            ends[:, which] = states[1, :, : which.size]
        return float(outcome), float(lam), int(taken)

    def alphas(self, lam: tuple[float, float]) -> FloatArray:
        rows = np.empty((2, 4))
        adaptive.schedule_rows(self.table, *self.span, np.array(lam), rows)
        return rows[:, 0]


def _without_stiff(
    steps: Steps,
    part: Part,
    span: tuple[float, float],
    most: int,
    start: FloatArray,
    status: FloatArray,
    path: int,
    n: int,
) -> FloatArray:
    """Ends (d + 1, points) of a block that ran out of patience as ``status`` tells; its first point is number ``path`` of n.

    It goes once more to where it came, to ask how stiff each point is there; the stiff go on alone where that is cheaper,
    the others together with twice the patience.
    """
    ends, left, (lam, goal) = start.copy(), np.arange(start.shape[1]), span
    outcome, reached, taken = status
    attempts = patience = min(most, PATIENCE)
    while outcome != adaptive.DONE:
        # The last of the steps may differ by a rounding, hence some more of them.
        if outcome == adaptive.LOST or attempts >= most or steps.carry_some(ends, left, (lam, reached), patience + 10)[0]:
            refuse(outcome, reached, int(taken), path, n, most)
        lam = reached
        going = _stiff_ones(steps, part, ends[:-1, left], lam, attempts >= LAST_PATIENCE)
        _go_alone(steps, part, ends, left[going], (lam, goal), path)
        left = np.delete(left, going)
        if not left.size:
            break
        patience = min(2 * patience, most - attempts)
        outcome, reached, more = steps.carry_some(ends, left, (lam, goal), patience)
        attempts, taken = attempts + patience, taken + more
    return ends


def _centred(part: Part) -> tuple[Part, FloatArray]:
    centre = part.weights @ part.means
    return part._replace(means=part.means - centre), centre


def _stiff_ones(steps: Steps, part: Part, x: FloatArray, lam: float, every: bool) -> npt.NDArray[np.intp]:
    """Which of the points (d, n) had better go alone; with ``every``, all whose flow is stiff."""
    part, centre = _centred(part)
    components, dim = part.means.shape
    y = x.T / steps.alphas((lam, lam))[0] - centre
    point, rho = stiff.Point(part), np.sqrt(part.variances.min() + np.exp(-lam))
    stiffness = np.array([point.stiffness(lam, u) for u in y / rho])
    if every:
        return np.flatnonzero(stiffness > stiff.HARMLESS)
    block = PER_SLOPE + LANES * components * (2.0 * dim**2 if part.axes is not None else 10.0 * dim + 30.0)
    price = np.repeat([0.0, STAGES_PER_L * block], [1, len(y)])
    return stiff.apart(stiffness, price, stiff.price(components, dim, part.axes is not None))


def _go_alone(
    steps: Steps, part: Part, ends: FloatArray, which: npt.NDArray[np.intp], span: tuple[float, float], path: int
) -> None:
    """Carry the columns ``which`` of ``ends`` by implicit steps."""
    part, centre = _centred(part)
    alpha, point = steps.alphas(span), stiff.Point(part)
    unit = alpha * np.sqrt(part.variances.min() + np.exp(-np.array(span)))
    for i in which:
        state = np.append((ends[:-1, i] - alpha[0] * centre) / unit[0], ends[-1, i] + point.dim * np.log(unit[1] / unit[0]))
        outcome, lam, taken, state = stiff.flow(point, state, span, *steps.tolerance[:2])
        if outcome != adaptive.DONE:
            refuse(outcome, lam, taken, path + int(i), path + int(i) + 1, stiff.MOST_STEPS)
        ends[:-1, i], ends[-1, i] = unit[1] * state[:-1] + alpha[1] * centre, state[-1]


def refuse(outcome: float, lam: float, taken: float, path: int, n: int, most: int) -> NoReturn:
    """Raise what a block from ``path`` on, of ``n`` paths, that ended as ``outcome`` after ``taken`` steps calls for."""
    who = f"the probability flow of paths {path} to {min(path + LANES, n) - 1}"
    if outcome == adaptive.EXHAUSTED:
        raise DivergenceError(
            f"{who} reached only log-SNR {lam:.4g} in {most} attempted steps ({taken:.0f} taken); loosen rtol and atol, "
            "ask for a shorter stretch of times, or leave out points far from the data."
        )
    raise DivergenceError(
        f"{who} left the finite numbers at log-SNR {lam:.4g} after {taken:.0f} steps, or changes there faster than float64 "
        "can tell; start nearer to the data, or at a smaller log-SNR."
    )
