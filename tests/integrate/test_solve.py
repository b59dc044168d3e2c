from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy import stats

import thermodiff as td

N = 100_000
ISOTROPIC = td.GaussianMixture([[-2, 0], [2, 0], [0, 2]], stds=[0.3, 0.5, 0.2], weights=[0.4, 0.5, 0.1])
FULL = td.GaussianMixture([[-1, 0], [1, 1]], covs=[[[0.5, 0.2], [0.2, 0.3]], [[0.2, -0.1], [-0.1, 0.4]]])


def law_z_scores(x, data):
    """z-scores of the means and of all second moments."""
    centred = x - data.mean()
    products = np.stack([centred[:, 0] ** 2, centred[:, 1] ** 2, centred[:, 0] * centred[:, 1]])
    covariance = data.covariance()
    truth = np.array([covariance[0, 0], covariance[1, 1], covariance[0, 1]])
    second = (products.mean(axis=1) - truth) / (products.std(axis=1) / np.sqrt(len(x)))
    return np.concatenate([centred.mean(axis=0) / (centred.std(axis=0) / np.sqrt(len(x))), second])


@pytest.mark.parametrize("data", [ISOTROPIC, FULL], ids=["isotropic", "full"])
@pytest.mark.parametrize("noise", [td.VP(), td.VP(scale=0.1), td.StraightLine(scale=0.1)], ids=lambda noise: noise.name)
@pytest.mark.parametrize("solve", [td.reverse, td.probability_flow])
def test_both_return_the_data_law(solve, noise, data):
    x = solve(td.Diffusion(data, noise), N, rng=3).final
    assert np.abs(law_z_scores(x, data)).max() < 4
    reference = data.sample(400_000, rng=11)
    for coordinate in range(2):
        assert stats.ks_2samp(x[:, coordinate], reference[:, coordinate]).pvalue > 1e-4


def gaussian_flow(system, x, low, high):
    """Closed form for one Gaussian: the standardised coordinate is kept."""
    row = system.noise.at(np.array([low, high]))
    spread = np.sqrt(row.alpha**2 * 0.25 + row.sigma**2)
    return row.alpha[1] * 1.5 + spread[1] / spread[0] * (x - row.alpha[0] * 1.5)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2), ("rk4", 4)])
def test_flow_has_the_order_of_its_rule(method, order):
    system = td.Diffusion(td.Gaussian([1.5], std=0.5), td.VP())
    x = np.linspace(-2, 2, 9)[:, None]
    window = (-6.0, 8.0)
    truth = gaussian_flow(system, x, *window)
    errors = [
        np.abs(td.probability_flow(system, x, lam=window, steps=k, method=method, denoise=False).final - truth).max()
        for k in (40, 80, 160)
    ]
    slopes = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.abs(slopes - order).max() < 0.15, (errors, slopes)


def test_reverse_by_heun_is_unbiased_where_euler_is_visibly_not():
    data = td.Gaussian([0.0, 0.0], std=0.5)
    z = {}
    for method in ("euler", "heun"):
        x = td.reverse(td.Diffusion(data, td.VP()), N, steps=60, method=method, rng=5).final
        z[method] = np.abs(law_z_scores(x, data)[2:4]).max()
    assert z["heun"] < 4 < z["euler"]


def test_flow_there_and_back_returns_the_start():
    system = td.Diffusion(ISOTROPIC, td.VP())
    x = ISOTROPIC.sample(500, rng=0)
    noise = td.probability_flow(system, x, times=[0.01, 1.0], steps=2000).final
    back = td.probability_flow(system, noise, times=[1.0, 0.01], steps=2000).final
    assert np.abs(back - x).max() < 1e-6


@pytest.mark.parametrize("solve", [td.reverse, td.probability_flow])
@pytest.mark.parametrize(
    "data", [ISOTROPIC, td.PointCloud(ISOTROPIC.sample(50, rng=1))], ids=["mixture", "cloud"]
)
def test_same_bits_for_any_workers_and_chunk(solve, data):
    system = td.Diffusion(data, td.VP())
    reference = solve(system, 2000, steps=20, rng=2).states
    for workers in (1, 2, 3):
        with ThreadPoolExecutor(workers) as pool:
            for chunk in (1, 3, 100):
                assert np.array_equal(solve(system, 2000, steps=20, rng=2, executor=pool, chunk=chunk).states, reference)


def test_a_path_does_not_depend_on_the_number_of_paths():
    system = td.Diffusion(ISOTROPIC, td.VP())
    few, many = (td.reverse(system, n, steps=20, rng=2).states for n in (100, 1000))
    assert np.array_equal(few, many[:, :100])


def test_reverse_of_a_cloud_ends_at_its_points():
    points = ISOTROPIC.sample(20, rng=4)
    x = td.reverse(td.Diffusion(td.PointCloud(points), td.VP()), 500, rng=1).final
    distances = np.linalg.norm(x[:, None] - points, axis=-1).min(axis=1)
    assert np.median(distances) < 1e-6


def test_times_are_kept_and_denoising_can_be_switched_off():
    system = td.Diffusion(ISOTROPIC, td.VP())
    path = td.reverse(system, 300, times=[1.0, 0.5, 0.1], steps=50, rng=0, denoise=False)
    assert np.allclose(path.times, [1.0, 0.5, 0.1])
    assert path.states.shape == (3, 300, 2)
    assert not path.denoised


def test_equilibrium_start_has_the_equilibrium_law():
    path = td.reverse(td.Diffusion(ISOTROPIC, td.VP(scale=0.1)), 20_000, steps=2, start="equilibrium", rng=0)
    assert stats.kstest(path.states[0].ravel() / 0.1, "norm").pvalue > 1e-4


def test_divergence_names_time_and_number_of_paths():
    system = td.Diffusion(ISOTROPIC, td.VP())
    with pytest.raises(td.DivergenceError, match="1 of 3 paths left the finite numbers"):
        td.probability_flow(system, np.array([[0.0, 0.0], [1.0, 1.0], [1e308, 1e308]]), times=[0.5, 0.2], steps=5)


SYSTEM = td.Diffusion(ISOTROPIC, td.VP())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: td.reverse(SYSTEM, 0), "n must be at least 1"),
        (lambda: td.reverse(SYSTEM, 10, steps=0), "steps must be at least 1"),
        (lambda: td.reverse(SYSTEM, 10, method="rk4"), "method='rk4' is unknown"),
        (lambda: td.reverse(SYSTEM, 10, start="anywhere"), "start='anywhere' is unknown"),
        (lambda: td.reverse(SYSTEM, 10, times=[0.1, 1.0]), "must descend"),
        (lambda: td.reverse(SYSTEM, 10, times=[1.0]), "strictly monotone"),
        (lambda: td.reverse(SYSTEM, 10, times=[2.0, 0.0]), "must lie in"),
        (lambda: td.reverse(SYSTEM, 10, lam=(3.0, -3.0)), "must increase"),
        (lambda: td.probability_flow(SYSTEM, np.zeros((4, 3))), r"\(n, 2\)"),
        (lambda: td.probability_flow(SYSTEM, np.zeros((0, 2))), "empty"),
        (lambda: td.probability_flow(SYSTEM, np.full((4, 2), np.nan)), "nan or infinite"),
        (lambda: td.reverse(td.Diffusion(ISOTROPIC, td.VE()), 10, start="equilibrium"), "has no equilibrium"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_it_needs_a_diffusion():
    with pytest.raises(TypeError, match="needs a Diffusion"):
        td.reverse(ISOTROPIC, 10)  # type: ignore[arg-type]
