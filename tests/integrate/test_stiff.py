"""Points whose flow is stiff: the implicit flow against closed forms, who takes it, and what the others pay."""

from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
from systems import CLOUD, PLANE, TILTED, correlated

import thermodiff as td
from thermodiff._check import DivergenceError
from thermodiff.integrate import adaptive, dense, stiff
from thermodiff.kernels.adaptive import DONE, EXHAUSTED


def away(data: td.Density, distance: float, n: int = 1, rng: int = 1) -> np.ndarray:
    """Points at ``distance`` from the mean, in data units, in random directions."""
    direction = np.random.default_rng(rng).normal(size=(n, data.dim))
    return data.mean() + distance * direction / np.linalg.norm(direction, axis=1, keepdims=True)


def centred(data: td.Density) -> stiff.Point:
    part = data.parts()
    return stiff.Point(part._replace(means=part.means - data.mean()))


FULL = correlated(16, 20, 5)
GAP = td.GaussianMixture([[-1.0], [1.0]], stds=[0.001, 0.001])
BETWEEN = np.array([[1e-3]])
"""A thousand widths from either component of GAP."""
LAWS = [FULL, PLANE, TILTED, CLOUD]


@pytest.mark.parametrize("data", LAWS, ids=["many", "isotropic", "full", "cloud"])
def test_slope_and_jacobian(data: td.Density) -> None:
    lam, point, noise = 1.3, centred(data), np.exp(-1.3)
    x = data.sample(1, rng=2)[0] + 0.3
    rho = np.sqrt(data.parts().variances.min() + noise)
    state = np.append((x - data.mean()) / rho, 0.7)
    score = data.score(x[None], sigma=np.sqrt(noise))[0]
    divergence = data.score_divergence(x[None], sigma=np.sqrt(noise))[0]
    rate = 0.5 * noise / rho**2
    truth = rate * np.append(state[:-1] + rho * score, data.dim + rho**2 * divergence)
    np.testing.assert_allclose(point(lam, state), truth, rtol=0.0, atol=1e-11 * max(1.0, np.abs(truth).max()))
    jacobian, step = point.jacobian(lam, state), 1e-5
    for j in range(data.dim + 1):
        change = step * np.eye(data.dim + 1)[j]
        slope = (point(lam, state + change) - point(lam, state - change)) / (2.0 * step)
        np.testing.assert_allclose(jacobian[:, j], slope, rtol=1e-6, atol=1e-6 * np.abs(jacobian).max())


def test_the_stiffness_is_the_rate_of_return() -> None:
    """In the middle between two points it is their distance squared over eight of the noise, as in the formula."""
    point = stiff.Point(td.PointCloud([[-1.0], [1.0]]).parts())
    for lam in (0.0, 2.0, 5.0):
        assert point.stiffness(lam, np.zeros(1)) == pytest.approx(0.5 * np.exp(lam), rel=1e-12)
    slopes = dense.Slopes(FULL.parts(), 3)
    u = FULL.sample(3, rng=3) + 4.0
    slopes(2.0, np.append(u.ravel(), np.zeros(3)))
    expected = [stiff.Point(FULL.parts()).stiffness(2.0, row) for row in u]
    np.testing.assert_allclose(slopes.stiffness, expected, rtol=1e-9)


@pytest.mark.parametrize(("distance", "bound"), [(20.0, 1e-6), (100.0, 1e-6), (1000.0, 1e-3)])
def test_the_cost_does_not_grow_with_the_distance(distance: float, bound: float) -> None:
    """Explicit steps: 100, 750 and more than 5,000 of twelve slopes; the errors are below 2e-9 of ln p = -290, -7,000, -690,000."""
    x, span = away(FULL, distance), (40.0, -9.0)
    unit = np.sqrt(FULL.parts().variances.min() + np.exp(-np.array(span)))
    state = np.append((x[0] - FULL.mean()) / unit[0], 0.0)
    outcome, lam, taken, end = stiff.flow(centred(FULL), state, span, 1e-8, 1e-10)
    assert (outcome, lam) == (DONE, span[1])
    assert taken < 1200
    smoothed = FULL.log_prob(FULL.mean() + unit[1] * end[None, :-1], sigma=np.exp(-0.5 * span[1]))
    value = smoothed[0] + end[-1] + 16 * np.log(unit[1] / unit[0])
    assert abs(value - FULL.log_prob(x)[0]) < bound


