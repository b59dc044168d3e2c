"""Linear maps and control variates against plain NumPy."""

import numpy as np
import pytest

from thermodiff.kernels.controls import TERMS, adjust, in_blocks
from thermodiff.kernels.jit import LANES

RIDGE, LEVERAGE, ROUND_OFF = 1e-4, 0.2, 1e-9


def run(values: np.ndarray, zero_mean: np.ndarray, sizes=None, fitted=None, ridge=RIDGE):
    """Adjust rows that are given as they are: values (R, n) and controls (C, n)."""
    given = np.vstack([zero_mean, values]) if len(zero_mean) else values.copy()
    count = len(given)
    columns = np.vstack([np.full((1, TERMS), -1), np.repeat(np.arange(count)[:, None], TERMS, axis=1)])
    factors = np.zeros((count + 1, TERMS + 1))
    factors[0, TERMS] = 1.0
    factors[1:, 0] = 1.0
    sizes = np.ones(len(zero_mean)) if sizes is None else sizes
    out, statistics = np.empty_like(values), np.empty((len(values), 2))
    products, limits = np.empty((0, 4), dtype=np.int64), np.array([ridge, LEVERAGE, ROUND_OFF])
    fitted = len(values) if fitted is None else fitted
    adjust(in_blocks(given), values.shape[1], fitted, columns, factors, products, sizes, limits, out, statistics)
    return out, statistics


def reference(values: np.ndarray, zero_mean: np.ndarray) -> np.ndarray:
    """Ridge regression for each half on the other, on standardised controls."""
    half = values.shape[1] // 2
    adjusted = values.copy()
    for here, other in ((slice(half), slice(half, None)), (slice(half, None), slice(half))):
        scale = 1.0 / np.sqrt(np.mean(zero_mean[:, other] ** 2, axis=1))
        centred = (zero_mean[:, other].T - zero_mean[:, other].mean(axis=1)) * scale
        gram = centred.T @ centred / len(centred) + RIDGE * np.eye(len(scale))
        right = centred.T @ (values[:, other].T - values[:, other].mean(axis=1)) / len(centred)
        adjusted[:, here] -= (scale[:, None] * np.linalg.solve(gram, right)).T @ zero_mean[:, here]
    return adjusted


@pytest.mark.parametrize("controls", [1, 2, 3, 4, 7, 8, 21])
@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("n", [1000, 2 * LANES, 2 * LANES + 1, 4 * LANES])
def test_the_fit_is_a_ridge_regression_across_halves(controls: int, rows: int, n: int) -> None:
    rng = np.random.default_rng(controls * 10 + rows)
    zero_mean = rng.standard_normal((controls, controls)) @ rng.standard_normal((controls, n))
    values = rng.standard_normal((rows, controls)) @ zero_mean + rng.standard_normal((rows, n)) + 3.0
    np.testing.assert_allclose(run(values, zero_mean)[0], reference(values, zero_mean), rtol=1e-9, atol=1e-9)


def test_statistics_are_mean_and_squared_deviations() -> None:
    rng = np.random.default_rng(1)
    zero_mean, values = rng.standard_normal((2, 777)), 1e6 + rng.standard_normal((2, 777))
    out, statistics = run(values, zero_mean)
    np.testing.assert_allclose(statistics[:, 0], out.mean(axis=1), rtol=1e-14)
    np.testing.assert_allclose(statistics[:, 1], out.var(axis=1) * 777, rtol=1e-8)


def test_values_beyond_the_fitted_ones_stay() -> None:
    rng = np.random.default_rng(2)
    zero_mean = rng.standard_normal((2, 600))
    values = np.array([zero_mean[0] + 1.0, zero_mean[1] + 2.0])
    out, _ = run(values, zero_mean, fitted=1)
    assert out[0].std() < 1e-3
    np.testing.assert_array_equal(out[1], values[1])


def test_products_and_constants() -> None:
    """Rows 1, a, b, 2 + 3 a - b, and a * b + (2 + 3 a - b)."""
    a, b = np.random.default_rng(3).standard_normal((2, 500))
    columns = np.array([[-1] * 4, [0] * 4, [1] * 4, [0, 1, 0, 0], [-1] * 4])
    factors = np.array([[0, 0, 0, 0, 1.0], [1, 0, 0, 0, 0], [1, 0, 0, 0, 0], [1.0, -1.0, 2.0, 0, 2.0], [0.0] * 5])
    products = np.array([[4, 1, 2, 3]])
    out, statistics = np.empty((4, 500)), np.empty((4, 2))
    limits = np.array([RIDGE, LEVERAGE, ROUND_OFF])
    adjust(in_blocks(np.array([a, b])), 500, 0, columns, factors, products, np.empty(0), limits, out, statistics)
    linear = 2.0 + 3.0 * a - b
    np.testing.assert_allclose(out, [a, b, linear, a * b + linear], rtol=1e-14, atol=1e-14)


def test_a_control_that_explains_everything_leaves_next_to_nothing() -> None:
    """Up to the ridge, a part in ten thousand."""
    u = np.random.default_rng(0).standard_normal((1, 1000))
    out, _ = run(3.0 + 2.0 * u, u)
    assert np.abs(out - 3.0).max() < 1.2e-4 * 2.0 * np.abs(u).max()


def test_controls_without_spread_or_resting_on_one_sample_are_left_out() -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((2, 1000))
    spike = np.zeros(1000)
    spike[[3, 700]] = 50.0
    rounding = 1e-14 * rng.standard_normal(1000)
    for control in (spike, rounding, np.zeros(1000)):
        np.testing.assert_array_equal(run(values, control[None, :])[0], values)


@pytest.mark.parametrize("copies", [2, 5])
def test_dependent_controls_do_no_harm(copies: int) -> None:
    """They share one coefficient; only the effect of the ridge differs, a part in ten thousand of the control."""
    rng = np.random.default_rng(1)
    u = rng.standard_normal((1, 2000))
    values = u + 0.1 * rng.standard_normal((1, 2000))
    once, many = run(values, u)[0], run(values, np.repeat(u, copies, axis=0))[0]
    assert np.abs(many - once).max() < 1.2e-4 * np.abs(u).max()


def test_nan_in_a_value_reaches_its_statistics() -> None:
    rng = np.random.default_rng(4)
    zero_mean, values = rng.standard_normal((3, 900)), rng.standard_normal((2, 900))
    values[1, 850] = np.nan
    _, statistics = run(values, zero_mean)
    assert np.all(np.isfinite(statistics[0]))
    assert np.all(np.isnan(statistics[1]))
