"""The reverse process and the probability flow: laws of what they return, closed forms, bits, refusals."""

from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
from scipy import stats
from systems import CLOUD, LINE, PLANE, TILTED
from truths import flow_position, mixture_oracle

import thermodiff as td
from thermodiff._check import DivergenceError

N = 100_000
PAPER_NOISES = [td.VP(), td.VP(scale=0.1), td.StraightLine(0.1)]
CASES = [(PLANE, noise) for noise in PAPER_NOISES] + [(TILTED, td.VP())]
IDS = [*(noise.name for noise in PAPER_NOISES), "VP, full covariances"]

cases = pytest.mark.parametrize(("data", "noise"), CASES, ids=IDS)


def marginal_cdf(data: td.Density, axis: int):
    part = data.parts()
    axes = np.tile(np.eye(data.dim), (part.weights.size, 1, 1)) if part.axes is None else part.axes
    variances = np.broadcast_to(part.variances, part.means.shape)
    widths = np.sqrt(np.einsum("kj,kj->k", variances, axes[:, :, axis] ** 2))

    def cdf(x: np.ndarray) -> np.ndarray:
        return sum(w * stats.norm.cdf(x, m[axis], s) for w, m, s in zip(part.weights, part.means, widths, strict=True))

    return cdf


def require_law(x: np.ndarray, data: td.Density) -> None:
    """Mean and covariance by z-scores, every coordinate by Kolmogorov and Smirnov."""
    n = x.shape[0]
    centred, cov = x - data.mean(), data.covariance()
    assert np.abs(centred.mean(axis=0) / np.sqrt(np.diag(cov) / n)).max() < 4.0
    for i in range(data.dim):
        for j in range(i + 1):
            products = centred[:, i] * centred[:, j]
            assert abs(products.mean() - cov[i, j]) < 4.0 * products.std() / np.sqrt(n)
        assert stats.kstest(x[:, i], marginal_cdf(data, i)).pvalue > 1e-4


@cases
def test_the_reverse_process_ends_in_the_data(data: td.Density, noise: td.Schedule) -> None:
    path = td.reverse(td.Diffusion(data, noise), N, steps=250, rng=1)
    assert path.denoised
    require_law(path.final, data)


@cases
def test_the_probability_flow_ends_in_the_data(data: td.Density, noise: td.Schedule) -> None:
    path = td.probability_flow(td.Diffusion(data, noise), N, steps=100, rng=2)
    require_law(path.final, data)


def test_intermediate_states_have_the_law_of_the_marginal() -> None:
    noise = td.VP()
    path = td.reverse(td.Diffusion(LINE, noise), N, steps=200, times=[1.0, 0.6, 0.3], denoise=False, rng=3)
    for t, state in zip(path.times, path.states, strict=True):
        alpha, sigma, part = float(noise.alpha(t)), float(noise.sigma(t)), LINE.parts()
        widths = np.sqrt(alpha**2 * part.variances[:, 0] + sigma**2)
        require_law(state, td.GaussianMixture(alpha * part.means, stds=widths, weights=part.weights))


@pytest.mark.parametrize("noise", [*PAPER_NOISES, td.Cosine(0.5)], ids=lambda noise: noise.name)
def test_start_from_the_equilibrium(noise: td.Schedule) -> None:
    path = td.reverse(td.Diffusion(PLANE, noise), N, steps=2, start="equilibrium", rng=4, denoise=False)
    require_law(path.states[0], td.Gaussian([0.0, 0.0], std=noise.equilibrium_std))


def test_start_from_the_marginal() -> None:
    noise = td.VP(1.0, 2.0)
    alpha, sigma = float(noise.alpha(1.0)), float(noise.sigma(1.0))
    path = td.reverse(td.Diffusion(PLANE, noise), N, steps=2, rng=5, denoise=False)
    part = PLANE.parts()
    widths = np.sqrt(alpha**2 * part.variances[:, 0] + sigma**2)
    require_law(path.states[0], td.GaussianMixture(alpha * part.means, stds=widths, weights=part.weights))


