"""Exact entropy production of the published D = 3 mixture: thermodiff against the procedure of the published code.

The reference does what the published code does, in vectorised NumPy: uniform times in [1e-5, 1], draws of x_0 and z, the
mixture score, the trapezoidal rule.  Accuracy is stored beside time.  Run with

    pytest benchmarks --benchmark-only -m ""
"""

from __future__ import annotations

import numpy as np
import pytest

import thermodiff as td

NODES, SAMPLES = 64, 10_000


def published_procedure(data: td.GaussianMixture, noise: td.VP, rng: np.random.Generator) -> float:
    """S_tot from uniform times and plain averages."""
    parts = data.parts()
    times = np.linspace(1e-5, 1.0, NODES)
    rates = np.empty(NODES)
    x0 = data.sample(SAMPLES, rng)
    for k, t in enumerate(times):
        alpha, sigma, diffusivity = float(noise.alpha(t)), float(noise.sigma(t)), float(noise.diffusivity(t))
        x = alpha * x0 + sigma * rng.standard_normal(x0.shape)
        variance = alpha**2 * parts.variances[:, 0] + sigma**2
        gap = alpha * parts.means - x[:, None, :]
        logits = np.log(parts.weights) - 0.5 * data.dim * np.log(variance) - 0.5 * (gap**2).sum(-1) / variance
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        score = np.einsum("nk,nkd->nd", weights / variance, gap)
        equilibrium = -x / noise.scale**2
        rates[k] = diffusivity * np.mean(((equilibrium - score) ** 2).sum(-1))
    return float(np.trapezoid(rates, times))


@pytest.mark.parametrize("name", ["thermodiff", "published procedure in NumPy"])
def test_exact_ledger(benchmark, name):
    data, noise = td.paper_mixture(3), td.VP()
    system = td.Diffusion(data, noise)
    truth = td.oracle(system)
    if name == "thermodiff":
        td.account(system, rng=0)
        ledger = benchmark(td.account, system, nodes=NODES, samples=SAMPLES, rng=1)
        estimate = ledger.total("total")
        benchmark.extra_info["reported error"] = estimate.error
        value = estimate.value
    else:
        value = benchmark(published_procedure, data, noise, np.random.default_rng(1))
    benchmark.extra_info["relative deviation"] = value / truth.value - 1.0
    assert abs(value / truth.value - 1.0) < 0.1
