"""Problems: their truths against closed forms, and what the judges see."""

from __future__ import annotations

import numpy as np
import pytest

from thermodiff._check import seed_words
from thermodiff.bench.problems import Cloud, DoubleWell, Entropy, Mixture, score


@pytest.mark.parametrize("steps", [1, 2, 7, 300])
def test_the_truth_of_the_double_well_for_a_linear_drift(steps: int) -> None:
    """Mean and variance of the Euler chain of a linear drift obey a recursion."""
    problem = DoubleWell(10, steps, dt=0.01, a=-1.5, b=0.0, diffusivity=0.4, start=0.7)
    factor, variance = 1.0 - 1.5 * 0.01, 0.0
    for _ in range(steps):
        variance = factor**2 * variance + problem.amplitude**2
    assert problem.truth == pytest.approx((0.7 * factor**steps) ** 2 + variance, rel=1e-10)


def test_the_truth_of_the_double_well_in_the_long_run() -> None:
    """exp(-U / D) for small steps."""
    x = np.linspace(-5.0, 5.0, 20_001)
    law = np.exp((0.5 * x**2 - 0.25 * x**4) / 0.5)
    truth = (x**2 @ law) / law.sum()
    assert DoubleWell(1, 40_000).truth == pytest.approx(truth, rel=3e-3)


def test_the_judge_sees_two_percent() -> None:
    problem = DoubleWell(40_000, 1, start=0.0)
    states = problem.amplitude * np.random.default_rng(0).standard_normal(problem.paths)
    good, bad = problem.judge(states), problem.judge(1.02 * states)
    assert abs(good.deviation) < 4.0 * good.error
    assert bad.deviation > 4.0 * bad.error


def test_the_key_and_size_of_the_double_well() -> None:
    problem = DoubleWell(300, 20, seed=5)
    assert problem.key == tuple(seed_words(5))
    assert problem.size == 6000
    assert problem.amplitude == pytest.approx(np.sqrt(2.0 * 0.5 * 1e-3))


def test_the_mixture_is_what_thermodiff_solves() -> None:
    problem = Mixture(50, 8)
    alpha, variance = problem.rows()
    assert problem.edges[[0, -1]] == pytest.approx(problem.window)
    np.testing.assert_allclose(variance, 1.0 / (1.0 + np.exp(problem.edges[:-1])), rtol=1e-12)
    for k in (0, 3, 7):
        want = problem.data.score(problem.start, alpha=alpha[k], sigma=np.sqrt(variance[k]))
        np.testing.assert_allclose(score(problem.start, *problem.parts, alpha[k], variance[k]), want, rtol=1e-9, atol=1e-12)
    assert problem.amplitudes.shape == (8,)


def test_the_judge_of_generated_data() -> None:
    problem = Mixture(20_000, 1)
    data = problem.data.sample(problem.paths, 1)
    good, bad = problem.judge(data), problem.judge(1.05 * data)
    assert abs(good.deviation) < 4.0 * good.error
    assert abs(bad.deviation) > 4.0 * bad.error


def test_the_reference_of_the_flow_keeps_a_gaussian() -> None:
    """It is the flow of the mixture: carried back with thermodiff's RK4, it finds its start."""
    import thermodiff as td

    problem = Mixture(64, 1)
    low, high = problem.window
    times = problem.system.noise.time(np.array([high, low]))
    back = td.probability_flow(problem.system, problem.carried, times=times, steps=3000, method="rk4", denoise=False)
    assert np.abs(back.final - problem.start).max() < 1e-4
    assert problem.judge_flow(problem.carried).deviation == 0.0


def test_the_judge_of_entropies() -> None:
    problem = Entropy(8, 10)
    found = problem.judge((1.01 * problem.truth.value, 0.0))
    assert found.deviation == pytest.approx(0.01)
    assert len(problem.quadrature) == 4
    assert problem.size == 80


def test_the_truth_of_the_cloud() -> None:
    import thermodiff as td

    problem = Cloud(50, 5, 12, sigma=0.7)
    found = td.PointCloud(problem.cloud).score(problem.where, sigma=0.7)
    assert problem.judge(found).deviation < 1e-12
    assert problem.judge(1.001 * found).deviation > 1e-4
