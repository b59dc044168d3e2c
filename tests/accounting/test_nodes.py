"""Quadrature rules in log-SNR."""

import numpy as np
import pytest

from thermodiff.accounting.nodes import fine, gauss_legendre, running_integral

LOW, HIGH = -8.5, 20.0


@pytest.mark.parametrize("nodes", [1, 2, 7, 64, 200])
def test_gauss_legendre_is_exact_to_degree_2n_minus_1(nodes: int) -> None:
    lam, weights = gauss_legendre(-1.0, 3.0, nodes)
    for power in {0, 1, nodes, 2 * nodes - 1}:
        exact = 2.0 ** (power + 1) * (1.0 - (-1.0) ** (power + 1)) / (power + 1)
        # Powers of lam - 1, in (-2, 2).
        assert weights @ (lam - 1.0) ** power == pytest.approx(exact, rel=1e-12, abs=1e-12 * 2.0**power)


def test_nodes_run_forward_in_time_with_positive_weights() -> None:
    for rule in (lambda: gauss_legendre(LOW, HIGH, 64), lambda: fine(LOW, HIGH)):
        lam, weights = rule()
        assert np.all(np.diff(lam) < 0.0)
        assert np.all(weights > 0.0)
        assert weights.sum() == pytest.approx(HIGH - LOW, rel=1e-14)
        assert LOW < lam[-1] < lam[0] < HIGH


def test_the_fine_rule_has_machine_precision_on_a_logistic() -> None:
    """The integrands have poles at distance pi from the real axis, as this one."""
    lam, weights = fine(LOW, HIGH)
    exact = np.logaddexp(0.0, HIGH) - np.logaddexp(0.0, LOW)
    assert weights @ (1.0 / (1.0 + np.exp(-lam))) == pytest.approx(exact, rel=1e-14)


@pytest.mark.parametrize("nodes", [1, 2, 16, 64])
def test_the_running_integral_is_exact_for_polynomials(nodes: int) -> None:
    lam, _ = gauss_legendre(-1.0, 2.0, nodes)
    matrix = running_integral(lam, -1.0, 2.0)
    for power in range(min(nodes, 12)):
        exact = (2.0 ** (power + 1) - lam ** (power + 1)) / (power + 1)
        np.testing.assert_allclose(matrix @ lam**power, exact, rtol=1e-11, atol=1e-11 * 2.0**power)


def test_the_running_integral_of_a_logistic() -> None:
    lam, _ = gauss_legendre(LOW, HIGH, 64)
    exact = np.logaddexp(0.0, HIGH) - np.logaddexp(0.0, lam)
    np.testing.assert_allclose(running_integral(lam, LOW, HIGH) @ (1.0 / (1.0 + np.exp(-lam))), exact, rtol=1e-9, atol=1e-7)
