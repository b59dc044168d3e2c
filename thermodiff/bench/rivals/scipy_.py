"""SciPy's `solve_ivp` for the probability flow: the whole batch as one system."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.integrate import solve_ivp

from thermodiff.bench.problems import FloatArray, Mixture
from thermodiff.bench.rivals.numpy_ import mixture_score


def flow(problem: Mixture) -> Callable[[], FloatArray]:
    """RK45 is the pair of Dormand and Prince: all paths share their steps."""
    start = np.ascontiguousarray(problem.start.T)

    def velocity(u: float, x: FloatArray) -> FloatArray:
        point, variance = x.reshape(start.shape), 1.0 / (1.0 + np.exp(u))
        slope = mixture_score(point, *problem.parts, np.sqrt(1.0 - variance), variance)
        slope += point
        slope *= 0.5 * variance
        return slope.ravel()

    def work() -> FloatArray:
        found = solve_ivp(velocity, problem.window, start.ravel(), method="RK45", rtol=problem.rtol, atol=problem.atol)
        return found.y[:, -1].reshape(start.shape).T

    return work