def test_start_and_path_noise_are_independent() -> None:
    """The reverse process forgets its start: without correlation beyond that of the exact process."""
    noise = td.VP()
    path = td.reverse(td.Diffusion(td.Gaussian([0.0], std=1.0), noise), N, steps=300, rng=6, denoise=False)
    first, last = path.states[0][:, 0], path.final[:, 0]
    # Stationary Gaussian: the exact correlation is alpha(1) = 0.0179.
    expected = float(noise.alpha(1.0))
    assert abs(np.mean(first * last) - expected) < 4.0 / np.sqrt(N)


def test_heun_has_no_visible_bias_where_euler_has() -> None:
    """Variance of a Gaussian at a coarse step: the weak orders in practice."""
    system = td.Diffusion(td.Gaussian([1.5], std=0.5), td.VP())
    n, z = 2 * N, {}
    row = system.noise.at(4.0)
    exact = float(row.alpha) ** 2 * 0.25 + float(row.sigma) ** 2
    for method in ("euler", "heun"):
        final = td.reverse(system, n, steps=100, method=method, lam=(-8.0, 4.0), denoise=False, rng=7).final[:, 0]
        z[method] = (final.var(ddof=1) / exact - 1.0) / np.sqrt(2.0 / n)
    assert abs(z["heun"]) < 4.0
    assert abs(z["euler"]) > 4.0


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("exponential", 1), ("heun", 2), ("rk4", 4)])
def test_order_of_the_flow(method: str, order: int) -> None:
    noise = td.VP()
    system = td.Diffusion(td.Gaussian([1.5], std=0.5), noise)
    x, times = np.linspace(-2.0, 3.0, 11)[:, None], [0.9, 0.2]
    here, there = ((float(noise.alpha(t)), float(noise.sigma(t))) for t in times)
    exact = flow_position(x, 1.5, 0.5, here, there)
    errors = [
        np.abs(td.probability_flow(system, x, steps=steps, method=method, times=times).final - exact).max()
        for steps in (32, 64, 128)
    ]
    assert abs(np.log2(errors[1] / errors[2]) - order) < 0.15


EVERY_NOISE = [*PAPER_NOISES, td.Cosine(0.5), td.CondOT(), td.SubVP(), td.VE()]
POINT = 0.7


@pytest.mark.parametrize("noise", EVERY_NOISE, ids=lambda noise: noise.name)
@pytest.mark.parametrize("steps", [1, 3])
def test_exponential_steps_are_exact_for_a_point(noise: td.Schedule, steps: int) -> None:
    """Start and end have the joint law of x = (alpha / alpha') x' + noise, the forward process; the flow keeps z."""
    system, (low, high) = td.Diffusion(td.PointCloud([[POINT]]), noise), (-2.0, 1.0)
    here, there = (noise.at(lam) for lam in (low, high))
    path = td.reverse(system, N, steps=steps, method="exponential", lam=(low, high), denoise=False, rng=22)
    one, two = (
        (x[:, 0] - float(row.alpha) * POINT) / float(row.sigma) for x, row in zip(path.states, (here, there), strict=True)
    )
    assert abs(two.mean()) < 4.0 / np.sqrt(N)
    assert stats.kstest(two, stats.norm.cdf).pvalue > 1e-4
    correlation = float(here.alpha * there.sigma / (there.alpha * here.sigma))
    assert abs(np.mean(one * two) - correlation) < 4.0 * np.sqrt((1.0 + correlation**2) / N)

    z = np.linspace(-2.0, 2.0, 5)[:, None]
    for lam in ((low, high), (high, low)):
        first, last = (float(row.alpha) * POINT + float(row.sigma) * z for row in map(noise.at, lam))
        keywords = {"steps": steps, "times": noise.time(np.array(lam)), "lam": (low, high), "denoise": False}
        flow = td.probability_flow(system, first, method="exponential", **keywords)
        np.testing.assert_allclose(flow.final, last, rtol=0.0, atol=1e-10)


def test_few_exponential_steps_suffice_for_narrow_data() -> None:
    """Below the noise of the window's end the width of the data is not seen: three steps give the law."""
    data, noise = td.Gaussian([1.5, -0.5], std=0.01), td.VP()
    path = td.reverse(td.Diffusion(data, noise), N, steps=3, method="exponential", lam=(-8.0, 2.0), denoise=False, rng=23)
    row = noise.at(2.0)
    alpha, sigma = float(row.alpha), float(row.sigma)
    require_law(path.final, td.Gaussian(alpha * data.mean(), std=np.hypot(0.01 * alpha, sigma)))


