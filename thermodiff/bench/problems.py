"""What is computed: the numbers of each problem, and its truth.

All ways to do a work get the same problem, and their results are judged by the same function.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from thermodiff._check import seed_words
from thermodiff.accounting import Estimate
from thermodiff.accounting.measure import node_scalars
from thermodiff.accounting.moments import Plan, plan
from thermodiff.accounting.nodes import gauss_legendre
from thermodiff.densities import GaussianMixture, paper_mixture
from thermodiff.diffusion import Diffusion, oracle
from thermodiff.schedules import VP

FloatArray = npt.NDArray[np.float64]


class Verdict(NamedTuple):
    """Deviation of a result from the truth, with the standard error of the two together (0: the result is not random)."""

    what: str
    deviation: float
    error: float


def _of_mean(what: str, values: FloatArray, truth: float) -> Verdict:
    """Mean of independent values against the truth, relative to it."""
    error = float(values.std(ddof=1) / np.sqrt(values.size))
    return Verdict(what, float(values.mean()) / truth - 1.0, error / abs(truth))


@dataclass(frozen=True)
class DoubleWell:
    """dx = (a x - b x^3) dt + sqrt(2 D) dW by Euler-Maruyama; only the final state is kept."""

    paths: int
    steps: int
    dt: float = 1e-3
    a: float = 1.0
    b: float = 1.0
    diffusivity: float = 0.5
    start: float = 0.5
    seed: int = 0

    @property
    def amplitude(self) -> float:
        """Standard deviation of the noise of a step."""
        return float(np.sqrt(2.0 * self.diffusivity * self.dt))

    @property
    def key(self) -> tuple[int, int]:
        """The key that thermodiff makes of the seed."""
        words = seed_words(self.seed)
        return int(words[0]), int(words[1])

    @property
    def size(self) -> int:
        """Path-steps."""
        return self.paths * self.steps

    @cached_property
    def truth(self) -> float:
        """E x^2 of the chain itself, step error included.

        The density after one step is a Gaussian; each further step is one multiplication by the matrix of the chain on a
        grid, where the trapezoidal rule is exact to rounding.
        """
        x = np.linspace(-4.5, 4.5, 1 + round(9.0 / min(0.5 * self.amplitude, 0.02)))
        width = x[1] - x[0]

        def after(states: FloatArray) -> FloatArray:
            mean = states + self.dt * (self.a * states - self.b * states**3)
            z = (x[:, None] - mean[None, :]) / self.amplitude
            return np.exp(-0.5 * z * z) / (np.sqrt(2.0 * np.pi) * self.amplitude)

        density, matrix = after(np.array([self.start]))[:, 0], width * after(x)
        # Binary powers of the matrix: log2(steps) products.
        left = self.steps - 1
        while left:
            if left & 1:
                density = matrix @ density
            left >>= 1
            if left:
                matrix = matrix @ matrix
        return float(width * (x**2 @ density))

    def judge(self, states: FloatArray) -> Verdict:
        """Second moment of the final states."""
        return _of_mean("E x²", np.asarray(states, np.float64).ravel() ** 2, self.truth)


@dataclass(frozen=True)
class Mixture:
    """The five-component 2-D mixture of the "Neural Entropy" notebook under VP, from noise to data.

    With u = log-SNR, alpha^2 = 1 / (1 + exp(-u)) and v = sigma^2 = 1 / (1 + exp(u)); s is the score at u:

    reverse SDE         dx = (v / 2 x + v s) du + sqrt(v) dW
    probability flow    dx = (v / 2 x + v / 2 s) du
    """

    paths: int
    steps: int
    rtol: float = 1e-6
    atol: float = 1e-8
    seed: int = 0
    dim: int = 2

    @cached_property
    def data(self) -> GaussianMixture:
        """The law of the data."""
        return paper_mixture(self.dim)

    @cached_property
    def system(self) -> Diffusion:
        """The diffusion."""
        return Diffusion(self.data, VP())

    @property
    def size(self) -> int:
        """Path-steps."""
        return self.paths * self.steps

    @cached_property
    def window(self) -> tuple[float, float]:
        """Log-SNR at the noise end and at the data end."""
        return self.system.noise.window()

    @cached_property
    def edges(self) -> FloatArray:
        """Log-SNR at the ends of the steps."""
        return np.linspace(*self.window, self.steps + 1)

    @cached_property
    def parts(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Weights (K,), means (K, d), variances (K,)."""
        part = self.data.parts()
        return part.weights, part.means, np.ascontiguousarray(part.variances[:, 0])

    @cached_property
    def start(self) -> FloatArray:
        """First states, drawn from the marginal at the noise end, (n, d)."""
        generator, row = np.random.default_rng(self.seed), self.system.noise.at(np.array(self.window[0]))
        x0 = self.data.sample(self.paths, generator)
        return float(row.alpha) * x0 + float(row.sigma) * generator.standard_normal(x0.shape)

    def rows(self, share: float = 0.0) -> tuple[FloatArray, FloatArray]:
        """alpha and sigma^2 of each step, ``share`` of the step after its beginning."""
        at = self.system.noise.at(self.edges[:-1] + share * np.diff(self.edges))
        return at.alpha, at.sigma**2

    @property
    def amplitudes(self) -> FloatArray:
        """Standard deviation of the noise of each step of the reverse SDE; v is taken in its middle."""
        return np.sqrt(self.rows(0.5)[1] * np.diff(self.edges))

    def judge(self, states: FloatArray) -> Verdict:
        """E|x|^2 of generated data; the step error, which all ways with this rule share, is part of it."""
        last = self.system.noise.at(np.array(self.window[1]))
        truth = float(last.alpha) ** 2 * self.data.second_moment + float(last.sigma) ** 2 * self.data.dim
        return _of_mean("E|x|²", (np.asarray(states, np.float64) ** 2).sum(axis=1), truth)

    def judge_flow(self, states: FloatArray) -> Verdict:
        """Largest distance of the first paths from the reference."""
        gap = np.asarray(states, np.float64)[: len(self.carried)] - self.carried
        return Verdict("max |x - ref|", float(np.abs(gap).max()), 0.0)

    @cached_property
    def carried(self) -> FloatArray:
        """Ends of the flow of the first 64 paths by SciPy's DOP853 at rtol 1e-11."""
        from scipy.integrate import solve_ivp

        first = self.start[:64]

        def velocity(u: float, x: FloatArray) -> FloatArray:
            point = x.reshape(first.shape)
            variance = 1.0 / (1.0 + np.exp(u))
            return (0.5 * variance * (point + score(point, *self.parts, np.sqrt(1.0 - variance), variance))).ravel()

        found = solve_ivp(velocity, self.window, first.ravel(), method="DOP853", rtol=1e-11, atol=1e-12)
        return found.y[:, -1].reshape(first.shape)


