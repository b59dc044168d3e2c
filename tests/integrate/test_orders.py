"""Strong and weak orders of the rules where noise is additive, on linear dynamics and without any sampling error.

There the last state of a path is A x_0 + b + sum C_n z_n, with numbers that can be read off a run, and the exact solution is
Phi x_0 + m + int W(s) dW(s).  A rule takes z_n for int u_n dW over its step, so that the mean square of the difference is
E |(A - Phi) x_0 + b - m|^2 + sum int |C_n u_n(s) - W(s)|^2 ds, where u_n = 1 / sqrt(h): z_n is the increment.  The C_n that make
this smallest are int W u_n ds: no rule that is told the increments alone can be closer (Clark and Cameron, 1980).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from scipy.linalg import expm

import thermodiff as td
from thermodiff.kernels import philox
from thermodiff.kernels.jit import LANES

NODES, WEIGHTS = (0.5 * values + shift for values, shift in zip(np.polynomial.legendre.leggauss(8), (0.5, 0.0), strict=True))
COUNTS = (32, 64, 128)


class Exact(NamedTuple):
    """Phi, m and W(s) for s (k,) as (k, d, d), with mean and covariance of the first state."""

    flow: np.ndarray
    shift: np.ndarray
    weight: Callable[[np.ndarray], np.ndarray]
    mean: np.ndarray
    cov: np.ndarray


def increment(s: np.ndarray, begin: float, end: float) -> np.ndarray:
    return np.full_like(s, 1.0 / np.sqrt(end - begin))


def held(s: np.ndarray, begin: float, end: float) -> np.ndarray:
    """u_n of a step that is exact while the posterior mean is held."""
    return np.exp(-0.5 * (end - s)) / np.sqrt(-np.expm1(begin - end))


def normals(key: tuple[int, int], dim: int, n: int, steps: int) -> np.ndarray:
    """(steps, d, n): the documented normals of path noise."""
    blocks = -(-n // LANES)
    z = np.empty((steps, dim, blocks * LANES))
    for step in range(steps):
        philox.noise(np.array(key, dtype=np.uint32), 0, blocks, step, philox.PATH, z[step])
    return z[:, :, :n]


def response(path, steps: int, k: int = -1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(A, b, C) of state k, which nothing but the start and the documented normals of so many steps enters."""
    start, final = path.states[0], path.states[k]
    n, d = start.shape
    columns = np.column_stack([start, np.ones(n), normals(path.key, d, n, steps).reshape(-1, n).T])
    found = np.linalg.lstsq(columns, final, rcond=None)[0]
    np.testing.assert_allclose(columns @ found, final, rtol=0.0, atol=1e-11)
    return found[:d].T, found[d], found[d + 1 :].reshape(steps, d, d).transpose(0, 2, 1)


def errors(path, edges: np.ndarray, exact: Exact, u=increment) -> tuple[float, float, float, float]:
    """Of the mean, of the covariance, strong (root of the mean square), and the least strong one for these u_n."""
    a, b, c = response(path, edges.size - 1)
    cov, truth, square, least = a @ exact.cov @ a.T, exact.flow @ exact.cov @ exact.flow.T, 0.0, 0.0
    for begin, end, factor in zip(edges[:-1], edges[1:], c, strict=True):
        s, share = begin + (end - begin) * NODES, (end - begin) * WEIGHTS
        own, weight = u(s, begin, end)[:, None, None], exact.weight(s)
        best = np.einsum("k,kij->ij", share, weight * own)
        square += np.einsum("k,kij->", share, (factor * own - weight) ** 2)
        least += np.einsum("k,kij->", share, (best * own - weight) ** 2)
        cov, truth = cov + factor @ factor.T, truth + np.einsum("k,kij,klj->il", share, weight, weight)
    turn, away = a - exact.flow, (a - exact.flow) @ exact.mean + b - exact.shift
    square += away @ away + np.trace(turn @ exact.cov @ turn.T)
    return float(np.linalg.norm(away)), float(np.linalg.norm(cov - truth)), float(np.sqrt(square)), float(np.sqrt(least))