def test_few_exponential_steps_stay_near_the_data() -> None:
    system = td.Diffusion(PLANE, td.StraightLine(0.1))
    reach = {
        method: np.abs(td.reverse(system, 10_000, steps=3, method=method, rng=24).final).max()
        for method in ("exponential", "euler", "heun")
    }
    assert reach["exponential"] < np.abs(PLANE.sample(10_000, rng=24)).max()
    assert min(reach["euler"], reach["heun"]) > 20.0


def test_exponential_steps_have_weak_order_one() -> None:
    """Bias of the variance of a Gaussian."""
    system = td.Diffusion(td.Gaussian([1.5], std=0.5), td.VP())
    row = system.noise.at(4.0)
    exact = float(row.alpha) ** 2 * 0.25 + float(row.sigma) ** 2
    keywords = {"method": "exponential", "lam": (-8.0, 4.0), "denoise": False, "rng": 25}
    coarse, fine = (td.reverse(system, 4 * N, steps=steps, **keywords).final.var() / exact - 1.0 for steps in (40, 80))
    # A step that holds the posterior mean fixed makes the law too narrow: -13 and -6 %, known to 0.2 %.
    assert abs(np.log2(coarse / fine) - 1.0) < 0.2


@pytest.mark.parametrize("data", [PLANE, TILTED], ids=["isotropic", "full"])
def test_exponential_steps_end_in_the_data(data: td.Density) -> None:
    """Mean and covariance at 500 steps; without the bias of first order, to the precision of the paths."""
    system, cov = td.Diffusion(data, td.VP()), data.covariance()
    coarse, fine = (td.reverse(system, N, steps=steps, method="exponential", rng=26).final for steps in (250, 500))
    assert np.abs((fine.mean(axis=0) - data.mean()) / np.sqrt(np.diag(cov) / N)).max() < 4.0
    size = np.sqrt(np.outer(np.diag(cov), np.diag(cov)))
    assert np.abs((np.cov(fine.T) - cov) / size).max() < 0.05
    # Error of 2 fine - coarse: at most sqrt(2) per product of normals, times sqrt(5).
    assert np.abs((2.0 * np.cov(fine.T) - np.cov(coarse.T) - cov) / size).max() < 4.0 * np.sqrt(10.0 / N)


@pytest.mark.parametrize("noise", PAPER_NOISES, ids=lambda noise: noise.name)
@pytest.mark.parametrize("data", [PLANE, TILTED], ids=["isotropic", "full"])
def test_the_flow_forth_and_back_returns_the_start(data: td.Density, noise: td.Schedule) -> None:
    system, x = td.Diffusion(data, noise), data.sample(500, rng=8)
    forth = td.probability_flow(system, x, steps=1500, times=[0.01, 0.9], denoise=False)
    back = td.probability_flow(system, forth.final, steps=1500, times=[0.9, 0.01], denoise=False)
    assert np.abs(forth.final - x).max() > 0.5
    np.testing.assert_allclose(back.final, x, rtol=0.0, atol=1e-6)


def test_denoising_is_the_posterior_mean() -> None:
    """E[x_0 | x] = (x + sigma^2 s) / alpha, on the state that is returned without it."""
    system = td.Diffusion(PLANE, td.VP())
    keywords = {"steps": 50, "lam": (-8.0, 2.0), "rng": 9}
    plain, denoised = (td.reverse(system, 400, denoise=flag, **keywords) for flag in (False, True))
    assert (plain.denoised, denoised.denoised) == (False, True)
    np.testing.assert_array_equal(plain.states[0], denoised.states[0])
    row = system.noise.at(2.0)
    alpha, sigma = float(row.alpha), float(row.sigma)
    expected = (plain.final + sigma**2 * PLANE.score(plain.final, alpha=alpha, sigma=sigma)) / alpha
    np.testing.assert_allclose(denoised.final, expected, rtol=1e-12, atol=1e-12)


