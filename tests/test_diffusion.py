"""Diffusion: marginals, velocity, window; the oracle against closed forms, without any use of the score."""

import numpy as np
import pytest
from systems import CLOUD, LINE, PLANE, TILTED, exact_rows
from truths import (
    ALPHA_VP_END,
    BIMODAL_TOTALS,
    GAUSSIAN3,
    GAUSSIAN_TOTALS,
    START,
    flow_position,
    gaussian_kl,
    mixture_total,
)  # fmt: skip

import thermodiff as td
from thermodiff import VP, PointCloud
from thermodiff.densities import Samples
from thermodiff.diffusion import Diffusion, medium_integral, noise_kl

DATA_END = 45.0
"""Log-SNR above which nothing is left of the totals below, in double precision."""


def low_edge(noise: td.Schedule, end: float) -> float:
    return noise.window(times=(0.0, end))[0]


@pytest.mark.parametrize(("name", "parameters", "end", "truth"), GAUSSIAN_TOTALS)
def test_oracle_of_a_gaussian(name: str, parameters: dict, end: float, truth: float) -> None:
    noise = getattr(td, name)(**parameters)
    found = td.oracle(Diffusion(td.Gaussian([START[0]], std=np.sqrt(START[1])), noise), lam=(low_edge(noise, end), DATA_END))
    assert found.value == pytest.approx(truth, rel=1e-10)
    assert found.error == 0.0


@pytest.mark.parametrize(("mixture", "name", "parameters", "end", "truth"), BIMODAL_TOTALS)
def test_oracle_of_the_bimodal_mixtures(mixture, name: str, parameters: dict, end: float, truth: float) -> None:
    noise = getattr(td, name)(**parameters)
    found = td.oracle(Diffusion(td.GaussianMixture(**mixture.columns), noise), lam=(low_edge(noise, end), DATA_END))
    assert found.value == pytest.approx(truth, rel=1e-8)
    assert found.error < 1e-8


def test_oracle_of_a_gaussian_in_three_dimensions() -> None:
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    cov = rotation @ np.diag(GAUSSIAN3["variances"]) @ rotation.T
    noise = td.VP()
    found = td.oracle(
        Diffusion(td.Gaussian(rotation @ GAUSSIAN3["mean"], cov=cov), noise), lam=(low_edge(noise, 1.0), DATA_END)
    )
    assert found.value == pytest.approx(GAUSSIAN3["total"], rel=1e-10)
    assert gaussian_kl(GAUSSIAN3["mean"], GAUSSIAN3["variances"], 1.0) == pytest.approx(GAUSSIAN3["kl"], rel=1e-10)


def test_the_total_does_not_depend_on_the_schedule_of_beta() -> None:
    """Any beta with the same integral; StraightLine where 1 - t = alpha_VP(1) equals VPx at t = 1."""
    data = td.GaussianMixture([[-1.5], [1.0]], stds=[0.3, 0.5], weights=[0.4, 0.6])
    reference = td.oracle(Diffusion(data, td.VP(scale=0.1)), times=(0.0, 1.0)).value
    for noise, end in (
        (td.VP(8.05, 8.05, 0.1), 1.0), (td.VP(16.0, 0.1, 0.1), 1.0), (td.StraightLine(0.1), 1.0 - ALPHA_VP_END),
        (td.Cosine(0.1), 2.0 / np.pi * np.arccos(ALPHA_VP_END)),
    ):  # fmt: skip
        assert td.oracle(Diffusion(data, noise), times=(0.0, end)).value == pytest.approx(reference, rel=1e-9)


@pytest.mark.parametrize(
    "noise", [td.VP(), td.SubVP(), td.CondOT(2.0), td.Cosine(0.5), td.VE()], ids=lambda noise: noise.name
)
def test_medium_in_lam_is_the_integral_in_time(noise: td.Schedule) -> None:
    window = noise.window(times=(0.05, 0.9))
    found = medium_integral(noise, window, PLANE.second_moment, 2)
    assert found == pytest.approx(exact_rows(PLANE, noise, window)["medium"], rel=1e-9, abs=1e-9)