def test_who_goes_alone() -> None:
    together = np.array([0.0, 10.0, 11.0, 12.0, 13.0])
    # One outlier costs the others more than itself; as many as there are do not pay for each other's company.
    assert stiff.apart(np.array([1.0, 2.0, 900.0, 3.0]), together, 500.0).tolist() == [2]
    assert stiff.apart(np.array([900.0, 2.0, 800.0, 3.0]), together, 500.0).tolist() == [0, 2]
    assert stiff.apart(np.full(4, 9000.0), together, 500.0).tolist() == [0, 1, 2, 3]
    assert stiff.apart(np.full(4, 90.0), together, 500.0).tolist() == []
    # Not stiff at all.
    assert stiff.apart(np.array([4.0, 2.0, 1.0, 0.0]), together, 1.0).tolist() == []


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Points of every group slope that is asked for."""
    plain, seen = dense.Slopes.__call__, []

    def counted(self: dense.Slopes, lam: float, state: np.ndarray) -> np.ndarray:
        seen.append(state.size)
        return plain(self, lam, state)

    monkeypatch.setattr(dense.Slopes, "__call__", counted)
    return seen


def test_one_far_point_does_not_hold_up_its_group(calls: list[int]) -> None:
    """It took 63 others along for 9,000 slopes."""
    x = np.concatenate([away(FULL, 100.0), FULL.sample(63, rng=4)])
    assert dense.suits(FULL.parts(), 64)
    value = td.log_prob(td.Diffusion(FULL, td.VP()), x)
    assert 0 < len(calls) < 2500
    np.testing.assert_allclose(value, FULL.log_prob(x), rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("noise", [td.VP(scale=0.3), td.VE()], ids=lambda noise: noise.name)
def test_far_points_by_products(calls: list[int], noise: td.Schedule) -> None:
    """4,500 widths away 60,000 slopes went half of the way."""
    x = away(FULL, 1000.0)
    np.testing.assert_allclose(td.log_prob(td.Diffusion(FULL, noise), x), FULL.log_prob(x), rtol=1e-9)
    assert 0 < len(calls) < 5000


@pytest.mark.parametrize("noise", [td.VP(scale=0.3), td.StraightLine(0.1), td.VE()], ids=lambda noise: noise.name)
def test_a_gap_of_two_thousand_widths(noise: td.Schedule) -> None:
    """The steps of its block gave out, for the points beside it as well."""
    beside = 1.0 + 0.001 * np.linspace(-3.0, 3.0, 299)[:, None]
    x = np.concatenate([BETWEEN, beside])
    value = td.log_prob(td.Diffusion(GAP, noise), x)
    truth = GAP.log_prob(x)
    assert np.max(np.abs(value - truth) / np.maximum(1.0, np.abs(truth))) < 8e-8


def test_all_of_a_block_may_be_stiff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptive, "LAST_PATIENCE", 1000)
    x = np.array([[1e-3], [2e-3], [-1e-3]])
    np.testing.assert_allclose(td.log_prob(td.Diffusion(GAP, td.VP()), x), GAP.log_prob(x), rtol=1e-9)


def test_a_block_that_is_not_stiff_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of patience and yet nobody to blame: it goes on from where it came."""
    system, x = td.Diffusion(PLANE, td.VP()), PLANE.sample(20, rng=5)
    monkeypatch.setattr(adaptive, "PATIENCE", 10)
    np.testing.assert_allclose(td.log_prob(system, x), PLANE.log_prob(x), rtol=0.0, atol=1e-7)


def test_the_same_bits_for_any_executor_and_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Far points in several groups and blocks, by products and compiled."""
    monkeypatch.setattr(dense, "WORTHWHILE", 0)
    full = np.concatenate([away(FULL, 200.0), FULL.sample(70, rng=6), away(FULL, 300.0)])
    gap = np.concatenate([1.0 + 0.001 * np.linspace(-3.0, 3.0, 300)[:, None], BETWEEN])
    assert dense.suits(FULL.parts(), len(full))
    for data, x in ((FULL, full), (GAP, gap)):
        system = td.Diffusion(data, td.VP())
        reference = td.log_prob(system, x, rtol=1e-5)
        with ThreadPoolExecutor(2) as executor:
            np.testing.assert_array_equal(td.log_prob(system, x, rtol=1e-5, executor=executor, chunk=1), reference)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        np.testing.assert_array_equal(td.log_prob(system, gap, rtol=1e-5, executor=executor), reference)


def test_a_point_is_given_up_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stiff, "MOST_STEPS", 20)
    state = np.append(away(FULL, 100.0)[0], 0.0)
    outcome, lam, taken, _ = stiff.flow(centred(FULL), state, (40.0, -9.0), 1e-8, 1e-10)
    assert (outcome, taken) == (EXHAUSTED, 20)
    assert -9.0 < lam < 40.0
    x = np.concatenate([GAP.sample(2, rng=7), BETWEEN])
    with pytest.raises(DivergenceError, match=r"paths 2 to 2 reached only log-SNR .* in 20 attempted steps .* far from the"):
        td.log_prob(td.Diffusion(GAP, td.VP()), x)
    x = np.concatenate([FULL.sample(2, rng=7), away(FULL, 300.0)])
    with pytest.raises(DivergenceError, match=r"paths 2 to 2 reached only log-SNR .* in 20 attempted steps .* far from the"):
        td.log_prob(td.Diffusion(FULL, td.VP()), x)