def test_denoised_samples_of_a_cloud_are_its_points() -> None:
    final = td.reverse(td.Diffusion(CLOUD, td.VP()), 2000, steps=200, rng=10).final
    distance = np.abs(final - CLOUD.points[:, 0]).min(axis=1)
    assert distance.max() < 1e-6
    counts = np.bincount(np.abs(final - CLOUD.points[:, 0]).argmin(axis=1), minlength=6)
    assert abs(np.sum((counts - 2000 / 6) ** 2 / (2000 / 6)) - 5.0) < 4.0 * np.sqrt(10.0)


def test_the_flow_is_denoised_only_at_the_data_end() -> None:
    system, x = td.Diffusion(PLANE, td.VP()), np.zeros((3, 2))
    assert td.probability_flow(system, x, steps=20).denoised
    assert not td.probability_flow(system, x, steps=20, times=[1.0, 0.5]).denoised
    assert not td.probability_flow(system, x, steps=20, times=[0.0, 0.5]).denoised


@pytest.mark.parametrize("data", [PLANE, TILTED, CLOUD], ids=["isotropic", "full", "cloud"])
@pytest.mark.parametrize("what", ["reverse", "probability_flow"])
def test_the_same_bits_for_any_executor_and_chunk(data: td.Density, what: str) -> None:
    system, n = td.Diffusion(data, td.VP()), 3000

    def states(**keywords) -> np.ndarray:
        return getattr(td, what)(system, n, steps=12, times=[1.0, 0.3, 0.05], rng=11, **keywords).states

    reference = states()
    for workers in (1, 2, 3):
        with ThreadPoolExecutor(workers) as executor:
            np.testing.assert_array_equal(states(executor=executor), reference)
    for chunk in (1, 3, 100):
        np.testing.assert_array_equal(states(chunk=chunk), reference)


@pytest.mark.slow
def test_the_same_bits_from_processes() -> None:
    system = td.Diffusion(TILTED, td.VP())
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as executor:
        for what in (td.reverse, td.probability_flow):
            one, two = (what(system, 1000, steps=5, rng=12, executor=pool) for pool in (None, executor))
            np.testing.assert_array_equal(one.states, two.states)
        one, two = (td.account(system, nodes=4, samples=600, rng=12, executor=pool) for pool in (None, executor))
        np.testing.assert_array_equal(one.samples["total"], two.samples["total"])


@pytest.mark.parametrize("what", ["reverse", "probability_flow"])
def test_a_longer_ensemble_begins_with_the_shorter_one(what: str) -> None:
    system = td.Diffusion(PLANE, td.VP())
    few, many = (getattr(td, what)(system, n, steps=5, rng=13).states for n in (300, 700))
    np.testing.assert_array_equal(many[:, :300], few)


def test_the_rng_fixes_the_paths() -> None:
    system = td.Diffusion(PLANE, td.VP())
    one, same, other = (td.reverse(system, 300, steps=5, rng=rng).final for rng in (14, np.random.SeedSequence(14), 15))
    np.testing.assert_array_equal(one, same)
    assert not np.any(one == other)


def test_steps_are_shared_by_the_intervals() -> None:
    """With more asked times the same window takes about the same number of steps, and the flow does not change."""
    system, x = td.Diffusion(PLANE, td.VP()), PLANE.sample(50, rng=16)
    one = td.probability_flow(system, x, steps=800, times=[0.05, 0.8])
    many = td.probability_flow(system, x, steps=800, times=[0.05, 0.2, 0.4, 0.8])
    np.testing.assert_allclose(many.final, one.final, rtol=0.0, atol=1e-8)


def test_a_path_that_blows_up_is_reported() -> None:
    x = np.zeros((5, 2))
    x[3] = 1e308
    with pytest.raises(DivergenceError, match=r"1 of 5 paths left the finite numbers by t = .*; take more steps"):
        td.probability_flow(td.Diffusion(PLANE, td.VP()), x, steps=4, method="euler", times=[1.0, 0.5])


