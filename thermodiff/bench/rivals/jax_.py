"""Jitted JAX, `lax.scan` over the steps, in float64; XLA uses all cores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from thermodiff.bench.problems import DoubleWell, Entropy, FloatArray, Mixture

# Results would be good to seven digits otherwise, and faster by less than a factor of two.
jax.config.update("jax_enable_x64", True)


def ready(function: Callable[..., Any], *arguments: Any) -> Callable[[], FloatArray]:
    """A call whose result is there when it returns: JAX only promises it."""

    def work() -> FloatArray:
        return np.asarray(jax.block_until_ready(function(*arguments)))

    return work


def double_well(problem: DoubleWell) -> Callable[[], FloatArray]:
    """One key per step, normals of all paths at once."""
    p = problem

    @jax.jit
    def run(key: Any) -> Any:
        def step(x: Any, k: Any) -> Any:
            z = jax.random.normal(jax.random.fold_in(key, k), x.shape)
            return x + p.dt * (p.a * x - p.b * x * x * x) + p.amplitude * z, None

        return lax.scan(step, jnp.full(p.paths, p.start), jnp.arange(p.steps))[0]

    return ready(run, jax.random.key(p.seed))


def mixture_score(x: Any, weights: Any, means: Any, variances: Any, alpha: Any, variance: Any) -> Any:
    """Score of the smoothed mixture at x (n, d).

    Of six ways to write it, the fastest; with coordinates as rows, or with the components written out, it takes half as long
    again or more.
    """
    width = alpha * alpha * variances + variance
    gap = alpha * means - x[:, None, :]
    logits = jnp.log(weights) - 0.5 * x.shape[1] * jnp.log(width) - 0.5 * (gap * gap).sum(axis=2) / width
    return jnp.einsum("nk,nkd->nd", jax.nn.softmax(logits, axis=1) / width, gap)


def reverse(problem: Mixture) -> Callable[[], FloatArray]:
    """Euler-Maruyama."""
    weights, means, variances = (jnp.asarray(part) for part in problem.parts)
    alpha, variance = problem.rows()
    rows = [jnp.asarray(row) for row in (np.diff(problem.edges), alpha, variance, problem.amplitudes)]

    @jax.jit
    def run(x: Any, key: Any) -> Any:
        def step(x: Any, row: Any) -> Any:
            k, (h, alpha, variance, amplitude) = row
            z = jax.random.normal(jax.random.fold_in(key, k), x.shape)
            slope = variance * (0.5 * x + mixture_score(x, weights, means, variances, alpha, variance))
            return x + h * slope + amplitude * z, None

        return lax.scan(step, x, (jnp.arange(problem.steps), rows))[0]

    return ready(run, jnp.asarray(problem.start), jax.random.key(problem.seed))


def velocity(u: Any, x: Any, weights: Any, means: Any, variances: Any) -> Any:
    """Probability-flow velocity per unit of log-SNR at x (n, d)."""
    variance = 1.0 / (1.0 + jnp.exp(u))
    return 0.5 * variance * (x + mixture_score(x, weights, means, variances, jnp.sqrt(1.0 - variance), variance))


def flow(problem: Mixture) -> Callable[[], FloatArray]:
    """RK4."""
    parts, h = [jnp.asarray(part) for part in problem.parts], float(problem.edges[1] - problem.edges[0])

    @jax.jit
    def run(x: Any, edges: Any) -> Any:
        def step(x: Any, u: Any) -> Any:
            k1 = velocity(u, x, *parts)
            k2 = velocity(u + 0.5 * h, x + 0.5 * h * k1, *parts)
            k3 = velocity(u + 0.5 * h, x + 0.5 * h * k2, *parts)
            k4 = velocity(u + h, x + h * k3, *parts)
            return x + h / 6.0 * (k1 + 2.0 * (k2 + k3) + k4), None

        return lax.scan(step, x, edges)[0]

    return ready(run, jnp.asarray(problem.start), jnp.asarray(problem.edges[:-1]))


def entropy(problem: Entropy) -> Callable[[], FloatArray]:
    """Plain averages with the exact score of each draw, node after node; (value, standard error)."""
    weights, means, variances = (jnp.asarray(part) for part in problem.parts)

    @jax.jit
    def run(key: Any, rows: Any) -> Any:
        def node(sums: Any, row: Any) -> Any:
            k, (weight, alpha, sigma, growth) = row
            one, two, three = jax.random.split(jax.random.fold_in(key, k), 3)
            j = jax.random.choice(one, weights.size, (problem.samples,), p=weights)
            shape = (problem.samples, means.shape[1])
            x0 = means[j] + jnp.sqrt(variances[j])[:, None] * jax.random.normal(two, shape)
            x = alpha * x0 + sigma * jax.random.normal(three, shape)
            gap = sigma * mixture_score(x, weights, means, variances, alpha, sigma * sigma) + growth / sigma * x
            return sums + 0.5 * weight * (gap * gap).sum(axis=1), None

        sums = lax.scan(node, jnp.zeros(problem.samples), (jnp.arange(problem.nodes), rows))[0]
        return jnp.stack([sums.mean(), sums.std(ddof=1) / jnp.sqrt(sums.size)])

    return ready(run, jax.random.key(problem.seed), [jnp.asarray(row) for row in problem.quadrature])


def products(x: Any, weights: Any, means: Any, variances: Any, alpha: Any, sigma: Any) -> Any:
    """The rows that `td.account` draws its control variates from, (G, n): see `thermodiff.accounting.moments`."""
    dim, width = x.shape[1], alpha * alpha * variances + sigma * sigma
    gap = alpha * means - x[:, None, :]
    squares = (gap * gap).sum(axis=2) / width
    logits = jnp.log(weights) - 0.5 * dim * jnp.log(width) - 0.5 * squares
    top = logits.max(axis=1)
    exponentials = jnp.exp(logits - top[:, None])
    total = exponentials.sum(axis=1)
    share = exponentials / total[:, None]
    b = sigma * jnp.einsum("nk,nkd->nd", share / width, gap)
    excess = share * (squares - dim)
    pairs = [(p * q).sum(axis=1) for p, q in ((x, x), (x, b), (b, b))]
    divergence = sigma * sigma * (excess / width).sum(axis=1) - pairs[2]
    density = top + jnp.log(total) - 0.5 * dim * jnp.log(2.0 * jnp.pi)
    components = jnp.stack([share - weights, excess], axis=2).reshape(len(x), -1)
    return jnp.concatenate([jnp.stack([divergence, density]), components.T, jnp.stack(pairs)])


def fit(controls: Any, value: Any, sizes: Any, limits: Any) -> Any:
    """Coefficients of the controls (C, n) in a value (n,), as `thermodiff.kernels.controls` finds them."""
    ridge, leverage, smallest = limits
    square, mean = (controls * controls).mean(axis=1), controls.mean(axis=1)
    usable = (square > (smallest * sizes) ** 2) & ((controls * controls).max(axis=1) < leverage * controls.shape[1] * square)
    scale = jnp.where(usable, 1.0 / jnp.sqrt(jnp.where(usable, square, 1.0)), 0.0)
    gram = scale[:, None] * scale * (controls @ controls.T / controls.shape[1] - mean[:, None] * mean)
    right = scale * (controls @ value / controls.shape[1] - mean * value.mean())
    gram = gram + jnp.diag(jnp.where(usable, ridge, 1.0))
    return scale * jax.scipy.linalg.solve(gram, right, assume_a="pos")


def entropy_reduced(problem: Entropy) -> Callable[[], FloatArray]:
    """The same with the control variates of `td.account`, fitted on each half of the draws for the other."""
    weights, means, variances = (jnp.asarray(part) for part in problem.parts)
    plan, (terms, constants) = problem.plan, problem.table
    controls, half = plan.sizes.shape[1], problem.samples // 2
    limits = plan.arguments(0)[-1]

    @jax.jit
    def run(key: Any, rows: Any) -> Any:
        def node(sums: Any, row: Any) -> Any:
            k, (weight, alpha, sigma, _), terms, constants, sizes = row
            one, two = jax.random.split(jax.random.fold_in(key, k))
            j = jax.random.choice(one, weights.size, (problem.samples,), p=weights)
            width = jnp.sqrt(alpha * alpha * variances + sigma * sigma)[j][:, None]
            z = jax.random.normal(two, (problem.samples, means.shape[1]))
            given = products(alpha * means[j] + width * z, weights, means, variances, alpha, sigma)
            table = terms @ given + constants[:, None]
            made = [table[p] * table[q] + table[r] for _, p, q, r in plan.products]
            table = table.at[plan.products[:, 0]].set(jnp.stack(made))
            part, value = table[1 : 1 + controls], table[1 + controls]
            halves = [slice(0, half), slice(half, problem.samples)]
            fits = [fit(part[:, there], value[there], sizes, limits) for there in halves[::-1]]
            value = jnp.concatenate([
                value[here] - found @ part[:, here] for here, found in zip(halves, fits, strict=True)
            ])  # fmt: skip
            return sums + weight * value, None

        sums = lax.scan(node, jnp.zeros(problem.samples), (jnp.arange(problem.nodes), *rows))[0]
        return jnp.stack([sums.mean(), sums.std(ddof=1) / jnp.sqrt(sums.size)])

    rows = [[jnp.asarray(row) for row in problem.quadrature], *(jnp.asarray(a) for a in (terms, constants, plan.sizes))]
    return ready(run, jax.random.key(problem.seed), rows)
