"""The flow of a mixture with full covariances in many dimensions, by matrix products.

In y = x / alpha the flow is that of the data with noise of variance ``v = exp(-lam)`` added, whatever the schedule:
dy/dlam = (v / 2) s.  With rho^2 = v + the smallest variance of the data and the mean c of the data, u = (y - c) / rho is in
units of the narrowest width of p_t, and

    du/dlam = (v / (2 rho^2)) (u + rho s),    s = sum_k p_k g_k,    g_k = -Q_k^T (Q_k (y - m_k) / V_k),

where the rows of Q_k are the principal axes of component k, V_k its variances plus v, and p_k its probability at y.  The
divergence of s is sum_k p_k (|g_k|^2 - sum_i 1 / V_ki) - |s|^2.

The compiled flow works on 256 points however few there are, and reads every axis twice for each of its slopes; here a slope
of a group of points is two products with the axes of all components, and the steps are of higher order.  Points whose flow
is so stiff that the others of their group would wait for them go on alone, see `thermodiff.integrate.stiff`.

Reference: DOP853 of Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, section II.5, as in SciPy.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Executor
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from thermodiff._check import count
from thermodiff._progress import Report
from thermodiff._tasks import in_order
from thermodiff.densities.entropy import Part
from thermodiff.diffusion import Diffusion
from thermodiff.integrate import adaptive, stiff
from thermodiff.kernels.adaptive import DONE, EXHAUSTED, FIRST, LONGEST, LOST
from thermodiff.kernels.jit import LANES

FloatArray = npt.NDArray[np.float64]

LEAST_WORK = 4000
"""K d^2 below which a block of the compiled flow takes less than a third of a second."""
MOST_NUMBERS = 1 << 22
"""Numbers in an array of a group, of which two are in use: 64 MB."""
WORTHWHILE, TOGETHER = 1 << 17, 32
"""Numbers that make the calls for a slope of a group cheap beside its work, and points that make good products of them."""
ATTEMPT = 12
"""Slopes of an attempted step."""
MOST_STEPS = 20_000
"""Attempted steps of a group before it gives up: an hour of them would not help."""
RECENT = 8
"""Steps over which their length is judged."""
STIFF, USUAL = 3.0, 1.5
"""Lengths of a step in units of 1 / L: below the first it is stiffness that shortens them, the second was found at
rtol = 1e-8."""


def suits(part: Part, n: int) -> bool:
    """Whether the flow of ``n`` points is faster here than compiled.

    A block of the compiled flow costs the same however few of its 256 lanes are points, here every point has its price: as
    measured, 1 + 20 / d of what a lane costs there, times 256 / 320.
    """
    components, dim = part.means.shape
    blocks = -(-n // LANES)
    return part.axes is not None and components * dim**2 >= LEAST_WORK and n * (dim + 20) <= 320 * blocks * dim


def group_size(components: int, dim: int) -> int:
    """Points of a group: a power of two up to 256, so that no group lies across two tasks of whole blocks."""
    numbers = components * dim
    most = min(max(WORTHWHILE // numbers, TOGETHER), max(MOST_NUMBERS // numbers, 1), LANES)
    return 1 << (most.bit_length() - 1)


def flow(
    system: Diffusion,
    start: FloatArray,
    span: tuple[float, float],
    rtol: float,
    atol: float,
    executor: Executor | None,
    chunk: int | None,
    report: Report,
) -> FloatArray:
    """Carry ``start`` (d + 1, n), a point and the integral of the divergence, from span[0] down to span[1] in lam.

    Every coordinate of every point may err in a step by ``atol + rtol`` of the smallest width of p_t, and the integral by
    ``atol + rtol max(1, |its value|)``.
    """
    part, centre, dim = system.data.parts(), system.data.mean(), system.dim
    group = group_size(part.weights.size, dim)
    size = group if chunk is None else LANES * count("chunk", chunk)
    alpha = system.noise.at(np.array(span)).alpha
    unit = alpha * np.sqrt(part.variances.min() + np.exp(-np.array(span)))
    points = (start[:-1].T - alpha[0] * centre) / unit[0]
    centred = part._replace(means=part.means - centre)
    task = partial(_flow_groups, centred, span, (rtol, atol), min(MOST_STEPS, adaptive.MOST_STEPS), group)
    tasks = -(-points.shape[0] // size)
    pieces = []
    for piece in in_order(task, tasks, executor, inputs=lambda k: (k * size, points[k * size : (k + 1) * size])):
        pieces.append(piece)
        report(len(pieces), tasks)
    ends = np.concatenate(pieces, axis=1)
    ends[:-1] = unit[1] * ends[:-1] + alpha[1] * centre[:, None]
    ends[-1] += start[-1] + dim * np.log(unit[1] / unit[0])
    return ends


def _flow_groups(
    part: Part,
    span: tuple[float, float],
    tolerance: tuple[float, float],
    most: int,
    group: int,
    given: tuple[int, FloatArray],
) -> FloatArray:
    """(d + 1, n): u and the integral of its divergence, for points ``given[1]`` of which the first has number given[0]."""
    first, points = given
    ends = [
        _flow_group(part, span, tolerance, most, first + begin, points[begin : begin + group])
        for begin in range(0, points.shape[0], group)
    ]
    return np.concatenate(ends, axis=1)


def _flow_group(
    part: Part, span: tuple[float, float], tolerance: tuple[float, float], most: int, first: int, points: FloatArray
) -> FloatArray:
    n = points.shape[0]
    ends = np.concatenate([points, np.zeros((n, 1))], axis=1)
    # Where a state is out of range its slope is not a number, and the step is refused.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        lam, left, taken = span[0], np.arange(n), 0
        while left.size:
            lam, taken, leaving = _steps(part, (lam, span[1]), tolerance, most, taken, (first, first + n), left, ends)
            for i in left[leaving]:
                outcome, reached, steps, ends[i] = stiff.flow(stiff.Point(part), ends[i], (lam, span[1]), *tolerance)
                if outcome != DONE:
                    adaptive.refuse(outcome, reached, steps, first + int(i), first + int(i) + 1, stiff.MOST_STEPS)
            left = np.delete(left, leaving) if lam > span[1] else left[:0]
    return ends.T


def _steps(
    part: Part,
    span: tuple[float, float],
    tolerance: tuple[float, float],
    most: int,
    taken: int,
    paths: tuple[int, int],
    left: npt.NDArray[np.intp],
    ends: FloatArray,
) -> tuple[float, int, npt.NDArray[np.intp]]:
    """Carry ``ends[left]`` together until done, or until some of them had better go alone.

    Returns
    -------
    the lam reached, the steps taken so far, and the places in ``left`` of those that leave.
    """
    from scipy.integrate import DOP853

    n, (dim, high, low) = left.size, (ends.shape[1] - 1, *span)
    # SciPy takes arrays here, though its signature has numbers.
    scales: dict[str, Any] = dict(zip(("rtol", "atol"), _scales(n, dim, *tolerance), strict=True))
    state = np.concatenate([ends[left, :-1].ravel(), ends[left, -1]])
    slopes, leaving = Slopes(part, n), np.arange(0)
    solver = DOP853(slopes, high, state, low, first_step=min(FIRST, high - low), max_step=LONGEST, **scales)
    recent = deque([high], maxlen=RECENT + 1)
    while solver.status == "running" and not leaving.size:
        if solver.nfev >= ATTEMPT * most:
            adaptive.refuse(EXHAUSTED, solver.t, taken, *paths, most)
        solver.step()
        taken += 1
        recent.append(solver.t)
        if len(recent) > RECENT and (recent[0] - recent[-1]) * slopes.stiffness.max() < STIFF * RECENT:
            leaving = stiff.apart(slopes.stiffness, *_prices(part, n))
    if solver.status == "failed":
        adaptive.refuse(LOST, solver.t, taken - 1, *paths, most)
    ends[left, :-1], ends[left, -1] = solver.y[:-n].reshape(n, dim), solver.y[-n:]
    return float(solver.t), taken, leaving


def _prices(part: Part, n: int) -> tuple[FloatArray, float]:
    """For `stiff.apart`: of 0 ... n points together, and of one alone."""
    components, dim = part.means.shape
    together = stiff.CALL + 2 * components * dim**2 * np.arange(n + 1)
    together[0] = 0.0
    return ATTEMPT / USUAL * together, stiff.price(components, dim, axes=True)


def _scales(n: int, dim: int, rtol: float, atol: float) -> tuple[FloatArray, FloatArray]:
    """Tolerances for SciPy, relative and absolute.

    It limits the mean square over the state of n points: with these no part of the sum is above the square of its own
    tolerance, even if all of the error is there.
    """
    share = 1.0 / np.sqrt(n * (dim + 1))
    # max(1, |volume|) is at least half of 1 + |volume|.
    relative = np.repeat([0.0, 0.5 * rtol * share], [n * dim, n])
    absolute = np.repeat([(rtol + atol) * share, (0.5 * rtol + atol) * share], [n * dim, n])
    return np.maximum(relative, stiff.ROUNDING), absolute


class Slopes:
    """du/dlam of n points and its divergence, as function of lam and the state: all coordinates, then all integrals.

    ``stiffness`` is L of `stiff` at the last state, which after a step of SciPy's is its end.
    """

    def __init__(self, part: Part, n: int) -> None:
        assert part.axes is not None
        components, dim = part.means.shape
        self._variances, self._narrow = part.variances, float(part.variances.min())
        self._logw, self.stiffness = np.log(part.weights), np.zeros(n)
        self._axes = part.axes.reshape(components * dim, dim)
        self._centres = np.einsum("kij,kj->ki", part.axes, part.means)
        # Fresh memory of this size comes as untouched pages, and touching them first would cost more than the work.
        self._places, self._pulls = np.empty((2, n, components, dim))

    def __call__(self, lam: float, state: FloatArray) -> FloatArray:
        y, pull = self._places, self._pulls
        n, components, dim = y.shape
        u = state[: n * dim].reshape(n, dim)
        noise = np.exp(-lam)
        square, variances = self._narrow + noise, self._variances + noise
        # All in units of rho: y = Q (u - m / rho), pull = y rho^2 / V = -Q rho g.
        inverse = square / variances
        np.matmul(u, self._axes.T, out=y.reshape(n, components * dim))
        y -= self._centres / np.sqrt(square)
        np.multiply(y, inverse, out=pull)
        logits = self._logw - 0.5 * np.sum(np.log(variances), axis=1) - 0.5 * np.vecdot(y, pull)
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        squares = np.vecdot(pull, pull)
        within = np.vecdot(p, squares - np.sum(inverse, axis=1))
        pull *= p[:, :, None]
        score = -(pull.reshape(n, components * dim) @ self._axes)
        rate = 0.5 * noise / square
        size = np.vecdot(score, score)
        self.stiffness = rate * (np.vecdot(p, squares) - size)
        divergence = rate * (dim + within - size)
        return np.concatenate([(rate * (u + score)).ravel(), divergence])