@pytest.mark.parametrize("noise", [*PAPER_NOISES, td.VE(), td.CondOT()], ids=lambda noise: noise.name)
def test_adaptive_steps_carry_a_gaussian_as_its_mean_and_width(noise: td.Schedule) -> None:
    system, times = td.Diffusion(td.Gaussian([1.5], std=0.5), noise), [0.9, 0.6, 0.3, 0.05, 0.01]
    x = np.linspace(-2.0, 3.0, 11)[:, None]
    ends = [(float(noise.alpha(t)), float(noise.sigma(t))) for t in times]
    for rtol in (1e-4, 1e-7, 1e-10):
        path = td.probability_flow(system, x, method="dopri5", rtol=rtol, atol=rtol, times=times)
        exact = np.stack([flow_position(x, 1.5, 0.5, ends[0], there) for there in ends])
        assert np.max(np.abs(path.states - exact) / (1.0 + np.abs(exact))) < 10.0 * rtol
        np.testing.assert_allclose(path.times, times, rtol=1e-12)


def test_adaptive_steps_agree_with_an_integration_in_time() -> None:
    """SciPy's DOP853 in t, with the score in plain NumPy."""
    from scipy.integrate import solve_ivp

    noise, part = td.VP(), TILTED.parts()
    covs = np.einsum("kj,kja,kjb->kab", part.variances, part.axes, part.axes)
    x, times = TILTED.sample(20, rng=17), [0.9, 0.5, 0.1, 0.02]

    def velocity(t: float, state: np.ndarray) -> np.ndarray:
        y = state.reshape(x.shape)
        score = mixture_oracle(y, part.weights, part.means, covs, float(noise.alpha(t)), float(noise.sigma(t))).score
        return (float(noise.drift_rate(t)) * y - float(noise.diffusivity(t)) * score).ravel()

    states = [x.ravel()]
    for span in zip(times[:-1], times[1:], strict=True):
        states.append(solve_ivp(velocity, span, states[-1], method="DOP853", rtol=1e-12, atol=1e-13).y[:, -1])
    reference = np.reshape(states, (4, *x.shape))
    for rtol, bound in ((1e-3, 2e-2), (1e-6, 1e-5), (1e-9, 5e-9), (1e-11, 5e-11)):
        path = td.probability_flow(td.Diffusion(TILTED, noise), x, method="dopri5", rtol=rtol, atol=rtol, times=times)
        assert np.abs(path.states - reference).max() < bound


def test_adaptive_steps_forth_and_back_return_the_start() -> None:
    system, x = td.Diffusion(TILTED, td.VP(scale=0.1)), TILTED.sample(500, rng=18)
    keywords = {"method": "dopri5", "rtol": 1e-11, "atol": 1e-11, "denoise": False}
    forth = td.probability_flow(system, x, times=[0.0, 0.5, 1.0], **keywords)
    back = td.probability_flow(system, forth.final, times=[1.0, 0.5, 0.0], **keywords)
    assert np.abs(forth.final - x).max() > 0.5
    np.testing.assert_allclose(back.states[::-1], forth.states, rtol=0.0, atol=2e-8)


def test_adaptive_steps_end_in_the_data() -> None:
    path = td.probability_flow(td.Diffusion(TILTED, td.VP()), N, method="dopri5", rng=19)
    assert path.denoised
    require_law(path.final, TILTED)


def test_default_tolerances_are_those_of_the_documentation() -> None:
    system, x = td.Diffusion(PLANE, td.VP()), PLANE.sample(20, rng=20)
    one = td.probability_flow(system, x, method="dopri5", times=[0.1, 0.9])
    two = td.probability_flow(system, x, method="dopri5", times=[0.1, 0.9], rtol=1e-6, atol=1e-8)
    np.testing.assert_array_equal(one.states, two.states)


@pytest.mark.parametrize("data", [PLANE, TILTED, CLOUD], ids=["isotropic", "full", "cloud"])
def test_the_same_bits_of_adaptive_steps(data: td.Density) -> None:
    system, n = td.Diffusion(data, td.VP()), 1100

    def states(**keywords) -> np.ndarray:
        return td.probability_flow(system, n, method="dopri5", times=[1.0, 0.3, 0.05], rng=21, **keywords).states

    reference = states()
    for workers in (1, 2, 3):
        with ThreadPoolExecutor(workers) as executor:
            np.testing.assert_array_equal(states(executor=executor), reference)
    for chunk in (1, 2, 100):
        np.testing.assert_array_equal(states(chunk=chunk), reference)


