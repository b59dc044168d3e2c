"""Log-densities by the flow against the closed forms that they must return, and what a prior does to them."""

from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
from systems import CLOUD, LINE, PLANE, TILTED, correlated
from truths import BIM1, mixture_oracle

import thermodiff as td
from thermodiff._check import DivergenceError
from thermodiff.integrate import adaptive

NOISES = [td.VP(), td.VP(scale=0.1), td.StraightLine(0.1), td.VE(), td.SubVP(), td.Cosine(0.5), td.CondOT(), td.CondOT(5.0)]
BIMODAL = td.Diffusion(td.GaussianMixture(**BIM1.columns), td.VP())
POINTS = np.array([[0.7], [-0.4]])
# Exact ln p at POINTS, and what N(0, 1) in place of p_T gives: integrations of the density itself, to ten digits.
EXACT = [-0.916616976408, -4.59137549492]
WITH_PRIOR = [-0.9165105866, -4.5912724978]


def relative(value: np.ndarray, truth: np.ndarray) -> float:
    """Largest error in units of max(1, |log-density|)."""
    return float(np.max(np.abs(value - truth) / np.maximum(1.0, np.abs(truth))))


@pytest.mark.parametrize(("prior", "truth"), [("marginal", EXACT), ("equilibrium", WITH_PRIOR)])
@pytest.mark.parametrize(("rtol", "bound"), [(1e-6, 3e-6), (1e-8, 3e-8), (1e-11, 1e-10)])
def test_published_values_of_the_bimodal_mixture(prior: str, truth: list[float], rtol: float, bound: float) -> None:
    value = td.log_prob(BIMODAL, POINTS, rtol=rtol, atol=0.01 * rtol, prior=prior)
    assert value.shape == (2,)
    assert value.dtype == np.float64
    # The published values have ten and twelve digits.
    np.testing.assert_allclose(value, truth, rtol=0.0, atol=bound)


@pytest.mark.parametrize("noise", NOISES, ids=lambda noise: noise.name)
@pytest.mark.parametrize("t", [0.0, 1e-6, 1e-3, 0.4])
def test_every_schedule_returns_the_density(noise: td.Schedule, t: float) -> None:
    system, x = td.Diffusion(LINE, noise), np.linspace(-6.0, 6.0, 300)[:, None]
    assert relative(td.log_prob(system, x, t=t), system.log_prob(x, t)) < 2e-8


@pytest.mark.parametrize("data", [PLANE, TILTED], ids=["isotropic", "full"])
def test_two_dimensions(data: td.Density) -> None:
    system, x = td.Diffusion(data, td.VP()), data.sample(300, rng=1)
    assert relative(td.log_prob(system, x), data.log_prob(x)) < 2e-8


