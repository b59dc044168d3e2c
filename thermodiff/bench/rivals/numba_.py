"""Numba as it is usually written by hand: a scalar loop over the steps of a path, `prange` over the paths."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from thermodiff.bench.problems import DoubleWell, FloatArray, Mixture

parallel = numba.njit(parallel=True, fastmath=True, error_model="numpy")


@numba.njit(inline="always")
def _uniform(counter: Any) -> Any:
    """The finaliser of SplitMix64: a hash of a counter to (0, 1]."""
    z = counter * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return (float(z >> np.uint64(11)) + 1.0) * (1.0 / 9007199254740992.0)


@numba.njit(inline="always")
def _pair(counter: Any) -> Any:
    """Two normals by Box and Muller."""
    radius = math.sqrt(-2.0 * math.log(_uniform(counter)))
    angle = 2.0 * math.pi * _uniform(counter + np.uint64(1))
    return radius * math.cos(angle), radius * math.sin(angle)


@parallel
def _double_well(start: float, n: int, steps: int, dt: float, a: float, b: float, amplitude: float) -> Any:
    out = np.empty(n)
    for path in numba.prange(n):
        x = start
        for _ in range(steps):
            x += dt * (a * x - b * x * x * x) + amplitude * np.random.normal()  # noqa: NPY002
        out[path] = x
    return out


@parallel
def _double_well_hash(start: float, n: int, steps: int, dt: float, a: float, b: float, amplitude: float, seed: int) -> Any:
    out = np.empty(n)
    for path in numba.prange(n):
        x = start
        counter = np.uint64(seed) + np.uint64(path) * np.uint64(2 * (steps + 1))
        for _ in range(steps // 2):
            z0, z1 = _pair(counter)
            counter += np.uint64(2)
            x += dt * (a * x - b * x * x * x) + amplitude * z0
            x += dt * (a * x - b * x * x * x) + amplitude * z1
        if steps % 2:
            x += dt * (a * x - b * x * x * x) + amplitude * _pair(counter)[0]
        out[path] = x
    return out


@parallel
def _reverse(start: Any, h: Any, alpha: Any, variance: Any, amplitude: Any, weights: Any, means: Any, variances: Any) -> Any:
    n, dim = start.shape
    out, components = np.empty((n, dim)), weights.size
    # The constants of a component at a step are the same for all paths.
    half, offset = np.empty((h.size, components)), np.empty((h.size, components))
    for k in range(h.size):
        for j in range(components):
            width = alpha[k] * alpha[k] * variances[j] + variance[k]
            half[k, j] = 0.5 / width
            offset[k, j] = math.log(weights[j]) - 0.5 * dim * math.log(width)
    for path in numba.prange(n):
        x, s, logits = start[path].copy(), np.empty(dim), np.empty(components)
        for k in range(h.size):
            top = -np.inf
            for j in range(components):
                square = 0.0
                for c in range(dim):
                    gap = alpha[k] * means[j, c] - x[c]
                    square += gap * gap
                logits[j] = offset[k, j] - half[k, j] * square
                top = max(top, logits[j])
            total = 0.0
            for c in range(dim):
                s[c] = 0.0
            for j in range(components):
                share = math.exp(logits[j] - top)
                total += share
                for c in range(dim):
                    s[c] += share * 2.0 * half[k, j] * (alpha[k] * means[j, c] - x[c])
            for c in range(dim):
                kick = amplitude[k] * np.random.normal()  # noqa: NPY002
                x[c] += h[k] * variance[k] * (0.5 * x[c] + s[c] / total) + kick
        for c in range(dim):
            out[path, c] = x[c]
    return out


def on_threads(threads: int, function: Callable[..., Any], *arguments: Any) -> Callable[[], FloatArray]:
    """A call on this many threads; the setting is global, so it is put back."""

    def work() -> FloatArray:
        before = numba.get_num_threads()
        numba.set_num_threads(min(threads, before))
        try:
            return function(*arguments)
        finally:
            numba.set_num_threads(before)

    return work


def double_well(problem: DoubleWell, threads: int = 2) -> Callable[[], FloatArray]:
    """``np.random.normal`` inside."""
    p = problem
    return on_threads(threads, _double_well, p.start, p.paths, p.steps, p.dt, p.a, p.b, p.amplitude)


def double_well_alone(problem: DoubleWell) -> Callable[[], FloatArray]:
    """``np.random.normal`` inside, on one thread."""
    return double_well(problem, threads=1)


def double_well_hash(problem: DoubleWell, threads: int = 2) -> Callable[[], FloatArray]:
    """A hash of a counter inside: reproducible on any number of threads."""
    p = problem
    return on_threads(threads, _double_well_hash, p.start, p.paths, p.steps, p.dt, p.a, p.b, p.amplitude, p.key[0])


def reverse(problem: Mixture, threads: int = 2) -> Callable[[], FloatArray]:
    """The score of the mixture written into the loop."""
    alpha, variance = problem.rows()
    return on_threads(
        threads, _reverse, problem.start, np.diff(problem.edges), alpha, variance, problem.amplitudes, *problem.parts
    )