SYSTEM = td.Diffusion(PLANE, td.VP())
X = np.zeros((4, 2))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: td.reverse(PLANE, 10), TypeError, "reverse: it needs a Diffusion, got GaussianMixture"),
        (lambda: td.reverse(SYSTEM, 0), ValueError, "n must be at least 1"),
        (lambda: td.reverse(SYSTEM, 10.0), TypeError, "n must be an integer"),
        (lambda: td.reverse(SYSTEM, 10, steps=0), ValueError, "steps must be at least 1"),
        (lambda: td.reverse(SYSTEM, 10, method="rk4"), ValueError, "method='rk4' is unknown; choose one of 'heun', 'euler'"),
        (lambda: td.reverse(SYSTEM, 10, start="data"), ValueError, "start='data' is unknown; choose one of 'marginal'"),
        (lambda: td.reverse(SYSTEM, 10, rng="x"), TypeError, "rng must be"),
        (lambda: td.reverse(SYSTEM, 10, chunk=0), ValueError, "chunk must be at least 1"),
        (lambda: td.reverse(SYSTEM, 10, times=[0.0, 1.0]), ValueError, "times must descend .* reverse them"),
        (lambda: td.reverse(SYSTEM, 10, times=[1.0, 1.0]), ValueError, "at least two strictly monotone numbers"),
        (lambda: td.reverse(SYSTEM, 10, times=[1.0]), ValueError, "at least two strictly monotone numbers"),
        (lambda: td.reverse(SYSTEM, 10, times=[1.5, 0.0]), ValueError, r"times must lie in \[0, 1\]"),
        (lambda: td.reverse(SYSTEM, 10, lam=(3.0, -3.0)), ValueError, "lam must increase"),
        (lambda: td.reverse(SYSTEM, 10, times=[1.0, 0.9], lam=(0.0, 4.0)), ValueError, "fall together at the edge"),
        (
            lambda: td.reverse(td.Diffusion(PLANE, td.VE()), 10, start="equilibrium"),
            ValueError,
            'VE has no equilibrium; use start="marginal"',
        ),
        (lambda: td.probability_flow(LINE, X), TypeError, "probability_flow: it needs a Diffusion"),
        (lambda: td.probability_flow(SYSTEM, np.zeros((4, 3))), ValueError, r"x must have shape \(n, 2\), got \(4, 3\)"),
        (lambda: td.probability_flow(SYSTEM, np.zeros((0, 2))), ValueError, "x is empty"),
        (lambda: td.probability_flow(SYSTEM, np.zeros(2)), ValueError, r"x must have shape \(n, d\)"),
        (lambda: td.probability_flow(SYSTEM, X * np.nan), ValueError, "x holds 8 values that are nan"),
        (lambda: td.probability_flow(SYSTEM, 0), ValueError, "n must be at least 1"),
        (lambda: td.probability_flow(SYSTEM, X, method="dopri"), ValueError, "method='dopri' is unknown"),
        (lambda: td.probability_flow(SYSTEM, X, times=[0.5, 0.7, 0.6]), ValueError, "strictly monotone"),
        (lambda: td.probability_flow(SYSTEM, X, steps=0), ValueError, "steps must be at least 1"),
        (
            lambda: td.probability_flow(SYSTEM, X, method="dopri5", steps=500),
            ValueError,
            'steps=500 with method="dopri5", whose steps follow from the error; pass rtol= and atol=',
        ),
        (
            lambda: td.probability_flow(SYSTEM, X, rtol=1e-6),
            ValueError,
            "rtol=1e-06 with method='rk4', whose steps are fixed; pass steps=, or method=\"dopri5\"",
        ),
        (
            lambda: td.probability_flow(SYSTEM, X, method="heun", rtol=1e-6, atol=1e-8),
            ValueError,
            "rtol=1e-06 and atol=1e-08 with method='heun'",
        ),
    ],
)
def test_refusals(call, error, message: str) -> None:
    with pytest.raises(error, match=message):
        call()
