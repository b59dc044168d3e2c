"""pyito, which compiles the user's functions with Numba and runs paths in `prange`; all cores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pyito

from thermodiff.bench.problems import DoubleWell, FloatArray
from thermodiff.bench.rivals.numba_ import on_threads


@numba.njit(fastmath=True)
def _drift(t: float, x: Any, args: Any) -> Any:
    return np.array([args[0] * x[0] - args[1] * x[0] ** 3])


@numba.njit(fastmath=True)
def _noise(t: float, x: Any, args: Any) -> Any:
    return args[2]


def double_well(problem: DoubleWell) -> Callable[[], FloatArray]:
    """Its Euler-Maruyama kernel for scalar noise, final state only."""
    p = problem
    # It takes ceil(interval / dt) steps, which rounding can turn into one more.
    interval = (0.0, (p.steps - 0.5) * p.dt)
    sde = pyito.SDE(_drift, _noise, args=(p.a, p.b, p.amplitude / p.dt**0.5))

    def integrate() -> FloatArray:
        return pyito.integrate(sde, np.array([p.start]), interval, p.dt, n_paths=p.paths, seed=p.seed)

    return on_threads(2, integrate)