def test_oracle_of_the_paper_mixture_by_quasi_monte_carlo() -> None:
    system = Diffusion(td.paper_mixture(3), td.VP())
    one, two = td.oracle(system, rng=1), td.oracle(system, rng=2)
    assert one != two
    assert one == td.oracle(system, rng=1)
    assert abs(one.deviation(two)) < 4.0
    # Printed: KL(p_d || p_eq) = 1.09796 and KL_T = 3.0e-4, to two digits.
    assert abs(one.value - (1.09796 - 3.0e-4)) < 4.0 * one.error + 1.5e-5


def test_oracle_takes_a_generator() -> None:
    system = Diffusion(td.paper_mixture(3), td.VP())
    assert td.oracle(system, rng=np.random.default_rng(1)) == td.oracle(system, rng=np.random.default_rng(1))


def test_noise_kl_is_the_distance_to_the_equilibrium() -> None:
    system = Diffusion(td.Gaussian([START[0]], std=0.5), td.VP())
    assert noise_kl(system.data, system.noise, float(system.noise.lam(1.0))).value == pytest.approx(
        0.000359003984363, rel=1e-9
    )


def test_noise_kl_without_equilibrium_refers_to_the_width_of_the_noise() -> None:
    noise, data = td.VE(), td.Gaussian([START[0]], std=0.5)
    sigma2 = float(noise.sigma(1.0)) ** 2
    found = noise_kl(data, noise, float(noise.lam(1.0)))
    assert found.value == pytest.approx(gaussian_kl(START[0], START[1] + sigma2, sigma2), rel=1e-6)


@pytest.mark.parametrize("data", [LINE, PLANE, TILTED], ids=["line", "plane", "tilted"])
def test_total_of_vp_is_the_difference_of_two_divergences(data: td.Density) -> None:
    noise = td.VP(scale=0.7)
    window = noise.window()
    ends = []
    for edge in window:
        row = noise.at(edge)
        alpha, sigma = float(row.alpha), float(row.sigma)
        moment = alpha**2 * data.second_moment + sigma**2 * data.dim
        ends.append(mixture_total(data.entropy(alpha=alpha, sigma=sigma).value, moment, data.dim, 0.49))
    assert td.oracle(Diffusion(data, noise)).value == pytest.approx(ends[1] - ends[0], rel=1e-10)


@pytest.mark.parametrize("t", [0.05, 0.5, 0.9])
def test_score_is_the_gradient_and_velocity_the_flow_of_the_marginal(t: float) -> None:
    system = Diffusion(TILTED, td.VP())
    x = np.random.default_rng(0).normal(0, 1.5, (40, 2))
    h = 1e-3
    gradient = np.stack([
        sum(w * system.log_prob(x + k * h * axis, t) for k, w in ((-2, 1.0), (-1, -8.0), (1, 8.0), (2, -1.0))) / (12.0 * h)
        for axis in np.eye(2)
    ], axis=1)  # fmt: skip
    np.testing.assert_allclose(system.score(x, t), gradient, rtol=0.0, atol=1e-7)
    expected = float(system.noise.drift_rate(t)) * x - float(system.noise.diffusivity(t)) * gradient
    np.testing.assert_allclose(system.velocity(x, t), expected, rtol=0.0, atol=1e-6)


def test_the_marginals_obey_the_continuity_equation() -> None:
    """d log p/dt + v.s + div v = 0 at every point, with d/dt by central differences."""
    system, t, h = Diffusion(TILTED, td.VP()), 0.3, 1e-4
    x = np.random.default_rng(1).normal(0, 1.0, (40, 2))
    alpha, sigma = float(system.noise.alpha(t)), float(system.noise.sigma(t))
    s, v = system.score(x, t), system.velocity(x, t)
    divergence = 2.0 * float(system.noise.drift_rate(t)) - float(system.noise.diffusivity(t)) * TILTED.score_divergence(
        x, alpha=alpha, sigma=sigma
    )
    change = sum(w * system.log_prob(x, t + k * h) for k, w in ((-2, 1.0), (-1, -8.0), (1, 8.0), (2, -1.0))) / (12.0 * h)
    np.testing.assert_allclose(change + np.sum(v * s, axis=1) + divergence, 0.0, atol=1e-7)


