"""The measured quadrature error against the true one."""

import numpy as np
import pytest
from truths import gaussian_arc_total, gaussian_ve_total

from thermodiff.accounting.nodes import gauss_legendre
from thermodiff.accounting.quadrature import quadrature_errors
from thermodiff.schedules import VE, VP, Schedule, StraightLine

MEAN, VARIANCE = np.array([1.5, -0.2]), np.array([0.25, 0.01])
SECOND = float(MEAN @ MEAN + VARIANCE.sum())
WIDTHS = [(np.ones(1), VARIANCE[None, :])]


def rates(noise: Schedule, lam: np.ndarray) -> np.ndarray:
    """Total entropy production of the Gaussian per unit of lam: E|a - b|^2 / 2, axis by axis."""
    row = noise.at(lam)
    q = (-2.0 * row.growth / row.sigma)[:, None]
    alpha, sigma = row.alpha[:, None], row.sigma[:, None]
    v = alpha**2 * VARIANCE + sigma**2
    return 0.5 * np.sum((q * alpha * MEAN) ** 2 + v * (q + sigma / v) ** 2, axis=1)


@pytest.mark.parametrize("nodes", [6, 10, 16])
@pytest.mark.parametrize("noise", [VP(), VP(scale=0.1), StraightLine(0.1), VE()], ids=lambda noise: noise.name)
def test_the_error_is_exact_for_gaussian_data(noise: Schedule, nodes: int) -> None:
    window = noise.window()
    lam, weights = gauss_legendre(*window, nodes)
    if isinstance(noise, VE):
        exact = gaussian_ve_total(VARIANCE, window)
    else:
        exact = gaussian_arc_total(MEAN, VARIANCE, noise.equilibrium_std, window)
    true_error = abs(float(weights @ rates(noise, lam)) - exact)
    found = quadrature_errors(noise, window, lam, weights, SECOND, WIDTHS, open_ended=False)
    assert found["total"] == pytest.approx(true_error, rel=1e-6, abs=1e-9 * exact)


def test_the_error_falls_with_the_nodes() -> None:
    noise = VP()
    window = noise.window()
    sizes = [
        quadrature_errors(noise, window, *gauss_legendre(*window, nodes), SECOND, WIDTHS, open_ended=False)["total"]
        for nodes in (8, 16, 32, 64)
    ]
    assert sizes[0] > 10 * sizes[1] > 100 * sizes[2]
    assert sizes[3] < 1e-9


def test_the_largest_of_several_descriptions_counts() -> None:
    noise = VP()
    window = noise.window()
    rule = gauss_legendre(*window, 10)
    other = [(np.array([0.5, 0.5]), np.array([[1e-4, 1e-4], [1.0, 1.0]]))]
    one, two, both = (
        quadrature_errors(noise, window, *rule, SECOND, widths, open_ended=False)
        for widths in (WIDTHS, other, WIDTHS + other)
    )
    assert both == {row: max(one[row], two[row]) for row in one}


def test_an_open_end_adds_what_lies_above_the_window() -> None:
    noise, window = VP(), (-8.0, 10.0)
    rule = gauss_legendre(*window, 64)
    closed, open_ = (
        quadrature_errors(noise, window, *rule, SECOND, WIDTHS, open_ended=flag)["total"] for flag in (False, True)
    )
    rest = gaussian_arc_total(MEAN, VARIANCE, 1.0, (10.0, 45.0))
    assert open_ - closed == pytest.approx(rest, rel=1e-9)