def require_orders(found: np.ndarray, weak: int, closest: bool) -> None:
    """Of `errors` at doubled numbers of steps; ``closest``: the strong one becomes the least that there can be."""
    assert np.all(found[:, 2] >= found[:, 3])
    for values, order in zip(found.T, (weak, weak, 1, 1), strict=True):
        if values.max() > 1e-12:  # some means are exact
            first, last = np.log2(values[:-1] / values[1:])
            # Without the leading part of what the slopes still miss.
            assert abs(2.0 * last - first - order) < 0.04
    ratio = found[-1, 2] / found[-1, 3]
    assert ratio < 1.005 if closest else ratio > 1.5


MATRIX, OFFSET, START = np.array([[-1.0, 2.0], [-0.5, -0.7]]), np.array([0.3, -1.0]), np.array([1.0, -2.0])
LEVELS = {
    "diagonal": np.array([0.3, 0.8]),
    "matrix": np.array([[1.0, 0.6], [0.6, 0.5]]),
    "in time": lambda t: np.array([0.3 + t * t, 1.0 - 0.5 * t]),
}


@td.drift
def spiral(x, t):
    return -x[0] + 2.0 * x[1] + 0.3, -0.5 * x[0] - 0.7 * x[1] - 1.0


def started(n: int = 2 * LANES) -> np.ndarray:
    return START + np.random.default_rng(0).standard_normal((n, 2))


def spiralling(process: td.Langevin, end: float) -> Exact:
    def weight(s: np.ndarray) -> np.ndarray:
        mix = process.mix(s)
        full = mix if mix.shape[2] == 2 else np.eye(2) * mix
        return expm(MATRIX * (end - s)[:, None, None]) @ full

    flow = expm(end * MATRIX)
    return Exact(flow, (flow - np.eye(2)) @ np.linalg.solve(MATRIX, OFFSET), weight, START, np.eye(2))


@pytest.mark.parametrize(("rule", "weak"), [("euler", 1), ("heun", 2)])
@pytest.mark.parametrize("level", LEVELS)
def test_orders_with_additive_noise(rule: str, weak: int, level: str) -> None:
    process, end = td.Langevin(spiral, (), LEVELS[level], dim=2), 1.2
    exact, found = spiralling(process, end), []
    for steps in COUNTS:
        path = td.simulate(process, started(), end, end / steps, method=rule, rng=1)
        found.append(errors(path, np.linspace(0.0, end, steps + 1), exact))
    require_orders(np.array(found), weak, closest=rule == "heun")


@pytest.mark.parametrize("level", [[0.3, 0.8], [0.0, 0.8], LEVELS["matrix"]], ids=["diagonal", "singular", "matrix"])
def test_exact_steps_differ_neither_in_law_nor_along_a_path(level) -> None:
    """Their normals stand for int exp(A (t - s)) B dW over a step that ends at t, which must have the right covariance."""
    process, times, counts = td.Linear(MATRIX, OFFSET, level), np.array([0.0, 0.1, 0.4, 0.5, 1.3]), [1, 2, 1, 4]
    edges = np.array([0.0, 0.1, 0.25, 0.4, 0.5, 0.7, 0.9, 1.1, 1.3])
    path, known = td.simulate(process, started(), times, 0.25, method="exact", rng=3), np.zeros((0, 2, 2))
    for k, steps in enumerate(np.cumsum(counts), start=1):
        exact, (a, b, c) = spiralling(process, times[k]), response(path, steps, k)
        np.testing.assert_allclose(a, exact.flow, rtol=0.0, atol=1e-12)
        np.testing.assert_allclose(b, exact.shift, rtol=0.0, atol=1e-12)
        at_end = expm(MATRIX * (edges[1 : steps + 1] - times[k])[:, None, None]) @ c
        np.testing.assert_allclose(at_end[: len(known)], known, rtol=0.0, atol=1e-12)
        known = at_end
    for begin, end, factor in zip(edges[:-1], edges[1:], known, strict=True):
        weight = spiralling(process, end).weight(begin + (end - begin) * NODES)
        truth = (end - begin) * np.einsum("k,kij,klj->il", WEIGHTS, weight, weight)
        np.testing.assert_allclose(factor @ factor.T, truth, rtol=0.0, atol=1e-12)