def test_nothing_of_the_smoothing_is_left() -> None:
    """At the edge of the window, lam = 20, sigma is 3e-5: for a width of 0.01 that alone would shift ln p by 1e-4."""
    data = td.Gaussian([1.0], std=0.01)
    system, x = td.Diffusion(data, td.VP()), 1.0 + 0.01 * np.linspace(-5.0, 5.0, 21)[:, None]
    value = td.log_prob(system, x, rtol=1e-11, atol=1e-12)
    alpha, sigma = (float(v) for v in (system.noise.at(20.0).alpha, system.noise.at(20.0).sigma))
    assert np.abs(data.log_prob(x, alpha=alpha, sigma=sigma) - data.log_prob(x)).max() > 1e-4
    np.testing.assert_allclose(value, data.log_prob(x), rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("std", [1.0, 0.1, 0.01, 1e-4])
def test_the_tolerance_is_in_nats_for_any_width(std: float) -> None:
    """A common error of the position would count for more in a narrow law: here it does not."""
    data = td.Gaussian([1.5], std=std)
    system, x = td.Diffusion(data, td.VP(scale=0.3)), 1.5 + std * np.linspace(-4.0, 4.0, 101)[:, None]
    for rtol in (1e-6, 1e-8, 1e-10):
        assert relative(td.log_prob(system, x, rtol=rtol, atol=0.01 * rtol), data.log_prob(x)) < 8.0 * rtol


def test_widths_of_two_orders() -> None:
    data = td.GaussianMixture([[-2.0], [0.0], [2.0]], stds=[0.01, 1.0, 0.1])
    x = np.concatenate([data.sample(400, rng=2), np.linspace(-3.0, 3.0, 101)[:, None]])
    assert relative(td.log_prob(td.Diffusion(data, td.VP()), x), data.log_prob(x)) < 2e-8


def test_hundreds_of_components() -> None:
    data = correlated(2, 300, 3)
    x = data.sample(100, rng=4)
    assert relative(td.log_prob(td.Diffusion(data, td.VP()), x), data.log_prob(x)) < 3e-8


def test_a_hundred_dimensions() -> None:
    data = correlated(100, 3, 5)
    x = data.sample(50, rng=6)
    value = td.log_prob(td.Diffusion(data, td.VP()), x, rtol=1e-7, atol=1e-9)
    assert relative(value, data.log_prob(x)) < 3e-7


@pytest.mark.slow
def test_a_hundred_dimensions_and_two_hundred_components() -> None:
    data = correlated(100, 200, 7)
    x = data.sample(50, rng=8)
    value = td.log_prob(td.Diffusion(data, td.VP()), x, rtol=1e-6, atol=1e-8)
    assert relative(value, data.log_prob(x)) < 3e-6


@pytest.mark.parametrize("t", [0.01, 0.3, 1.0])
def test_a_cloud_has_a_density_at_later_times(t: float) -> None:
    system = td.Diffusion(CLOUD, td.VP())
    alpha, sigma = float(system.noise.alpha(t)), float(system.noise.sigma(t))
    x = alpha * CLOUD.sample(200, rng=9) + sigma * np.random.default_rng(10).standard_normal((200, 1))
    n = CLOUD.points.shape[0]
    truth = mixture_oracle(x, np.full(n, 1.0 / n), CLOUD.points, np.zeros((n, 1, 1)), alpha, sigma).log_prob
    assert relative(td.log_prob(system, x, t=t), truth) < 3e-8


@pytest.mark.parametrize("noise", [td.VP(0.1, 3.0), td.Cosine(0.5)], ids=lambda noise: noise.name)
def test_with_any_prior_it_is_a_density(noise: td.Schedule) -> None:
    """The flow of the equilibrium is a law of its own: its density integrates to one, though it is not that of the data."""
    system = td.Diffusion(LINE, noise)
    x = np.linspace(-9.0, 9.0, 3001)
    value = np.exp(td.log_prob(system, x[:, None], prior="equilibrium"))
    assert abs(np.sum(value) * (x[1] - x[0]) - 1.0) < 1e-7
    if noise.alpha(1.0) > 0.1:
        assert np.abs(value - np.exp(LINE.log_prob(x[:, None]))).max() > 1e-3


def test_at_the_noise_end_there_is_nothing_to_integrate() -> None:
    x = np.linspace(-3.0, 3.0, 11)[:, None]
    np.testing.assert_allclose(td.log_prob(BIMODAL, x, t=1.0), BIMODAL.log_prob(x, 1.0), rtol=1e-14)
    normal = -0.5 * x[:, 0] ** 2 - 0.5 * np.log(2.0 * np.pi)
    np.testing.assert_allclose(td.log_prob(BIMODAL, x, t=1.0, prior="equilibrium"), normal, rtol=1e-14)


@pytest.mark.parametrize("data", [PLANE, TILTED], ids=["isotropic", "full"])
def test_the_same_bits_for_any_executor_and_chunk(data: td.Density) -> None:
    system, x = td.Diffusion(data, td.VP()), data.sample(1200, rng=11)
    reference = td.log_prob(system, x)
    for chunk in (1, 2):
        np.testing.assert_array_equal(td.log_prob(system, x, chunk=chunk), reference)
    for workers in (1, 2, 3):
        with ThreadPoolExecutor(workers) as executor:
            np.testing.assert_array_equal(td.log_prob(system, x, executor=executor, chunk=1), reference)


def test_the_same_bits_from_processes() -> None:
    system, x = td.Diffusion(TILTED, td.VP()), TILTED.sample(600, rng=12)
    keywords = {"method": "dopri5", "times": [0.9, 0.4, 0.05]}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        np.testing.assert_array_equal(td.log_prob(system, x, executor=executor, chunk=2), td.log_prob(system, x))
        one, two = (td.probability_flow(system, x, executor=pool, **keywords).states for pool in (None, executor))
        np.testing.assert_array_equal(one, two)


def test_points_beyond_the_last_block_do_not_matter() -> None:
    """The empty lanes of a block repeat its last point: asking for that point again changes no bit."""
    x = PLANE.sample(300, rng=13)
    more = np.concatenate([x, np.repeat(x[-1:], 50, axis=0)])
    system = td.Diffusion(PLANE, td.VP())
    np.testing.assert_array_equal(td.log_prob(system, more)[:300], td.log_prob(system, x))


CLOUDED = td.Diffusion(CLOUD, td.VP())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: td.log_prob(LINE, POINTS), TypeError, "log_prob: it needs a Diffusion, got GaussianMixture"),
        (lambda: td.log_prob(CLOUDED, POINTS), ValueError, "a point cloud has no density at t = 0; pass t > 0"),
        (lambda: td.log_prob(CLOUDED, POINTS, t=1e-200), ValueError, "lam must lie within -200 ... 200"),
        (lambda: td.log_prob(BIMODAL, np.zeros((2, 2))), ValueError, r"x must have shape \(n, 1\), got \(2, 2\)"),
        (lambda: td.log_prob(BIMODAL, POINTS * np.inf), ValueError, "x holds 2 values that are nan or infinite"),
        (lambda: td.log_prob(BIMODAL, POINTS, t=1.5), ValueError, "t must lie between 0"),
        (lambda: td.log_prob(BIMODAL, POINTS, method="rk4"), ValueError, "method='rk4' is unknown; choose one of 'dopri5'"),
        (
            lambda: td.log_prob(BIMODAL, POINTS, prior="data"),
            ValueError,
            "prior='data' is unknown; choose one of 'marginal'",
        ),
        (lambda: td.log_prob(BIMODAL, POINTS, rtol=0.0), ValueError, "rtol must be positive"),
        (lambda: td.log_prob(BIMODAL, POINTS, t=1.0, atol=0.0), ValueError, "atol must be positive"),
        (lambda: td.log_prob(BIMODAL, POINTS, chunk=0), ValueError, "chunk must be at least 1"),
        (
            lambda: td.log_prob(td.Diffusion(LINE, td.VE()), POINTS, prior="equilibrium"),
            ValueError,
            'VE has no equilibrium; use prior="marginal"',
        ),
        (lambda: td.log_prob(BIMODAL, [[1e200]]), DivergenceError, "paths 0 to 0 left the finite numbers"),
    ],
)
def test_refusals(call, error, message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_the_limit_of_steps_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptive, "MOST_STEPS", 12)
    with pytest.raises(DivergenceError, match=r"paths 0 to 1 reached only log-SNR .* in 12 attempted steps .* far from the"):
        td.log_prob(BIMODAL, POINTS)