def test_velocity_carries_a_gaussian_along_its_closed_form() -> None:
    system, t, h = Diffusion(td.Gaussian([1.5], std=0.5), td.VP()), 0.4, 1e-4
    x = np.linspace(-2.0, 2.0, 9)[:, None]

    def kernel(time: float) -> tuple[float, float]:
        return float(system.noise.alpha(time)), float(system.noise.sigma(time))

    ahead, behind = (flow_position(x, 1.5, 0.5, kernel(t), kernel(t + step)) for step in (h, -h))
    np.testing.assert_allclose(system.velocity(x, t), (ahead - behind) / (2.0 * h), rtol=1e-5, atol=1e-6)


def test_about_names_data_schedule_and_parameters() -> None:
    about = Diffusion(PLANE, td.VP(scale=0.1)).about
    assert about["data"] == PLANE.label
    assert about["schedule"] == "VP(scale=0.1)"
    assert about["score"] == "exact"
    assert about["dim"] == 2
    assert about["noise"] == td.VP(scale=0.1).to_dict()


def test_window_needs_to_be_stated_where_the_entropy_diverges() -> None:
    for system in (Diffusion(CLOUD, td.VP()), Diffusion(LINE, td.SubVP()), Diffusion(LINE, td.CondOT())):
        for keywords in ({}, {"times": (0.0, 0.5)}):
            with pytest.raises(ValueError, match=r"state the window, e\.g\. lam=\(-8, 8\) or times="):
                system.window(**keywords)
            with pytest.raises(ValueError, match="state the window"):
                td.oracle(system, **keywords)
        assert system.window(lam=(-3.0, 3.0)) == (-3.0, 3.0)
        assert system.window(times=(0.1, 0.5))[1] == float(system.noise.lam(0.1))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Diffusion(td.Samples([[0.0], [1.0]]), td.VP()), TypeError, "Samples have no score; use PointCloud"),
        (lambda: Diffusion(np.zeros((3, 2)), td.VP()), TypeError, "data must be a density .*got ndarray"),
        (lambda: Diffusion(LINE, "VP"), TypeError, "noise must be a schedule .*got str"),
        (lambda: Diffusion(LINE, td.VP), TypeError, "noise must be a schedule"),
        (lambda: td.oracle(LINE), TypeError, "oracle: it needs a Diffusion .*got GaussianMixture"),
        (lambda: Diffusion(PLANE, td.VP()).score(np.zeros((3, 1)), 0.5), ValueError, r"x must have shape \(n, 2\)"),
    ],
)
def test_refusals(call, error, message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_window_in_which_rounding_hides_the_points_is_refused() -> None:
    system = Diffusion(PointCloud([[0.0, 1.0], [2.0, -1.0]]), VP())
    assert system.window(lam=(-8.0, 30.0)) == (-8.0, 30.0)
    with pytest.raises(
        ValueError, match="at lam = 100 the noise is below 1e-09 of the size of the points.* end the window at lam = 40"
    ):
        td.account(system, lam=(-8.0, 100.0), samples=100)


def test_a_diffusion_says_what_it_is() -> None:
    system = Diffusion(td.GaussianMixture([[0.0], [1.0]], stds=[1.0, 1.0]), td.VP())
    assert repr(system).startswith("Diffusion(<GaussianMixture: 2 components in d = 1, isotropic>, VP(")
    assert repr(td.PointCloud([[0.0], [1.0]])) == "<PointCloud: 2 points in d = 1>"
    assert repr(Samples([[0.0], [1.0]])) == "<Samples: 2 points in d = 1>"


@pytest.mark.parametrize("noise", [td.VP(), td.VP(8.0, 4.0), td.SubVP(), td.VE(sigma_max=5.0)], ids=lambda noise: noise.name)
def test_windows_beyond_the_end_of_a_schedule_are_of_a_process_that_goes_on(noise: td.Schedule) -> None:
    low = float(noise.lam(noise.t_end)) - 1.5
    ledger = td.account(Diffusion(td.GaussianMixture([[-1.5], [1.0]], stds=[0.3, 0.5]), noise), lam=(low, 4.0), rng=1)
    assert ledger.times.max() > noise.t_end
    assert (noise.diffusivity(ledger.times) > 0.0).all()
    np.testing.assert_allclose(noise.lam(ledger.times), ledger.lam, rtol=1e-12)
    total = ledger.total("total")
    assert abs(total.value - ledger.oracle.value) < 4.0 * np.hypot(total.error, ledger.oracle.error)
