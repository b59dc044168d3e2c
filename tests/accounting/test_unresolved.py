"""The error of the nodes for a course that is not known, from the rates at the nodes alone."""

import numpy as np
import pytest

from thermodiff.accounting.nodes import gauss_legendre
from thermodiff.accounting.unresolved import unresolved

WINDOW = (-8.0, 8.0)


def trials(rate, nodes: int, noise: float = 0.0, n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Errors of the rule, and what is told of them, for ``rate(lam, place)`` at random places, with noise at the nodes."""
    rng = np.random.default_rng(nodes)
    lam, weights = gauss_legendre(*WINDOW, nodes)
    grid = np.linspace(*WINDOW, 200_001)
    off, told = np.empty(n), np.empty(n)
    for k in range(n):
        place = rng.uniform(-4.0, 4.0)
        rates = rate(lam, place) + noise * rng.standard_normal(nodes)
        off[k] = weights @ rates - np.trapezoid(rate(grid, place), grid)
        left = unresolved(lam, weights, WINDOW, rates, np.full(nodes, noise))
        told[k] = np.hypot(left, noise * np.linalg.norm(weights))
    return off, told


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


@pytest.mark.parametrize("noise", [0.0, 1e-3])
@pytest.mark.parametrize("nodes", [24, 32, 64, 128])
def test_a_step(nodes: int, noise: float) -> None:
    off, told = trials(lambda lam, place: 0.09 * (lam > place), nodes, noise)
    assert 0.5 < rms(off / told) < 1.25


@pytest.mark.parametrize("nodes", [24, 64])
def test_noise_alone_is_not_counted_twice(nodes: int) -> None:
    off, told = trials(lambda lam, place: 0.0 * lam, nodes, 1e-3, n=300)
    assert 0.85 < rms(off / told) < 1.15


@pytest.mark.parametrize("nodes", [24, 32, 64])
def test_an_analytic_course_has_a_small_error(nodes: int) -> None:
    """More than it has, for a rough part below what is seen cannot be excluded."""
    off, told = trials(lambda lam, place: 0.05 / (1.0 + np.exp(lam - place)) ** 2, nodes)
    assert rms(off) <= rms(told) + 1e-12
    assert rms(told) < 1e-4
    off, told = trials(lambda lam, place: 0.05 / (1.0 + np.exp(lam - place)) ** 2, nodes, 1e-4)
    assert 0.75 < rms(off / told) < 1.25


@pytest.mark.parametrize("nodes", [32, 64])
def test_bands_and_steps_on_smooth_ground(nodes: int) -> None:
    off, told = trials(lambda lam, place: 0.09 * (np.abs(lam - place) < 1.5), nodes)
    assert rms(off) < 1.3 * rms(told)
    off, told = trials(lambda lam, place: (0.5 / np.cosh(0.5 * lam) + 0.1 * (lam > place)) ** 2, nodes)
    assert rms(off / told) < 1.5


def test_waves_that_are_too_short_are_noticed() -> None:
    for nodes in (24, 32):
        off, told = trials(lambda lam, place: 0.05 * np.sin(8.0 * lam + place) ** 2, nodes)
        assert rms(told) > 0.5 * rms(off)


def test_few_nodes_and_many_say_nothing() -> None:
    for nodes in (23, 1025):
        lam, weights = gauss_legendre(*WINDOW, nodes)
        assert unresolved(lam, weights, WINDOW, (lam > 0.3) * 1.0, np.zeros(nodes)) == 0.0


@pytest.mark.parametrize("nodes", [24, 32, 64, 96])
def test_the_error_at_steps_is_the_one_that_is_told(nodes: int) -> None:
    off, told = trials(lambda lam, place: 0.09 * (lam > place), nodes, 1e-3)
    assert 0.75 < rms(off / told) < 1.25


@pytest.mark.parametrize("noise", [0.0, 1e-4, 1e-3])
@pytest.mark.parametrize("nodes", [24, 32, 64])
def test_a_step_is_not_lost_in_the_fall_of_what_it_stands_on(nodes: int, noise: float) -> None:
    off, told = trials(lambda lam, place: (0.5 / np.cosh(0.5 * lam) + 0.1 * (lam > place)) ** 2, nodes, noise)
    assert 0.7 < rms(off / told) < 1.25


def test_a_peak_that_the_nodes_follow_hardly_adds() -> None:
    off, told = trials(lambda lam, place: 0.09 * np.exp(-0.5 * (lam - place) ** 2), 24, 1e-3)
    assert 0.75 < rms(off / told) < 1.25