def score(
    x: FloatArray, weights: FloatArray, means: FloatArray, variances: FloatArray, alpha: float, variance: float
) -> FloatArray:
    """Score of an isotropic mixture at points (n, d), in NumPy."""
    width = alpha**2 * variances + variance
    gap = alpha * means - x[:, None, :]
    logits = np.log(weights) - 0.5 * x.shape[1] * np.log(width) - 0.5 * (gap * gap).sum(axis=2) / width
    share = np.exp(logits - logits.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)
    return np.einsum("nk,nkd->nd", share / width, gap)


@dataclass(frozen=True)
class Entropy:
    """Exact entropy production of the published D = 3 mixture under VP."""

    nodes: int
    samples: int
    seed: int = 0

    @cached_property
    def system(self) -> Diffusion:
        """The diffusion."""
        return Diffusion(paper_mixture(3), VP())

    @property
    def size(self) -> int:
        """Draws."""
        return self.nodes * self.samples

    @cached_property
    def parts(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Weights (K,), means (K, d), variances (K,)."""
        part = self.system.data.parts()
        return part.weights, part.means, np.ascontiguousarray(part.variances[:, 0])

    @cached_property
    def quadrature(self) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """Weights, alpha, sigma and 2 d ln alpha / du at Gauss-Legendre nodes in log-SNR u."""
        lam, weights = gauss_legendre(*self.system.window(), self.nodes)
        row = self.system.noise.at(lam)
        return weights, row.alpha, row.sigma, 2.0 * row.growth

    @cached_property
    def plan(self) -> Plan:
        """Values and control variates of `td.account` as rows of a table."""
        lam, _ = gauss_legendre(*self.system.window(), self.nodes)
        scalars = node_scalars(self.system, self.system.noise.at(lam))
        return plan(self.system.products(), scalars, self.samples)

    @cached_property
    def table(self) -> tuple[FloatArray, FloatArray]:
        """The linear rows of the table as matrices (nodes, rows, products), and their constants (nodes, rows)."""
        columns, factors = self.plan.columns, self.plan.factors
        terms = np.zeros((*factors.shape[:2], len(self.system.products())))
        for r, k in zip(*np.nonzero(columns >= 0), strict=True):
            terms[:, r, columns[r, k]] += factors[:, r, k]
        return terms, factors[:, :, -1]

    @cached_property
    def truth(self) -> Estimate:
        """The balance of entropy, without any use of the score."""
        return oracle(self.system)

    def judge(self, result: Any) -> Verdict:
        """``result`` = (entropy production, its standard error), nats."""
        value, error = float(result[0]), float(result[1])
        truth = float(self.truth.value)
        return Verdict("S_tot", value / truth - 1.0, float(np.hypot(error, self.truth.error)) / truth)


@dataclass(frozen=True)
class Cloud:
    """Score of a smoothed cloud of points at queries near it."""

    points: int
    dim: int
    queries: int
    sigma: float = 2.0
    seed: int = 0

    @property
    def size(self) -> int:
        """Pairs of query and point, times the dimension."""
        return self.points * self.dim * self.queries

    @cached_property
    def cloud(self) -> FloatArray:
        """The points, (n, d)."""
        return np.random.default_rng(self.seed).random((self.points, self.dim))

    @cached_property
    def where(self) -> FloatArray:
        """The queries, (m, d)."""
        generator = np.random.default_rng(self.seed + 1)
        chosen = self.cloud[generator.integers(self.points, size=self.queries)]
        return chosen + self.sigma * generator.standard_normal(chosen.shape)

    @cached_property
    def truth(self) -> FloatArray:
        """The score at the first eight queries in long double, by differences."""
        result = []
        for x in self.where[:8].astype(np.longdouble):
            gap = self.cloud - x
            logits = -0.5 * (gap * gap).sum(axis=1) / np.longdouble(self.sigma) ** 2
            share = np.exp(logits - logits.max())
            result.append(share @ gap / (share.sum() * np.longdouble(self.sigma) ** 2))
        return np.array(result, np.float64)

    def judge(self, result: FloatArray) -> Verdict:
        """Largest error relative to the largest score."""
        gap = np.abs(np.asarray(result, np.float64)[: len(self.truth)] - self.truth).max()
        return Verdict("max rel. error", float(gap / np.abs(self.truth).max()), 0.0)
