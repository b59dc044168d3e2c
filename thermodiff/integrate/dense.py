"""The flow of a mixture with full covariances in many dimensions, by matrix products.

In y = x / alpha the flow is that of the data with noise of variance ``v = exp(-lam)`` added, whatever the schedule:
dy/dlam = (v / 2) s.  With rho^2 = v + the smallest variance of the data and the mean c of the data, u = (y - c) / rho is in
units of the narrowest width of p_t, and

    du/dlam = (v / (2 rho^2)) (u + rho s),    s = sum_k p_k g_k,    g_k = -Q_k^T (Q_k (y - m_k) / V_k),

where the rows of Q_k are the principal axes of component k, V_k its variances plus v, and p_k its probability at y.  The
divergence of s is sum_k p_k (|g_k|^2 - sum_i 1 / V_ki) - |s|^2.

The compiled flow works on 256 points however few there are, and reads every axis twice for each of its slopes; here a slope
of a group of points is two products with the axes of all components, and the steps are of higher order.

Reference: DOP853 of Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, section II.5, as in SciPy.
"""

from __future__ import annotations

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
from thermodiff.integrate import adaptive
from thermodiff.kernels.adaptive import EXHAUSTED, FIRST, LONGEST, LOST
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
ROUNDING = 100.0 * float(np.finfo(np.float64).eps)
"""Relative error of a coordinate in a step that is allowed in any case; SciPy takes no smaller one."""


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
    task = partial(_flow_groups, centred, span, (rtol, atol), adaptive.MOST_STEPS, group)
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
    from scipy.integrate import DOP853

    n, dim = points.shape
    high, low = span
    # SciPy takes arrays here, though its signature has numbers.
    scales: dict[str, Any] = dict(zip(("rtol", "atol"), _scales(n, dim, *tolerance), strict=True))
    state = np.concatenate([points.ravel(), np.zeros(n)])
    taken = 0
    # Where a state is out of range its slope is not a number, and the step is refused.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        solver = DOP853(
            Slopes(part, n), high, state, low, first_step=min(FIRST, high - low), max_step=LONGEST, **scales
        )  # fmt: skip
        while solver.status == "running":
            if solver.nfev >= ATTEMPT * most:
                adaptive._refuse(EXHAUSTED, solver.t, taken, first, first + n, most)
            solver.step()
            taken += 1
    if solver.status == "failed":
        adaptive._refuse(LOST, solver.t, taken - 1, first, first + n, most)
    return np.concatenate([solver.y[:-n].reshape(n, dim).T, solver.y[None, -n:]])


def _scales(n: int, dim: int, rtol: float, atol: float) -> tuple[FloatArray, FloatArray]:
    """Tolerances for SciPy, relative and absolute.

    It limits the mean square over the state of n points: with these no part of the sum is above the square of its own
    tolerance, even if all of the error is there.
    """
    share = 1.0 / np.sqrt(n * (dim + 1))
    # max(1, |volume|) is at least half of 1 + |volume|.
    relative = np.repeat([0.0, 0.5 * rtol * share], [n * dim, n])
    absolute = np.repeat([(rtol + atol) * share, (0.5 * rtol + atol) * share], [n * dim, n])
    return np.maximum(relative, ROUNDING), absolute


class Slopes:
    """du/dlam of n points and its divergence, as function of lam and the state: all coordinates, then all integrals."""

    def __init__(self, part: Part, n: int) -> None:
        assert part.axes is not None
        components, dim = part.means.shape
        self._variances, self._narrow = part.variances, float(part.variances.min())
        self._logw = np.log(part.weights)
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
        within = np.vecdot(p, np.vecdot(pull, pull) - np.sum(inverse, axis=1))
        pull *= p[:, :, None]
        score = -(pull.reshape(n, components * dim) @ self._axes)
        rate = 0.5 * noise / square
        divergence = rate * (dim + within - np.vecdot(score, score))
        return np.concatenate([(rate * (u + score)).ravel(), divergence])
