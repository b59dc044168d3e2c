"""The measured quadrature error against the true one."""

import numpy as np
import pytest
from truths import gaussian_arc_total, gaussian_ve_total

from thermodiff import GaussianMixture, PointCloud
from thermodiff.accounting.nodes import fine, gauss_legendre
from thermodiff.accounting.quadrature import Gaussians, Pairs, Scales, _overlap_rate, quadrature_errors
from thermodiff.schedules import VE, VP, Schedule, StraightLine

MEAN, VARIANCE = np.array([1.5, -0.2]), np.array([0.25, 0.01])
SECOND = float(MEAN @ MEAN + VARIANCE.sum())
GAUSSIAN = Gaussians(np.ones(1), VARIANCE[None, :])
NO_PAIRS = Pairs(np.empty(0), np.empty(0), np.empty(0))
SCALES = Scales(GAUSSIAN, GAUSSIAN, NO_PAIRS)


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
    true_error = float(weights @ rates(noise, lam)) - exact
    excess, left = quadrature_errors(noise, window, lam, weights, SECOND, SCALES, open_ended=False)["total"]
    assert excess == pytest.approx(true_error, rel=1e-6, abs=1e-9 * exact)
    # The Gaussian needs nothing more, but for round-off.
    assert left < 1e-10 * exact


def errors(noise: Schedule, nodes: int, scales: Scales = SCALES, **options: bool) -> dict[str, tuple[float, float]]:
    window, options = noise.window(), {"open_ended": False, **options}
    return quadrature_errors(noise, window, *gauss_legendre(*window, nodes), SECOND, scales, **options)


def test_the_error_falls_with_the_nodes() -> None:
    sizes = [abs(errors(VP(), nodes)["total"][0]) for nodes in (8, 16, 32, 64)]
    assert sizes[0] > 10 * sizes[1] > 100 * sizes[2]
    assert sizes[3] < 1e-9


def test_the_difference_between_the_whole_and_the_components_is_left() -> None:
    broad = Gaussians(np.array([0.5, 0.5]), np.array([[1e-4, 1e-4], [1.0, 1.0]]))
    one, other, both = (
        errors(VP(), 10, scales) for scales in (SCALES, Scales(broad, broad, NO_PAIRS), Scales(broad, GAUSSIAN, NO_PAIRS))
    )
    for row in ("total", "system"):
        assert both[row][0] == one[row][0]
        assert both[row][1] == pytest.approx(abs(other[row][0] - one[row][0]), rel=1e-6)
    # The medium knows second moments only.
    assert both["medium"][1] < 1e-10


PAIR = GaussianMixture([[1.0], [-1.0]], stds=[0.2, 0.2])


@pytest.mark.parametrize("nodes", [10, 14, 20])
def test_the_overlap_of_a_pair_is_exact(nodes: int) -> None:
    """Rate of the system: that of the entropy of alpha x_0 + sigma z, by differences of the oracle's cubature."""
    noise = StraightLine(0.1)
    window = noise.window()

    def integral(lam: np.ndarray, weights: np.ndarray) -> float:
        step, parts = 1e-4, PAIR.scales.parts.eigenvalues[0, 0]

        def overlap(level: float) -> float:
            row = noise.at(np.array([level]))
            alpha, sigma = float(row.alpha[0]), float(row.sigma[0])
            width = alpha**2 * parts + sigma**2
            return PAIR.entropy(alpha=alpha, sigma=sigma).value - 0.5 * np.log(2.0 * np.pi * np.e * width)

        return float(weights @ [(overlap(v + step) - overlap(v - step)) / (2.0 * step) for v in lam])

    truth = np.log(2.0)
    lam, weights = gauss_legendre(*window, nodes)
    left = quadrature_errors(noise, window, lam, weights, PAIR.second_moment, PAIR.scales, open_ended=False)["system"][1]
    assert left >= abs(integral(lam, weights) - truth) * (1.0 - 1e-3)
    whole = Scales(PAIR.scales.parts, PAIR.scales.parts, PAIR.scales.pairs)
    alone = quadrature_errors(noise, window, lam, weights, PAIR.second_moment, whole, open_ended=False)["system"][1]
    assert alone == pytest.approx(abs(integral(lam, weights) - truth), rel=1e-3, abs=2e-6)


def test_the_overlap_of_points_holds_the_entropy_of_their_choice() -> None:
    """Points without width share one description, and a pair of them loses ln 2 over the whole of lam."""
    scales = PointCloud([[1.0], [-1.0]]).scales
    assert scales.parts.eigenvalues.shape == (1, 1)
    rule = fine(-40.0, 40.0)
    assert rule[1] @ _overlap_rate(rule[0], scales.pairs) == pytest.approx(np.log(2.0), rel=1e-6)


def test_an_open_end_adds_what_lies_above_the_window() -> None:
    noise, window = VP(), (-8.0, 10.0)
    rule = gauss_legendre(*window, 64)
    closed, open_ = (
        quadrature_errors(noise, window, *rule, SECOND, SCALES, open_ended=flag)["total"][1] for flag in (False, True)
    )
    rest = gaussian_arc_total(MEAN, VARIANCE, 1.0, (10.0, 45.0))
    assert open_ - closed == pytest.approx(rest, rel=1e-9)


def test_an_equilibrium_has_an_error_of_rounding() -> None:
    """Everything cancels: the error is that of the terms."""
    still = Gaussians(np.ones(1), np.ones((1, 2)))
    noise, window = VP(), VP().window()
    rule = gauss_legendre(*window, 64)
    found = quadrature_errors(noise, window, *rule, 2.0, Scales(still, still, NO_PAIRS), open_ended=False)
    assert 1e-13 < found["total"][1] < 1e-9
    assert abs(found["total"][0]) < found["total"][1]
