"""Vectorised NumPy, with temporaries reused where it pays; BLAS for the cloud."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from thermodiff.bench.problems import Cloud, DoubleWell, Entropy, FloatArray, Mixture

CACHED = 16_384
"""Paths taken together: their arrays stay in the cache."""


def double_well(problem: DoubleWell) -> Callable[[], FloatArray]:
    """In-place operations on slices of the paths that fit in the cache."""

    def work() -> FloatArray:
        generator = np.random.default_rng(problem.seed)
        states = np.full(problem.paths, problem.start)
        for first in range(0, problem.paths, CACHED):
            x = states[first : first + CACHED]
            z, slope = np.empty_like(x), np.empty_like(x)
            for _ in range(problem.steps):
                generator.standard_normal(out=z)
                np.multiply(x, x, out=slope)
                slope *= -problem.b * problem.dt
                slope += 1.0 + problem.a * problem.dt
                x *= slope
                z *= problem.amplitude
                x += z
        return states

    return work


def mixture_score(
    x: FloatArray, weights: FloatArray, means: FloatArray, variances: FloatArray, alpha: float, variance: float
) -> FloatArray:
    """Score of the smoothed mixture at x (d, n): coordinates as rows, so that every operation runs along the paths."""
    dim, width = x.shape[0], alpha * alpha * variances + variance
    square = np.zeros((weights.size, x.shape[1]))
    for c in range(dim):
        gap = alpha * means[:, c, None] - x[c]
        gap *= gap
        square += gap
    square *= -0.5 / width[:, None]
    square += (np.log(weights) - 0.5 * dim * np.log(width))[:, None]
    square -= square.max(axis=0)
    share = np.exp(square, out=square)
    share /= share.sum(axis=0)
    share /= width[:, None]
    return (alpha * means.T) @ share - share.sum(axis=0) * x


def reverse(problem: Mixture) -> Callable[[], FloatArray]:
    """Euler-Maruyama; slices of the paths that fit in the cache."""
    h, (alpha, variance), amplitudes = np.diff(problem.edges), problem.rows(), problem.amplitudes
    start, slab = problem.start, CACHED // 4

    def work() -> FloatArray:
        generator = np.random.default_rng(problem.seed)
        states = np.ascontiguousarray(start.T)
        for first in range(0, problem.paths, slab):
            x = states[:, first : first + slab].copy()
            z = np.empty_like(x)
            for k in range(problem.steps):
                s = mixture_score(x, *problem.parts, alpha[k], variance[k])
                generator.standard_normal(out=z)
                s *= h[k] * variance[k]
                z *= amplitudes[k]
                x *= 1.0 + 0.5 * h[k] * variance[k]
                x += s
                x += z
            states[:, first : first + slab] = x
        return states.T

    return work


def entropy(problem: Entropy) -> Callable[[], tuple[float, float]]:
    """Plain averages with the exact score of each draw; (value, standard error)."""

    def work() -> tuple[float, float]:
        generator, sums = np.random.default_rng(problem.seed), np.zeros(problem.samples)
        weights, means, variances = problem.parts
        cumulated = np.cumsum(weights)
        cumulated[-1] = 1.0
        for weight, alpha, sigma, growth in zip(*problem.quadrature, strict=True):
            k = np.searchsorted(cumulated, generator.random(problem.samples), side="right")
            x0 = means[k].T + np.sqrt(variances[k]) * generator.standard_normal((means.shape[1], k.size))
            x = alpha * x0 + sigma * generator.standard_normal(x0.shape)
            # a - b of the design: twice the velocity, in units of D / sigma.
            gap = sigma * mixture_score(x, weights, means, variances, alpha, sigma * sigma)
            gap += growth / sigma * x
            sums += 0.5 * weight * np.einsum("dn,dn->n", gap, gap)
        return float(sums.mean()), float(sums.std(ddof=1) / np.sqrt(sums.size))

    return work


def cloud(problem: Cloud) -> Callable[[], FloatArray]:
    """Distances and weighted means by matrix products, in float64; 256 queries at a time bound the memory."""
    points, where, scale = problem.cloud, problem.where, 1.0 / problem.sigma**2
    half = 0.5 * np.einsum("nd,nd->n", points, points)

    def work() -> FloatArray:
        result = np.empty_like(where)
        for first in range(0, len(where), 256):
            x = where[first : first + 256]
            logits = x @ points.T
            logits -= half
            logits *= scale
            logits -= logits.max(axis=1, keepdims=True)
            np.exp(logits, out=logits)
            mean = logits @ points
            mean /= logits.sum(axis=1, keepdims=True)
            mean -= x
            np.multiply(mean, scale, out=result[first : first + 256])
        return result

    return work