@td.diffusivity
def crossed(x, t):
    return 0.5 * x[1] ** 2, 0.5


@td.drift
def resting(x, t):
    return 0.0, 0.0


@pytest.mark.parametrize("steps", [8, 32, 128])
def test_heun_has_strong_order_one_half_where_noises_do_not_commute(steps: int) -> None:
    """dx = y dV, dy = dW: it returns the mean of x given the increments, around which x has the variance h / 4 on [0, 1]."""
    n, parts, h, start = 2000, 8, 1.0 / steps, [0.0, 10.0]
    path = td.simulate(td.Langevin(resting, (), crossed, dim=2), np.tile(start, (n, 1)), 1.0, h, method="heun", rng=5)
    coarse = np.sqrt(h) * normals(path.key, 2, n, steps)
    y = start[1] + np.cumsum(coarse[:, 1], axis=0)
    np.testing.assert_allclose(path.final[:, 0], ((y - 0.5 * coarse[:, 1]) * coarse[:, 0]).sum(axis=0), rtol=0.0, atol=1e-11)
    # The same Brownian path in finer steps, of which the one that is left out takes its share of the variance.
    bridge = np.sqrt(h / parts) * np.random.default_rng(6).standard_normal((steps, parts, 2, n))
    fine = (bridge - bridge.mean(axis=1, keepdims=True) + coarse[:, None] / parts).reshape(steps * parts, 2, n)
    y = start[1] + np.cumsum(fine[:, 1], axis=0)
    square = (((y - 0.5 * fine[:, 1]) * fine[:, 0]).sum(axis=0) - path.final[:, 0]) ** 2
    assert abs(square.mean() - 0.25 * h * (1.0 - 1.0 / parts)) < 4.0 * square.std() / np.sqrt(n)


def reversed_gaussian(noise: td.Schedule, low: float, high: float, mean: float, std: float) -> Exact:
    """x - alpha mean is multiplied by the ratio of v / alpha, v = alpha^2 std^2 + sigma^2 being the variance."""

    def at(lam) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        row = noise.at(np.atleast_1d(lam))
        return row.alpha, row.sigma, row.alpha**2 * std**2 + row.sigma**2

    (alpha, _, spread), (last, _, final) = at(low), at(high)

    def weight(s: np.ndarray) -> np.ndarray:
        here, sigma, variance = at(s)
        return (final * here * sigma / (variance * last))[:, None, None]

    flow = (final * alpha / (spread * last))[:, None]
    return Exact(flow, last * mean - flow[0] * alpha * mean, weight, alpha * mean, spread[:, None])


NOISES = [td.VP(), td.VE(), td.CondOT()]


@pytest.mark.parametrize(
    ("rule", "u", "weak"),
    [("euler", increment, 1), ("exponential", increment, 1), ("exponential", held, 1), ("heun", increment, 2)],
)
@pytest.mark.parametrize("noise", NOISES, ids=lambda noise: noise.name)
def test_orders_of_the_reverse_process(rule: str, u, weak: int, noise: td.Schedule) -> None:
    system, (low, high), found = td.Diffusion(td.Gaussian([1.5], std=0.5), noise), (-4.0, 4.0), []
    exact = reversed_gaussian(noise, low, high, 1.5, 0.5)
    for steps in COUNTS:
        path = td.reverse(system, LANES, steps=steps, method=rule, lam=(low, high), denoise=False, rng=2)
        found.append(errors(path, np.linspace(low, high, steps + 1), exact, u))
    require_orders(np.array(found), weak, closest=rule == "heun")


@pytest.mark.parametrize("noise", NOISES, ids=lambda noise: noise.name)
@pytest.mark.parametrize("steps", [1, 3])
def test_exponential_steps_to_a_point_are_exact_along_each_path(noise: td.Schedule, steps: int) -> None:
    system, (low, high) = td.Diffusion(td.PointCloud([[0.7]]), noise), (-2.0, 1.0)
    path = td.reverse(system, LANES, steps=steps, method="exponential", lam=(low, high), denoise=False, rng=4)
    exact = reversed_gaussian(noise, low, high, 0.7, 0.0)
    assert max(errors(path, np.linspace(low, high, steps + 1), exact, held)) < 1e-12
